//! The line of a failed step's output that says most about its failure, where no rule knows the cause.

use super::evidence::Evidence;
use super::known_line::{is_warning_or_retry, without_mark};
use super::{Hint, HintKind, MAX_NAME_OR_LINE_BYTES, text};

/// The most last lines of output that are read.
const LAST_LINES_READ: usize = 400;

/// The beginnings, in lower case, of a line that a program marks as its error.
const ERROR_PREFIXES: &[&str] = &[
    "error:",
    "error[",
    "error ",
    "error(",
    "e: ",
    "err: ",
    "fatal",
    "fatal:",
    "panic:",
    "failure:",
    "failed:",
    "unhandled ",
    "uncaught ",
    "exception ",
    "exception:",
    "critical:",
    "** (",
    "abort:",
    "aborting",
];

/// The words, in lower case, of a line in which a program marks an error after a place or its own name.
const ERROR_MARKS: &[&str] = &[
    ": error:",
    ": error ",
    ": fatal:",
    ": fatal error",
    "error: ",
    "exception: ",
    "[error]",
    " error ts",
    "] error",
];

/// The words, in lower case, of a line that reports a failure in a sentence.
const FAILURE_WORDS: &[&str] = &[
    "failed to ",
    "could not ",
    "couldn't ",
    "cannot ",
    "can't ",
    "unable to ",
    "not found",
    "no such ",
    "not allowed",
    "is missing",
    "invalid ",
    "failed",
    "denied",
];

/// The words, in lower case, of a line that only repeats that something failed: the runner's of a script, not the
/// script's.
const REPEATED_FAILURE_WORDS: &[&str] = &[
    "make: ***",
    "make[",
    "code elifecycle",
    "elifecycle",
    "lifecycle script",
    "command failed with exit code",
    "command sh -c",
    "exited with code",
    "exited with exit code",
    "returned a non-zero",
    "did not complete successfully",
    "a complete log of this run",
    "error: could not compile",
    "error: process didn't exit successfully",
    "error: aborting due to",
    "warning: build failed, waiting",
    " 0 error",
    "no error",
    "without error",
    "for more information",
    "subprocess-exited-with-error",
    "did not run successfully",
    "metadata-generation-failed",
    "encountered error while generating package metadata",
    "this is an issue with the package mentioned above",
    "an error occurred while executing",
    "some problems were encountered while processing",
    "build failed with an exception",
];

/// The beginnings, in lower case, of such lines.
const REPEATED_FAILURE_BEGINNINGS: &[&str] = &[
    "errno ",
    "exit status ",
    "0 error",
    "path /",
    "workspace ",
    "location ",
];

/// Returns the hint for a failure that no other rule explains: the line of the output, or of the error, that says most
/// about it.
pub(super) fn explain(evidence: &Evidence<'_>) -> Option<Hint> {
    let Some(reason) = evidence.process_failure_reason() else {
        return unexplained_error_of_buildkit(evidence);
    };
    let how = match evidence.exit_code() {
        Some(code) => format!(
            "the step ended with the exit code {code}{}",
            meaning_of_exit_code(code)
        ),
        None => format!(
            "the step failed ({})",
            text::first_part(reason, MAX_NAME_OR_LINE_BYTES)
        ),
    };
    let lines: Vec<&str> = evidence
        .lines()
        .rev()
        .filter(|line| !line.trim().is_empty())
        .take(LAST_LINES_READ)
        .collect();
    let quote = |line: &str| text::one_line_cut_with_ellipsis(line, 2 * MAX_NAME_OR_LINE_BYTES);
    let files = evidence.failure.files;
    let has_place = |line: &str| text::parse_place(line).is_some_and(|(place, _)| files.has(place.file));
    let marked = first_line_marked_as_error(&lines, has_place);
    if let Some(line) = marked {
        let hint = Hint::new(
            HintKind::StepFailed,
            format!(
                "{how}; the first line of its output that reports an error is: {}",
                quote(line)
            ),
            "read the step's output from this line on, and correct what it names",
        );
        return Some(match place_in_context(evidence, line) {
            Some((file, line)) => hint.at(&file, Some(line)),
            None => hint,
        });
    }
    let is_noise = |line: &str| line.starts_with("npm notice") || is_warning_or_retry(line);
    let last = lines.iter().find(|line| !is_noise(line)).or(lines.first());
    let (cause, next) = match last {
        Some(last) => (
            format!(
                "{how}; its output marks no line as an error, and ends with: {}",
                quote(last)
            ),
            "run the step's command where the source is, or let it write more (set -x, --verbose), to see which part of it fails",
        ),
        None => (
            format!("{how}, and wrote nothing"),
            "let the step write what it does (set -x, --verbose), to see which part of it fails",
        ),
    };
    Some(Hint::new(HintKind::StepFailed, cause, next))
}

