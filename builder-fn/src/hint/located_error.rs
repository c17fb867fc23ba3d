//! Errors with a file and a line, of compilers and bundlers whose form is not that of gcc.

use super::evidence::Evidence;
use super::known_line::{is_warning_or_retry, without_mark};
use super::text::{self, Place};
use super::{Hint, HintKind};

/// The ends of the names of files whose compilers write `FILE:LINE:COLUMN: MESSAGE`.
const SOURCES_WITH_PLAIN_ERRORS: &[&str] = &[".scala", ".proto", ".erl", ".hs", ".thrift"];

/// An error with its place.
struct LocatedError<'l> {
    kind: HintKind,
    place: Place<'l>,
    message: &'l str,
}

/// Explains an error with a file and a line: the first one in the output.
pub(super) fn explain(evidence: &Evidence<'_>) -> Option<Hint> {
    evidence.process_failure_reason()?;
    let lines: Vec<&str> = evidence.lines().collect();
    let found = (0..lines.len()).find_map(|at| {
        let rest = lines.get(at..)?;
        (!is_warning_or_retry(rest.first()?)).then_some(())?;
        find_error_at_beginning(rest)
    })?;
    let file = found.place.file;
    let cause = match found.kind {
        HintKind::CompileError => format!("{file} does not compile: {}", found.message),
        HintKind::SourceMissing => format!("{file} names files that are not there: {}", found.message),
        _ => format!("{file} has an error: {}", found.message),
    };
    let place = Place {
        file: evidence.without_working_directory_if_in_context(file),
        ..found.place
    };
    Some(Hint::to_correct_line(found.kind, cause, &place))
}

/// Parses the error with which the lines begin.
fn find_error_at_beginning<'l>(lines: &[&'l str]) -> Option<LocatedError<'l>> {
    let line = lines.first()?;
    let plain = without_mark(line);
    kotlin_error(plain)
        .or_else(|| error_of_other_compiler(plain, lines))
        .or_else(|| dart_or_esbuild_error(plain))
        .or_else(|| next_js_error(lines))
        .or_else(|| babel_error(plain))
        .or_else(|| rollup_error(lines))
        .or_else(|| gradle_script_error(plain, lines))
        .or_else(|| makefile_or_configuration_error(plain))
        .or_else(|| ocaml_or_elixir_error(plain, lines))
        .or_else(|| eslint_error(lines))
}

/// Returns an error of a compiler.
fn compile_error<'l>(place: Place<'l>, message: &'l str) -> Option<LocatedError<'l>> {
    let kind = HintKind::CompileError;
    let message = message.trim();
    (!message.is_empty()).then_some(LocatedError { kind, place, message })
}

/// Returns the next line with text.
fn next_text<'l>(lines: &[&'l str]) -> Option<&'l str> {
    let mut following = lines.iter().skip(1).take(4);
    following
        .find(|line| !line.trim().is_empty())
        .map(|line| without_mark(line))
}

/// Parses kotlinc's error: `e: file:///FILE:LINE:COLUMN MESSAGE`, in older versions `e: FILE: (LINE, COLUMN): MESSAGE`.
fn kotlin_error(line: &str) -> Option<LocatedError<'_>> {
    let rest = line.strip_prefix("e: ")?;
    if let Some((file, rest)) = rest.split_once(": (") {
        let (numbers, message) = rest.split_once("): ")?;
        let line = numbers.split(',').next()?.parse().ok()?;
        return compile_error(Place { file, line }, message);
    }
    let (place, rest) = text::parse_place(rest.strip_prefix("file://").unwrap_or(rest))?;
    let (_, message) = rest.strip_prefix(':')?.split_once(' ')?;
    compile_error(place, message)
}

