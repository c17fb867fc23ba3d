//! Programs that cannot be run, and what their user may not do.

use super::evidence::Evidence;
use super::{Hint, HintKind, text};

/// The exit code of a shell for a program that may not be executed.
const EXIT_CODE_NOT_EXECUTABLE: u32 = 126;

/// The exit code of a shell for a program that does not exist.
const EXIT_CODE_NOT_FOUND: u32 = 127;

/// Explains a program that cannot be run, a user that the image does not have, or what the user of a step may not do.
pub(super) fn explain_unrunnable_program_missing_user_or_denied_permission(
    evidence: &Evidence<'_>,
) -> Option<Hint> {
    let reason = evidence.process_failure_reason()?;
    if let Some(rest) = reason.strip_prefix("unable to find user ") {
        let user = rest.split_once(':').map_or(rest, |(user, _)| user);
        return Some(Hint::new(
            HintKind::UserMissing,
            format!("the image has no user {user}, which the step runs as"),
            format!(
                "create {} in a step before (useradd, adduser), or name one in USER that the image has",
                match text::is_safe_in_shell_advice(user) {
                    true => format!("the user {user}"),
                    false => "the user".to_owned(),
                }
            ),
        ));
    }
    let code = evidence.exit_code()?;
    let last = || evidence.lines().rev().take(40).filter(|line| !line.is_empty());
    let mut lines = last();
    if let Some(line) = lines.find(|line| line.to_lowercase().contains("exec format error")) {
        let program = line
            .strip_prefix("exec ")
            .and_then(|rest| rest.split_once(':'))
            .map(|(program, _)| program);
        let program = program
            .or_else(|| program_in_message(line))
            .unwrap_or("a program of the step");
        return Some(Hint::new(
            HintKind::WrongArchitecture,
            match evidence.base_image_or_stage() {
                Some(base) => format!(
                    "{program} is not for the processor or the operating system of the build; the stage begins from {base}"
                ),
                None => format!("{program} is not for the processor or the operating system of the build"),
            },
            "use a program and a base image for the platform of the build, or begin a script with its interpreter (#!/bin/sh)",
        ));
    }
    let is_not_found = code == EXIT_CODE_NOT_FOUND || last().any(|line| line.ends_with(" Error 127"));
    if is_not_found && let Some(program) = last().find_map(program_not_found_by_shell) {
        return Some(missing_program_hint(evidence, program));
    }
    if let Some(program) = last().find_map(unstartable_program) {
        return Some(missing_program_hint(evidence, program));
    }
    if code == EXIT_CODE_NOT_EXECUTABLE
        && let Some(line) = last().find(|line| line.contains("Permission denied"))
    {
        let program = program_in_message(line)?;
        return Some(Hint::new(
            HintKind::NotExecutable,
            format!("{program} may not be executed: it has no executable bit, or is a folder"),
            match text::is_safe_in_shell_advice(program)
                && evidence.command_has_word(program.rsplit('/').next().unwrap_or(program))
            {
                true => format!(
                    "make it executable (chmod +x {program}, COPY --chmod=755), or run it with its interpreter (sh {program})"
                ),
                false => "make it executable (chmod +x, COPY --chmod=755), or run it with its interpreter"
                    .to_owned(),
            },
        ));
    }
    let line = last().find(|line| {
        line.contains("Permission denied")
            || line.contains("EACCES: permission denied")
            || line.contains("Operation not permitted")
    })?;
    Some(Hint::new(
        HintKind::PermissionDenied,
        format!("the user of the step may not do this: {line}"),
        "run the step as a user that may (USER root before it), or change the owner of the files (COPY --chown, chown)",
    ))
}

/// Returns the program that a shell did not find, from its message: `/bin/sh: 1: yarn: not found`, `bash: line 1: yarn:
/// command not found`, `/bin/sh: yarn: not found`.
fn program_not_found_by_shell(line: &str) -> Option<&str> {
    let line = line
        .strip_suffix(": command not found")
        .or_else(|| line.strip_suffix(": not found"));
    let line = line.or_else(|| line?.strip_suffix(": No such file or directory"));
    let program = line?.rsplit_once(": ")?.1;
    may_be_program_path(program).then_some(program)
}

