//! Errors of compilers that name a file and a line.

use super::evidence::Evidence;
use super::text::{self, Place};
use super::{Hint, HintKind};

/// An error of a compiler.
struct CompileError<'l> {
    place: Place<'l>,
    message: &'l str,
}

/// Explains an error of a compiler.
pub(super) fn explain(evidence: &Evidence<'_>) -> Option<Hint> {
    evidence.process_failure_reason()?;
    let lines: Vec<&str> = evidence.lines().collect();
    let found = find_rustc_error(&lines)
        .or_else(|| find_bundler_error(&lines))
        .or_else(|| lines.iter().find_map(|line| parse_one_line_error(line)))?;
    let file = found.place.file.strip_prefix("./").unwrap_or(found.place.file);
    let place = Place { file, ..found.place };
    let cause = format!("{file} does not compile: {}", found.message);
    Some(Hint::to_correct_line(HintKind::CompileError, cause, &place))
}

/// Finds rustc's first error: `error[E0308]: MESSAGE`, and after it ` --> FILE:LINE:COLUMN`.
fn find_rustc_error<'l>(lines: &[&'l str]) -> Option<CompileError<'l>> {
    const MAX_LINES_FROM_ERROR_TO_PLACE: usize = 6;
    // cargo prints an error in a manifest in the same form.
    let is_source = |file: &str| !file.ends_with(".toml");
    (0..lines.len()).find_map(|at| {
        let line = lines.get(at)?.trim_start();
        let rest = line.strip_prefix("error")?;
        let message = match rest.strip_prefix('[') {
            Some(code) => code.split_once("]: ")?.1,
            None => rest.strip_prefix(": ")?,
        };
        let following = lines.iter().skip(at + 1).take(MAX_LINES_FROM_ERROR_TO_PLACE);
        let place = following
            .map(|line| line.trim_start())
            .take_while(|line| !line.starts_with("error") && !line.starts_with("warning"))
            .find_map(|line| Some(text::parse_place(line.strip_prefix("--> ")?)?.0))?;
        is_source(place.file).then_some(CompileError { place, message })
    })
}

/// Finds the first error of esbuild (`✘ [ERROR] MESSAGE`, an empty line, and `FILE:LINE:COLUMN:`) or webpack (`ERROR in
/// ./FILE LINE:COLUMNS`, and `MESSAGE`).
fn find_bundler_error<'l>(lines: &[&'l str]) -> Option<CompileError<'l>> {
    const MAX_LINES_FROM_ERROR_TO_PLACE: usize = 4;
    (0..lines.len()).find_map(|at| {
        let line = lines.get(at)?.trim_start();
        if let Some((mark, message)) = line.split_once(" [ERROR] ") {
            (mark.chars().count() == 1).then_some(())?;
            let following = lines.iter().skip(at + 1).take(MAX_LINES_FROM_ERROR_TO_PLACE);
            let place = following
                .map(|line| line.trim_start())
                .take_while(|line| !line.contains(" [ERROR] "))
                .find_map(|line| Some(text::parse_place(line)?.0))?;
            return Some(CompileError { place, message });
        }
        let (file, numbers) = line.strip_prefix("ERROR in ./")?.rsplit_once(' ')?;
        let line = numbers.split_once(':')?.0.parse().ok().filter(|line| *line > 0)?;
        let message = lines.get(at + 1)?.trim();
        let place = Place { file, line };
        (!file.is_empty() && file.len() <= 200).then_some(CompileError { place, message })
    })
}

/// Parses an error on one line: `FILE:LINE:COLUMN: error: MESSAGE` (gcc, clang, javac, kotlinc, swiftc), or
/// `FILE(LINE,COLUMN): error CODE: MESSAGE` (tsc, csc).
fn parse_one_line_error(line: &str) -> Option<CompileError<'_>> {
    if let Some((place, rest)) = text::parse_place(line) {
        // tsc for terminals: "src/a.ts:8:25 - error TS2322: MESSAGE".
        if let Some((column, message)) = rest.split_once(" - error TS")
            && column
                .strip_prefix(':')
                .is_some_and(|column| column.parse::<u32>().is_ok())
        {
            let (_, message) = message.split_once(": ")?;
            return Some(CompileError { place, message });
        }
        let rest = text::message_after_column(rest)?;
        let message = rest
            .strip_prefix("error: ")
            .or_else(|| rest.strip_prefix("fatal error: "))?;
        return Some(CompileError { place, message });
    }
    // Maven: "[ERROR] /app/src/Main.java:[4,20] cannot find symbol".
    if let Some((file, rest)) = line
        .strip_prefix("[ERROR] ")
        .and_then(|rest| rest.split_once(":["))
    {
        let (numbers, message) = rest.split_once("] ")?;
        let number = numbers.split(',').next()?.parse().ok()?;
        let place = Place { file, line: number };
        return Some(CompileError { place, message });
    }
    let (place, message) = line.split_once("): error ")?;
    let (file, numbers) = place.rsplit_once('(')?;
    let number = numbers.split(',').next()?.parse().ok()?;
    let is_file = !file.is_empty() && file.len() <= 200 && !file.contains(char::is_whitespace);
    let place = Place { file, line: number };
    is_file.then_some(CompileError { place, message })
}
