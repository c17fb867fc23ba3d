//! Functions that run other programs; the error of a failed program has the end of its output.

use std::{
    ffi::OsStr,
    io,
    process::{Output, Stdio},
};

use tokio::{io::AsyncWriteExt as _, process::Command};

use crate::error::{LauncherError, Result};

/// The largest number of output lines in the error of a failed program.
const OUTPUT_TAIL_LINES: usize = 30;

/// The longest line of a program's output in an error, in bytes.
const LONGEST_LINE_BYTES: usize = 1000;

/// Creates a command without standard input, whose process is killed when its future is dropped.
pub(crate) fn new_command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.kill_on_drop(true).stdin(Stdio::null());
    command
}

/// Runs a program and returns its standard output; fails unless it exits successfully.
pub(crate) async fn run_program(command: &mut Command) -> Result<Vec<u8>> {
    let name = program_and_first_four_arguments(command.as_std());
    check_program_output(name, command.output().await)
}

/// Runs a program with the given standard input and returns its standard output; fails unless it exits successfully.
pub(crate) async fn run_program_with_input(command: &mut Command, input: &[u8]) -> Result<Vec<u8>> {
    let name = program_and_first_four_arguments(command.as_std());
    let failed = |source| LauncherError::Spawn {
        program: name.clone(),
        source,
    };
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let mut stdin = child
        .stdin
        .take()
        .ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
    let write = async {
        // A program that exits without reading all of it reports its own error.
        let _ = stdin.write_all(input).await;
        drop(stdin);
    };
    let ((), output) = tokio::join!(write, child.wait_with_output());
    check_program_output(name, output)
}

/// Runs a program as [`run_program`] does, without an async runtime.
pub(crate) fn run_program_blocking(command: &mut std::process::Command) -> Result<Vec<u8>> {
    let name = program_and_first_four_arguments(command);
    check_program_output(name, command.stdin(Stdio::null()).output())
}

/// Returns the standard output of a program that exited successfully; otherwise fails with the end of both outputs.
fn check_program_output(name: String, output: io::Result<Output>) -> Result<Vec<u8>> {
    let output = output.map_err(|source| LauncherError::Spawn {
        program: name.clone(),
        source,
    })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Err(LauncherError::Program {
        program: name,
        status: output.status.to_string(),
        output: last_lines_each_cut(&text, OUTPUT_TAIL_LINES),
    })
}

/// Returns a command's program and first four arguments, which identify the command in errors.
fn program_and_first_four_arguments(command: &std::process::Command) -> String {
    let words = [command.get_program()]
        .into_iter()
        .chain(command.get_args().take(4));
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Returns the last lines of a text, each cut to [`LONGEST_LINE_BYTES`].
pub(crate) fn last_lines_each_cut(text: &str, count: usize) -> String {
    let all = text.trim_end().lines().collect::<Vec<_>>();
    let last = all.get(all.len().saturating_sub(count)..).unwrap_or_default();
    let cut = |line: &&str| line[..line.floor_char_boundary(LONGEST_LINE_BYTES)].to_owned();
    last.iter().map(cut).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_a_failed_program_names_it_and_has_its_output() {
        let error = run_program_blocking(
            std::process::Command::new("sh").args(["-c", "echo out; echo no >&2; exit 3"]),
        );
        let text = error.unwrap_err().to_string();
        assert!(
            text.contains("sh -c") && text.contains("exit status: 3") && text.contains("out\nno"),
            "{text}"
        );
    }

    #[test]
    fn last_lines_has_only_the_last_lines_of_a_text() {
        assert_eq!(last_lines_each_cut("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines_each_cut("a", 5), "a");
        assert_eq!(last_lines_each_cut("", 5), "");
    }
}
