//! Errors whose whole text a table knows: one line that a tool writes when it stops, and what it means.
//!
//! A pattern is the text of a line. `{}` stands for a text up to what follows it, and `{w}` for a word: up to a space, a
//! quote, a comma, a colon or a bracket. A pattern begins at the beginning of the line, or anywhere in it after `*`.
//! What comes after the pattern is not compared. Marks of the tools before the text do not count ([`without_mark`]).

mod distribution;
mod files;
mod go;
mod javascript;
mod jvm;
mod native;
mod network;
mod other_languages;
mod python;
mod rust;

use super::dependency::at_place_if_found;
use super::evidence::Evidence;
use super::{Hint, HintKind, text};

/// The most last lines in which an error is looked for.
const LAST_LINES_SEARCHED: usize = 300;

/// The most last lines in which an error is looked for at which many programs go on.
const LAST_LINES_SEARCHED_FOR_TOLERABLE_ERRORS: usize = 20;

/// The length after which a text that a pattern captures is cut, in bytes.
const MAX_CAPTURED_BYTES: usize = 160;

/// The most texts that a pattern captures.
const MAX_CAPTURES: usize = 4;

/// Errors with the same kind and the same next step.
struct KnownErrors {
    kind: HintKind,
    /// The file that is the place of the error; empty if there is none. Its line is the one that has the first captured
    /// text, if one has it.
    file: &'static str,
    /// What to do next.
    next: &'static str,
    /// Rows of the form `PATTERN => CAUSE`, one in a line. In the cause, `{0}` to `{3}` stand for the captured texts,
    /// `{line}` for the whole line, `{next}` for the next line with text. One text for all rows keeps the program small.
    lines: &'static str,
}

impl KnownErrors {
    /// Returns the patterns and the causes.
    fn patterns_and_causes(&self) -> impl Iterator<Item = (&'static str, &'static str)> + use<> {
        let rows = self.lines.lines().map(str::trim_start);
        rows.filter_map(|row| row.split_once(" => "))
    }
}

/// The errors at which the tool that writes them stops.
const TABLES: &[&[KnownErrors]] = &[
    javascript::ERRORS,
    python::ERRORS,
    jvm::ERRORS,
    rust::ERRORS,
    go::ERRORS,
    other_languages::ERRORS,
    native::ERRORS,
    distribution::ERRORS,
    network::ERRORS,
    files::ERRORS,
];

/// The errors at which the program that called the tool may go on, and that only the end of the output makes certain.
const TABLES_OF_TOLERABLE_ERRORS: &[&[KnownErrors]] = &[
    python::TOLERABLE_ERRORS,
    rust::TOLERABLE_ERRORS,
    other_languages::TOLERABLE_ERRORS,
    native::TOLERABLE_ERRORS,
    files::TOLERABLE_ERRORS,
];

/// Explains an error that the tables know: the first one in the output.
pub(super) fn explain(evidence: &Evidence<'_>) -> Option<Hint> {
    find(evidence, TABLES, LAST_LINES_SEARCHED)
}

/// Explains an error at which many programs go on, if it is at the end of the output.
pub(super) fn explain_tolerable_error_at_end(evidence: &Evidence<'_>) -> Option<Hint> {
    find(
        evidence,
        TABLES_OF_TOLERABLE_ERRORS,
        LAST_LINES_SEARCHED_FOR_TOLERABLE_ERRORS,
    )
}

/// A row of a table that may be in the output.
struct CandidateRow<'t> {
    known: &'t KnownErrors,
    pattern: &'t str,
    cause: &'t str,
    /// The first byte of a line with the pattern; `None` if any line may have it.
    first_byte: Option<u8>,
}

/// Finds the first of the last lines that a table knows.
fn find(evidence: &Evidence<'_>, tables: &[&'static [KnownErrors]], last_lines: usize) -> Option<Hint> {
    evidence.process_failure_reason()?;
    let mut lines: Vec<&str> = evidence
        .lines()
        .rev()
        .map(without_mark)
        .filter(|line| !line.is_empty())
        .take(last_lines)
        .collect();
    lines.reverse();
    let candidates = rows_that_may_be_in(&lines, tables);
    lines.iter().enumerate().find_map(|(at, line)| {
        let first = line.as_bytes().first().copied();
        let mut of_line = candidates
            .iter()
            .filter(|row| row.first_byte.is_none() || row.first_byte == first);
        let (row, captured) = of_line.find_map(|row| Some((row, captures(row.pattern, line)?)))?;
        if is_warning_or_retry(line) {
            return None;
        }
        let following = lines.get(at + 1).copied().unwrap_or_default();
        let cause = fill(row.cause, line, following, &captured);
        Some(hint(evidence, row.known, &cause, &captured))
    })
}

