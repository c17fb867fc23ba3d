//! A streamed answer, record by record.

use std::time::Duration;

use bytes::Bytes;
use function_host::ErrorChain;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http_body_util::BodyDataStream;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};

use super::Record;

/// The longest time without a byte before a stream counts as cut. The builder sends a record every 15 s.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// The longest record, in bytes, with room to spare: the builder's are below 64 KiB.
const RECORD_BYTES_MAX: usize = 1 << 20;

/// The records of a streamed answer: one on each line, or one in each server-sent event.
pub(crate) struct RecordStream {
    chunks: BoxStream<'static, Result<Bytes, String>>,
    lines: LineBuffer,
    /// The time of the last byte.
    last_byte: Instant,
}

/// The reason why a stream ended without a terminal record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection was lost: {0}")]
pub(crate) struct StreamCut(pub(crate) String);

impl RecordStream {
    /// Creates the stream of the records in a body.
    pub(super) fn new(body: Incoming) -> Self {
        let chunks = BodyDataStream::new(body);
        Self::of_chunks(chunks.map_err(|error| ErrorChain(&error).to_string()).boxed())
    }

    /// Creates the stream of the records in chunks of bytes.
    fn of_chunks(chunks: BoxStream<'static, Result<Bytes, String>>) -> Self {
        Self {
            chunks,
            lines: LineBuffer::default(),
            last_byte: Instant::now(),
        }
    }

    /// Returns the next record. A call that is dropped loses nothing, and the silence before it counts.
    ///
    /// # Errors
    /// Fails if the stream ends, or sends nothing for a minute.
    pub(crate) async fn next_record(&mut self) -> Result<Record, StreamCut> {
        loop {
            if let Some(record) = self.lines.take_record() {
                return Ok(record);
            }
            let chunk = timeout_at(self.last_byte + SILENCE_MAX, self.chunks.next()).await;
            match chunk {
                Ok(Some(Ok(chunk))) => {
                    self.last_byte = Instant::now();
                    self.lines.push(&chunk)?;
                }
                Ok(Some(Err(error))) => return Err(StreamCut(error)),
                Ok(None) => return Err(StreamCut("it ended before the build".to_owned())),
                Err(_) => return Err(StreamCut(format!("nothing came for {} s", SILENCE_MAX.as_secs()))),
            }
        }
    }
}

/// The bytes of a stream that are no whole line yet, and the lines that are.
#[derive(Debug, Default)]
struct LineBuffer {
    bytes: Vec<u8>,
    /// The number of bytes at the start that have no line end.
    searched: usize,
}

impl LineBuffer {
    /// Appends a chunk.
    ///
    /// # Errors
    /// Fails if a line is too long for a record.
    fn push(&mut self, chunk: &Bytes) -> Result<(), StreamCut> {
        self.bytes.extend_from_slice(chunk);
        match self.bytes.len() - self.searched > RECORD_BYTES_MAX && !chunk.contains(&b'\n') {
            true => Err(StreamCut("a line is too long for a record".to_owned())),
            false => Ok(()),
        }
    }

    /// Takes the next whole line that is a record, and drops the lines before it.
    fn take_record(&mut self) -> Option<Record> {
        while let Some(end) = self
            .bytes
            .iter()
            .skip(self.searched)
            .position(|byte| *byte == b'\n')
        {
            let line: Vec<u8> = self.bytes.drain(..=self.searched + end).collect();
            self.searched = 0;
            let line = String::from_utf8_lossy(&line);
            let text = line.strip_prefix("data:").unwrap_or(&line);
            if let Some(record) = Record::parse(text.trim()) {
                return Some(record);
            }
        }
        self.searched = self.bytes.len();
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_found_in_lines_and_in_events_however_they_are_cut() {
        let record = |line: &str| format!(r#"{{"log":["{line}"],"status":"in_progress"}}"#);
        for (prefix, end) in [("", "\n"), ("data: ", "\n\n"), ("data:", "\r\n\r\n")] {
            let text: String = ["l: T a", "l: T b"]
                .iter()
                .map(|line| format!("{prefix}{}{end}", record(line)))
                .collect();
            for size in [1, 7, text.len()] {
                let mut buffer = LineBuffer::default();
                let mut found = Vec::new();
                for chunk in text.as_bytes().chunks(size) {
                    buffer.push(&Bytes::copy_from_slice(chunk)).expect("short lines");
                    while let Some(Record::Progress { lines, .. }) = buffer.take_record() {
                        found.extend(lines);
                    }
                }
                assert_eq!(found, ["l: T a", "l: T b"], "{prefix:?} {size}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_lost_also_for_a_reader_that_asks_again_and_again() {
        let mut records = RecordStream::of_chunks(futures_util::stream::pending().boxed());
        let begin = Instant::now();
        let cut = loop {
            match tokio::time::timeout(Duration::from_secs(16), records.next_record()).await {
                Ok(record) => break record.expect_err("nothing comes"),
                Err(_) => continue,
            }
        };
        assert!(cut.to_string().contains("nothing came for 60 s"), "{cut}");
        assert_eq!(begin.elapsed(), SILENCE_MAX);
    }

    #[test]
    fn a_line_that_never_ends_is_an_error() {
        let mut buffer = LineBuffer::default();
        let chunk = Bytes::from(vec![b'x'; RECORD_BYTES_MAX + 1]);
        buffer.push(&chunk).expect_err("too long");
    }
}