/// Parses the error of a compiler that does not mark it (`FILE:LINE:COLUMN: MESSAGE`), and errors of Go that do not
/// follow the name of a package.
fn error_of_other_compiler<'l>(line: &'l str, lines: &[&'l str]) -> Option<LocatedError<'l>> {
    let (place, rest) = text::parse_place(line.strip_prefix("Error: ").unwrap_or(line))?;
    // Angular: "Error: src/a.ts:3:5 - error TS2304: MESSAGE".
    if let Some((_, message)) = rest.split_once(" - error ") {
        return compile_error(place, message);
    }
    let message = text::message_after_column(rest)?;
    if place.file.ends_with(".go") {
        if message.starts_with("pattern ") && message.contains("no matching files found") {
            let kind = HintKind::SourceMissing;
            return Some(LocatedError { kind, place, message });
        }
        let is_certain = message.starts_with("expected ") || message.starts_with("use of internal package ");
        return is_certain.then(|| compile_error(place, message))?;
    }
    let is_known = SOURCES_WITH_PLAIN_ERRORS
        .iter()
        .any(|end| place.file.ends_with(end));
    is_known.then_some(())?;
    match message.strip_prefix("error:").map(str::trim) {
        Some("") => compile_error(place, next_text(lines)?),
        Some(message) => compile_error(place, message),
        None => (!message.to_lowercase().starts_with("warning"))
            .then(|| compile_error(place, message))
            .flatten(),
    }
}

/// Parses an error of Dart (`FILE:LINE:COLUMN: Error: MESSAGE`), of esbuild in Vite (`ERROR` in place of it), or of Nim
/// (`FILE(LINE, COLUMN) Error: MESSAGE`).
fn dart_or_esbuild_error(line: &str) -> Option<LocatedError<'_>> {
    if let Some((place, rest)) = text::parse_place(line) {
        let message = text::message_after_column(rest)?;
        let message = message
            .strip_prefix("Error: ")
            .or_else(|| message.strip_prefix("ERROR: "))?;
        return compile_error(place, message);
    }
    let (before, message) = line.split_once(") Error: ")?;
    let (file, numbers) = before.rsplit_once('(')?;
    let line = numbers.split(',').next()?.parse().ok()?;
    (!file.contains(char::is_whitespace)).then_some(())?;
    compile_error(Place { file, line }, message)
}

/// Parses an error of Next.js: `./FILE:LINE:COLUMN`, and on the next line `Type error: MESSAGE`.
fn next_js_error<'l>(lines: &[&'l str]) -> Option<LocatedError<'l>> {
    let (place, rest) = text::parse_place(lines.first()?.strip_prefix("./")?)?;
    rest.strip_prefix(':')?.parse::<u32>().ok()?;
    let message = lines.get(1)?;
    let is_error = ["Type error: ", "Error: ", "Parsing error: "]
        .iter()
        .any(|words| message.starts_with(words));
    is_error.then(|| compile_error(place, message))?
}

/// Returns whether a file is a script for a browser or for Node.js, by its name.
fn is_script(file: &str) -> bool {
    let ends = [".js", ".jsx", ".ts", ".tsx", ".mjs", ".cjs", ".vue", ".svelte"];
    !file.contains(char::is_whitespace) && ends.iter().any(|end| file.ends_with(end))
}

/// Parses an error of Babel: `SyntaxError: FILE: MESSAGE (LINE:COLUMN)`.
fn babel_error(line: &str) -> Option<LocatedError<'_>> {
    let (_, rest) = line.split_once("SyntaxError: ")?;
    let (file, rest) = rest.split_once(": ")?;
    let (message, numbers) = rest.rsplit_once(" (")?;
    let line = numbers.split_once(':')?.0.parse().ok()?;
    is_script(file).then(|| compile_error(Place { file, line }, message))?
}

/// Finds an error of Rollup, `FILE (LINE:COLUMN): MESSAGE`, in a line that names Rollup or after the heading of Vite.
/// Warnings have the same form without either.
fn rollup_error<'l>(lines: &[&'l str]) -> Option<LocatedError<'l>> {
    /// The most lines after the heading in which the error is looked for.
    const MAX_LINES_AFTER_HEADING: usize = 4;
    let first = lines.first()?.trim_start();
    let searched = match first.ends_with("error during build:") {
        true => 1 + MAX_LINES_AFTER_HEADING,
        false if first.starts_with("[!]") || first.contains("RollupError: ") => 1,
        false => return None,
    };
    lines
        .iter()
        .take(searched)
        .find_map(|line| error_with_place_in_parentheses(line))
}

/// Parses `FILE (LINE:COLUMN): MESSAGE`.
fn error_with_place_in_parentheses(line: &str) -> Option<LocatedError<'_>> {
    let (before, message) = line.split_once("): ")?;
    let (file, numbers) = before.rsplit_once(" (")?;
    let file = file.rsplit(' ').next()?;
    let (line, column) = numbers.split_once(':')?;
    column.parse::<u32>().ok()?;
    let line = line.parse().ok()?;
    is_script(file).then(|| compile_error(Place { file, line }, message))?
}

