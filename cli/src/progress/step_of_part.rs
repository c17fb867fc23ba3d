//! The step that a part of a build in progress belongs to.

/// The beginnings of BuildKit's names for parts of its steps, and the texts that the names of those steps have. The
/// lines of a log name the part and not its step.
const STEPS_OF_PARTS: [(&str, &[&str]); 9] = [
    (
        "transferring context",
        &["load build context", "load .dockerignore"],
    ),
    ("transferring dockerfile", &["load build definition"]),
    ("exporting ", &["exporting to "]),
    ("pushing ", &["exporting to "]),
    ("preparing build cache", &["exporting cache"]),
    ("writing ", &["exporting cache"]),
    ("resolve ", &[" FROM "]),
    ("extracting ", &[" FROM "]),
    ("sha256:", &[" FROM "]),
];

/// Returns the index of the running step that a part such as `exporting layers` or `sha256:…` belongs to: the step of
/// that kind if only one of them runs, or the only step that runs at all. Returns `None` if several steps may have it.
pub(super) fn index_of_only_step_that_may_have_part<'a>(
    running: impl Iterator<Item = &'a str> + Clone,
    part: &str,
) -> Option<usize> {
    let kind = STEPS_OF_PARTS
        .iter()
        .find(|(beginning, _)| part.starts_with(beginning));
    let is_of_kind = |step: &str| kind.is_none_or(|(_, texts)| texts.iter().any(|text| step.contains(text)));
    let mut candidates = running
        .enumerate()
        .filter(|(_, step)| is_of_kind(step))
        .map(|(index, _)| index);
    let first = candidates.next()?;
    candidates.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_belongs_to_the_step_of_its_kind_wherever_that_is_in_the_list() {
        let running = [
            "[internal] load build context",
            "[1/3] FROM r.example/base:1@sha256:ab",
            "[2/3] RUN make",
        ];
        let index = |part| index_of_only_step_that_may_have_part(running.iter().copied(), part);
        assert_eq!(index("transferring context:"), Some(0));
        assert_eq!(index("sha256:cd"), Some(1));
        assert_eq!(index("extracting sha256:cd"), Some(1));
        assert_eq!(index("something new"), None, "it may be any of the steps'");
        assert_eq!(index("exporting layers"), None, "the list does not have its step");
    }

    #[test]
    fn progress_that_two_steps_may_have_is_shown_at_neither() {
        let running = ["[a 1/2] FROM r.example/a:1", "[b 1/2] FROM r.example/b:1"];
        assert_eq!(
            index_of_only_step_that_may_have_part(running.into_iter(), "sha256:cd"),
            None
        );
    }

    #[test]
    fn progress_of_an_unknown_kind_belongs_to_the_only_step() {
        let running = ["[1/1] RUN make"];
        assert_eq!(
            index_of_only_step_that_may_have_part(running.into_iter(), "something new"),
            Some(0)
        );
    }
}