/// Returns the rows whose first literal is in the lines: each is looked for once in all of them, because most are in
/// none.
fn rows_that_may_be_in(lines: &[&str], tables: &[&'static [KnownErrors]]) -> Vec<CandidateRow<'static>> {
    let text = lines.join("\n");
    let mut is_first_byte = [false; 256];
    for first in lines.iter().filter_map(|line| line.as_bytes().first()) {
        if let Some(is_first) = is_first_byte.get_mut(usize::from(*first)) {
            *is_first = true;
        }
    }
    let mut rows = Vec::new();
    for known in tables.iter().copied().flatten() {
        for (pattern, cause) in known.patterns_and_causes() {
            let (literal, _) = next_literal(pattern.trim_start_matches('*'));
            let first_byte = literal
                .as_bytes()
                .first()
                .copied()
                .filter(|_| !pattern.starts_with('*'));
            let may_be_there = match first_byte {
                Some(first) => is_first_byte.get(usize::from(first)) == Some(&true),
                None => text.contains(literal),
            };
            if may_be_there {
                rows.push(CandidateRow {
                    known,
                    pattern,
                    cause,
                    first_byte,
                });
            }
        }
    }
    rows
}

/// Returns the hint for an error of a table.
fn hint(evidence: &Evidence<'_>, known: &KnownErrors, cause: &str, captured: &[&str]) -> Hint {
    let hint = Hint::new(known.kind, cause, known.next);
    if known.file.is_empty() {
        return hint;
    }
    let first = captured.iter().find(|captured| !captured.is_empty());
    let name = first.map(|captured| package_name(captured));
    let place = name
        .filter(|name| name.len() > 1)
        .and_then(|name| evidence.find_line_in_file(known.file, |line| has_whole_name(line, &name)));
    let file = evidence.path_in_function_folder_if_only_there(known.file);
    match place {
        None if evidence.failure.files.has(&file) => hint.at(&file, None),
        place => at_place_if_found(hint, place),
    }
}

/// Returns the name of a package without its version, or from the path of its URL.
fn package_name(captured: &str) -> String {
    let path = match captured.split_once("://") {
        Some((_, rest)) => rest.split_once('/').map_or(rest, |(_, path)| path),
        None => captured,
    };
    let path = path.replace("%2f", "/").replace("%2F", "/");
    let end = path
        .char_indices()
        .find(|(at, character)| match character {
            '@' => *at > 0,
            other => " =<>~^!;,([{'\"`".contains(*other),
        })
        .map_or(path.len(), |(at, _)| at);
    path.get(..end).unwrap_or_default().to_owned()
}

/// Returns whether a line has a name that is no part of a longer one.
fn has_whole_name(line: &str, name: &str) -> bool {
    let continues =
        |character: char| character.is_alphanumeric() || matches!(character, '-' | '_' | '/' | '@');
    line.match_indices(name).any(|(at, _)| {
        let before = line.get(..at).and_then(|before| before.chars().next_back());
        let after = line.get(at + name.len()..).and_then(|after| after.chars().next());
        !before.is_some_and(continues) && !after.is_some_and(continues)
    })
}

/// Returns a line without what tools write before the text of an error: npm's and Maven's prefix, Gradle's and uv's
/// marks.
pub(super) fn without_mark(line: &str) -> &str {
    let is_mark = |character: char| {
        character.is_whitespace()
            || matches!(
                character,
                '×' | '✘'
                    | '✖'
                    | '✗'
                    | '❌'
                    | '│'
                    | '╰'
                    | '├'
                    | '└'
                    | '─'
                    | '▶'
                    | '►'
                    | '❯'
                    | '➤'
                    | '>'
                    | '|'
            )
    };
    let mut rest = line.trim().trim_start_matches(is_mark);
    // Maven writes its prefix twice before an error in a POM.
    for _ in 0..2 {
        let stripped = ["npm error ", "npm ERR! ", "[ERROR] ", "[FATAL] ", "[error] "]
            .iter()
            .find_map(|prefix| rest.strip_prefix(prefix));
        let Some(stripped) = stripped else { break };
        rest = stripped.trim_start_matches(is_mark);
    }
    rest
}

/// Returns whether a line is a warning, or about something that is tried again.
pub(super) fn is_warning_or_retry(line: &str) -> bool {
    let line = line
        .get(..line.floor_char_boundary(200))
        .unwrap_or(line)
        .to_ascii_lowercase();
    // debconf reports each frontend that it cannot use, and goes on with another one.
    let is_warning = ["warn", "[warn", "w: ", "npm warn", "info", "debconf: "]
        .iter()
        .any(|words| line.starts_with(words));
    let is_of_checksum = line.contains("did not match");
    is_warning
        || (line.contains(": warning: ") && !is_of_checksum)
        || line.contains("retrying")
        || line.contains("will retry")
}

/// Returns the texts that a pattern captures in a line; `None` if the line does not have the pattern.
fn captures<'l>(pattern: &str, line: &'l str) -> Option<Vec<&'l str>> {
    let mut captured = Vec::new();
    let (first, rest_of_pattern) = next_literal(pattern.strip_prefix('*').unwrap_or(pattern));
    let mut rest = match pattern.starts_with('*') {
        true => line.split_once(first)?.1,
        false => line.strip_prefix(first)?,
    };
    let mut next = rest_of_pattern;
    while let Some((is_word, pattern)) = next {
        let (literal, following) = next_literal(pattern);
        let end = match (is_word, literal) {
            (true, _) => rest
                .find(|character: char| character.is_whitespace() || "'\"`,:;()".contains(character))
                .unwrap_or(rest.len()),
            (false, "") => rest.len(),
            (false, literal) => rest.find(literal)?,
        };
        let is_quote = |character: char| matches!(character, '\'' | '"' | '`' | '\u{2018}' | '\u{2019}');
        let text = rest.get(..end)?.trim().trim_matches(is_quote);
        if text.is_empty() && is_word {
            return None;
        }
        captured.push(text::first_part(text, MAX_CAPTURED_BYTES));
        rest = rest.get(end..)?.strip_prefix(literal)?;
        next = following;
    }
    captured.truncate(MAX_CAPTURES);
    Some(captured)
}

