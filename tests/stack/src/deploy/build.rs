//! The client that builds an image with builder-fn.

use std::{fs, path::Path};

use hmac::{Hmac, KeyInit as _, Mac as _};
use reqwest::{Client, RequestBuilder, header::ACCEPT};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::Sha256;

use crate::{
    command::last_lines_each_cut,
    error::{IoResultExt as _, LauncherError, Result},
    http::send_request,
    progress::{ProgressSink, WorkMessageSetter},
};

/// The name of the header with the signature of a build request.
pub(super) const SIGNATURE_HEADER: &str = "X-Build-Signature";

/// The value of the build argument `HOST_FEATURES` of Slipway's functions, as in `stack.yml`.
const HOST_FEATURES: &str = "policy,registry,traces";

/// The number of log lines in the error of a failed build.
const BUILD_LOG_TAIL_LINES: usize = 40;

/// The status of a record that is not the last one of its stream.
const IN_PROGRESS_STATUS: &str = "in_progress";

/// A record of a build in builder-fn's answer.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct StreamedBuildRecord {
    pub(super) log: Vec<String>,
    pub(super) status: String,
    pub(super) error: Option<String>,
    pub(super) deployment: Option<Value>,
}

impl StreamedBuildRecord {
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
        let output = format!("{}\n{error}", last_lines_each_cut(&all, BUILD_LOG_TAIL_LINES));
        Err(LauncherError::Program {
            program: format!("the build of {function}"),
            status: self.status,
            output,
        })
    }
}

/// Returns the build configuration of a function: the image to push, and `rust_image` as build argument `RUST_IMAGE`.
pub(super) fn build_config_of_template(image: &str, rust_image: &str) -> Value {
    json!({ "image": image, "buildArgs": { "RUST_IMAGE": rust_image } })
}

/// Returns the build configuration for one of Slipway's functions: that of any function, with the build argument
/// `HOST_FEATURES` as in `stack.yml`.
pub(super) fn build_config_of_slipway(image: &str, rust_image: &str) -> Value {
    let mut config = build_config_of_template(image, rust_image);
    config["buildArgs"]["HOST_FEATURES"] = HOST_FEATURES.into();
    config
}

/// Reads the key from `key_file`, and returns the signature of a build request: `sha256=` and the HMAC of its body.
pub(super) fn sign_build_request(key_file: &Path, body: &[u8]) -> Result<String> {
    let secret = fs::read(key_file).with_operation("read", key_file)?;
    let mac = Hmac::<Sha256>::new_from_slice(secret.trim_ascii());
    let mut mac = mac.map_err(|_| {
        LauncherError::Environment(format!("{}: not usable as an HMAC key", key_file.display()))
    })?;
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

    /// Sends the tar of a build request to builder-fn and waits for the build; shows the last line of the build's log
    /// meanwhile. Fails if the build fails.
    pub(super) async fn build_and_wait(
        &self,
        function: &str,
        tar: Vec<u8>,
        progress: &ProgressSink,
    ) -> Result<StreamedBuildRecord> {
        let request = self.client.post(format!("{}/build", self.url));
        let request = request
            .header(SIGNATURE_HEADER, sign_build_request(self.key, &tar)?)
            .header(ACCEPT, "application/x-ndjson")
            .body(tar);
        let built = progress.show_while(function, |messages| send_and_follow(request, messages));
        built.await?.into_success(function)
    }
}

/// Sends a build request and follows the stream of its answer; returns the build's last record, with its whole log.
async fn send_and_follow(
    request: RequestBuilder,
    messages: WorkMessageSetter,
) -> Result<StreamedBuildRecord> {
    let mut response = send_request(request).await?;
    let (name, status) = (response.url().to_string(), response.status().as_u16());
    let mut stream = RecordStream::default();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => stream.push(&chunk, |line| messages.set_message_for_next_refresh(line)),
            Ok(None) => break,
            Err(source) => {
                return Err(LauncherError::NoAnswer {
                    request: name,
                    source,
                });
            }
        }
    }
    stream
        .into_last_record()
        .map_err(|body| LauncherError::UnexpectedStatus {
            request: name,
            status,
            body,
        })
}

