//! A BuildKit daemon beside the stack's, for what the stack's must not be asked: other settings, TLS, an empty cache.

use std::{
    fs::{self, File},
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::shared::Bench;

/// A running daemon; ends with the value, and its data with it.
pub struct Buildkit {
    child: Child,
    dir: tempfile::TempDir,
    /// The port that it listens on, on this machine's loopback address, besides its socket.
    pub port: u16,
}

impl Buildkit {
    /// Starts a daemon with an empty cache. `config` is more of `buildkitd.toml`, in tables of its own.
    ///
    /// It pulls from the stack's registry over plain HTTP, as the stack's own does.
    pub async fn start(bench: &Bench, config: &str) -> Result<Self> {
        Self::with_grpc(bench, "", config).await
    }

    /// The same with more of the table `grpc`, whose own tables follow there.
    pub async fn with_grpc(bench: &Bench, grpc: &str, config: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let text = format!(
            "root = \"{root}\"\n\n[grpc]\n  address = [\"{socket}\", \"tcp://127.0.0.1:{port}\"]\n{grpc}\n\
             [worker.containerd]\n  enabled = false\n\n[registry.\"{registry}\"]\n  http = true\n{config}",
            root = dir.path().join("root").display(),
            socket = socket_url(&dir),
            registry = bench.stack.registry.host,
        );
        let toml = dir.path().join("buildkitd.toml");
        fs::write(&toml, text)?;
        let log = File::create(dir.path().join("log"))?;
        let child = Command::new(&bench.stack.tools.buildkitd)
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

    /// Its socket, which is never behind TLS.
    pub fn url(&self) -> String {
        socket_url(&self.dir)
    }

    /// What it has said so far.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.dir.path().join("log"))?)
    }

    async fn wait_until_ready(&self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(30);
        let ready = format!(
            "running server on {}",
            socket_url(&self.dir).trim_start_matches("unix://")
        );
        while !self.log()?.contains(&ready) {
            if Instant::now() > end {
                bail!("buildkitd did not come up: {}", self.log()?);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

impl Drop for Buildkit {
    fn drop(&mut self) {
        // It takes its mounts and its processes along when it is asked to end, and not when it is killed.
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
