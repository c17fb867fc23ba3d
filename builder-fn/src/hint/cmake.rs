//! Errors of CMake: `CMake Error at FILE:LINE (COMMAND):`, and the message in the next lines.

use super::evidence::Evidence;
use super::text::{self, Place};
use super::{Hint, HintKind};

/// The most lines of an error in which its message and its caller are looked for.
const MAX_ERROR_LINES: usize = 30;

/// Explains the first error of CMake.
pub(super) fn explain(evidence: &Evidence<'_>) -> Option<Hint> {
    evidence.process_failure_reason()?;
    let lines: Vec<&str> = evidence.lines().collect();
    let at = lines
        .iter()
        .position(|line| line.starts_with("CMake Error at "))?;
    let following = || {
        lines
            .iter()
            .skip(at + 1)
            .take(MAX_ERROR_LINES)
            .map(|line| line.trim())
    };
    let rest = lines.get(at)?.strip_prefix("CMake Error at ")?;
    let (own, _) = text::parse_place(rest)?;
    let message: Vec<_> = following()
        .skip_while(|line| line.is_empty())
        .take_while(|line| !line.is_empty() && !line.starts_with("Call Stack "))
        .take(3)
        .collect();
    let message = message.join(" ");
    // A module of CMake itself reports what a line of the project asks for: the outermost one of the call stack.
    let callers = following()
        .skip_while(|line| !line.starts_with("Call Stack "))
        .skip(1)
        .take_while(|line| !line.is_empty());
    let caller = callers
        .filter_map(|line| text::parse_place(line).map(|(place, _)| place))
        .last();
    let place = match own.file.starts_with("/usr/") {
        true => caller.unwrap_or(own),
        false => own,
    };
    let place = Place {
        file: evidence.without_working_directory_if_in_context(place.file),
        ..place
    };
    if let Some(name) = missing_package(&message) {
        let hint = Hint::new(
            HintKind::DependencyMissing,
            format!("CMake does not find {name}: {message}"),
            "install the development package of the library (NAME-dev or NAME-devel) or the program in a step before",
        );
        return Some(hint.at(place.file, Some(place.line)));
    }
    let cause = format!("CMake stops in {}: {message}", place.file);
    let kind = match message.contains("or higher is required") {
        true => HintKind::DependencyConflict,
        false => HintKind::ScriptError,
    };
    Some(Hint::to_correct_line(kind, cause, &place))
}

/// Returns the package that CMake does not find.
fn missing_package(message: &str) -> Option<&str> {
    let word = |rest: &str| -> usize {
        rest.find(|character: char| character.is_whitespace() || "\"',.".contains(character))
            .unwrap_or(rest.len())
    };
    let rest = message
        .split_once("Could NOT find ")
        .or_else(|| message.split_once("Could not find a package configuration file provided by \""))
        .or_else(|| message.split_once("By not providing \"Find"))
        .map(|(_, rest)| rest);
    let rest = rest.or_else(|| {
        Some(
            message
                .split_once("The following required packages were not found: ")?
                .1,
        )
    })?;
    let name = rest.trim_start_matches(['-', ' ']);
    name.get(..word(name)).filter(|name| !name.is_empty())
}
