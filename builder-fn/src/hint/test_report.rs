//! Reports of failing tests, of Jest, Vitest, Mocha, Node.js, Maven, Gradle, PHPUnit, RSpec, Minitest, unittest, .NET
//! and ExUnit.

use super::Hint;
use super::evidence::Evidence;
use super::known_line::without_mark;
use super::test_failure::failed_test_hint;
use super::text::{self, Place};

/// The most lines after the name of a test in which its message and its place are looked for.
const MAX_LINES_OF_TEST: usize = 30;

/// Explains a failing test: the first one that a report names.
pub(super) fn explain(evidence: &Evidence<'_>) -> Option<Hint> {
    evidence.process_failure_reason()?;
    let lines: Vec<&str> = evidence.lines().collect();
    javascript_test(&lines)
        .or_else(|| surefire_test(evidence, &lines))
        .or_else(|| gradle_test(&lines))
        .or_else(|| phpunit_or_minitest_test(&lines))
        .or_else(|| rspec_test(&lines))
        .or_else(|| unittest_test(&lines))
        .or_else(|| dotnet_test(&lines))
        .or_else(|| exunit_test(&lines))
}

/// Returns the place in a text that ends with `FILE:LINE`, or `FILE:LINE:COLUMN`, if the file is no library's.
fn place_at_end(line: &str) -> Option<Place<'_>> {
    let word = line.rsplit([' ', '(']).next()?.trim_end_matches([')', ':']);
    let word = word.strip_prefix("file://").unwrap_or(word);
    let (place, rest) = text::parse_place(word)?;
    let is_library = ["node_modules", "node:", "/gems/", "/vendor/"]
        .iter()
        .any(|part| place.file.contains(part));
    let is_end = rest.is_empty()
        || rest
            .strip_prefix(':')
            .is_some_and(|rest| rest.parse::<u32>().is_ok());
    (!is_library && is_end && place.file.contains('.')).then_some(place)
}

/// Returns the lines of the test whose name is at `at`: those after it.
fn following<'s, 'l>(lines: &'s [&'l str], at: usize) -> impl Iterator<Item = &'l str> + Clone + use<'s, 'l> {
    lines
        .iter()
        .skip(at + 1)
        .take(MAX_LINES_OF_TEST)
        .map(|line| line.trim())
}

/// Returns the hint for the test with a name at `at`, with the first message and place after it.
fn hint_from_following_lines(
    lines: &[&str],
    at: usize,
    name: &str,
    is_message: impl Fn(&str) -> bool,
) -> Hint {
    let message = following(lines, at)
        .find(|line| is_message(line))
        .unwrap_or("it does not say why");
    let place = following(lines, at).find_map(place_at_end);
    match place {
        Some(place) => failed_test_hint(name, message, place.file, Some(place.line)),
        None => failed_test_hint(name, message, "", None),
    }
}

/// Finds a failing test of Jest (`● NAME`), Vitest (`FAIL  FILE > NAME`), Mocha (`1) NAME` after `1 failing`), or
/// Node.js (`test at FILE:LINE:COLUMN` after `✖ failing tests:`).
fn javascript_test(lines: &[&str]) -> Option<Hint> {
    let is_message = |line: &str| !line.is_empty() && !line.starts_with("at ") && !line.starts_with('❯');
    let has_summary = |start: &str, word: &str| {
        lines
            .iter()
            .any(|line| line.trim_start().starts_with(start) && line.contains(word))
    };
    if has_summary("Tests:", " failed") || has_summary("Test Suites:", " failed") {
        // What tests and Jest itself write has the same mark.
        let is_test = |name: &str| name != "Console" && !name.contains("Warning:");
        let at = lines
            .iter()
            .position(|line| line.trim_start().strip_prefix("● ").is_some_and(is_test))?;
        let name = lines.get(at)?.trim_start().strip_prefix("● ")?;
        return Some(hint_from_following_lines(lines, at, name, is_message));
    }
    if has_summary("Test Files", " failed") || has_summary("Tests", " failed") {
        let at = lines
            .iter()
            .position(|line| line.trim_start().starts_with("FAIL "))?;
        let name = lines.get(at)?.trim_start().strip_prefix("FAIL ")?.trim();
        return Some(hint_from_following_lines(lines, at, name, is_message));
    }
    if let Some(at) = lines.iter().position(|line| line.trim() == "✖ failing tests:") {
        let rest = following(lines, at).find_map(|line| line.strip_prefix("test at "))?;
        let (place, _) = text::parse_place(rest)?;
        let mut named = following(lines, at)
            .skip_while(|line| !line.starts_with("test at "))
            .skip(1);
        let name = without_mark(named.next()?);
        let message = named.find(|line| !line.is_empty()).unwrap_or_default();
        return Some(failed_test_hint(name, message, place.file, Some(place.line)));
    }
    let summary = lines.iter().position(|line| {
        let number = line.trim().strip_suffix(" failing");
        number.is_some_and(|number| number.parse::<u32>().is_ok())
    })?;
    let at = (summary..lines.len()).find(|at| {
        lines
            .get(*at)
            .is_some_and(|line| line.trim_start().starts_with("1) "))
    })?;
    let name = lines.get(at)?.trim_start().strip_prefix("1) ")?;
    Some(hint_from_following_lines(
        lines,
        at,
        name.trim_end_matches(':'),
        |line| line.contains("Error"),
    ))
}

