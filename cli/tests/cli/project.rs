//! A project of one function in a folder of its own, and the command that runs in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStderr, Command};

/// The key that signs the requests of the command in these tests.
pub(crate) const SIGNING_KEY: &str = "a key of the command's tests";

/// The longest time until a command ends that has all that it waits for.
const END_TIMEOUT: Duration = Duration::from_secs(120);

/// A project in a folder.
pub(crate) struct Project {
    folder: tempfile::TempDir,
}

/// What the command printed, and its exit status.
#[derive(Debug)]
pub(crate) struct FinishedCommand {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Project {
    /// Creates an empty folder.
    pub(crate) fn empty() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a folder"),
        }
    }

    /// Creates a project with the function `shop`, whose handler has its own Dockerfile.
    pub(crate) fn shop() -> Self {
        let project = Self::empty();
        project.write("shop/Dockerfile", "FROM scratch\n");
        project.write(
            "stack.yaml",
            "provider:\n  name: openfaas\nfunctions:\n  shop:\n    lang: dockerfile\n    handler: ./shop\n    image: r.example/shop:1\n",
        );
        project
    }

    /// Writes a file and the folders above it.
    pub(crate) fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(path, content).expect("a file");
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the command with these arguments, in the project's folder, with the key and none of the test's own
    /// variables.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PathBuf::from(env!("CARGO_BIN_EXE_slipway")));
        command
            .args(arguments)
            .current_dir(self.path())
            .env_clear()
            .env("SLIPWAY_PAYLOAD_SECRET", SIGNING_KEY)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Starts the command.
    pub(crate) fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments).spawn().expect("the command runs")
    }

    /// Runs the command to its end.
    pub(crate) async fn run(&self, arguments: &[&str]) -> FinishedCommand {
        wait_for_end(self.spawn(arguments)).await
    }
}

/// Reads lines until one contains `text`, and returns all of them.
pub(crate) async fn read_until(stderr: &mut BufReader<ChildStderr>, text: &str) -> String {
    let mut all = String::new();
    loop {
        let before = all.len();
        let count = stderr.read_line(&mut all).await.expect("text");
        assert_ne!(count, 0, "{text:?} was not printed: {all}");
        if all[before..].contains(text) {
            return all;
        }
    }
}

/// Sends Ctrl-C to the command.
pub(crate) fn interrupt(child: &Child) {
    let pid = child
        .id()
        .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?))
        .expect("it runs");
    kill_process(pid, Signal::INT).expect("a signal");
}

/// Waits for the end of the command.
pub(crate) async fn wait_for_end(child: Child) -> FinishedCommand {
    let output = tokio::time::timeout(END_TIMEOUT, child.wait_with_output()).await;
    let output = output
        .expect("the command ends in time")
        .expect("the command ends");
    FinishedCommand {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("text"),
        stderr: String::from_utf8(output.stderr).expect("text"),
    }
}
