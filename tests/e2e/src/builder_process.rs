//! builder-fn as a plain process beside the stack, for settings that the stack's own must not have.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use tokio::sync::Mutex;

use crate::{client::Client, registry::Registry, shared::Bench};

/// A running builder-fn; ends with the value.
pub struct PlainBuilder {
    child: Child,
    secrets: tempfile::TempDir,
    spool: tempfile::TempDir,
    url: String,
    metrics: String,
}

impl PlainBuilder {
    /// Starts builder-fn on the stack's BuildKit with the stack's registry credentials, and further settings.
    pub async fn with_settings(bench: &Bench, settings: &[(&str, &str)]) -> Result<Self> {
        let registry = &bench.stack.registry;
        let docker_config = Registry::docker_config(&registry.host, &registry.user, &registry.password);
        Self::start(bench, &docker_config, settings).await
    }

    /// Starts builder-fn on the stack's BuildKit with this Docker `config.json`, and further settings.
    pub async fn start(bench: &Bench, docker_config: &str, settings: &[(&str, &str)]) -> Result<Self> {
        Self::with_secrets(bench, settings, &[("registry-config", docker_config)]).await
    }

    /// Starts builder-fn on the stack's BuildKit with further secrets and settings.
    pub async fn with_secrets(
        bench: &Bench,
        settings: &[(&str, &str)],
        more_secrets: &[(&str, &str)],
    ) -> Result<Self> {
        let secrets = tempfile::tempdir()?;
        for (name, from) in [
            ("payload-secret", &bench.stack.payload_secret),
            ("deploy-secret", &bench.stack.deploy_secret),
        ] {
            fs::copy(from, secrets.path().join(name))?;
        }
        for (name, content) in more_secrets {
            fs::write(secrets.path().join(name), content)?;
        }
        let spool = tempfile::tempdir()?;
        let (port, metrics) = (free_port()?, free_port()?);
        let child = Command::new(binary("builder-fn").await?)
            .env_clear()
            .env("port", port.to_string())
            .env("metrics_port", metrics.to_string())
            .env("secret_mount_path", secrets.path())
            .env("spool_dir", spool.path())
            .env("buildkit_url", &bench.stack.buildkit_host)
            .env("gateway_url", &bench.stack.gateway.url)
            .env("insecure", "true")
            // As stack.yml and the chart have it.
            .env("MALLOC_ARENA_MAX", "1")
            .env("exec_timeout", "10m")
            .env("write_timeout", "10m")
            .env("read_timeout", "10m")
            .envs(settings.iter().copied())
            .stdout(Stdio::null())
            .spawn()
            .context("starting builder-fn")?;
        let builder = Self {
            child,
            secrets,
            spool,
            url: format!("http://127.0.0.1:{port}"),
            metrics: format!("http://127.0.0.1:{metrics}/metrics"),
        };
        wait_until_alive(&builder.url).await?;
        Ok(builder)
    }

    /// Where it listens; no slash at the end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A client that signs with the stack's key.
    pub fn client(&self) -> Result<Client> {
        let key = fs::read(self.secrets.path().join("payload-secret"))?;
        Client::new(format!("{}/build", self.url), &key)
    }

