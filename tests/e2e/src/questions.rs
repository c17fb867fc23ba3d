//! A client of the questions about builds: their state, their log, and their cancellation.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use reqwest::Method;
use serde_json::Value;

use crate::{
    client::sign_body,
    record_stream::{NumberedRecord, RecordStream},
};

/// The longest time between two pieces of an answer. The builder sends a record every 15 s.
const READ_TIMEOUT: Duration = Duration::from_secs(120);

/// The media type of the log's records.
const RECORDS_MEDIA_TYPE: &str = "application/x-ndjson";

/// A client that signs questions with one key and sends them to one builder-fn.
#[derive(Debug, Clone)]
pub struct BuildQuestionClient {
    url: String,
    key: Vec<u8>,
    http: reqwest::Client,
}

impl BuildQuestionClient {
    /// Returns a client for the builder-fn at this URL, which has no trailing slash; white space around the key is
    /// trimmed.
    pub fn new(url: impl Into<String>, key: &[u8]) -> Result<Self> {
        Ok(Self {
            url: url.into(),
            key: key.trim_ascii().to_vec(),
            // A connection of its own for each question: its builder may be killed meanwhile.
            http: reqwest::Client::builder()
                .no_proxy()
                .pool_max_idle_per_host(0)
                .read_timeout(READ_TIMEOUT)
                .build()?,
        })
    }

    /// Asks at `path`, such as `/builds/ID`; returns status and answer.
    pub async fn get(&self, path: &str) -> Result<(u16, Value)> {
        let response = self.send(Method::GET, path, "*/*").await?;
        Ok((response.status().as_u16(), response.json().await?))
    }

    /// Cancels the build at `path`, such as `/builds/ID`; returns status and answer.
    pub async fn delete(&self, path: &str) -> Result<(u16, Value)> {
        let response = self.send(Method::DELETE, path, "*/*").await?;
        Ok((response.status().as_u16(), response.json().await?))
    }

    /// Opens the log of a build from the line with the number `from_line` on; `None` if the builder has as many readers
    /// as it may have.
    ///
    /// # Errors
    /// Fails if the answer has another status or media type.
    pub async fn open_log_unless_too_many_readers(
        &self,
        id: &str,
        from_line: u64,
    ) -> Result<Option<RecordStream>> {
        let path = format!("/builds/{id}/log?from={from_line}");
        let response = self.send(Method::GET, &path, RECORDS_MEDIA_TYPE).await?;
        match response.status().as_u16() {
            429 => Ok(None),
            _ => RecordStream::new(response, RECORDS_MEDIA_TYPE).map(Some),
        }
    }

    /// Opens the log of a build from the line with the number `from` on, in this media type; waits while the builder
    /// has as many readers as it may have.
    ///
    /// # Errors
    /// Fails if the answer has another status or media type.
    pub async fn open_log_as_once_allowed(
        &self,
        id: &str,
        from: u64,
        media_type: &str,
    ) -> Result<reqwest::Response> {
        let path = format!("/builds/{id}/log?from={from}");
        loop {
            let response = self.send(Method::GET, &path, media_type).await?;
            match response.status().as_u16() {
                // The builder may not have noticed yet that earlier readers have gone.
                429 => tokio::time::sleep(Duration::from_millis(20)).await,
                200 if response
                    .headers()
                    .get("content-type")
                    .is_some_and(|given| given == media_type) =>
                {
                    return Ok(response);
                }
                _ => bail!("{path}: {response:?}"),
            }
        }
    }

    /// Reads the log of a build from its first line to its end; returns the numbered lines and the terminal record.
    pub async fn read_numbered_lines_and_terminal_record(
        &self,
        id: &str,
    ) -> Result<(Vec<(u64, String)>, Value)> {
        let log = self.open_log_unless_too_many_readers(id, 1).await?;
        let mut log = log.context("the builder has too many readers")?;
        let mut lines = Vec::new();
        loop {
            match log.next_numbered_line_or_end_record().await? {
                Some(NumberedRecord::Line(number, text)) => lines.push((number, text)),
                Some(NumberedRecord::End(record)) => return Ok((lines, record)),
                None => bail!(
                    "the log ended without a terminal record after {} lines",
                    lines.len()
                ),
            }
        }
    }

    /// Sends a signed question, and returns the response without its body.
    async fn send(&self, method: Method, path: &str, accept: &str) -> Result<reqwest::Response> {
        let signed_at = Timestamp::now().to_string();
        let text = format!("{method}\n{path}\n{signed_at}");
        let url = format!("{}{path}", self.url);
        let request = self
            .http
            .request(method, &url)
            .header("Accept", accept)
            .header("X-Signed-At", signed_at)
            .header("X-Build-Signature", sign_body(&self.key, text.as_bytes())?);
        request.send().await.with_context(|| url.clone())
    }
}
