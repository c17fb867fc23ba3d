//! The log of a build as numbered records, while it runs and afterwards.
//!
//! Every line has a number, `seq`. Lines of the first attempt are numbered from 1, those of the second from
//! 1,000,000,001, and so on. The order of the lines of an attempt is that of
//! [`OrderedLog`](crate::buildkit::OrderedLog), so a number means the same line for every reader. An attempt that
//! BuildKit does not record, because it is killed, begins again under its own numbers.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use function_host::ErrorChain;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::BuildPhase;
use super::log_readers::LogReader;
use super::lookup::{BuildLookup, FoundBuild, UnreadPlaces};
use super::numbered_log::{LogLine, NumberedLog};
use super::record::attempt_number;
use crate::buildkit::{BuildState, ListedBuild};
use crate::redact::SecretMask;
use crate::report::{StreamFormat, to_json_with_escaped_line_ends};

/// The time without a record after which one without lines is sent.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// The longest time between two lookups of a build's next attempt or its end. A build of this process is also looked up
/// when its record changes.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The number of failures in a row to read the log of an ended build that are tolerated before it is given up.
const READ_FAILURES_MAX: u32 = 5;

/// The number of lookups in a row that may find no build before its log is given up. BuildKit may be restarting, and
/// the builder that lost the build may build again.
const FAILED_LOOKUPS_MAX: u32 = 120;

/// The longest wait for a connection to the daemon that has the log of an attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The size from which records are sent without waiting for more, in bytes.
const SEND_THRESHOLD_BYTES: usize = 32 << 10;

/// The format of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LogFormat {
    /// The lines, and the terminal record as JSON in the last line.
    Plain,
    /// Records with one line each.
    Records(StreamFormat),
}

/// A sender of one build's log to a reader.
pub(super) struct LogSender {
    /// The lookup that finds the build again and again.
    pub(super) lookup: BuildLookup,
    /// The ID of the call.
    pub(super) id: String,
    /// The format of the log.
    pub(super) format: LogFormat,
    /// The number of the next line to send.
    pub(super) next: u64,
    /// The channel to the reader.
    pub(super) sink: LogRecordSink,
}

/// The channel to a reader, and the records that were not sent yet.
pub(super) struct LogRecordSink {
    chunks: mpsc::Sender<Bytes>,
    buffer: Vec<u8>,
    opened: Instant,
    sent: Instant,
    /// The place of the reader among those that may read logs at the same time.
    _reader: LogReader,
}

/// The reason why a log ends early.
enum EarlyLogEnd {
    /// The reader disconnected.
    ReaderGone,
    /// The daemon is lost, or does not know the attempt.
    Unreadable(String),
}

impl LogRecordSink {
    /// Creates a channel to a reader, which holds the reader's place until it is dropped.
    pub(super) fn new(reader: LogReader) -> (Self, mpsc::Receiver<Bytes>) {
        let (chunks, receiver) = mpsc::channel(4);
        let now = Instant::now();
        let sink = Self {
            chunks,
            buffer: Vec::new(),
            opened: now,
            sent: now,
            _reader: reader,
        };
        (sink, receiver)
    }

    /// Sends the buffered records, and waits while the channel is full.
    async fn flush(&mut self) -> Result<(), EarlyLogEnd> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.sent = Instant::now();
        let chunk = std::mem::take(&mut self.buffer).into();
        self.chunks.send(chunk).await.map_err(|_| EarlyLogEnd::ReaderGone)
    }

    /// Buffers a record.
    fn buffer_record(&mut self, format: LogFormat, record: &Value) {
        let json = to_json_with_escaped_line_ends(record);
        let parts: [&[u8]; 3] = match format {
            LogFormat::Records(StreamFormat::EventStream) => [b"data: ", &json, b"\n\n"],
            LogFormat::Records(StreamFormat::Ndjson) | LogFormat::Plain => [b"", &json, b"\n"],
        };
        parts.iter().for_each(|part| self.buffer.extend_from_slice(part));
    }

    /// Buffers a line: as text in a plain log, and as a record with its number and its step otherwise.
    fn buffer_line(&mut self, format: LogFormat, line: &LogLine) {
        match format {
            LogFormat::Plain => {
                self.buffer.extend_from_slice(line.text.as_bytes());
                self.buffer.push(b'\n');
            }
            LogFormat::Records(_) => {
                let mut record = self.progress_record(line.seq, &[&line.text]);
                if let Some(step) = line.step {
                    record["step"] = json!(step);
                }
                self.buffer_record(format, &record);
            }
        }
    }

    /// Returns a record of a build in progress, with `lines`, of which the last has the number `seq`.
    fn progress_record(&self, seq: u64, lines: &[&str]) -> Value {
        let duration = (self.opened.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
        json!({"seq": seq, "log": lines, "status": "in_progress", "duration": duration})
    }

    /// Sends a record without lines if nothing was sent for [`KEEP_ALIVE_INTERVAL`]; nothing in a plain log.
    async fn send_keep_alive_if_due(
        &mut self,
        format: LogFormat,
        last_line_number: u64,
    ) -> Result<(), EarlyLogEnd> {
        if self.sent.elapsed() < KEEP_ALIVE_INTERVAL {
            return Ok(());
        }
        if let LogFormat::Records(_) = format {
            let record = self.progress_record(last_line_number, &[]);
            self.buffer_record(format, &record);
        }
        self.sent = Instant::now();
        self.flush().await
    }
}

