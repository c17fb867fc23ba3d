//! The channel from the sender of a log to the body of the answer: records, where the reader is, and whether the log
//! has ended.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::log_readers::LogReaderPlace;
use super::numbered_log::{LineKind, LogLine};
use crate::report::{StreamFormat, name_of_ended_step, to_json_with_escaped_line_ends};

/// The time without a record after which one without lines is sent.
pub(super) const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// The size from which records are sent without waiting for more, in bytes.
const CHUNK_BYTES: usize = 32 << 10;

/// The format of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LogFormat {
    /// The lines, and the terminal record as JSON in the last line.
    Plain,
    /// Records with one line each.
    Records(StreamFormat),
}

/// The channel to a reader, and the records that were not sent yet.
pub(super) struct LogRecordSink {
    channel: LogChannel,
    buffer: Vec<u8>,
    /// The number of the line after those in the buffer.
    next: u64,
    sent: Instant,
    /// The place of the reader among those that may read logs at the same time.
    _reader: LogReaderPlace,
}

/// The channel to a reader. Clones share it.
#[derive(Clone)]
pub(super) struct LogChannel {
    chunks: mpsc::Sender<Bytes>,
    format: LogFormat,
    opened: Instant,
    progress: Arc<LogProgress>,
}

/// How much of a log was sent.
struct LogProgress {
    /// The number of the first line that was not sent.
    next: AtomicU64,
    /// Whether the last record was sent.
    has_ended: AtomicBool,
}

/// The body of the answer with a log. It fails if the log stops without its last record, so that the reader does not
/// take it for complete.
pub(super) struct LogBody {
    chunks: mpsc::Receiver<Bytes>,
    progress: Arc<LogProgress>,
    has_failed: bool,
}

/// The reader of a log disconnected.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReaderGone;

/// The log stopped without its last record.
#[derive(Debug, thiserror::Error)]
#[error("the log stopped without its last record")]
pub(super) struct LogCutOff;

impl LogRecordSink {
    /// Creates a channel to a reader who reads from the line `from` on. The sink holds the reader's place until it is
    /// dropped.
    pub(super) fn new(reader: LogReaderPlace, format: LogFormat, from: u64) -> (Self, LogBody) {
        let (chunks, receiver) = mpsc::channel(4);
        let now = Instant::now();
        let progress = Arc::new(LogProgress {
            next: AtomicU64::new(from),
            has_ended: AtomicBool::new(false),
        });
        let sink = Self {
            channel: LogChannel {
                chunks,
                format,
                opened: now,
                progress: progress.clone(),
            },
            buffer: Vec::new(),
            next: from,
            sent: now,
            _reader: reader,
        };
        let body = LogBody {
            chunks: receiver,
            progress,
            has_failed: false,
        };
        (sink, body)
    }

    /// Returns the channel to the reader.
    pub(super) fn channel(&self) -> &LogChannel {
        &self.channel
    }

    /// Returns the number of the next line that the reader needs.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Waits until the reader has gone.
    pub(super) async fn closed(&self) {
        self.channel.chunks.closed().await;
    }

    /// Sends the buffered records, and waits while the channel is full.
    pub(super) async fn flush(&mut self) -> Result<(), ReaderGone> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.sent = Instant::now();
        let chunk = std::mem::take(&mut self.buffer).into();
        self.channel.send(chunk).await?;
        self.channel.progress.next.store(self.next, Ordering::Relaxed);
        Ok(())
    }

    /// Buffers a line unless the reader has it already: as text in a plain log, and as a record with its number and its
    /// step otherwise. The name of a cached step without lines is a record without a line. Sends the buffer once it is
    /// large enough for a chunk.
    pub(super) async fn buffer_line_if_new(&mut self, line: &LogLine) -> Result<(), ReaderGone> {
        if line.seq < self.next {
            return Ok(());
        }
        if line.kind != LineKind::NameOfCachedStep {
            self.next = line.seq + 1;
        }
        match self.channel.format {
            LogFormat::Plain if line.kind == LineKind::NameOfCachedStep => {}
            LogFormat::Plain => {
                self.buffer.extend_from_slice(line.text.as_bytes());
                self.buffer.push(b'\n');
            }
            LogFormat::Records(_) if line.kind == LineKind::NameOfCachedStep => {
                let mut record = self.channel.progress_record(self.next - 1, &[]);
                record["cached"] = json!([line.text]);
                self.buffer.extend(self.channel.encode(&record));
            }
            LogFormat::Records(_) => {
                let mut record = self.channel.progress_record(line.seq, &[&line.text]);
                if line.kind == LineKind::EndOfCachedStep
                    && let Some(name) = name_of_ended_step(&line.text)
                {
                    record["cached"] = json!([name]);
                }
                if let Some(step) = line.step {
                    record["step"] = json!(step);
                }
                self.buffer.extend(self.channel.encode(&record));
            }
        }
        match self.buffer.len() >= CHUNK_BYTES {
            true => self.flush().await,
            false => Ok(()),
        }
    }

    /// Goes on with lines from the number `next` on, though the reader has lines with these numbers, and says so: in a
    /// record without lines, or in a line of a plain log.
    pub(super) async fn send_notice_and_restart_numbers(&mut self, next: u64) -> Result<(), ReaderGone> {
        self.next = next;
        let notice = "the build began again, and so do the numbers of its lines";
        match self.channel.format {
            LogFormat::Plain => self.buffer.extend(format!("warning: {notice}\n").bytes()),
            LogFormat::Records(_) => {
                let mut record = self.channel.progress_record(next - 1, &[]);
                record["warning"] = json!(notice);
                self.buffer.extend(self.channel.encode(&record));
            }
        }
        self.flush().await
    }

    /// Sends the last record of the log.
    pub(super) async fn end(mut self, record: &Value) -> Result<(), ReaderGone> {
        self.flush().await?;
        self.channel.end(record).await
    }

    /// Sends a record without lines if nothing was sent for [`KEEP_ALIVE_INTERVAL`]; nothing in a plain log.
    pub(super) async fn send_keep_alive_record_if_due(&mut self) -> Result<(), ReaderGone> {
        if self.sent.elapsed() < KEEP_ALIVE_INTERVAL {
            return Ok(());
        }
        if let LogFormat::Records(_) = self.channel.format {
            let record = self.channel.progress_record(self.next - 1, &[]);
            self.buffer.extend(self.channel.encode(&record));
        }
        self.sent = Instant::now();
        self.flush().await
    }
}

