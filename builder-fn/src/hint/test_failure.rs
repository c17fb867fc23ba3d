//! Failing tests, of cargo, go and pytest.

use super::evidence::Evidence;
use super::text::{self, Place};
use super::{Hint, HintKind};

/// Explains a failing test.
pub(super) fn explain(evidence: &Evidence<'_>) -> Option<Hint> {
    evidence.process_failure_reason()?;
    let lines: Vec<&str> = evidence.lines().collect();
    failed_rust_test(&lines)
        .or_else(|| failed_go_test(&lines))
        .or_else(|| failed_pytest(&lines))
}

/// Returns the hint for a failing test.
pub(super) fn failed_test_hint(name: &str, message: &str, file: &str, line: Option<u32>) -> Hint {
    Hint::new(
        HintKind::TestFailed,
        format!("the test {name} fails: {message}"),
        format!(
            "correct what the test checks, or the test in {}",
            text::name_if_safe_or(file, "its file")
        ),
    )
    .at(file, line)
}

/// Finds the first failing test of go: `--- FAIL: NAME (0.00s)`, and after it `    FILE:LINE: MESSAGE`; with `-v`, the
/// message is after `=== RUN   NAME`.
fn failed_go_test(lines: &[&str]) -> Option<Hint> {
    let failed_test = |line: &str| -> Option<String> {
        let rest = line.trim_start().strip_prefix("--- FAIL: ")?;
        Some(rest.split(' ').next()?.to_owned())
    };
    let at = lines.iter().position(|line| line.starts_with("--- FAIL: "))?;
    let name = failed_test(lines.get(at)?)?;
    if let Some((place, message)) = first_go_message_before_next_test(lines.get(at + 1..)?) {
        return Some(failed_test_hint(&name, message, place.file, Some(place.line)));
    }
    let tests = lines.iter().skip(at).filter_map(|line| failed_test(line));
    tests.take(20).find_map(|test| {
        let begin = format!("=== RUN   {test}");
        let at = lines.iter().position(|line| *line == begin)?;
        let (place, message) = first_go_message_before_next_test(lines.get(at + 1..)?)?;
        Some(failed_test_hint(&test, message, place.file, Some(place.line)))
    })
}

/// Finds the first message of a test of go before the next test.
fn first_go_message_before_next_test<'l>(lines: &[&'l str]) -> Option<(Place<'l>, &'l str)> {
    let own = lines
        .iter()
        .take(20)
        .take_while(|line| !line.starts_with("=== RUN "));
    own.filter(|line| line.starts_with([' ', '\t'])).find_map(|line| {
        let (place, rest) = text::parse_place(line.trim_start())?;
        let message = rest.strip_prefix(':')?.trim_start();
        place.file.ends_with(".go").then_some((place, message))
    })
}

/// Finds the first failing test of pytest: `FAILED FILE::NAME - MESSAGE`, with `FILE:LINE: ERROR` before it.
fn failed_pytest(lines: &[&str]) -> Option<Hint> {
    let rest = lines.iter().find_map(|line| line.strip_prefix("FAILED "))?;
    let (test, message) = rest.split_once(" - ").unwrap_or((rest, "it does not say why"));
    let (file, name) = test.split_once("::")?;
    let place = lines
        .iter()
        .find_map(|line| Some(text::parse_place(line)?.0).filter(|place| place.file == file));
    Some(failed_test_hint(
        name,
        message,
        file,
        place.map(|place| place.line),
    ))
}

/// Finds the first failing test of cargo: `thread 'NAME' (ID) panicked at FILE:LINE:COLUMN:`.
fn failed_rust_test(lines: &[&str]) -> Option<Hint> {
    lines
        .iter()
        .find(|line| line.starts_with("test result: FAILED"))?;
    let (line, rest) = lines.iter().enumerate().find_map(|(at, line)| {
        let rest = line.strip_prefix("thread '")?;
        Some((at, rest.split_once("panicked at ")?))
    })?;
    let (name, rest) = rest;
    let name = name.split('\'').next()?;
    let (place, _) = text::parse_place(rest)?;
    let message = lines.get(line + 1).copied().unwrap_or_default();
    Some(failed_test_hint(name, message, place.file, Some(place.line)))
}
