//! The mask for a build's trace.

use std::collections::BTreeMap;

use super::{MASK_TEXT, MIN_MASKED_BYTES, SecretMask};

/// The number of bytes after which the name of a span is cut, and ends with `…`.
const MAX_SPAN_NAME_BYTES: usize = 200;

/// Masks the values of secrets and of build arguments in a build's trace.
///
/// BuildKit puts the values of build arguments into the names of steps, and traces are read by others than the caller.
/// The build's log goes to the caller only, so build arguments are not masked there.
#[derive(Debug, Default)]
pub(crate) struct TraceMask {
    secrets: SecretMask,
    arguments: SecretMask,
    /// Values of build arguments that are too short to be masked within words: they are masked only as words of
    /// their own.
    short_arguments: Vec<String>,
}

impl TraceMask {
    /// Creates a trace mask for a build with these secrets and build arguments.
    pub(crate) fn new(secrets: SecretMask, arguments: &BTreeMap<String, String>) -> Self {
        let values = arguments.values().map(|value| value.trim());
        Self {
            secrets,
            arguments: SecretMask::new(arguments.values().map(String::as_bytes)),
            short_arguments: values
                .filter(|value| (1..MIN_MASKED_BYTES).contains(&value.len()))
                .map(str::to_owned)
                .collect(),
        }
    }

    /// Masks the values of secrets and build arguments in `text`.
    pub(crate) fn mask_text(&self, text: &str) -> String {
        let text = self.secrets.mask_text(text);
        let text = self.arguments.mask_text(&text);
        self.short_arguments
            .iter()
            .fold(text.into_owned(), |text, word| mask_whole_word(&text, word))
    }

    /// Returns the name of a step as the name of a span: masked, its first line only, and cut after 200 bytes.
    ///
    /// The brackets before it, `[build 4/14]`, say where the step is in the Dockerfile. Short values are not masked
    /// there.
    pub(crate) fn mask_and_cut_step_name(&self, name: &str) -> String {
        let first = name.lines().next().unwrap_or_default();
        let brackets = match first.starts_with('[') {
            true => first.find("] ").map_or(0, |end| end + 2),
            false => 0,
        };
        let (brackets, rest) = first.split_at(brackets);
        let masked = self
            .arguments
            .mask_text(&self.secrets.mask_text(brackets))
            .into_owned();
        let mut name = masked + &self.mask_text(rest);
        if name.len() > MAX_SPAN_NAME_BYTES {
            name.truncate(name.floor_char_boundary(MAX_SPAN_NAME_BYTES));
            name.push('…');
        }
        name
    }
}

/// Masks every occurrence of `word` in `text` that is not part of a longer word.
fn mask_whole_word(text: &str, word: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    let mut from = 0;
    for (at, _) in text.match_indices(word) {
        let (before, after) = (&text[..at], &text[at + word.len()..]);
        let is_whole = !before.ends_with(char::is_alphanumeric) && !after.starts_with(char::is_alphanumeric);
        if is_whole {
            masked.push_str(&text[from..at]);
            masked.push_str(MASK_TEXT);
            from = at + word.len();
        }
    }
    masked.push_str(&text[from..]);
    masked
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example_trace_mask() -> TraceMask {
        let secrets: [&[u8]; 1] = [b"hunter2"];
        let arguments = [
            ("TOKEN", "s3cr3t-value"),
            ("JOBS", "4"),
            ("BASE", "registry:5000/rust:1"),
            ("EMPTY", ""),
            ("LINES", "one line\nanother"),
        ];
        let arguments = arguments.map(|(name, value)| (name.to_owned(), value.to_owned()));
        TraceMask::new(SecretMask::new(secrets), &arguments.into())
    }

    #[test]
    fn step_names_show_the_instruction_and_mask_its_values() {
        let mask = example_trace_mask();
        for (name, masked) in [
            (
                "[build 4/14] RUN make -j4 -l 4",
                "[build 4/14] RUN make -j4 -l ***",
            ),
            ("[1/2] RUN curl -H s3cr3t-value x", "[1/2] RUN curl -H *** x"),
            ("[1/2] RUN echo hunter2", "[1/2] RUN echo ***"),
            ("[1/2] FROM registry:5000/rust:1", "[1/2] FROM ***"),
            (
                "[internal] load build definition from Dockerfile",
                "[internal] load build definition from Dockerfile",
            ),
            ("exporting to image", "exporting to image"),
            ("[2/2] RUN <<EOF\necho content\nEOF", "[2/2] RUN <<EOF"),
            ("[2/2] RUN echo one line", "[2/2] RUN echo ***"),
            ("[s3cr3t-value 1/2] RUN x", "[*** 1/2] RUN x"),
            ("", ""),
        ] {
            assert_eq!(mask.mask_and_cut_step_name(name), masked);
        }
    }

    #[test]
    fn long_step_names_are_cut_after_200_bytes() {
        let name = example_trace_mask().mask_and_cut_step_name(&format!("[1/2] RUN {}", "ü".repeat(500)));
        assert!(name.len() <= MAX_SPAN_NAME_BYTES + '…'.len_utf8(), "{name}");
    }

    #[test]
    fn a_secret_across_the_end_of_a_cut_name_is_masked_before_the_cut() {
        let filler = "x".repeat(MAX_SPAN_NAME_BYTES - 13);
        let name = example_trace_mask().mask_and_cut_step_name(&format!("[1/2] RUN {filler} hunter2"));
        assert!(!name.contains("hunt"), "{name}");
    }

    #[test]
    fn a_mask_without_values_changes_nothing() {
        assert_eq!(TraceMask::default().mask_text("hunter2 4"), "hunter2 4");
    }
}
