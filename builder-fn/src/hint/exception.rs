//! Exceptions at which programs in Ruby, PHP, Java, .NET, Deno, Perl, Go and Rust stop.

use super::evidence::Evidence;
use super::known_line::is_warning_or_retry;
use super::text::{self, Place};
use super::{Hint, HintKind};

/// The most lines after the message of an exception in which its place is looked for.
const MAX_LINES_TO_PLACE: usize = 12;

/// The number of last lines in which an error of Perl is looked for: its warnings have the same form, and it goes on
/// after them.
const LAST_LINES_WITH_PERL_ERROR: usize = 20;

/// Explains an exception at which a program stops.
pub(super) fn explain(evidence: &Evidence<'_>) -> Option<Hint> {
    evidence.process_failure_reason()?;
    let lines: Vec<&str> = evidence.lines().collect();
    (0..lines.len()).find_map(|at| {
        let rest = lines.get(at..)?;
        let line = rest.first()?.trim_start();
        if is_warning_or_retry(line) {
            return None;
        }
        ruby_exception(line)
            .or_else(|| php_exception(line))
            .or_else(|| java_exception(line, rest))
            .or_else(|| dotnet_exception(line, rest))
            .or_else(|| deno_exception(line, rest))
            .or_else(|| perl_error(line).filter(|_| rest.len() <= LAST_LINES_WITH_PERL_ERROR))
            .or_else(|| panic(line, rest))
    })
}

/// Returns the hint for a program that stops at a place.
fn stop_hint(language: &str, message: &str, place: &Place<'_>) -> Hint {
    let cause = format!("{language} stops in {}: {message}", place.file);
    Hint::to_correct_line(HintKind::ScriptError, cause, place)
}

/// Parses an exception of Ruby: `FILE:LINE:in 'NAME': MESSAGE (CLASS)`, with a backtick before the name in older
/// versions.
fn ruby_exception(line: &str) -> Option<Hint> {
    let (place, rest) = text::parse_place(line)?;
    let (_, rest) = rest.strip_prefix(":in ")?.split_once("': ")?;
    let (message, class) = rest.strip_suffix(')')?.rsplit_once(" (")?;
    let is_class = class.starts_with(|first: char| first.is_ascii_uppercase())
        && class
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b':' | b'_'));
    is_class.then_some(())?;
    if let Some(module) = message.strip_prefix("cannot load such file -- ") {
        let hint = Hint::new(
            HintKind::DependencyMissing,
            format!("Ruby does not find {module}"),
            "copy the file into the image, or add the gem that has it to the Gemfile and install it in a step before",
        );
        return Some(
            match place.file.starts_with("<internal") || place.file.contains("/gems/") {
                true => hint,
                false => hint.at(place.file, Some(place.line)),
            },
        );
    }
    Some(stop_hint("Ruby", &format!("{message} ({class})"), &place))
}

/// Parses an exception of PHP: `PHP Fatal error:  Uncaught CLASS: MESSAGE in FILE:LINE`.
fn php_exception(line: &str) -> Option<Hint> {
    let rest = line
        .strip_prefix("PHP ")
        .unwrap_or(line)
        .strip_prefix("Fatal error: ")?;
    let rest = rest.trim_start().strip_prefix("Uncaught ")?;
    let (message, place) = rest.rsplit_once(" in ")?;
    let (place, _) = text::parse_place(place)?;
    Some(stop_hint("PHP", message, &place))
}

/// Returns the first place that `place_of` finds in the lines after an exception.
fn place_in_stack<'l>(
    lines: &[&'l str],
    place_of: impl Fn(&'l str) -> Option<Place<'l>>,
) -> Option<Place<'l>> {
    lines
        .iter()
        .skip(1)
        .take(MAX_LINES_TO_PLACE)
        .find_map(|line| place_of(line.trim_start()))
}

