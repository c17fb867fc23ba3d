//! Errors at which Python, PHP, Ruby or a shell stops.

use super::evidence::Evidence;
use super::{Hint, HintKind, text};

/// Explains an error at which Python, PHP, Ruby or a shell stops, with its place.
pub(super) fn explain_interpreter_error(evidence: &Evidence<'_>) -> Option<Hint> {
    evidence.process_failure_reason()?;
    let lines: Vec<&str> = evidence.lines().collect();
    python_error(evidence, &lines)
        .or_else(|| lines.iter().find_map(|line| shell_syntax_error(line)))
        .or_else(|| lines.iter().find_map(|line| php_or_ruby_error(line)))
}

/// Finds the last error of Python: `  File "FILE", line LINE, in NAME`, and after it `NAMEError: MESSAGE`.
fn python_error(evidence: &Evidence<'_>, lines: &[&str]) -> Option<Hint> {
    let at = lines.iter().rposition(|line| is_exception_message(line))?;
    let message = lines.get(at)?;
    let before = lines.get(..at)?;
    // The innermost frame that is not Python's own.
    let frames = || {
        before
            .iter()
            .rev()
            .take(60)
            .filter_map(|line| parse_python_frame(line))
    };
    let (file, line) = frames()
        .find(|(file, _)| !is_library(file))
        .or_else(|| frames().next())?;
    if let Some(module) = text::between(message, "ModuleNotFoundError: No module named '", "'") {
        let package = module.split('.').next().unwrap_or(module);
        return Some(
            Hint::new(
                HintKind::DependencyMissing,
                format!("Python does not find the module {module}"),
                match text::is_safe_in_shell_advice(package) && evidence.context_file_contains(file, package) {
                    true => format!(
                        "add the package with {package} to the requirements, and install them in a step before"
                    ),
                    false => {
                        "add the package that has the module to the requirements, and install them in a step before".to_owned()
                    }
                },
            )
            .at(file, Some(line)),
        );
    }
    Some(
        Hint::new(
            HintKind::ScriptError,
            format!("Python stops in {file}: {message}"),
            format!(
                "correct line {line} of {}",
                text::name_if_safe_or(file, "the file")
            ),
        )
        .at(file, Some(line)),
    )
}

/// Parses a frame of a traceback of Python: `  File "FILE", line LINE`.
fn parse_python_frame(line: &str) -> Option<(&str, u32)> {
    // compileall writes asterisks before it.
    let line = line.trim_start_matches([' ', '*']);
    let rest = line.strip_prefix("File \"")?;
    let (file, rest) = rest.split_once("\", line ")?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let line = rest.get(..digits)?.parse().ok()?;
    (!file.is_empty() && line > 0).then_some((file, line))
}

/// Returns whether a file is part of Python or of an installed package.
fn is_library(file: &str) -> bool {
    file.starts_with('<')
        || file.contains("/lib/python")
        || file.contains("/site-packages/")
        || file.contains("/dist-packages/")
}

/// Returns whether a line is the message of an exception: `ModuleNotFoundError: No module named 'x'`.
fn is_exception_message(line: &str) -> bool {
    let name = line.split([':', ' ']).next().unwrap_or_default();
    let is_name = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.'));
    is_name && (name.ends_with("Error") || name.ends_with("Exception")) && line.len() > name.len()
}

/// Parses a syntax error of a shell's script: `build.sh: 4: Syntax error: "fi" unexpected` (dash), or `build.sh: line
/// 4: syntax error near unexpected token `fi'` (bash).
fn shell_syntax_error(line: &str) -> Option<Hint> {
    let (file, rest) = line.split_once(": ")?;
    let (number, message) = rest.strip_prefix("line ").unwrap_or(rest).split_once(": ")?;
    let number: u32 = number.parse().ok()?;
    let is_syntax = message.starts_with("Syntax error") || message.starts_with("syntax error");
    let is_file =
        !file.contains(char::is_whitespace) && !matches!(file, "/bin/sh" | "/bin/bash" | "sh" | "bash");
    (is_syntax && is_file).then(|| {
        Hint::new(
            HintKind::ScriptError,
            format!("the shell stops in {file}: {message}"),
            format!(
                "correct line {number} of {}, or what is before it",
                text::name_if_safe_or(file, "the script")
            ),
        )
        .at(file, Some(number))
    })
}

/// Parses a syntax error of PHP: `PHP Parse error:  MESSAGE in FILE on line LINE`, or of Ruby: `FILE:LINE: syntax
/// error, MESSAGE`.
fn php_or_ruby_error(line: &str) -> Option<Hint> {
    let php = line.strip_prefix("PHP ").unwrap_or(line);
    let php = php
        .strip_prefix("Parse error: ")
        .or_else(|| php.strip_prefix("Fatal error: "));
    let (file, number, message) = match php {
        Some(rest) => {
            let (rest, number) = rest.rsplit_once(" on line ")?;
            let (message, file) = rest.rsplit_once(" in ")?;
            (file, number.trim().parse().ok()?, message.trim())
        }
        None => {
            let (place, rest) = text::parse_place(line)?;
            let message = rest
                .strip_prefix(": ")
                .filter(|message| message.starts_with("syntax error"))?;
            (place.file, place.line, message)
        }
    };
    Some(
        Hint::new(
            HintKind::ScriptError,
            format!("the program stops in {file}: {message}"),
            format!(
                "correct line {number} of {}",
                text::name_if_safe_or(file, "the file")
            ),
        )
        .at(file, Some(number)),
    )
}
