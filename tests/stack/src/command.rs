//! Running another program to its end, with the end of its output in the error when it fails.

use std::{
    ffi::OsStr,
    io,
    process::{Output, Stdio},
};

use tokio::{io::AsyncWriteExt as _, process::Command};

use crate::error::{Error, Result};

/// How much of a failed program's output an error carries, in lines.
const TAIL_LINES: usize = 30;

/// How much of a line an error shows, in bytes.
const LONG_LINE: usize = 1000;

/// A program by name, which dies with the launcher.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.kill_on_drop(true).stdin(Stdio::null());
    command
}

/// Runs a program to its end and gives what it wrote on standard output.
pub(crate) async fn run(command: &mut Command) -> Result<Vec<u8>> {
    let name = name(command.as_std());
    finished(name, command.output().await)
}

/// As [`run`], with something on the program's standard input.
pub(crate) async fn run_with_input(command: &mut Command, input: &[u8]) -> Result<Vec<u8>> {
    let name = name(command.as_std());
    let failed = |source| Error::Spawn {
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
        // A program that does not read all of it says itself what is wrong.
        let _ = stdin.write_all(input).await;
        drop(stdin);
    };
    let ((), output) = tokio::join!(write, child.wait_with_output());
    finished(name, output)
}

/// As [`run`], for the places where there is no runtime.
pub(crate) fn run_blocking(command: &mut std::process::Command) -> Result<Vec<u8>> {
    let name = name(command);
    finished(name, command.stdin(Stdio::null()).output())
}

fn finished(name: String, output: io::Result<Output>) -> Result<Vec<u8>> {
    let output = output.map_err(|source| Error::Spawn {
        program: name.clone(),
        source,
    })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Err(Error::Program {
        program: name,
        status: output.status.to_string(),
        output: tail(&text, TAIL_LINES),
    })
}

/// The program and its first arguments: enough to know what was run, and short.
fn name(command: &std::process::Command) -> String {
    let words = [command.get_program()]
        .into_iter()
        .chain(command.get_args().take(4));
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The last lines of a text, without the ends of those that are very long.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all = text.trim_end().lines().collect::<Vec<_>>();
    let last = all.get(all.len().saturating_sub(lines)..).unwrap_or_default();
    let cut = |line: &&str| line[..line.floor_char_boundary(LONG_LINE)].to_owned();
    last.iter().map(cut).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_program_and_shows_what_it_said() {
        let error =
            run_blocking(std::process::Command::new("sh").args(["-c", "echo out; echo no >&2; exit 3"]));
        let text = error.unwrap_err().to_string();
        assert!(
            text.contains("sh -c") && text.contains("exit status: 3") && text.contains("out\nno"),
            "{text}"
        );
    }

    #[test]
    fn a_tail_is_the_last_lines_only() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a", 5), "a");
        assert_eq!(tail("", 5), "");
    }
}
