//! Runs the command `slipway` as a person does: in the folder of a project, judged by its output and exit status.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, bail};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, ChildStderr, Command},
};

use crate::{process::build_once_and_get_path, testbed::Testbed, work_dir::ProgramOutput};

/// The command `slipway`, with the stack's addresses and key in its environment.
pub struct SlipwayProgram {
    binary: PathBuf,
    environment: Vec<(&'static str, String)>,
}

/// The command while it runs; killed on drop.
pub struct RunningSlipway {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl SlipwayProgram {
    /// Builds `slipway`, once a run, and gives it the addresses and the key of the stack.
    pub async fn for_testbed(testbed: &Testbed) -> Result<Self> {
        let stack = &testbed.stack;
        let key = stack.payload_secret.display().to_string();
        Ok(Self {
            binary: build_once_and_get_path("slipway").await?,
            environment: vec![
                ("OPENFAAS_URL", stack.gateway.url.clone()),
                ("SLIPWAY_BUILDER_URL", stack.builder_url.clone()),
                ("SLIPWAY_PAYLOAD_SECRET_FILE", key),
                ("SLIPWAY_REGISTRY", format!("{}/e2e", stack.registry.host)),
            ],
        })
    }

    /// Sets a variable of the command's environment, in place of the stack's.
    #[must_use]
    pub fn with_variable(mut self, name: &'static str, value: &str) -> Self {
        self.environment.retain(|(known, _)| *known != name);
        self.environment.push((name, value.to_owned()));
        self
    }

    /// Runs the command in `folder` to its end.
    pub async fn run(&self, folder: &Path, arguments: &[&str]) -> Result<ProgramOutput> {
        let output = self.command(folder, arguments).output().await?;
        Ok(ProgramOutput {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Starts the command in `folder`.
    pub fn start(&self, folder: &Path, arguments: &[&str]) -> Result<RunningSlipway> {
        let mut child = self.command(folder, arguments).spawn()?;
        let stderr = child.stderr.take().context("no standard error")?;
        Ok(RunningSlipway {
            child,
            stderr: BufReader::new(stderr),
        })
    }

    fn command(&self, folder: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(arguments)
            .current_dir(folder)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }
}

impl RunningSlipway {
    /// Reads the standard error up to a line that contains `text`, and returns the lines. Fails if there is none.
    pub async fn read_stderr_lines_until_one_contains(&mut self, text: &str) -> Result<String> {
        let mut read = String::new();
        loop {
            let before = read.len();
            if self.stderr.read_line(&mut read).await? == 0 {
                bail!("the command ended without {text:?}: {read}");
            }
            if read[before..].contains(text) {
                return Ok(read);
            }
        }
    }

    /// Sends SIGINT to the command, as Ctrl-C does.
    pub fn interrupt(&self) -> Result<()> {
        let id = self.child.id().context("the command has ended")?;
        let process = rustix::process::Pid::from_raw(i32::try_from(id)?).context("no process ID")?;
        Ok(rustix::process::kill_process(
            process,
            rustix::process::Signal::INT,
        )?)
    }

    /// Waits for the end of the command, and returns its exit status, its standard output and the rest of its standard
    /// error.
    pub async fn wait_for_end_and_rest_of_stderr(self) -> Result<ProgramOutput> {
        let Self { child, mut stderr } = self;
        let mut rest = String::new();
        let reading = async {
            while stderr.read_line(&mut rest).await? > 0 {}
            Ok::<_, anyhow::Error>(())
        };
        let (output, read) = tokio::join!(child.wait_with_output(), reading);
        read?;
        let output = output?;
        Ok(ProgramOutput {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: rest,
        })
    }
}