impl LogChannel {
    /// Returns the number of the first line that was not sent to the reader.
    pub(super) fn next_unsent(&self) -> u64 {
        self.progress.next.load(Ordering::Relaxed)
    }

    /// Sends the last record of the log.
    pub(super) async fn end(&self, record: &Value) -> Result<(), ReaderGone> {
        self.send(self.encode(record).into()).await?;
        self.progress.has_ended.store(true, Ordering::Release);
        Ok(())
    }

    /// Returns a record of a build in progress, with `lines`, of which the last has the number `seq`.
    pub(super) fn progress_record(&self, seq: u64, lines: &[&str]) -> Value {
        let duration = (self.opened.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
        json!({"seq": seq, "log": lines, "status": "in_progress", "duration": duration})
    }

    /// Returns the bytes of a record in the format of the log.
    fn encode(&self, record: &Value) -> Vec<u8> {
        let json = to_json_with_escaped_line_ends(record);
        match self.format {
            LogFormat::Records(StreamFormat::EventStream) => [b"data: ", json.as_slice(), b"\n\n"].concat(),
            LogFormat::Records(StreamFormat::Ndjson) | LogFormat::Plain => [&json[..], b"\n"].concat(),
        }
    }

    async fn send(&self, chunk: Bytes) -> Result<(), ReaderGone> {
        self.chunks.send(chunk).await.map_err(|_| ReaderGone)
    }
}

impl Stream for LogBody {
    type Item = Result<Bytes, LogCutOff>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.chunks.poll_recv(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(chunk)) => Poll::Ready(Some(Ok(chunk))),
            Poll::Ready(None) if self.has_failed || self.progress.has_ended.load(Ordering::Acquire) => {
                Poll::Ready(None)
            }
            Poll::Ready(None) => {
                self.has_failed = true;
                Poll::Ready(Some(Err(LogCutOff)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::super::log_readers::LogReaders;
    use super::*;

    fn line(seq: u64, kind: LineKind, text: &str) -> LogLine {
        LogLine {
            seq,
            step: None,
            kind,
            text: text.to_owned(),
        }
    }

    /// Returns the lines of the body that a reader from the line 2 on gets for these lines.
    async fn body_of(format: LogFormat, lines: &[LogLine]) -> Vec<String> {
        let reader = LogReaders::default().admit(None, None).expect("the first reader");
        let (mut sink, body) = LogRecordSink::new(reader, format, 2);
        for line in lines {
            sink.buffer_line_if_new(line).await.expect("a reader");
        }
        sink.end(&json!({"status": "success"})).await.expect("a reader");
        let chunks: Vec<_> = body.map(|chunk| chunk.expect("no failure")).collect().await;
        let text = String::from_utf8(chunks.concat()).expect("UTF-8");
        text.lines().map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn a_cached_step_is_named_in_the_record_of_its_end_or_in_one_without_a_line_or_a_number() {
        let lines = [
            line(2, LineKind::NameOfCachedStep, "[1/3] FROM a"),
            line(2, LineKind::EndOfCachedStep, "v: T [2/3] RUN b 0.01s"),
            line(3, LineKind::NameOfCachedStep, "[3/3] RUN c"),
            line(3, LineKind::Ordinary, "v: T exporting to image 0.10s"),
        ];
        let records = body_of(LogFormat::Records(StreamFormat::Ndjson), &lines).await;
        let records = records
            .iter()
            .map(|line| serde_json::from_str(line).expect("JSON"));
        let shown: Vec<_> = records
            .map(|record: Value| json!([record["seq"], record["log"], record["cached"]]))
            .collect();
        assert_eq!(
            shown,
            [
                json!([1, [], ["[1/3] FROM a"]]),
                json!([2, ["v: T [2/3] RUN b 0.01s"], ["[2/3] RUN b"]]),
                json!([2, [], ["[3/3] RUN c"]]),
                json!([3, ["v: T exporting to image 0.10s"], null]),
                json!([null, null, null]),
            ]
        );
        let texts = body_of(LogFormat::Plain, &lines).await;
        assert_eq!(
            texts,
            [
                "v: T [2/3] RUN b 0.01s",
                "v: T exporting to image 0.10s",
                r#"{"status":"success"}"#
            ]
        );
    }

    #[tokio::test]
    async fn a_cached_step_before_the_first_line_that_a_reader_needs_is_not_named() {
        let lines = [
            line(1, LineKind::NameOfCachedStep, "[1/3] FROM a"),
            line(1, LineKind::EndOfCachedStep, "v: T [2/3] RUN b 0.01s"),
        ];
        let records = body_of(LogFormat::Records(StreamFormat::Ndjson), &lines).await;
        assert_eq!(records.len(), 1, "{records:?}");
    }
}