/// Finds a failing test of Maven's Surefire: `[ERROR]   CLASS.METHOD:LINE MESSAGE` after `[ERROR] Failures:` or
/// `[ERROR] Errors:`.
fn surefire_test(evidence: &Evidence<'_>, lines: &[&str]) -> Option<Hint> {
    let is_heading = |line: &&str| -> bool {
        let line = line.trim_end();
        line == "[ERROR] Failures:" || line == "[ERROR] Errors:"
    };
    let at = lines.iter().position(is_heading)?;
    let rest = lines.get(at + 1)?.strip_prefix("[ERROR] ")?.trim_start();
    let (name, rest) = rest.split_once(':')?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let line = rest.get(..digits)?.parse().ok()?;
    let message = rest.get(digits..)?.trim();
    let (class, _) = name.split_once('.')?;
    // The full name of the class is in an earlier line: "[ERROR] com.acme.PriceTest.rounds -- Time elapsed: …".
    let file = lines.iter().find_map(|line| {
        let full = line.strip_prefix("[ERROR] ")?;
        let end = full.find(&format!(".{class}"))?;
        let package = full.get(..end)?;
        let is_package = package
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_'));
        is_package.then(|| format!("src/test/java/{}/{class}.java", package.replace('.', "/")))
    });
    Some(match file.filter(|file| evidence.failure.files.has(file)) {
        Some(file) => failed_test_hint(name, message, &file, Some(line)),
        None => failed_test_hint(name, message, "", None),
    })
}

/// Finds a failing test of Gradle: `CLASS > METHOD FAILED`, and `EXCEPTION at FILE:LINE`.
fn gradle_test(lines: &[&str]) -> Option<Hint> {
    let at = lines
        .iter()
        .position(|line| line.contains(" > ") && line.ends_with(" FAILED") && !line.starts_with("> Task"))?;
    let name = lines.get(at)?.strip_suffix(" FAILED")?.trim();
    let message = following(lines, at).find(|line| !line.is_empty())?;
    Some(match place_at_end(message) {
        Some(place) => failed_test_hint(name, message, place.file, Some(place.line)),
        None => failed_test_hint(name, message, "", None),
    })
}

/// Finds a failing test of PHPUnit (`1) CLASS::METHOD`, and `FILE:LINE`) or Minitest (`1) Failure:`, and `NAME
/// [FILE:LINE]:`).
fn phpunit_or_minitest_test(lines: &[&str]) -> Option<Hint> {
    let at = lines
        .iter()
        .position(|line| line.trim_start().starts_with("1) "))?;
    let name = lines.get(at)?.trim_start().strip_prefix("1) ")?;
    if matches!(name, "Failure:" | "Error:") {
        let named = following(lines, at).next()?;
        let message = following(lines, at).nth(1).unwrap_or_default();
        let (name, place) = named
            .split_once(" [")
            .unwrap_or((named.trim_end_matches(':'), ""));
        let place = text::parse_place(place).map(|(place, _)| place);
        return Some(match place {
            Some(place) => failed_test_hint(name, message, place.file, Some(place.line)),
            None => failed_test_hint(name, message, "", None),
        });
    }
    let is_phpunit = name.contains("::")
        && lines
            .iter()
            .any(|line| line.starts_with("FAILURES!") || line.starts_with("ERRORS!"));
    is_phpunit.then(|| hint_from_following_lines(lines, at, name, |line| !line.is_empty()))
}

