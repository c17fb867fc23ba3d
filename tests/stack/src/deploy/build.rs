//! The client that builds an image with builder-fn.

use std::{fs, path::Path, time::Duration};

use hmac::{Hmac, KeyInit as _, Mac as _};
use reqwest::{Client, RequestBuilder};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::time::Instant;

use crate::{
    command::last_lines,
    error::{IoResultExt as _, LauncherError, Result},
    http::send_request,
    progress::ProgressSink,
};

/// The name of the header with the signature of a build request.
pub(super) const SIGNATURE_HEADER: &str = "X-Build-Signature";

/// The number of log lines in the error of a failed build.
const BUILD_LOG_TAIL_LINES: usize = 40;

/// The interval between progress lines during a build.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(20);

/// The record of a build in builder-fn's answer.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct BuildRecord {
    pub(super) log: Vec<String>,
    pub(super) status: String,
    pub(super) error: Option<String>,
    pub(super) deployment: Option<Value>,
}

impl BuildRecord {
    /// Returns the record if its build succeeded; otherwise fails with the end of the build's log.
    pub(super) fn into_success(self, function: &str) -> Result<Self> {
        if self.status == "success" {
            return Ok(self);
        }
        let error = self.error.unwrap_or_else(|| "no reason given".to_owned());
        // The output of the steps explains more than their names, unless there is no output.
        let output_lines = self
            .log
            .iter()
            .filter_map(|line| line.strip_prefix("l: "))
            .collect::<Vec<_>>()
            .join("\n");
        let all = if output_lines.is_empty() {
            self.log.join("\n")
        } else {
            output_lines
        };
        let output = format!("{}\n{error}", last_lines(&all, BUILD_LOG_TAIL_LINES));
        Err(LauncherError::Program {
            program: format!("the build of {function}"),
            status: self.status,
            output,
        })
    }
}

/// Returns the build configuration for a build context made from the template.
pub(super) fn build_config(image: &str, rust_image: &str) -> Value {
    json!({ "image": image, "buildArgs": { "RUST_IMAGE": rust_image } })
}

/// Reads the key from the file `key`, and returns the signature of a build request: `sha256=` and the HMAC of
/// its body.
pub(super) fn sign_build_request(key: &Path, body: &[u8]) -> Result<String> {
    let secret = fs::read(key).with_operation("read", key)?;
    let mac = Hmac::<Sha256>::new_from_slice(secret.trim_ascii());
    let mut mac =
        mac.map_err(|_| LauncherError::Environment(format!("{}: not usable as an HMAC key", key.display())))?;
    mac.update(body);
    Ok(format!("sha256={}", hex::encode(mac.finalize().into_bytes())))
}

/// A client for builder-fn.
#[derive(Debug)]
pub(super) struct BuilderClient<'a> {
    client: Client,
    url: String,
    key: &'a Path,
}

impl<'a> BuilderClient<'a> {
    /// Returns a client for the builder-fn at `url`, which signs requests with the key in the file `key`.
    pub(super) fn new(client: Client, url: String, key: &'a Path) -> Self {
        Self { client, url, key }
    }

    /// Sends a build context to builder-fn and waits for the build, with a progress line from time to time.
    pub(super) async fn build_and_wait(
        &self,
        function: &str,
        tar: Vec<u8>,
        progress: &ProgressSink,
    ) -> Result<BuildRecord> {
        let request = self.client.post(format!("{}/build", self.url));
        let request = request
            .header(SIGNATURE_HEADER, sign_build_request(self.key, &tar)?)
            .body(tar);
        let (name, status, body) = with_progress_lines(function, progress, send_and_read(request)).await?;
        // The body of a failed build is a record too.
        match serde_json::from_slice::<BuildRecord>(&body) {
            Ok(record) => record.into_success(function),
            Err(_) => {
                let body = String::from_utf8_lossy(&body).trim().to_owned();
                Err(LauncherError::UnexpectedStatus {
                    request: name,
                    status,
                    body,
                })
            }
        }
    }
}

/// Sends an HTTP request and returns its URL, and the status and whole body of the answer, whatever the
/// status is.
async fn send_and_read(request: RequestBuilder) -> Result<(String, u16, Vec<u8>)> {
    let response = send_request(request).await?;
    let (name, status) = (response.url().to_string(), response.status().as_u16());
    let body = response.bytes().await;
    let body = body.map_err(|source| LauncherError::NoAnswer {
        request: name.clone(),
        source,
    })?;
    Ok((name, status, body.to_vec()))
}

/// Awaits `work`, and emits a progress line at every interval until it is done.
pub(super) async fn with_progress_lines<T>(
    function: &str,
    progress: &ProgressSink,
    work: impl Future<Output = T>,
) -> T {
    let began = Instant::now();
    let mut work = std::pin::pin!(work);
    loop {
        match tokio::time::timeout(PROGRESS_INTERVAL, &mut work).await {
            Ok(done) => return done,
            Err(_) => progress.emit_step(
                function,
                format_args!("building for {} s", began.elapsed().as_secs()),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_build_shows_the_output_of_its_steps() {
        let text = r#"{"log":["v: T step","l: T out"],"status":"failed","error":"exit code: 1"}"#;
        let record: BuildRecord = serde_json::from_str(text).unwrap();
        let error = record.into_success("x").unwrap_err().to_string();
        assert_eq!(error, "the build of x failed (failed)\nT out\nexit code: 1");
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_build_emits_progress_lines() {
        let lines = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let kept = lines.clone();
        let progress = ProgressSink::new(move |line| kept.lock().unwrap().push(line.to_owned()));
        with_progress_lines("hello", &progress, tokio::time::sleep(PROGRESS_INTERVAL * 5 / 2)).await;
        assert_eq!(lines.lock().unwrap().len(), 2);
    }

    #[test]
    fn the_signature_of_a_build_request_equals_that_of_openssl() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "key\n").unwrap();
        // printf %s 'The quick brown fox jumps over the lazy dog' | openssl dgst -sha256 -hmac key
        let expected = "sha256=f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8";
        let body = b"The quick brown fox jumps over the lazy dog";
        assert_eq!(sign_build_request(file.path(), body).unwrap(), expected);
    }
}
