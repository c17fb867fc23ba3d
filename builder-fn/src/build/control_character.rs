//! Finds the control character because of which BuildKit cannot request a context.
//!
//! BuildKit requests a context with ignore patterns and the sources of `COPY` in headers, which cannot carry a tab or
//! another control character. Its error names the header only.

use crate::buildkit::BuildFailure;
use crate::context::{Kind, SourceContext};
use crate::request::BuildRequest;

/// The number of bytes at the beginning of a file that are searched for a control character.
const SEARCHED_BYTES_MAX: u64 = 1 << 20;

/// The default names of the Dockerfile, in the order in which BuildKit tries them.
const DEFAULT_DOCKERFILES: [&str; 2] = ["Dockerfile", "dockerfile"];

/// Adds the file and the line of the control character to a failure that it caused. Other failures, and those of a
/// fetched context, stay as they are.
pub(super) fn add_control_character_location(failure: BuildFailure, request: &BuildRequest) -> BuildFailure {
    let Some(header) = failure.untransferable_header() else {
        return failure;
    };
    // The files of a context that was fetched are gone by now.
    let Some(context) = request.received_files() else {
        return failure;
    };
    let context = &*context;
    let named = request.config.dockerfile.as_deref();
    let dockerfile = named.or_else(|| {
        DEFAULT_DOCKERFILES
            .into_iter()
            .find(|path| context.get(path).is_some())
    });
    let dockerfile = dockerfile.unwrap_or(DEFAULT_DOCKERFILES[0]);
    let (path, has_control, what): (_, fn(&str) -> bool, _) = match header {
        "exclude-patterns" => (
            ignore_file_path(context, dockerfile),
            has_control_character_in_pattern,
            "a pattern",
        ),
        _ => (
            dockerfile.to_owned(),
            has_control_character_in_copy_source,
            "a source of COPY or ADD",
        ),
    };
    let line = read_beginning_of_file(context, &path).and_then(|text| text.lines().position(has_control));
    let line = line.map_or_else(String::new, |line| format!(":{}", line + 1));
    BuildFailure {
        message: format!(
            "context/{path}{line}: {what} contains a control character such as a tab, which BuildKit cannot transfer; \
             remove it ({})",
            failure.message
        ),
        ..failure
    }
}

/// Returns the path of the ignore file that BuildKit reads: the Dockerfile's own if the context has one, or else
/// `.dockerignore`.
fn ignore_file_path(context: &SourceContext, dockerfile: &str) -> String {
    let own = format!("{dockerfile}.dockerignore");
    match context.get(&own) {
        Some(_) => own,
        None => ".dockerignore".into(),
    }
}

/// Returns whether a line of an ignore file has a control character within its pattern.
fn has_control_character_in_pattern(line: &str) -> bool {
    !line.starts_with('#') && line.trim().contains(char::is_control)
}

/// Returns whether a `COPY` or `ADD` line of a Dockerfile has a control character in a path. In a JSON array, the
/// character may be escaped; elsewhere, whitespace separates paths and does not count.
fn has_control_character_in_copy_source(line: &str) -> bool {
    let Some((instruction, arguments)) = line.trim().split_once(char::is_whitespace) else {
        return false;
    };
    if !["COPY", "ADD"]
        .iter()
        .any(|name| name.eq_ignore_ascii_case(instruction))
    {
        return false;
    }
    let json = arguments.find('[').map(|start| &arguments[start..]);
    match json.and_then(|json| serde_json::from_str::<Vec<String>>(json).ok()) {
        Some(sources) => sources.iter().any(|source| source.contains(char::is_control)),
        None => arguments.contains(|c: char| c.is_control() && !c.is_whitespace()),
    }
}

/// Returns the first [`SEARCHED_BYTES_MAX`] bytes of a file as text; `None` if `path` is not a readable file.
fn read_beginning_of_file(context: &SourceContext, path: &str) -> Option<String> {
    let entry = context.get(path)?;
    let Kind::File { size, .. } = entry.kind else {
        return None;
    };
    let mut content = vec![0; usize::try_from(size.min(SEARCHED_BYTES_MAX)).ok()?];
    context.read_file_exact(entry, 0, &mut content).ok()?;
    Some(String::from_utf8_lossy(&content).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_character_in_an_ignore_file_is_found_only_within_a_pattern() {
        for (line, found) in [
            ("a\tb", true),
            ("!a\u{1}b", true),
            ("\ta b\t", false),
            ("a\r", false),
            ("# a\tb", false),
            ("ä", false),
        ] {
            assert_eq!(has_control_character_in_pattern(line), found, "{line:?}");
        }
    }

    #[test]
    fn a_control_character_in_a_dockerfile_is_found_only_within_a_path_of_copy_or_add() {
        for (line, found) in [
            (r#"COPY ["a\tb", "/"]"#, true),
            (r#"  add --chown=1 ["a\u0001b", "/"]"#, true),
            ("COPY a\u{1}b /", true),
            ("COPY\ta\tb", false),
            (r#"COPY ["a", "/"]"#, false),
            ("RUN echo a\u{1}b", false),
            ("COPY", false),
            ("", false),
        ] {
            assert_eq!(has_control_character_in_copy_source(line), found, "{line:?}");
        }
    }
}
