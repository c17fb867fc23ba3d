//! Runs a BuildKit daemon beside the stack's, for other settings, for TLS and for an empty cache.

use std::{
    fs::{self, File},
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::testbed::Testbed;

/// A running BuildKit daemon. Dropping it stops the daemon and removes its data.
pub struct BuildkitDaemon {
    child: Child,
    dir: tempfile::TempDir,
    /// The daemon's TCP port on the loopback address, in addition to the socket.
    pub port: u16,
}

impl BuildkitDaemon {
    /// Starts a daemon with an empty cache. `config` is appended to its `buildkitd.toml` and starts with a table
    /// header.
    ///
    /// The daemon pulls from the stack's registry over plain HTTP, as the stack's own daemon does.
    pub async fn start(testbed: &Testbed, config: &str) -> Result<Self> {
        Self::start_with_grpc_settings(testbed, "", config).await
    }

    /// Starts a daemon with more settings for the table `grpc`; `grpc` may contain subtables.
    pub async fn start_with_grpc_settings(testbed: &Testbed, grpc: &str, config: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let text = format!(
            "root = \"{root}\"\n\n[grpc]\n  address = [\"{socket}\", \"tcp://127.0.0.1:{port}\"]\n{grpc}\n\
             [worker.oci]\n  binary = \"{runc}\"\n\n[worker.containerd]\n  enabled = false\n\n[registry.\"{registry}\"]\n  http = true\n{config}",
            root = dir.path().join("root").display(),
            socket = socket_url(&dir),
            runc = testbed.stack.tools.runc.display(),
            registry = testbed.stack.registry.host,
        );
        let toml = dir.path().join("buildkitd.toml");
        fs::write(&toml, text)?;
        let log = File::create(dir.path().join("log"))?;
        let child = Command::new(&testbed.stack.tools.buildkitd)
            .arg("--config")
            .arg(&toml)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting buildkitd")?;
        let daemon = Self { child, dir, port };
        daemon.wait_until_ready().await?;
        Ok(daemon)
    }

    /// Returns the URL of the daemon's Unix socket, which never uses TLS.
    pub fn url(&self) -> String {
        socket_url(&self.dir)
    }

    /// Returns the daemon's log so far.
    pub fn log_text(&self) -> Result<String> {
        Ok(fs::read_to_string(self.dir.path().join("log"))?)
    }

    async fn wait_until_ready(&self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(30);
        let ready = format!(
            "running server on {}",
            socket_url(&self.dir).trim_start_matches("unix://")
        );
        while !self.log_text()?.contains(&ready) {
            if Instant::now() > end {
                bail!(
                    "buildkitd did not start listening within 30 s; its log: {}",
                    self.log_text()?
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

impl Drop for BuildkitDaemon {
    fn drop(&mut self) {
        // On SIGTERM the daemon removes its mounts and ends its processes; on SIGKILL it leaves them behind.
        Command::new("kill")
            .arg(self.child.id().to_string())
            .status()
            .ok();
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn socket_url(dir: &tempfile::TempDir) -> String {
    format!("unix://{}", dir.path().join("buildkitd.sock").display())
}