/// Finds Gradle's error in a script: `Build file 'FILE' line: LINE`, and after it the reason.
fn gradle_script_error<'l>(line: &'l str, lines: &[&'l str]) -> Option<LocatedError<'l>> {
    let rest = ["Build file '", "Script '", "Settings file '"]
        .iter()
        .find_map(|words| line.strip_prefix(words))?;
    let (file, number) = rest.split_once("' line: ")?;
    let line = number.trim().parse().ok()?;
    let mut following = lines.iter().skip(1).take(12).map(|line| line.trim_start());
    let reason = following.find_map(|line| line.strip_prefix("> "))?;
    let (kind, place) = (HintKind::ScriptError, Place { file, line });
    Some(LocatedError {
        kind,
        place,
        message: reason,
    })
}

/// Parses an error of make in its file (`Makefile:3: *** missing separator.  Stop.`) or of nginx in its configuration.
fn makefile_or_configuration_error(line: &str) -> Option<LocatedError<'_>> {
    let kind = HintKind::ScriptError;
    if let Some(rest) = line.strip_prefix("nginx: [emerg] ") {
        let (message, place) = rest.rsplit_once(" in ")?;
        let (place, _) = text::parse_place(place)?;
        return Some(LocatedError { kind, place, message });
    }
    let (place, rest) = text::parse_place(line)?;
    let is_makefile = place.file.ends_with("akefile") || place.file.ends_with(".mk");
    if let Some(name) = rest.strip_prefix(": ")
        && is_makefile
        && name.ends_with(": No such file or directory")
    {
        let kind = HintKind::SourceMissing;
        return Some(LocatedError {
            kind,
            place,
            message: name,
        });
    }
    let message = rest.strip_prefix(": *** ")?;
    let message = message.trim_end_matches("Stop.").trim_end();
    // "make: *** [Makefile:3: all] Error 1" is no error in the file.
    (!message.starts_with('[')).then_some(LocatedError { kind, place, message })
}

/// Parses an error of OCaml (`File "FILE", line LINE, characters 1-2:`, and `Error: MESSAGE`) or of Elixir (`**
/// (CompileError) FILE:LINE: MESSAGE`).
fn ocaml_or_elixir_error<'l>(line: &'l str, lines: &[&'l str]) -> Option<LocatedError<'l>> {
    if let Some(rest) = line.strip_prefix("** (") {
        let (name, rest) = rest.split_once(") ")?;
        name.ends_with("Error").then_some(())?;
        let (place, rest) = text::parse_place(rest)?;
        return compile_error(place, text::message_after_column(rest)?);
    }
    let (file, rest) = line.strip_prefix("File \"")?.split_once("\", line")?;
    let is_source = [".ml", ".mli", ".mly", ".mll"]
        .iter()
        .any(|end| file.ends_with(end));
    is_source.then_some(())?;
    let numbers = rest.trim_start_matches(['s', ' ']);
    let digits = numbers.bytes().take_while(u8::is_ascii_digit).count();
    let line = numbers.get(..digits)?.parse().ok()?;
    let mut following = lines.iter().skip(1).take(12);
    let message = following.find_map(|line| line.strip_prefix("Error: "))?;
    compile_error(Place { file, line }, message)
}

/// Finds ESLint's error: the path of a file, and under it `LINE:COLUMN  error  MESSAGE  RULE`.
fn eslint_error<'l>(lines: &[&'l str]) -> Option<LocatedError<'l>> {
    let file = lines.first()?;
    let is_path = (file.starts_with('/') || file.starts_with("./"))
        && file.contains('.')
        && !file.contains([' ', ':', '('])
        && file.len() <= 200;
    is_path.then_some(())?;
    let mut following = lines.iter().skip(1).take(40).map(|line| line.trim());
    let error = following
        .by_ref()
        .take_while(|line| !line.is_empty())
        .find_map(|line| {
            let (place, rest) = line.split_once(' ')?;
            let (number, column) = place.split_once(':')?;
            column.parse::<u32>().ok()?;
            let message = rest.trim_start().strip_prefix("error ")?;
            Some((number.parse().ok()?, message.trim_start()))
        })?;
    let (line, message) = error;
    let place = Place {
        file: file.strip_prefix("./").unwrap_or(file),
        line,
    };
    let kind = HintKind::StepFailed;
    (line > 0).then_some(LocatedError { kind, place, message })
}
