//! Runs a BuildKit daemon beside the stack's, for other settings, for TLS and for an empty cache.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{logged_process::LoggedProcess, testbed::Testbed};

/// A running BuildKit daemon. Dropping it stops the daemon and removes its data.
pub struct BuildkitDaemon {
    process: LoggedProcess,
    program: PathBuf,
    dir: tempfile::TempDir,
    /// The daemon's TCP port on the loopback address, in addition to the socket.
    pub port: u16,
}

impl BuildkitDaemon {
    /// Starts a daemon with an empty cache. `more_toml_tables` is appended to its `buildkitd.toml` and starts with a
    /// table header.
    ///
    /// The daemon pulls from the stack's registry over plain HTTP, as the stack's own daemon does.
    pub async fn start(testbed: &Testbed, more_toml_tables: &str) -> Result<Self> {
        Self::start_with_grpc_settings(testbed, "", more_toml_tables).await
    }

    /// Starts a daemon with more settings for the table `grpc`; `grpc_toml` may contain subtables.
    pub async fn start_with_grpc_settings(
        testbed: &Testbed,
        grpc_toml: &str,
        more_toml_tables: &str,
    ) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let text = format!(
            "root = \"{root}\"\n\n[grpc]\n  address = [\"{socket}\", \"tcp://127.0.0.1:0\"]\n{grpc_toml}\n\
             [worker.oci]\n  enabled = true\n  binary = \"{runc}\"\n\n[worker.containerd]\n  enabled = false\n\n[registry.\"{registry}\"]\n  http = true\n{more_toml_tables}",
            root = dir.path().join("root").display(),
            socket = socket_url_in(&dir),
            runc = testbed.stack.tools.runc.display(),
            registry = testbed.stack.registry.host,
        );
        let toml = dir.path().join("buildkitd.toml");
        fs::write(&toml, text)?;
        let program = testbed.stack.tools.buildkitd.clone();
        let (process, port) = start_daemon_and_wait_until_listening(&program, &dir).await?;
        Ok(Self {
            process,
            program,
            dir,
            port,
        })
    }

    /// Kills the daemon, as a crash does, and starts it again with its data. Its socket has the same URL, and its TCP
    /// port is another one.
    pub async fn kill_and_restart_on_another_port(&mut self) -> Result<()> {
        self.kill_without_unmounting()?;
        self.start_again_on_another_port().await
    }

    /// Starts a killed daemon again with its data. Its socket has the same URL, and its TCP port is another one.
    pub async fn start_again_on_another_port(&mut self) -> Result<()> {
        (self.process, self.port) = start_daemon_and_wait_until_listening(&self.program, &self.dir).await?;
        Ok(())
    }

    /// Returns the path of the folder with the daemon's data: snapshots, git repositories and its databases.
    pub fn data_folder(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Kills the daemon, as a crash does, and waits for its exit.
    pub fn kill_without_unmounting(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Returns the URL of the daemon's Unix socket, which never uses TLS.
    pub fn socket_url(&self) -> String {
        socket_url_in(&self.dir)
    }
}

/// Starts the daemon whose configuration and data are in this folder, and returns its process and its TCP port once it
/// listens.
async fn start_daemon_and_wait_until_listening(
    program: &Path,
    dir: &tempfile::TempDir,
) -> Result<(LoggedProcess, u16)> {
    let mut command = Command::new(program);
    command.arg("--config").arg(dir.path().join("buildkitd.toml"));
    // As the stack's own daemon has them.
    for limit in ["BUILDKIT_STEP_LOG_MAX_SIZE", "BUILDKIT_STEP_LOG_MAX_SPEED"] {
        command.env(limit, "-1");
    }
    let mut process = LoggedProcess::spawn(command)?;
    let socket = dir.path().join("buildkitd.sock");
    process
        .wait_for_line_in_whole_output(|line| {
            listening_address_in_log_line(line)
                .filter(|address| Path::new(address) == socket)
                .map(drop)
        })
        .await?;
    let port = process
        .wait_for_line_in_whole_output(|line| {
            Some(
                listening_address_in_log_line(line)?
                    .parse::<SocketAddr>()
                    .ok()?
                    .port(),
            )
        })
        .await?;
    Ok((process, port))
}

impl Drop for BuildkitDaemon {
    fn drop(&mut self) {
        // On SIGTERM the daemon removes its mounts and ends its processes; on SIGKILL it leaves them behind.
        if matches!(self.process.try_wait(), Ok(None)) {
            self.process.send_sigterm().ok();
        }
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end && matches!(self.process.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(50));
        }
        // Those of a daemon that was killed.
        for mount in mounts_below(self.dir.path()) {
            Command::new("umount").arg("--lazy").arg(mount).status().ok();
        }
    }
}

/// Returns the mount points below a folder, the innermost first.
fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    let mut mounts: Vec<_> = points
        .map(PathBuf::from)
        .filter(|mount| mount.starts_with(folder))
        .collect();
    mounts.reverse();
    mounts
}

/// Returns the address that this line of the daemon's log reports: a path or an IP address with a port.
fn listening_address_in_log_line(line: &str) -> Option<String> {
    let (_, address) = line.split_once("running server on ")?;
    Some(address.trim_end_matches('"').to_owned())
}

fn socket_url_in(dir: &tempfile::TempDir) -> String {
    format!("unix://{}", dir.path().join("buildkitd.sock").display())
}