/// Returns the hint for an error of BuildKit for an instruction, an image or a push.
fn unexplained_error_of_buildkit(evidence: &Evidence<'_>) -> Option<Hint> {
    let error = evidence.error.trim();
    let is_of_build = evidence.dockerfile_step_name().is_some()
        || evidence.failure.dockerfile_line.is_some()
        || error.starts_with("failed to push ");
    (is_of_build && !error.is_empty()).then(|| {
        Hint::new(
            HintKind::StepFailed,
            format!("the build failed, and its cause is not known: {error}"),
            "correct what the error names; if it names nothing of yours, build again, and ask the operator if that fails too",
        )
    })
}

/// Returns the first line that a program marks as its error, or else the first that reports a failure or has a place in
/// the context; `lines` are from the last to the first.
pub(super) fn first_line_marked_as_error<'l>(
    lines: &[&'l str],
    has_place: impl Fn(&str) -> bool,
) -> Option<&'l str> {
    let mut marked = None;
    let mut reporting = None;
    for line in lines {
        let is_prefixed = ["npm error ", "npm ERR! ", "[ERROR] "]
            .iter()
            .any(|prefix| line.starts_with(prefix));
        let lower = text::first_part(without_mark(line), 400).to_lowercase();
        let says_nothing = lower.len() < 4
            || is_warning_or_retry(&lower)
            || REPEATED_FAILURE_WORDS.iter().any(|words| lower.contains(words))
            || REPEATED_FAILURE_BEGINNINGS
                .iter()
                .any(|words| lower.starts_with(words));
        if says_nothing {
            continue;
        }
        let is_marked = is_prefixed
            || ERROR_PREFIXES.iter().any(|prefix| lower.starts_with(prefix))
            || ERROR_MARKS.iter().any(|mark| lower.contains(mark));
        if is_marked {
            marked = Some(*line);
        } else if FAILURE_WORDS.iter().any(|words| lower.contains(words)) || has_place(line) {
            reporting = Some(*line);
        }
    }
    marked.or(reporting).map(str::trim)
}

/// Returns the file of the context and the line that an error names at its beginning.
fn place_in_context(evidence: &Evidence<'_>, line: &str) -> Option<(String, u32)> {
    let plain = without_mark(line);
    let plain = ["error: ", "Error: ", "ERROR: "]
        .iter()
        .find_map(|prefix| plain.strip_prefix(prefix))
        .unwrap_or(plain);
    let (place, _) = text::parse_place(plain)?;
    let file = evidence.without_working_directory_if_in_context(place.file);
    evidence
        .failure
        .files
        .has(file)
        .then(|| (file.to_owned(), place.line))
}

/// Returns what an exit code of a shell means, as the continuation of a sentence; empty for a program's own.
fn meaning_of_exit_code(code: u32) -> &'static str {
    match code {
        124 => " (a time limit of the command timeout)",
        126 => " (a program that may not be executed)",
        127 => " (a program or library that is not there)",
        132 => " (illegal instruction: a program is for another processor)",
        134 => " (a program aborted)",
        139 => " (segmentation fault)",
        141 => " (broken pipe)",
        143 => " (ended by SIGTERM)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_marked_line_is_chosen_and_no_warning_and_no_repetition() {
        let output = [
            "warning: error: old",
            "retrying: error: again",
            "cannot find the cache",
            "error: the first",
            "error: the second",
            "make: *** [all] Error 2",
        ];
        let reversed: Vec<_> = output.iter().rev().copied().collect();
        let choose =
            |lines: &[&'static str]| first_line_marked_as_error(lines, |line| line.starts_with("a.c:"));
        assert_eq!(choose(&reversed), Some("error: the first"));
        assert_eq!(choose(&["a", "cannot find b", "0 errors"]), Some("cannot find b"));
        assert_eq!(choose(&["a", "a.c:1: x", "b"]), Some("a.c:1: x"));
        assert_eq!(choose(&["make: *** [all] Error 2", "ok"]), None);
    }
}
