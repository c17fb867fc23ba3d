//! Errors of Go's tool chain.

use super::evidence::Evidence;
use super::text::{self, Place};
use super::{Hint, HintKind};

/// Explains an error of Go: of the compiler, in `go.mod`, or about `go.sum`.
pub(super) fn explain(evidence: &Evidence<'_>) -> Option<Hint> {
    evidence.process_failure_reason()?;
    let lines: Vec<&str> = evidence.lines().collect();
    if let Some(at) = lines
        .iter()
        .position(|line| line.starts_with("go: errors parsing "))
    {
        let (place, rest) = text::parse_place(lines.get(at + 1)?)?;
        let message = text::message_after_column(rest)?;
        return Some(Hint::to_correct_line(
            HintKind::ManifestInvalid,
            format!("go cannot read {}: {message}", place.file),
            &place,
        ));
    }
    if let Some(line) = lines
        .iter()
        .find(|line| line.contains("missing go.sum entry for "))
    {
        let module = line
            .split_once("providing package ")
            .or_else(|| line.split_once("module "));
        let module = module
            .and_then(|(_, rest)| rest.split([' ', ';', ':']).next())
            .unwrap_or("a module");
        return Some(
            Hint::new(
                HintKind::LockFileOutdated,
                format!("go.sum has no entry for {module}"),
                "run go mod tidy where the source is, and hand in the new go.mod and go.sum",
            )
            .at("go.sum", None),
        );
    }
    if lines.iter().any(|line| {
        line.starts_with("go: updates to go.mod needed")
            || line.contains("go.mod file indicates go")
            || line.starts_with("go: inconsistent vendoring")
    }) {
        return Some(
            Hint::new(
                HintKind::LockFileOutdated,
                "go.mod does not fit the source, and go may not change it",
                "run go mod tidy (and go mod vendor, if there is a folder vendor) where the source is, and hand in the result",
            )
            .at("go.mod", None),
        );
    }
    if let Some((place, package)) = lines
        .iter()
        .find_map(|line| parse_place_and_missing_package(line))
    {
        return Some(
            Hint::new(
                HintKind::DependencyMissing,
                format!("no module of go.mod has the package {package}"),
                match text::is_safe_in_shell_advice(&package)
                    && evidence.context_file_contains(place.file, &format!("\"{package}\""))
                {
                    true => {
                        format!(
                            "run go get {package} where the source is, and hand in the new go.mod and go.sum"
                        )
                    }
                    false => {
                        "correct the import, or add the module that has the package to go.mod".to_owned()
                    }
                },
            )
            .at(place.file, Some(place.line)),
        );
    }
    if let Some(line) = lines.iter().find(|line| {
        line.starts_with("go: ")
            && (line.contains("unknown revision")
                || line.contains(": not found: ")
                || line.contains("404 Not Found"))
    }) {
        let module = line.strip_prefix("go: ")?.split([' ', ':']).next()?;
        return Some(Hint::new(
            HintKind::DependencyMissing,
            format!("go finds no module {module}: {line}"),
            format!(
                "correct the name or the version of {} in go.mod; a private module needs GOPRIVATE and credentials",
                match evidence.context_file_contains("go.mod", module.split('@').next().unwrap_or(module)) {
                    true => text::name_if_safe_or(module, "the module"),
                    false => "the module",
                }
            ),
        ));
    }
    // The compiler's errors follow a line with the package, "# example.com/app".
    let start = lines.iter().position(|line| line.starts_with("# "))?;
    let (place, message) = lines
        .iter()
        .skip(start + 1)
        .find_map(|line| parse_go_compile_error(line))?;
    Some(Hint::to_correct_line(
        HintKind::CompileError,
        format!("{} does not compile: {message}", place.file),
        &place,
    ))
}

/// Parses an error of the compiler: `./main.go:4:10: undefined: total`.
fn parse_go_compile_error(line: &str) -> Option<(Place<'_>, &str)> {
    let (place, rest) = text::parse_place(line.strip_prefix("vet: ").unwrap_or(line))?;
    place.file.ends_with(".go").then_some(())?;
    Some((place, text::message_after_column(rest)?))
}

/// Parses the error for a package that no module has: `main.go:3:8: no required module provides package NAME; to add
/// it:`.
fn parse_place_and_missing_package(line: &str) -> Option<(Place<'_>, String)> {
    let (place, rest) = text::parse_place(line)?;
    let message = text::message_after_column(rest)?;
    let package = message
        .strip_prefix("no required module provides package ")
        .or_else(|| text::between(message, "package ", " is not in std"))
        .or_else(|| message.strip_prefix("cannot find package "))?;
    let package = package.split([' ', ';', ':']).next()?.trim_matches('"');
    Some((place, package.to_owned()))
}
