//! Builds that took longer than they may.

use super::evidence::Evidence;
use super::{Hint, HintKind, text};

/// The beginning of the builder's own error for such a build.
const TIME_LIMIT_ERROR_PREFIX: &str = "the build ran past its time limit of ";

/// Explains a build that took longer than it may: which step ran, and what it wrote last.
pub(super) fn explain(evidence: &Evidence<'_>) -> Option<Hint> {
    let limit = evidence.error.strip_prefix(TIME_LIMIT_ERROR_PREFIX)?;
    let limit = text::one_line_cut_with_ellipsis(limit, 40);
    let next = "make the step faster, or give the build more time: the config's \"timeout\", up to the time limit of the builder \
                function";
    let Some(step) = evidence.failure.step else {
        return Some(Hint::new(
            HintKind::TimeLimit,
            format!(
                "no step of the build had begun when its time of {limit} was over: it waited for a build slot, for its context or for BuildKit"
            ),
            "build again when fewer builds run, or give the build more time: the config's \"timeout\", up to the time limit of the \
             builder function",
        ));
    };
    let name = text::one_line_cut_with_ellipsis(step.name, super::MAX_NAME_OR_LINE_BYTES);
    let last = evidence.lines().rfind(|line| !line.trim().is_empty());
    let Some(last) = last else {
        let cause = format!(
            "the step {name} was still running when the build's time of {limit} was over; it had written nothing"
        );
        return Some(Hint::new(HintKind::TimeLimit, cause, next));
    };
    let quoted = text::one_line_cut_with_ellipsis(last, super::MAX_NAME_OR_LINE_BYTES);
    let cause = format!(
        "the step {name} was still running when the build's time of {limit} was over; the last line that it wrote is: {quoted}"
    );
    let next = match is_question(last) {
        true => {
            "the step waits for an answer that nobody gives: run the program with its option for no questions (-y, --yes, CI=1)"
        }
        false => next,
    };
    Some(Hint::new(HintKind::TimeLimit, cause, next))
}

/// Returns whether a line of output asks for an answer.
fn is_question(line: &str) -> bool {
    [
        "[Y/n]",
        "[y/N]",
        "(y/n)",
        "(Y/n)",
        "(y/N)",
        "[yes/no]",
        "assword:",
        "assphrase",
    ]
    .iter()
    .any(|question| line.contains(question))
}