/// Splits a pattern at its first capture: returns the text before it, whether it captures a word, and what follows it.
fn next_literal(pattern: &str) -> (&str, Option<(bool, &str)>) {
    match (pattern.find("{}"), pattern.find("{w}")) {
        (Some(at), word) if word.is_none_or(|word| at < word) => {
            (&pattern[..at], pattern.get(at + 2..).map(|rest| (false, rest)))
        }
        (_, Some(at)) => (&pattern[..at], pattern.get(at + 3..).map(|rest| (true, rest))),
        _ => (pattern, None),
    }
}

/// Fills the captured texts into the text of a cause.
fn fill(cause: &str, line: &str, following: &str, captured: &[&str]) -> String {
    let cause = cause.replace("{line}", text::first_part(line, 300));
    let cause = cause.replace("{next}", text::first_part(following, 300));
    let mut filled = String::new();
    let mut rest = cause.as_str();
    while let Some((before, after)) = rest.split_once('{') {
        filled.push_str(before);
        let number = after.as_bytes().first().copied().unwrap_or_default();
        let text = captured.get(usize::from(number.wrapping_sub(b'0')));
        match (text, after.get(1..).and_then(|after| after.strip_prefix('}'))) {
            (Some(text), Some(after)) => {
                filled.push_str(text.trim_end_matches(['.', ':']));
                rest = after;
            }
            _ => {
                filled.push('{');
                rest = after;
            }
        }
    }
    filled.push_str(rest);
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_captures_words_and_texts_between_its_literals() {
        for (pattern, line, wanted) in [
            ("E: {w} is", "E: a is not", Some(vec!["a"])),
            (
                "*cannot find -l{w}",
                "/bin/ld: cannot find -lssl: No such",
                Some(vec!["ssl"]),
            ),
            ("no '{}' in {}", "no 'a b' in c d", Some(vec!["a b", "c d"])),
            ("{w}: not", "a: not", Some(vec!["a"])),
            ("{w}: not", "a b: not", None),
            ("a {}", "b a c", None),
            ("*a {}", "b a c", Some(vec!["c"])),
            ("a", "ab", Some(vec![])),
            ("a {w}", "a ", None),
        ] {
            assert_eq!(captures(pattern, line), wanted, "{pattern}: {line}");
        }
    }

    #[test]
    fn a_cause_has_what_was_captured_and_braces_of_the_line_stay() {
        assert_eq!(fill("{0} and {1}", "", "", &["a.", "{0}"]), "a and {0}");
        assert_eq!(
            fill("no {2}, {line}; {next}", "x {1", "y", &["a"]),
            "no {2}, x {1; y"
        );
    }

    #[test]
    fn a_package_has_its_name_without_version_and_registry() {
        for (captured, name) in [
            ("flask==99", "flask"),
            ("@acme/ui@^2", "@acme/ui"),
            ("https://registry.npmjs.org/@acme%2fui", "@acme/ui"),
            ("serde", "serde"),
        ] {
            assert_eq!(package_name(captured), name);
        }
        assert!(has_whole_name("\"ui\": 1", "ui") && !has_whole_name("\"ui-kit\": 1", "ui"));
    }

    #[test]
    fn every_capture_in_a_cause_is_one_of_its_pattern() {
        for (pattern, cause) in TABLES
            .iter()
            .chain(TABLES_OF_TOLERABLE_ERRORS)
            .copied()
            .flatten()
            .flat_map(KnownErrors::patterns_and_causes)
        {
            let count = pattern.matches("{}").count() + pattern.matches("{w}").count();
            assert!(count <= MAX_CAPTURES, "{pattern}");
            for number in 0..10 {
                let is_used = cause.contains(&format!("{{{number}}}"));
                assert!(!is_used || number < count, "{pattern}: {cause}");
            }
            let literal = pattern
                .trim_start_matches('*')
                .replace("{}", "")
                .replace("{w}", "");
            assert!(literal.len() >= 6, "{pattern} is too short to be certain");
        }
    }

    #[test]
    fn no_line_about_a_warning_or_another_attempt_is_a_cause() {
        for line in [
            "WARNING: Retrying",
            "npm warn old lockfile",
            "a.c:1: warning: x",
            "W: GPG error",
        ] {
            assert!(is_warning_or_retry(line), "{line}");
        }
        assert!(!is_warning_or_retry("error: no warnings allowed"));
    }
}