/// Returns the program that could not be started: `env: 'node': No such file or directory`, or runc's `exec: "/bin/sh":
/// stat /bin/sh: no such file or directory`.
fn unstartable_program(line: &str) -> Option<&str> {
    if let Some(rest) = line
        .strip_prefix("env: ")
        .or_else(|| line.strip_prefix("/usr/bin/env: "))
    {
        let program = rest
            .strip_suffix(": No such file or directory")?
            .trim_matches(['\'', '"', '\u{2018}', '\u{2019}']);
        return may_be_program_path(program).then_some(program);
    }
    // rustc, the build of a Python package, and make.
    let named = text::between(line, "error: linker `", "` not found")
        .or_else(|| text::between(line, "error: command '", "' failed: No such file or directory"))
        .or_else(|| text::between(line, "unable to execute '", "': No such file or directory"))
        // The build of a Python package: "Error: pg_config executable not found."
        .or_else(|| text::between(line, "rror: ", " executable not found"))
        // node-gyp
        .or_else(|| line.strip_prefix("npm error gyp ERR! stack Error: not found: "))
        .or_else(|| line.strip_prefix("gyp ERR! stack Error: not found: "))
        .or_else(|| {
            line.strip_prefix("make: ")?
                .strip_suffix(": No such file or directory")
        });
    if let Some(program) = named {
        return may_be_program_path(program).then_some(program);
    }
    let program = text::between(line, "exec: \"", "\": ")?;
    let is_missing = line.contains("no such file or directory") || line.contains("executable file not found");
    (is_missing && may_be_program_path(program)).then_some(program)
}

/// Returns the program in a shell's message about it: the part before the last.
fn program_in_message(line: &str) -> Option<&str> {
    let (before, _) = line.rsplit_once(": ")?;
    let program = before.rsplit_once(": ").map_or(before, |(_, program)| program);
    may_be_program_path(program).then_some(program)
}

fn may_be_program_path(text: &str) -> bool {
    !text.is_empty() && text.len() <= 200 && !text.contains(char::is_whitespace)
}

/// Returns the hint for a program that is not in the image, or whose interpreter is not.
fn missing_program_hint(evidence: &Evidence<'_>, program: &str) -> Hint {
    let name = program.rsplit('/').next().unwrap_or(program);
    let script = find_script_and_first_line(evidence, program);
    if let Some((path, first_line)) = script
        && let Some(interpreter) = first_line.strip_prefix("#!")
    {
        let interpreter = interpreter.trim();
        if first_line.ends_with('\r') {
            return Hint::new(
                HintKind::ScriptError,
                format!("{path} has Windows line ends, so that its interpreter is looked for as \"{interpreter}\" and a carriage return"),
                format!(
                    "store {} with the line ends of Unix (dos2unix, git's core.autocrlf=input)",
                    text::name_if_safe_or(&path, "the script")
                ),
            )
            .at(&path, Some(1));
        }
        return Hint::new(
            HintKind::CommandNotFound,
            format!("the image does not have {program}, or not the interpreter of the script, {interpreter}"),
            format!(
                "copy {} there, and install {} in a step before",
                text::name_if_safe_or(&path, "the script"),
                text::name_if_safe_or(interpreter, "its interpreter")
            ),
        );
    }
    let next = match program.contains('/') {
        true => format!(
            "copy {} into the image, or build it in a step before",
            text::name_if_safe_or(program, "the program")
        ),
        false => format!(
            "install {} in a step before, or use a base image that has it",
            match package_of_development_tool(name) {
                Some(package) => package,
                None if evidence.command_has_word(name) => text::name_if_safe_or(name, "it"),
                None => "it",
            }
        ),
    };
    let is_linker = evidence
        .lines()
        .any(|line| line.contains(&format!("linker `{program}` not found")));
    let role = if is_linker {
        ", which rustc uses as its linker"
    } else {
        ""
    };
    Hint::new(
        HintKind::CommandNotFound,
        format!("the image does not have the program {program}{role}"),
        next,
    )
}

/// Returns the packages of distributions that have a program which builds of dependencies need, and whose name is not
/// that of the package.
fn package_of_development_tool(program: &str) -> Option<&'static str> {
    match program {
        "cc" | "gcc" | "c++" | "g++" | "ld" | "make" => {
            Some("a C compiler and its tools (build-essential on Debian, build-base on Alpine)")
        }
        "pg_config" => Some("the development files of PostgreSQL (libpq-dev on Debian and Alpine)"),
        "mysql_config" | "mariadb_config" => {
            Some("the development files of MariaDB (libmariadb-dev on Debian, mariadb-dev on Alpine)")
        }
        _ => None,
    }
}

/// Returns the script of the context that a program is, with its first line: the file whose path is the end of the
/// program's.
fn find_script_and_first_line(evidence: &Evidence<'_>, program: &str) -> Option<(String, String)> {
    let mut rest =
        Some(program.trim_start_matches("./").trim_start_matches('/')).filter(|_| program.contains('/'));
    for _ in 0..16 {
        let path = rest?;
        if let Some(read) = evidence.failure.files.read_beginning(path, 256) {
            let read = String::from_utf8_lossy(&read).into_owned();
            let first = read.split('\n').next().unwrap_or_default();
            return Some((path.to_owned(), first.to_owned()));
        }
        rest = path.split_once('/').map(|(_, rest)| rest);
    }
    None
}
