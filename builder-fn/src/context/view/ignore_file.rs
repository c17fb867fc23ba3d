//! Validation of `.dockerignore` files, and their patterns that exclude a path, with the rules of
//! `github.com/moby/patternmatcher/ignorefile`.

use super::effort::MatchingEffort;
use super::glob;
use super::patterns::Pattern;

/// The limit on the effort of finding the pattern that excludes a path, in bytes of compared paths.
const EXCLUDING_EFFORT_MAX_BYTES: usize = 1 << 20;

/// A malformed pattern in an ignore file, and its line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PatternProblem {
    /// The number of the pattern's line, from 1 on.
    pub(crate) line: usize,
    /// The malformed pattern, as BuildKit sends it to its clients.
    pub(crate) pattern: String,
    /// The reason why the pattern is malformed.
    pub(crate) reason: &'static str,
}

/// Finds the malformed patterns in the content of an ignore file.
///
/// BuildKit's clients reject some of them, and do not notice others, or only when they try them.
pub(crate) fn pattern_problems(content: &[u8]) -> impl Iterator<Item = PatternProblem> {
    line_numbers_and_pattern_texts(content).filter_map(|(line, pattern)| {
        let reason = match Pattern::parse_deferring_some_errors_until_tried(&pattern) {
            Ok(parsed) => parsed.problem()?,
            Err(error) => error.reason,
        };
        Some(PatternProblem {
            line,
            pattern,
            reason,
        })
    })
}

/// Returns the patterns in the content of an ignore file, as BuildKit sends them to its clients, with the numbers of
/// their lines.
pub(super) fn line_numbers_and_pattern_texts(content: &[u8]) -> impl Iterator<Item = (usize, String)> {
    let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
    let lines = (1..).zip(content.split(|byte| *byte == b'\n'));
    lines.filter_map(|(line, text)| Some((line, pattern_text_in_line(&String::from_utf8_lossy(text))?)))
}

/// The limit on the patterns of an ignore file that are tried for [`excluding_pattern_if_found`].
const TRIED_PATTERNS_MAX: usize = 2_000;

/// The limit on the length of the patterns with wildcards that are tried for [`excluding_pattern_if_found`], in bytes:
/// each is compiled.
const TRIED_WILDCARDS_MAX_BYTES: usize = 2 << 10;

/// Returns the line and the text of the pattern in an ignore file that excludes `path` or a folder above it; `None` if
/// none does, a pattern is malformed, or there are too many patterns to find out.
///
/// The last pattern that matches decides, so the search goes from the end.
pub fn excluding_pattern_if_found(content: &[u8], path: &str) -> Option<(usize, String)> {
    let mut patterns: Vec<_> = line_numbers_and_pattern_texts(content)
        .take(TRIED_PATTERNS_MAX + 1)
        .collect();
    if patterns.len() > TRIED_PATTERNS_MAX || path.len() > 4096 {
        return None;
    }
    let mut effort = MatchingEffort::new(
        EXCLUDING_EFFORT_MAX_BYTES,
        "the patterns are too many or too complex",
        &|| true,
    );
    let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
    let paths: Vec<&str> = ends.filter_map(|end| path.get(..end)).collect();
    let mut compiled_bytes = 0;
    while let Some((line, text)) = patterns.pop() {
        if text.contains(['*', '?', '[', '\\']) {
            compiled_bytes += text.len();
            if compiled_bytes > TRIED_WILDCARDS_MAX_BYTES {
                return None;
            }
        }
        let pattern = Pattern::parse_deferring_some_errors_until_tried(&text).ok()?;
        for path in &paths {
            if pattern.matches(path, &mut effort).ok()? {
                return (!pattern.is_exception()).then_some((line, text));
            }
        }
    }
    None
}

/// Parses the pattern in a line of an ignore file; `None` for a blank line or a comment.
fn pattern_text_in_line(line: &str) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let text = line.trim();
    let (sign, text) = match text.strip_prefix('!') {
        Some(rest) => ("!", rest.trim()),
        None => ("", text),
    };
    if text.is_empty() {
        return (!sign.is_empty()).then(|| sign.to_owned());
    }
    let cleaned = glob::clean_path(text);
    let relative = cleaned.strip_prefix('/').filter(|rest| !rest.is_empty());
    Some(format!("{sign}{}", relative.unwrap_or(&cleaned)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_that_excludes_a_path_is_the_last_that_matches_it_or_a_folder_above_it() {
        let content = b"# a\n*\n!src\nsrc/*.log\n!src/keep.log\n/target/\n";
        for (path, expected) in [
            ("Cargo.lock", Some((2, "*"))),
            ("src/main.rs", None),
            ("src/a.log", Some((4, "src/*.log"))),
            ("src/keep.log", None),
            ("target/debug/a", Some((6, "target"))),
        ] {
            let found = excluding_pattern_if_found(content, path);
            assert_eq!(
                found,
                expected.map(|(line, text)| (line, text.to_owned())),
                "{path}"
            );
        }
        assert_eq!(excluding_pattern_if_found(b"[z-a]\n", "z"), None);
        assert_eq!(
            excluding_pattern_if_found("*a*b\n".repeat(2_000).as_bytes(), "ab"),
            Some((2_000, "*a*b".to_owned()))
        );
        assert_eq!(
            excluding_pattern_if_found("*a*b\n".repeat(2_001).as_bytes(), "c"),
            None
        );
    }

    #[test]
    fn malformed_patterns_are_found_with_their_lines() {
        let content = b"\xef\xbb\xbf# [\n\n*.md\r\n ![z-a]\n!\na*/b\\\n/a[\nx\\\\\n[a]\n";
        let found: Vec<_> = pattern_problems(content)
            .map(|problem| (problem.line, problem.pattern))
            .collect();
        let expected = [(4, "![z-a]"), (5, "!"), (6, "a*/b\\"), (7, "a[")];
        assert_eq!(found, expected.map(|(line, pattern)| (line, pattern.to_owned())));
    }
}
