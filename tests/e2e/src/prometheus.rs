//! Runs a Prometheus server that collects the metrics of functions.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use slipway_stack::{LauncherDirectories, ProgressSink, unpack_prometheus_if_missing};

use crate::logged_process::LoggedProcess;

/// The longest wait until the server has collected what is expected.
const COLLECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// A running Prometheus server. Dropping it stops the server and removes its data.
pub struct PrometheusServer {
    _process: LoggedProcess,
    _dir: tempfile::TempDir,
    url: String,
    http: reqwest::Client,
}

impl PrometheusServer {
    /// Starts a server that collects from these URLs of metrics every second.
    pub async fn start_collecting_from(metrics_urls: &[&str]) -> Result<Self> {
        let program =
            unpack_prometheus_if_missing(&LauncherDirectories::from_env()?, &ProgressSink::to_stderr())
                .await?;
        let dir = tempfile::tempdir()?;
        let mut jobs = Vec::new();
        for (number, url) in metrics_urls.iter().enumerate() {
            let authority = url.strip_prefix("http://").context("an http URL")?;
            let (target, path) = authority.split_once('/').unwrap_or((authority, "metrics"));
            jobs.push(json!({
                "job_name": format!("function-{number}"), "metrics_path": format!("/{path}"),
                "static_configs": [{ "targets": [target] }],
            }));
        }
        let config = json!({ "global": { "scrape_interval": "1s" }, "scrape_configs": jobs });
        // JSON is YAML.
        let file = dir.path().join("prometheus.yml");
        fs::write(&file, config.to_string())?;
        // Prometheus does not say which port it got for port 0.
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))?
            .local_addr()?
            .port();
        let mut command = Command::new(program);
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                dir.path().join("data").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let mut process = LoggedProcess::spawn(command)?;
        process
            .wait_for_line_in_whole_output(|line| line.contains("Server is ready").then_some(()))
            .await?;
        Ok(Self {
            _process: process,
            _dir: dir,
            url: format!("http://127.0.0.1:{port}"),
            http: reqwest::Client::builder().no_proxy().build()?,
        })
    }

    /// Runs a query now, and returns the list of its results.
    ///
    /// # Errors
    /// Fails if the server rejects the query.
    pub async fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let url = format!("{}/api/v1/query", self.url);
        let url = reqwest::Url::parse_with_params(&url, [("query", expression)])?;
        let answer: Value = self.http.get(url).send().await?.json().await?;
        ensure!(answer["status"] == "success", "{expression}: {answer}");
        let results = answer["data"]["result"].as_array();
        Ok(results
            .with_context(|| format!("{expression}: {answer}"))?
            .clone())
    }

    /// Waits until a query has a result. Fails after a minute.
    pub async fn wait_until_query_has_result(&self, expression: &str) -> Result<Vec<Value>> {
        let end = Instant::now() + COLLECTION_TIMEOUT;
        loop {
            let results = self.query(expression).await?;
            if !results.is_empty() {
                return Ok(results);
            }
            ensure!(Instant::now() < end, "no result of {expression}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}