/// Finds a failing example of RSpec: `rspec ./FILE:LINE # NAME`.
fn rspec_test(lines: &[&str]) -> Option<Hint> {
    lines.iter().find(|line| line.starts_with("Failed examples:"))?;
    let rest = lines.iter().find_map(|line| line.strip_prefix("rspec "))?;
    let (place, rest) = text::parse_place(rest)?;
    let name = rest.trim_start().strip_prefix("# ")?;
    let message = lines
        .iter()
        .find_map(|line| line.trim_start().strip_prefix("Failure/Error: "));
    Some(failed_test_hint(
        name,
        message.unwrap_or("it does not say why"),
        place.file,
        Some(place.line),
    ))
}

/// Finds a failing test of Python's unittest or Django: `FAIL: NAME (CLASS)` or `ERROR: NAME (CLASS)` under a line of
/// equals signs.
fn unittest_test(lines: &[&str]) -> Option<Hint> {
    let at = lines.windows(2).position(|pair| match pair {
        [rule, name] => {
            rule.starts_with("======") && (name.starts_with("FAIL: ") || name.starts_with("ERROR: "))
        }
        _ => false,
    })? + 1;
    let (_, name) = lines.get(at)?.split_once(": ")?;
    let name = name.split(' ').next()?;
    let own = following(lines, at).take_while(|line| !line.starts_with("======"));
    let frames = own.clone().filter_map(|line| {
        let (file, rest) = line.strip_prefix("File \"")?.split_once("\", line ")?;
        let line = rest.split(',').next()?.trim().parse().ok()?;
        (!file.contains("/lib/python")).then_some((file, line))
    });
    let (file, line): (&str, u32) = frames.last()?;
    let mut own = own;
    let message = own.find(|line| {
        let name = line.split([':', ' ']).next().unwrap_or_default();
        name.ends_with("Error") || name.ends_with("Exception")
    });
    Some(failed_test_hint(
        name,
        message.unwrap_or_default(),
        file,
        Some(line),
    ))
}

/// Finds a failing test of .NET: `  Failed NAME [12 ms]`, `  Error Message:`, and `at NAME in FILE:line LINE`.
fn dotnet_test(lines: &[&str]) -> Option<Hint> {
    let at = lines.iter().position(|line| {
        let name = line.strip_prefix("  Failed ");
        name.is_some_and(|name| name.ends_with(']') && name.contains(" ["))
    })?;
    let name = lines
        .get(at)?
        .trim_start()
        .strip_prefix("Failed ")?
        .rsplit_once(" [")?
        .0;
    let mut message = following(lines, at)
        .skip_while(|line| *line != "Error Message:")
        .skip(1);
    let message = message
        .find(|line| !line.is_empty())
        .unwrap_or("it does not say why");
    let place = following(lines, at).find_map(|line| {
        let (_, rest) = line.strip_prefix("at ")?.rsplit_once(" in ")?;
        let (file, line) = rest.rsplit_once(":line ")?;
        Some((file, line.trim().parse().ok()?))
    });
    Some(match place {
        Some((file, line)) => failed_test_hint(name, message, file, Some(line)),
        None => failed_test_hint(name, message, "", None),
    })
}

/// Finds a failing test of ExUnit: `  1) test NAME (MODULE)`, and `FILE:LINE` on the next line.
fn exunit_test(lines: &[&str]) -> Option<Hint> {
    let at = lines
        .iter()
        .position(|line| line.trim_start().starts_with("1) test "))?;
    let name = lines.get(at)?.trim_start().strip_prefix("1) test ")?;
    let (place, _) = text::parse_place(lines.get(at + 1)?.trim())?;
    let message = lines.get(at + 2).map(|line| line.trim()).unwrap_or_default();
    place
        .file
        .ends_with(".exs")
        .then(|| failed_test_hint(name, message, place.file, Some(place.line)))
}