    /// Reads a path, and gives status and text.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        let http = reqwest::Client::builder().no_proxy().build()?;
        let response = http.get(format!("{}{path}", self.url)).send().await?;
        Ok((response.status().as_u16(), response.text().await?))
    }

    /// Puts a secret in the place of another, as a platform that rotates it.
    pub fn rotate(&self, name: &str, content: &str) -> Result<()> {
        let next = self.secrets.path().join(".next");
        fs::write(&next, content)?;
        Ok(fs::rename(&next, self.secrets.path().join(name))?)
    }

    /// Takes a secret away.
    pub fn take_away(&self, name: &str) -> Result<()> {
        Ok(fs::remove_file(self.secrets.path().join(name))?)
    }

    /// All metrics, as Prometheus reads them.
    pub async fn metrics(&self) -> Result<String> {
        let http = reqwest::Client::builder().no_proxy().build()?;
        Ok(http.get(&self.metrics).send().await?.text().await?)
    }

    /// The value of a metric, whose name has its labels with it where it has some.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let text = self.metrics().await?;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value
            .with_context(|| format!("no metric {name} in {text}"))?
            .parse()?)
    }

    /// The process, for what the kernel knows of it.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Asks the process to end, as providers do.
    pub fn terminate(&self) -> Result<()> {
        let status = Command::new("kill").arg(self.child.id().to_string()).status()?;
        anyhow::ensure!(status.success(), "kill: {status}");
        Ok(())
    }

    /// Waits for the end of the process, which was asked to.
    pub fn wait_until_ended(&mut self) -> Result<ExitStatus> {
        Ok(self.child.wait()?)
    }

    /// The most memory that the process has had so far, in bytes.
    pub fn peak_memory(&self) -> Result<usize> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kibibytes: usize = line
            .and_then(|line| line.trim().strip_suffix(" kB"))
            .context("no VmHWM")?
            .trim()
            .parse()?;
        Ok(kibibytes << 10)
    }

    /// What is in the spool's folder, and which of the process's open files have no name any more.
    pub fn files_left(&self) -> Result<Vec<PathBuf>> {
        let mut left = fs::read_dir(self.spool.path())?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<Vec<_>>>()?;
        left.extend(nameless_files(self.child.id())?);
        Ok(left)
    }

    /// Waits until it would take a build.
    pub async fn wait_until_ready(&self) -> Result<()> {
        wait_until_it_says_yes(&format!("{}/ready", self.url)).await
    }
}

impl Drop for PlainBuilder {
    fn drop(&mut self) {
        // The net for a test that fails; there is nothing to be told if the process is gone already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Files that a process holds open though they have no name: what a spool is while a request is being read.
pub fn nameless_files(process: u32) -> Result<Vec<PathBuf>> {
    let mut nameless = Vec::new();
    for entry in fs::read_dir(format!("/proc/{process}/fd"))? {
        // A descriptor may be closed while the list is read.
        let Ok(target) = fs::read_link(entry?.path()) else {
            continue;
        };
        if target.to_string_lossy().ends_with("(deleted)") {
            nameless.push(target);
        }
    }
    Ok(nameless)
}

/// Waits until a function that was started as a process says that it lives.
pub(crate) async fn wait_until_alive(url: &str) -> Result<()> {
    wait_until_it_says_yes(&format!("{url}/_/health")).await
}

async fn wait_until_it_says_yes(url: &str) -> Result<()> {
    let http = reqwest::Client::builder().no_proxy().build()?;
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        // Asked before: an answer of long ago says nothing if this thread has been busy since.
        let is_last = Instant::now() > end;
        match http.get(url).send().await {
            Ok(response) if response.status().is_success() => return Ok(()),
            last if is_last => bail!("the process does not say yes at {url}: {last:?}"),
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// A port of this machine that nobody listens on at the moment.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Builds a function of this repository, once a run, and says where it is. `SLIPWAY_BUILDER_PROFILE` names the profile to build
/// it with, for measurements.
pub(crate) async fn binary(package: &'static str) -> Result<PathBuf> {
    static BUILT: Mutex<BTreeMap<&str, PathBuf>> = Mutex::const_new(BTreeMap::new());
    let mut built = BUILT.lock().await;
    if let Some(binary) = built.get(package) {
        return Ok(binary.clone());
    }
    // Cargo may wait for another cargo: on the test's own thread, that would be the time of what the test waits for meanwhile.
    let binary = tokio::task::spawn_blocking(move || build(package)).await??;
    built.insert(package, binary.clone());
    Ok(binary)
}

fn build(package: &str) -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let profile = env::var("SLIPWAY_BUILDER_PROFILE").unwrap_or_else(|_| "dev".to_owned());
    let mut cargo = Command::new("cargo")
        .args([
            "build",
            "--quiet",
            "--package",
            package,
            "--profile",
            &profile,
            "--message-format",
            "json-render-diagnostics",
        ])
        .current_dir(root)
        .stdout(Stdio::piped())
        .spawn()
        .context("running cargo")?;
    let messages = BufReader::new(cargo.stdout.take().context("cargo has no output")?);
    let mut binary = None;
    for line in messages.lines() {
        let message: serde_json::Value = serde_json::from_str(&line?)?;
        if message["target"]["name"] == package && message["executable"].is_string() {
            binary = message["executable"].as_str().map(PathBuf::from).or(binary);
        }
    }
    anyhow::ensure!(cargo.wait()?.success(), "cargo build --package {package} failed");
    binary.with_context(|| format!("cargo named no executable for {package}"))
}
