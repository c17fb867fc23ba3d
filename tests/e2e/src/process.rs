//! Builds the binaries of builder-fn and deployer-fn, and starts their processes.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use reqwest::StatusCode;
use tokio::sync::Mutex;

use crate::logged_process::LoggedProcess;

/// Returns the files that a process has open and that have no name, such as the spool of a request.
pub(crate) fn unlinked_open_files(process_id: u32) -> Result<Vec<PathBuf>> {
    let mut unlinked = Vec::new();
    for entry in fs::read_dir(format!("/proc/{process_id}/fd"))? {
        // A descriptor may be closed while the list is read.
        let Ok(target) = fs::read_link(entry?.path()) else {
            continue;
        };
        if target.to_string_lossy().ends_with("(deleted)") {
            unlinked.push(target);
        }
    }
    Ok(unlinked)
}

/// Returns the size of all files together that a process has open and that have no name, in bytes.
pub(crate) fn unlinked_open_file_bytes(process_id: u32) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(format!("/proc/{process_id}/fd"))? {
        let path = entry?.path();
        // A descriptor may be closed while the list is read.
        let (Ok(target), Ok(file)) = (fs::read_link(&path), fs::metadata(&path)) else {
            continue;
        };
        if target.to_string_lossy().ends_with("(deleted)") {
            bytes += file.len();
        }
    }
    Ok(bytes)
}

/// Returns a process's peak resident memory so far, in bytes.
pub(crate) fn peak_memory_bytes(process_id: u32) -> Result<usize> {
    proc_status_bytes(process_id, "VmHWM")
}

/// Returns a process's peak resident memory so far, minus the pages of files that are resident now, in bytes. Those are
/// the program's code, and the kernel can drop them.
pub(crate) fn peak_memory_bytes_minus_current_file_pages(process_id: u32) -> Result<usize> {
    Ok(peak_memory_bytes(process_id)?.saturating_sub(proc_status_bytes(process_id, "RssFile")?))
}

/// Reads a field of `/proc/PID/status` that is a number of kilobytes, and returns it in bytes.
fn proc_status_bytes(process_id: u32, field: &str) -> Result<usize> {
    let status = fs::read_to_string(format!("/proc/{process_id}/status"))?;
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kibibytes: usize = value
        .and_then(|value| value.trim().strip_suffix(" kB"))
        .with_context(|| format!("/proc/PID/status has no {field}"))?
        .trim()
        .parse()?;
    Ok(kibibytes << 10)
}

/// Polls a URL until the status is a success. Fails after 20 s.
pub(crate) async fn wait_for_success(url: &str) -> Result<()> {
    wait_for_status(url, |status| status.is_success()).await
}

/// Polls a URL until the status is as expected. Fails after 20 s.
pub(crate) async fn wait_for_status(url: &str, is_expected: impl Fn(StatusCode) -> bool) -> Result<()> {
    let http = reqwest::Client::builder().no_proxy().build()?;
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        // Read the clock first: this thread may have been busy since the last attempt, which then proves nothing.
        let is_last = Instant::now() > end;
        match http.get(url).send().await {
            Ok(response) if is_expected(response.status()) => return Ok(()),
            last if is_last => {
                bail!("GET {url} had no answer with the expected status within 20 s; last: {last:?}")
            }
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// A process of builder-fn or deployer-fn that listens; killed on drop.
#[derive(Debug)]
pub(crate) struct FunctionProcess {
    /// The running process, with what it has logged so far.
    pub(crate) process: LoggedProcess,
    /// The URL at which the function answers requests, without a trailing slash.
    pub(crate) url: String,
    /// The URL of the function's metrics page, on a port of its own.
    pub(crate) metrics_url: String,
}

impl FunctionProcess {
    /// Builds a function of this repository, once a run, starts it with this environment and no other, and waits until
    /// it listens.
    pub(crate) async fn start<'a>(
        package: &'static str,
        environment: impl IntoIterator<Item = (&'a str, &'a OsStr)>,
    ) -> Result<Self> {
        Self::start_command(Command::new(build_once_and_get_path(package).await?), environment).await
    }

    /// Starts a function like [`start`](Self::start), with this file in place of the machine's `resolv.conf`.
    pub(crate) async fn start_with_resolv_conf<'a>(
        package: &'static str,
        environment: impl IntoIterator<Item = (&'a str, &'a OsStr)>,
        resolver: &Path,
    ) -> Result<Self> {
        let mut command = Command::new("/usr/bin/unshare");
        command.args(["--mount", "--", "/bin/sh", "-c"]);
        command.arg("/bin/mount --bind \"$0\" /etc/resolv.conf && exec \"$1\"");
        command.arg(resolver).arg(build_once_and_get_path(package).await?);
        Self::start_command(command, environment).await
    }

    async fn start_command<'a>(
        mut command: Command,
        environment: impl IntoIterator<Item = (&'a str, &'a OsStr)>,
    ) -> Result<Self> {
        command
            .env_clear()
            .envs([("port", "0"), ("metrics_port", "0")])
            .envs(environment);
        let mut process = LoggedProcess::spawn(command)?;
        let [url, metrics_url] = process
            .wait_for_line_in_whole_output(find_ports)
            .await?
            .map(|port| format!("http://127.0.0.1:{port}"));
        Ok(Self {
            process,
            url,
            metrics_url: format!("{metrics_url}/metrics"),
        })
    }
}

/// Returns the ports for requests and for metrics if this line of a function's log reports them.
fn find_ports(line: &str) -> Option<[u16; 2]> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    if line["message"] != "listening" {
        return None;
    }
    let port = |name| u16::try_from(line[name].as_u64()?).ok();
    Some([port("port")?, port("metrics_port")?])
}

/// Builds a function of this repository, once a run, and returns the path of its binary.
///
/// `SLIPWAY_BUILDER_PROFILE` names the Cargo profile, for measurements.
pub(crate) async fn build_once_and_get_path(package: &'static str) -> Result<PathBuf> {
    static BUILT_BINARIES: Mutex<BTreeMap<&str, PathBuf>> = Mutex::const_new(BTreeMap::new());
    let mut built = BUILT_BINARIES.lock().await;
    if let Some(binary) = built.get(package) {
        return Ok(binary.clone());
    }
    // Cargo may wait for another cargo. On the test's own thread, that would block what the test is waiting for.
    let binary = tokio::task::spawn_blocking(move || build_package(package)).await??;
    built.insert(package, binary.clone());
    Ok(binary)
}

/// Runs `cargo build` for a package of this repository, and returns the path of its binary.
fn build_package(package: &str) -> Result<PathBuf> {
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