impl LogSender {
    /// Sends the log of `build` as it grows, and a terminal record once the build has ended. Stops when the reader has
    /// gone.
    pub(super) async fn send(mut self, mut build: FoundBuild) {
        let (mut failures, mut missing) = (0, 0);
        let mut done = 0;
        loop {
            let mut problem = build.unread.history.take();
            if build.record.phase == BuildPhase::Unknown {
                // The store may have the end of the build.
                problem = problem.or(build.unread.store.take());
            }
            if build.record.rollback.is_some() {
                // No daemon has anything of a rollback.
                problem = None;
                if self.send_rollback_lines(&build).await.is_err() {
                    return;
                }
            } else if let Some(mask) = build.mask.clone() {
                for index in 0..build.attempts.len() {
                    let attempt = &build.attempts[index];
                    let number = attempt_number(&attempt.reference);
                    if number <= done {
                        continue;
                    }
                    match self.send_attempt(number, attempt, &mask).await {
                        Ok(()) => done = number,
                        Err(EarlyLogEnd::ReaderGone) => return,
                        Err(EarlyLogEnd::Unreadable(reason)) => {
                            problem = Some(reason);
                            break;
                        }
                    }
                }
            }
            failures = match &problem {
                Some(_) => failures + 1,
                None => 0,
            };
            let is_running = build
                .attempts
                .last()
                .is_some_and(|last| last.state == BuildState::Running);
            if build.record.phase.is_terminal()
                && !is_running
                && (failures == 0 || failures > READ_FAILURES_MAX)
            {
                return self.send_terminal_record(&build, problem).await;
            }
            // Nobody here can say more about a build of another builder whose deployment is unknown.
            if failures == 0 && build.record.phase == BuildPhase::Unknown && !is_running {
                return self.send_terminal_record(&build, problem).await;
            }
            if self.wait_for_more(&mut build).await.is_err() {
                return;
            }
            match self.lookup.find(&self.id).await {
                Ok(found) => {
                    missing = 0;
                    build = found;
                }
                Err(not_found) => {
                    build.unread = not_found.unread;
                    missing += 1;
                    if missing > FAILED_LOOKUPS_MAX {
                        return self.send_record_of_lost_build(&build).await;
                    }
                }
            }
        }
    }

    /// Sends the lines that the record of a rollback has, from the number `next` on.
    async fn send_rollback_lines(&mut self, build: &FoundBuild) -> Result<(), EarlyLogEnd> {
        for (seq, text) in (1..).zip(&build.record.log) {
            let line = LogLine {
                seq,
                step: None,
                text: text.clone(),
            };
            self.send_line_if_new(&line).await?;
        }
        self.sink.flush().await
    }

    /// Waits until there may be more to send; fails once the reader has gone.
    async fn wait_for_more(&mut self, build: &mut FoundBuild) -> Result<(), EarlyLogEnd> {
        self.sink
            .send_keep_alive_if_due(self.format, self.next - 1)
            .await?;
        let changed = async {
            if let Some(own) = &mut build.own
                && own.changed().await.is_ok()
            {
                return;
            }
            std::future::pending().await
        };
        tokio::select! {
            () = self.sink.chunks.closed() => Err(EarlyLogEnd::ReaderGone),
            () = changed => Ok(()),
            () = tokio::time::sleep(POLL_INTERVAL) => Ok(()),
        }
    }

