//! Builds the binaries of builder-fn and deployer-fn, and waits for their processes.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use reqwest::StatusCode;
use tokio::sync::Mutex;

/// Returns the files that a process has open and that have no name, such as the spool of a request.
pub(crate) fn unlinked_open_files(process: u32) -> Result<Vec<PathBuf>> {
    let mut unlinked = Vec::new();
    for entry in fs::read_dir(format!("/proc/{process}/fd"))? {
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

/// Waits until the function at this URL answers its liveness probe.
pub(crate) async fn wait_until_function_alive(url: &str) -> Result<()> {
    wait_for_success(&format!("{url}/_/health")).await
}

/// Waits until a GET request for this URL is answered with success.
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

/// Returns a TCP port on which no process listens at the moment.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
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
