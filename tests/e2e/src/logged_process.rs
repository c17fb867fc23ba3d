//! A child process whose output is kept, and searched for the line that reports where the process listens.
//!
//! The process chooses its port and reports it. A port that the caller chooses may be in use before the process
//! listens at it.

use std::{
    io::{self, BufRead as _, BufReader, Read},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use tokio::sync::watch;

/// The time within which a process reports that it is ready. A process that exits earlier ends the wait.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The most bytes of output that are kept. Older lines are dropped.
const KEPT_OUTPUT_BYTES: usize = 16 << 20;

/// A running child process and its output; killed on drop.
#[derive(Debug)]
pub(crate) struct LoggedProcess {
    child: Child,
    program: String,
    output: watch::Receiver<ProcessOutput>,
}

/// The output of a process so far.
#[derive(Debug, Default)]
struct ProcessOutput {
    text: String,
    has_ended: bool,
}

impl LoggedProcess {
    /// Starts a process without input. Its output and its errors are kept together.
    pub(crate) fn spawn(mut command: Command) -> Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let (reader, writer) = io::pipe()?;
        let child = command
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .spawn()
            .with_context(|| format!("starting {program}"))?;
        // The command has copies of the pipe's end for writing; the output ends when all of them are closed.
        drop(command);
        let (sender, output) = watch::channel(ProcessOutput::default());
        std::thread::spawn(move || collect_output(reader, &sender));
        Ok(Self {
            child,
            program,
            output,
        })
    }

    /// Waits until `find` returns a value for a line of the output, and returns the value.
    ///
    /// # Errors
    /// Fails with the exit status and the output if the process exits before, and with the output after a minute.
    pub(crate) async fn wait_for_line_in_whole_output<T>(
        &mut self,
        find: impl Fn(&str) -> Option<T>,
    ) -> Result<T> {
        self.wait_for_line_in_whole_output_within(START_TIMEOUT, find)
            .await
    }

    async fn wait_for_line_in_whole_output_within<T>(
        &mut self,
        limit: Duration,
        find: impl Fn(&str) -> Option<T>,
    ) -> Result<T> {
        let mut found = None;
        let waiting = self.output.wait_for(|output| {
            found = output.text.lines().find_map(&find);
            found.is_some() || output.has_ended
        });
        let is_late = tokio::time::timeout(limit, waiting).await.is_err();
        match found {
            Some(value) => Ok(value),
            None if is_late => bail!(
                "{} is not ready after {limit:?}; its output: {}",
                self.program,
                self.log_text()
            ),
            None => bail!(
                "{} exited with {} before it was ready; its output: {}",
                self.program,
                self.child.wait()?,
                self.log_text()
            ),
        }
    }

    /// Returns the output of the process so far.
    pub(crate) fn log_text(&self) -> String {
        self.output.borrow().text.clone()
    }

    /// Returns the ID of the process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns the exit status of the process, or `None` while it runs.
    pub(crate) fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Sends SIGTERM to the process, as providers do.
    pub(crate) fn send_sigterm(&self) -> Result<()> {
        let status = Command::new("kill").arg(self.id().to_string()).status()?;
        anyhow::ensure!(status.success(), "kill: {status}");
        Ok(())
    }

    /// Kills the process, as a crash does, and waits for its exit.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for LoggedProcess {
    fn drop(&mut self) {
        // The process may have exited already.
        self.kill().ok();
    }
}

/// Appends lines to the output until the process closes it.
fn collect_output(reader: impl Read, output: &watch::Sender<ProcessOutput>) {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
        output.send_modify(|output| output.append_line(&String::from_utf8_lossy(&line)));
        line.clear();
    }
    output.send_modify(|output| output.has_ended = true);
}

impl ProcessOutput {
    /// Appends a line; drops the first half of the kept output if it would be too long.
    fn append_line(&mut self, line: &str) {
        if self.text.len() + line.len() > KEPT_OUTPUT_BYTES {
            let half = self.text.floor_char_boundary(KEPT_OUTPUT_BYTES / 2);
            self.text.drain(..half);
        }
        self.text.push_str(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spawn_shell(script: &str) -> Result<LoggedProcess> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        LoggedProcess::spawn(command)
    }

    fn find_port(line: &str) -> Option<u16> {
        line.strip_prefix("listening at ")?.parse().ok()
    }

    #[tokio::test]
    async fn a_start_ends_with_the_line_that_reports_the_port() -> Result<()> {
        let mut process = spawn_shell("echo starting; echo listening at 4711; exec sleep 600")?;
        assert_eq!(process.wait_for_line_in_whole_output(find_port).await?, 4711);
        assert!(process.try_wait()?.is_none());
        Ok(())
    }

    #[tokio::test]
    async fn a_start_that_fails_reports_the_exit_status_and_the_output() -> Result<()> {
        let mut process = spawn_shell("echo starting; echo the port is in use >&2; exit 7")?;
        let error = process
            .wait_for_line_in_whole_output(find_port)
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("sh exited with exit status: 7 before it was ready"),
            "{error}"
        );
        assert!(error.contains("starting\nthe port is in use\n"), "{error}");
        Ok(())
    }

    #[tokio::test]
    async fn a_process_that_reports_nothing_fails_with_its_output() -> Result<()> {
        let mut process = spawn_shell("echo waiting for the disk; exec sleep 600")?;
        process
            .wait_for_line_in_whole_output(|line| line.contains("waiting").then_some(()))
            .await?;
        let waiting = process.wait_for_line_in_whole_output_within(Duration::from_millis(1), find_port);
        let error = waiting.await.unwrap_err().to_string();
        assert!(
            error.contains("sh is not ready after 1ms; its output: waiting for the disk"),
            "{error}"
        );
        Ok(())
    }

    #[test]
    fn only_the_last_output_is_kept() {
        let mut output = ProcessOutput::default();
        let line = format!("{}\n", "ä".repeat(1 << 20));
        for _ in 0..20 {
            output.append_line(&line);
        }
        output.append_line("the last line\n");
        assert!(output.text.len() <= KEPT_OUTPUT_BYTES);
        assert!(output.text.ends_with("ä\nthe last line\n"));
    }
}