    /// Sends the lines of an attempt from the number `next` on, until the attempt ends.
    async fn send_attempt(
        &mut self,
        attempt_number: u64,
        attempt: &ListedBuild,
        mask: &SecretMask,
    ) -> Result<(), EarlyLogEnd> {
        let connection = match tokio::time::timeout(CONNECT_TIMEOUT, attempt.daemon.connect()).await {
            Ok(connection) => connection.map_err(|error| ErrorChain(&error).to_string()),
            Err(_) => Err("BuildKit does not answer in time".to_owned()),
        };
        let connection = connection.map_err(EarlyLogEnd::Unreadable)?;
        let mut log =
            NumberedLog::open(&connection, &attempt.reference, attempt_number, mask).starting_at(self.next);
        let sent = self.send_lines(&mut log).await;
        self.sink.flush().await?;
        sent
    }

    /// Sends the lines of an attempt as they come, until its last one.
    async fn send_lines(&mut self, log: &mut NumberedLog) -> Result<(), EarlyLogEnd> {
        loop {
            let lines = tokio::select! {
                () = self.sink.chunks.closed() => return Err(EarlyLogEnd::ReaderGone),
                lines = log.next_lines() => lines,
                () = tokio::time::sleep(KEEP_ALIVE_INTERVAL) => {
                    self.sink.send_keep_alive_if_due(self.format, self.next - 1).await?;
                    continue;
                }
            };
            match lines {
                Ok(Some(lines)) => {
                    for line in &lines {
                        self.send_line_if_new(line).await?;
                    }
                    self.sink.flush().await?;
                }
                Ok(None) => return Ok(()),
                Err(status) => return Err(EarlyLogEnd::Unreadable(status.message().to_owned())),
            }
        }
    }

    /// Sends a line unless the reader has it already.
    async fn send_line_if_new(&mut self, line: &LogLine) -> Result<(), EarlyLogEnd> {
        if line.seq < self.next {
            return Ok(());
        }
        self.next = line.seq + 1;
        self.sink.buffer_line(self.format, line);
        if self.sink.buffer.len() >= SEND_THRESHOLD_BYTES {
            self.sink.flush().await?;
        }
        Ok(())
    }

    /// Sends a terminal record that says that the build was lost with its daemon or its builder.
    async fn send_record_of_lost_build(self, build: &FoundBuild) {
        let mut build = FoundBuild {
            record: build.record.clone(),
            attempts: build.attempts.clone(),
            own: None,
            mask: build.mask.clone(),
            unread: UnreadPlaces::default(),
        };
        let error = "neither a builder nor BuildKit knows this build any more; ask about it again later";
        build.record.phase = BuildPhase::Unknown;
        build.record.outcome.insert("error".into(), json!(error));
        self.send_terminal_record(&build, None).await;
    }

    /// Sends the terminal record, with a warning if the log before it is incomplete.
    async fn send_terminal_record(mut self, build: &FoundBuild, problem: Option<String>) {
        let mut record = build.record.to_terminal_record(self.next);
        if let Some(links) = &self.lookup.links {
            record.insert(
                "page".into(),
                json!(links.address_of_build_page(&build.record.id, SystemTime::now())),
            );
        }
        if build.mask.is_none() && !build.attempts.is_empty() {
            add_warning(
                &mut record,
                "the log is not shown: the build had secrets, and this builder can no longer mask their values",
            );
        } else if let Some(problem) = problem {
            add_warning(&mut record, &format!("the log is incomplete: {problem}"));
        } else if build.attempts.is_empty()
            && build.record.started_at.is_some()
            && build.record.rollback.is_none()
        {
            add_warning(
                &mut record,
                "the log is incomplete: BuildKit's history no longer has this build",
            );
        }
        self.sink.buffer_record(self.format, &Value::Object(record));
        // A reader that has gone needs no terminal record.
        let _ = self.sink.flush().await;
    }
}

/// Adds a text to the warnings in a record.
fn add_warning(record: &mut Map<String, Value>, text: &str) {
    if let Value::Array(warnings) = record.entry("warnings").or_insert_with(|| json!([])) {
        warnings.push(json!(text));
    }
}
