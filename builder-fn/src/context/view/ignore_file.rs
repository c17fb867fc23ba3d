//! Validation of `.dockerignore` files, with the rules of `github.com/moby/patternmatcher/ignorefile`.

use super::glob;
use super::patterns::Pattern;

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
    pattern_texts(content).filter_map(|(line, pattern)| {
        let reason = match Pattern::parse(&pattern) {
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

/// Returns the patterns in the content of an ignore file, as BuildKit sends them to its clients, with the numbers of their
/// lines.
pub(super) fn pattern_texts(content: &[u8]) -> impl Iterator<Item = (usize, String)> {
    let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
    let lines = (1..).zip(content.split(|byte| *byte == b'\n'));
    lines.filter_map(|(line, text)| Some((line, pattern_text_in_line(&String::from_utf8_lossy(text))?)))
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
    fn malformed_patterns_are_found_with_their_lines() {
        let content = b"\xef\xbb\xbf# [\n\n*.md\r\n ![z-a]\n!\na*/b\\\n/a[\nx\\\\\n[a]\n";
        let found: Vec<_> = pattern_problems(content)
            .map(|problem| (problem.line, problem.pattern))
            .collect();
        let expected = [(4, "![z-a]"), (5, "!"), (6, "a*/b\\"), (7, "a[")];
        assert_eq!(found, expected.map(|(line, pattern)| (line, pattern.to_owned())));
    }
}
