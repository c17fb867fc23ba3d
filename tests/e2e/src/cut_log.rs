//! A reader of a build's log whose connections are cut off after a random number of bytes.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::questions::BuildQuestionClient;

/// The form in which the reader asks for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogForm {
    /// Records as lines of JSON.
    Records,
    /// Records as server-sent events.
    Events,
}

/// A reader that goes on, after each cut, with the record after the last one that it got completely.
#[derive(Debug)]
pub struct CutLogReader {
    questions: BuildQuestionClient,
    id: String,
    /// The number of the next line.
    next: u64,
    random: u64,
    received: u64,
    discarded: u64,
}

impl LogForm {
    fn media_type(self) -> &'static str {
        match self {
            Self::Records => "application/x-ndjson",
            Self::Events => "text/event-stream",
        }
    }

    /// Returns the JSON of the record at the beginning of `received`, without the `data: ` of an event, and the length
    /// of the whole record with what ends it; `None` if it is not complete. Fails if it has another form.
    fn split_record(self, received: &[u8]) -> Result<Option<(&[u8], usize)>> {
        let (start, end): (&[u8], &[u8]) = match self {
            Self::Records => (b"", b"\n"),
            Self::Events => (b"data: ", b"\n\n"),
        };
        let Some(at) = received.iter().position(|byte| *byte == b'\n') else {
            return Ok(None);
        };
        let Some(after) = received.get(at..at + end.len()) else {
            return Ok(None);
        };
        ensure!(after == end, "a record has a line end in it");
        let json = received.get(..at).and_then(|record| record.strip_prefix(start));
        Ok(Some((
            json.context("the record has another form")?,
            at + end.len(),
        )))
    }
}

impl CutLogReader {
    /// Creates a reader from the first line on, which is cut off at places that `seed` determines.
    pub fn new(questions: BuildQuestionClient, id: &str, seed: u64) -> Self {
        Self {
            questions,
            id: id.to_owned(),
            next: 1,
            random: seed,
            received: 0,
            discarded: 0,
        }
    }

    /// Opens the log, reads a random number of bytes, fewer than `bytes_below`, and closes the connection there, which
    /// may be inside a record. Passes the lines of complete records to `see`; returns the terminal record if it was
    /// among them.
    pub async fn read_until_random_cut(
        &mut self,
        form: LogForm,
        bytes_below: u64,
        see: &mut impl FnMut(&str) -> Result<()>,
    ) -> Result<Option<Value>> {
        let bytes = self.next_random() % bytes_below;
        self.read_bytes(form, bytes, see).await
    }

    /// Opens the log, reads it to its end, passes its lines to `see`, and returns the terminal record.
    pub async fn read_to_end(
        &mut self,
        form: LogForm,
        see: &mut impl FnMut(&str) -> Result<()>,
    ) -> Result<Value> {
        let end = self.read_bytes(form, u64::MAX, see).await?;
        end.context("the log ended without a terminal record")
    }

    /// Returns the number of bytes of complete records so far.
    pub fn complete_record_bytes(&self) -> u64 {
        self.received
    }

    /// Returns the number of bytes of records so far that were cut off.
    pub fn discarded_bytes(&self) -> u64 {
        self.discarded
    }

    async fn read_bytes(
        &mut self,
        form: LogForm,
        mut left: u64,
        see: &mut impl FnMut(&str) -> Result<()>,
    ) -> Result<Option<Value>> {
        let mut response = self
            .questions
            .open_log_as_once_allowed(&self.id, self.next, form.media_type())
            .await?;
        let mut received = Vec::new();
        while left > 0 {
            let Some(chunk) = response.chunk().await? else {
                bail!(
                    "the log ended before line {} and without a terminal record",
                    self.next
                );
            };
            let taken = usize::try_from(left).map_or(chunk.len(), |left| left.min(chunk.len()));
            left -= u64::try_from(taken)?;
            received.extend_from_slice(&chunk[..taken]);
            let mut at = 0;
            while let Some((json, length)) = form.split_record(&received[at..])? {
                let record: Value = serde_json::from_slice(json)?;
                at += length;
                if let Some(end) = self.take_record(record, see)? {
                    self.received += u64::try_from(at)?;
                    return Ok(Some(end));
                }
            }
            self.received += u64::try_from(at)?;
            received.drain(..at);
        }
        self.discarded += u64::try_from(received.len())?;
        Ok(None)
    }

    /// Passes the line of a record, if it has one, to `see`, or returns the record if it is the terminal one.
    fn take_record(
        &mut self,
        record: Value,
        see: &mut impl FnMut(&str) -> Result<()>,
    ) -> Result<Option<Value>> {
        if record["status"] != "in_progress" {
            return Ok(Some(record));
        }
        let lines = record["log"].as_array().context("a record without a log")?;
        ensure!(lines.len() <= 1, "several lines in {record}");
        // A record without lines only shows that the build goes on.
        if let Some(line) = lines.first() {
            ensure!(
                record["seq"] == self.next,
                "{record} came in place of line {}",
                self.next
            );
            self.next += 1;
            see(line.as_str().context("a line that is not a text")?)?;
        }
        Ok(None)
    }

    /// Returns the next number of the sequence that the seed determines (SplitMix64).
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