/// Parses an exception of Java: `Exception in thread "NAME" CLASS: MESSAGE`, and `at NAME(FILE:LINE)`.
fn java_exception(line: &str, lines: &[&str]) -> Option<Hint> {
    let (_, message) = line.strip_prefix("Exception in thread \"")?.split_once("\" ")?;
    let is_library = |name: &str| {
        ["java.", "jdk.", "java.base/", "sun.", "kotlin."]
            .iter()
            .any(|package| name.starts_with(package))
    };
    let place = place_in_stack(lines, |line| {
        let (name, place) = line.strip_prefix("at ")?.split_once('(')?;
        (!is_library(name)).then(|| text::parse_place(place).map(|(place, _)| place))?
    });
    Some(match place {
        Some(place) => stop_hint("Java", message, &place),
        None => Hint::new(
            HintKind::ScriptError,
            format!("Java stops at an exception: {message}"),
            "correct what the exception names",
        ),
    })
}

/// Parses an exception of .NET: `Unhandled exception. CLASS: MESSAGE`, and `at NAME in FILE:line LINE`.
fn dotnet_exception(line: &str, lines: &[&str]) -> Option<Hint> {
    let message = line.strip_prefix("Unhandled exception. ")?;
    let place = place_in_stack(lines, |line| {
        let (_, rest) = line.strip_prefix("at ")?.rsplit_once(" in ")?;
        let (file, line) = rest.rsplit_once(":line ")?;
        let line = line.trim().parse().ok()?;
        Some(Place { file, line })
    });
    Some(match place {
        Some(place) => stop_hint("the program", message, &place),
        None => Hint::new(
            HintKind::ScriptError,
            format!("the program stops at an exception: {message}"),
            "correct what the exception names",
        ),
    })
}

/// Parses an exception of Deno: `error: Uncaught (in promise) CLASS: MESSAGE`, and `at file:///FILE:LINE:COLUMN`.
fn deno_exception(line: &str, lines: &[&str]) -> Option<Hint> {
    let message = line.strip_prefix("error: Uncaught ")?;
    let message = message.strip_prefix("(in promise) ").unwrap_or(message);
    let place = place_in_stack(lines, |line| {
        let (_, place) = line.strip_prefix("at ")?.split_once("file://")?;
        text::parse_place(place).map(|(place, _)| place)
    })?;
    Some(stop_hint("Deno", message, &place))
}

/// Parses an error of Perl: `MESSAGE at FILE line LINE.`, or `… line LINE, near "…"`.
fn perl_error(line: &str) -> Option<Hint> {
    let (message, rest) = line.rsplit_once(" at ")?;
    let (file, rest) = rest.split_once(" line ")?;
    let is_script = [".pl", ".pm", ".t", ".PL"].iter().any(|end| file.ends_with(end));
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let line = rest.get(..digits)?.parse().ok()?;
    let place = Place { file, line };
    let is_warning = message.starts_with("Use of ") || message.starts_with("Useless use of ");
    (is_script && line > 0 && !message.is_empty() && !is_warning).then(|| stop_hint("Perl", message, &place))
}

/// Parses a panic of Rust (`thread 'NAME' panicked at FILE:LINE:COLUMN:`, and the message) or of Go (`panic: MESSAGE`,
/// and a stack with `FILE:LINE +0x1`).
fn panic(line: &str, lines: &[&str]) -> Option<Hint> {
    if let Some(rest) = line.strip_prefix("thread '") {
        let (_, rest) = rest.split_once("panicked at ")?;
        let (place, _) = text::parse_place(rest)?;
        let is_library = place.file.starts_with("/rustc/") || place.file.contains("/.cargo/registry/");
        let message = lines.get(1).copied().unwrap_or_default();
        return (!is_library && !message.is_empty()).then(|| stop_hint("the program", message, &place));
    }
    let message = line.strip_prefix("panic: ")?;
    let is_go = lines.iter().take(6).any(|line| line.starts_with("goroutine "));
    is_go.then_some(())?;
    let place = place_in_stack(lines, |line| {
        let (place, rest) = text::parse_place(line)?;
        let is_library = place.file.starts_with("/usr/local/go/") || place.file.contains("/pkg/mod/");
        (place.file.ends_with(".go") && rest.starts_with(" +0x") && !is_library).then_some(place)
    })?;
    Some(stop_hint("the program", message, &place))
}