/// Returns a line of a build's log, which is `l: TIME TEXT` or has another letter, without the letter and the time.
fn text_of_log_line(line: &str) -> &str {
    let text = line.split_once(": ").map_or(line, |(_, text)| text);
    let is_time = |word: &str| word.contains('T') && word.ends_with('Z');
    match text.split_once(' ') {
        Some((word, rest)) if is_time(word) => rest.trim(),
        _ => text.trim(),
    }
}

/// The records of a streamed answer, one on each line.
#[derive(Debug, Default)]
struct RecordStream {
    /// The bytes after the last complete record.
    rest: Vec<u8>,
    /// The lines of all records' logs.
    log: Vec<String>,
    /// The last record of the stream, once it has arrived.
    last: Option<StreamedBuildRecord>,
}

impl RecordStream {
    /// Adds bytes of the stream; passes the last text of each record's log to `on_last_text_of_record`.
    fn push(&mut self, bytes: &[u8], on_last_text_of_record: impl Fn(&str)) {
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let Ok(mut record) = serde_json::from_slice::<StreamedBuildRecord>(&self.rest[..end]) else {
                // Not a stream of records; the whole of it is for the error.
                return;
            };
            self.rest.drain(..=end);
            let mut texts = record.log.iter().rev().map(|line| text_of_log_line(line));
            if let Some(text) = texts.find(|text| !text.is_empty()) {
                on_last_text_of_record(text);
            }
            self.log.append(&mut record.log);
            if record.status != IN_PROGRESS_STATUS {
                self.last = Some(record);
            }
        }
    }

    /// Returns the last record, with the lines of all records. If there is none, fails with the text that is no record.
    fn into_last_record(mut self) -> std::result::Result<StreamedBuildRecord, String> {
        // An answer that is no stream is one record without the end of a line.
        let last = self.last.or_else(|| serde_json::from_slice(&self.rest).ok());
        match last {
            Some(mut record) => {
                self.log.append(&mut record.log);
                record.log = self.log;
                Ok(record)
            }
            None => Err(String::from_utf8_lossy(&self.rest).trim().to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_build_shows_the_output_of_its_steps() {
        let text = r#"{"log":["v: T step","l: T out"],"status":"failed","error":"exit code: 1"}"#;
        let record: StreamedBuildRecord = serde_json::from_str(text).unwrap();
        let error = record.into_success("x").unwrap_err().to_string();
        assert_eq!(error, "the build of x failed (failed)\nT out\nexit code: 1");
    }

    #[test]
    fn a_stream_reports_the_last_line_of_each_record_and_returns_the_last_record_with_the_whole_log() {
        let text = concat!(
            r#"{"log":["v: 2026-11-29T18:25:56Z step","l: 2026-11-29T18:25:57Z    out"],"status":"in_progress"}"#,
            "\n",
            r#"{"log":[],"status":"in_progress"}"#,
            "\n",
            r#"{"log":["s: 2026-11-29T18:25:58Z done","l: "],"status":"in_progress"}"#,
            "\n",
            r#"{"status":"failed","error":"exit code: 1"}"#,
            "\n",
        );
        // However the bytes are divided.
        for length in [1, 7, text.len()] {
            let lines = std::cell::RefCell::new(Vec::new());
            let mut stream = RecordStream::default();
            for bytes in text.as_bytes().chunks(length) {
                stream.push(bytes, |line| lines.borrow_mut().push(line.to_owned()));
            }
            assert_eq!(lines.into_inner(), ["out", "done"]);
            let record = stream.into_last_record().unwrap();
            assert_eq!(record.log.len(), 4);
            let error = record.into_success("x").unwrap_err().to_string();
            assert!(error.ends_with("exit code: 1"), "{error}");
        }
    }

    #[test]
    fn an_answer_that_is_no_stream_is_reported_as_it_is_and_a_stream_without_a_last_record_fails() {
        for (text, reported) in [
            ("signature missing\n", "signature missing"),
            ("{\"status\":\"in_progress\"}\n", ""),
        ] {
            let mut stream = RecordStream::default();
            stream.push(text.as_bytes(), |_| ());
            assert_eq!(stream.into_last_record().unwrap_err(), reported);
        }
    }

    #[test]
    fn the_host_features_of_builds_equal_those_of_both_functions_in_stack_yml() {
        let stack_yml = fs::read_to_string(crate::directories::repository_root().join("stack.yml")).unwrap();
        let line = format!("      HOST_FEATURES: {HOST_FEATURES}\n");
        assert_eq!(stack_yml.matches(&line).count(), 2);
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
