//! Reads a streamed answer as it arrives.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// A record of a build's log.
#[derive(Debug, Clone, PartialEq)]
pub enum NumberedRecord {
    /// A line with its number.
    Line(u64, String),
    /// The terminal record.
    End(Value),
}

/// The records of a running build. Dropping the stream closes its connection.
#[derive(Debug)]
pub struct RecordStream {
    response: reqwest::Response,
    events: bool,
    received: Vec<u8>,
}

impl RecordStream {
    /// Checks status and media type of a streamed answer, and returns the stream of its records.
    pub fn new(response: reqwest::Response, accepted_media_type: &str) -> Result<Self> {
        let headers = response.headers();
        ensure!(response.status().as_u16() == 200, "{response:?}");
        ensure!(
            headers
                .get("content-type")
                .is_some_and(|found| found == accepted_media_type),
            "{headers:?}"
        );
        Ok(Self {
            events: accepted_media_type == "text/event-stream",
            response,
            received: Vec::new(),
        })
    }

    /// Waits for the next record and returns it, or `None` at the end. Fails if a record is too long for OpenFaaS's
    /// SDK.
    pub async fn next_record_below_64_kib(&mut self) -> Result<Option<Value>> {
        let (start, end): (&[u8], &[u8]) = if self.events {
            (b"data: ", b"\n\n")
        } else {
            (b"", b"\n")
        };
        loop {
            if let Some(at) = self.received.windows(end.len()).position(|bytes| bytes == end) {
                let record: Vec<u8> = self.received.drain(..at + end.len()).collect();
                ensure!(
                    record.len() < 64 << 10,
                    "a record of {} bytes; clients read less than 64 KiB",
                    record.len()
                );
                let json = record[..at]
                    .strip_prefix(start)
                    .context("the event does not start with \"data: \"")?;
                return Ok(Some(
                    serde_json::from_slice(json).context("the record is not JSON")?,
                ));
            }
            match self.response.chunk().await? {
                Some(bytes) => self.received.extend_from_slice(&bytes),
                None if self.received.is_empty() => return Ok(None),
                None => bail!(
                    "the stream ended inside a record: {:?}",
                    String::from_utf8_lossy(&self.received)
                ),
            }
        }
    }

    /// Waits for the next numbered line of a build's log, or for its terminal record; `None` if the stream ends before.
    /// Leaves out records without lines.
    pub async fn next_numbered_line_or_end_record(&mut self) -> Result<Option<NumberedRecord>> {
        loop {
            let Some(record) = self.next_record_below_64_kib().await? else {
                return Ok(None);
            };
            if record["status"] != "in_progress" {
                return Ok(Some(NumberedRecord::End(record)));
            }
            let number = record["seq"].as_u64();
            let number = number.with_context(|| format!("no number in {record}"))?;
            let mut lines = log_lines(&record)?;
            ensure!(lines.len() <= 1, "several lines in {record}");
            if let Some(text) = lines.pop() {
                return Ok(Some(NumberedRecord::Line(number, text)));
            }
        }
    }

    /// Reads until a line of the log contains `text`.
    pub async fn read_until_log_contains(&mut self, text: &str) -> Result<()> {
        loop {
            let record = self
                .next_record_below_64_kib()
                .await?
                .with_context(|| format!("the stream ended before {text:?}"))?;
            ensure!(
                record["status"] == "in_progress",
                "the log has no line with {text:?} before {record}"
            );
            if log_lines(&record)?.iter().any(|line| line.contains(text)) {
                return Ok(());
            }
        }
    }

    /// Reads to the end; returns the remaining log lines and the terminal record, and fails if anything follows it.
    pub async fn read_remaining_lines_and_terminal_record(mut self) -> Result<(Vec<String>, Value)> {
        let mut log = Vec::new();
        while let Some(record) = self.next_record_below_64_kib().await? {
            if record["status"] == "in_progress" {
                log.extend(log_lines(&record)?);
                continue;
            }
            let after = self.next_record_below_64_kib().await?;
            ensure!(after.is_none(), "{after:?} after {record}");
            return Ok((log, record));
        }
        bail!("no terminal record after {log:?}")
    }
}

fn log_lines(record: &Value) -> Result<Vec<String>> {
    serde_json::from_value(record["log"].clone()).with_context(|| format!("no log in {record}"))
}
