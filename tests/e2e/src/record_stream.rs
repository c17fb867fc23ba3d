//! A streamed answer, read as it comes.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// Records of a build that runs. Dropping it goes away.
#[derive(Debug)]
pub struct Records {
    response: reqwest::Response,
    events: bool,
    received: Vec<u8>,
}

impl Records {
    /// The answer to a request that asked for this media type.
    pub fn of(response: reqwest::Response, accepted: &str) -> Result<Self> {
        let headers = response.headers();
        ensure!(response.status().as_u16() == 200, "{response:?}");
        ensure!(
            headers.get("content-type").is_some_and(|found| found == accepted),
            "{headers:?}"
        );
        Ok(Self {
            events: accepted == "text/event-stream",
            response,
            received: Vec::new(),
        })
    }

    /// The next record, which is smaller than what OpenFaaS's SDK reads. Nothing at the end.
    pub async fn next(&mut self) -> Result<Option<Value>> {
        let (start, end): (&[u8], &[u8]) = if self.events {
            (b"data: ", b"\n\n")
        } else {
            (b"", b"\n")
        };
        loop {
            if let Some(at) = self.received.windows(end.len()).position(|bytes| bytes == end) {
                let record: Vec<u8> = self.received.drain(..at + end.len()).collect();
                ensure!(record.len() < 64 << 10, "a record of {} bytes", record.len());
                let json = record[..at].strip_prefix(start).context("no data")?;
                return Ok(Some(serde_json::from_slice(json).context("a record")?));
            }
            match self.response.chunk().await? {
                Some(bytes) => self.received.extend_from_slice(&bytes),
                None if self.received.is_empty() => return Ok(None),
                None => bail!("half a record: {:?}", String::from_utf8_lossy(&self.received)),
            }
        }
    }

    /// Reads until a line of the log contains `text`.
    pub async fn until(&mut self, text: &str) -> Result<()> {
        loop {
            let record = self
                .next()
                .await?
                .with_context(|| format!("the stream ended before {text:?}"))?;
            ensure!(
                record["status"] == "in_progress",
                "{text:?} was not told before {record}"
            );
            if lines(&record)?.iter().any(|line| line.contains(text)) {
                return Ok(());
            }
        }
    }

    /// All lines that are still to come, and the terminal record, which is the last.
    pub async fn rest(mut self) -> Result<(Vec<String>, Value)> {
        let mut told = Vec::new();
        while let Some(record) = self.next().await? {
            if record["status"] == "in_progress" {
                told.extend(lines(&record)?);
                continue;
            }
            let after = self.next().await?;
            ensure!(after.is_none(), "{after:?} after {record}");
            return Ok((told, record));
        }
        bail!("no terminal record after {told:?}")
    }
}

fn lines(record: &Value) -> Result<Vec<String>> {
    serde_json::from_value(record["log"].clone()).with_context(|| format!("no log in {record}"))
}
