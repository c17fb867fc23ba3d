//! The log of a build as numbered records, while it runs and afterwards.
//!
//! Every line has a number, `seq`. Lines of the first attempt are numbered from 1, those of the second from
//! 1,000,000,001, and so on. The order of the lines of an attempt is that of
//! [`OrderedLogWithoutProgress`](crate::buildkit::OrderedLogWithoutProgress), so a number means the same line for every
//! reader. The builder counts the attempts, because BuildKit has no record of those during which it is killed. If
//! neither a builder nor BuildKit knows of an attempt, the numbers begin again, and the log says so.
//!
//! The parts of a split build are logs of their own. That of the second part comes after the one of the first, from the
//! line 1,000,000,000,001 on: nobody could order the lines of two daemons alike for every reader while they come.

use std::time::{Duration, SystemTime};

use function_host::{ErrorChain, Shutdown};
use serde_json::{Map, Value, json};
use tonic::Status;

use super::BuildPhase;
use super::log_copies::LogCopyKey;
use super::log_copy::{CopiedLines, CopyReader};
use super::log_interruption::LogInterruption;
use super::log_sink::{KEEP_ALIVE_INTERVAL, LogRecordSink, ReaderGone};
use super::lookup::{BuildLookup, FoundBuild, UnreadPlaces};
use super::numbered_log::{LINE_NUMBERS_PER_ATTEMPT, LineKind, LogLine, NumberedLog};
use super::record::{follows_unfinished_part, log_section};
use crate::buildkit::{BuildState, Connection, ListedBuild};
use crate::redact::SecretMask;

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

/// A sender of one build's log to a reader.
pub(super) struct LogSender {
    /// The lookup that finds the build again and again.
    pub(super) lookup: BuildLookup,
    /// The ID of the call.
    pub(super) id: String,
    /// The channel to the reader.
    pub(super) sink: LogRecordSink,
    /// The shutdown of the builder.
    pub(super) shutdown: Shutdown,
    /// The number of the last line of the attempts whose logs were read to their ends, whether it was sent or not.
    pub(super) last_line: u64,
}

/// The reason why a log ends early.
enum EarlyLogEnd {
    /// The reader disconnected.
    ReaderGone,
    /// The daemon is lost, or does not know the attempt.
    Unreadable(String),
}

/// The source of the lines of an attempt.
enum LogSource {
    /// The daemon, which sends the log from its beginning.
    Daemon(Box<NumberedLog>),
    /// A copy of the log.
    Copy(CopyReader),
}

/// The part of an attempt's log that a source had.
enum SentLogPart {
    /// The log up to its end.
    Whole,
    /// The log up to where its copy ends.
    Beginning,
}

impl LogSource {
    /// Waits for the next lines, at least those with numbers from `first` on. Dropping the future loses nothing.
    async fn next_lines_and_maybe_some_before(&mut self, first: u64) -> Result<CopiedLines, Status> {
        match self {
            Self::Copy(reader) => reader.next_lines(first).await,
            Self::Daemon(log) => Ok(match log.next_lines().await? {
                Some(lines) => CopiedLines::Lines(lines),
                None => CopiedLines::End,
            }),
        }
    }

    /// Returns the number of the last line that there is so far.
    fn last_line_number_so_far(&self) -> u64 {
        match self {
            Self::Copy(reader) => reader.last_copied_line_number(),
            Self::Daemon(log) => log.last_read_line_number(),
        }
    }
}

/// Connects to the daemon that has the log of an attempt.
async fn connect(attempt: &ListedBuild) -> Result<Connection, EarlyLogEnd> {
    let connection = match tokio::time::timeout(CONNECT_TIMEOUT, attempt.daemon.connect()).await {
        Ok(connection) => connection.map_err(|error| ErrorChain(&error).to_string()),
        Err(_) => Err("BuildKit does not answer in time".to_owned()),
    };
    connection.map_err(EarlyLogEnd::Unreadable)
}

impl From<ReaderGone> for EarlyLogEnd {
    fn from(_: ReaderGone) -> Self {
        Self::ReaderGone
    }
}

impl LogSender {
    /// Sends the log of `build` as it grows, and a terminal record once the build has ended. Stops when the reader has
    /// gone.
    ///
    /// # Errors
    /// Stops without a last record if the builder shuts down and does not run the build.
    pub(super) async fn send_until_end_or_reader_gone(
        mut self,
        mut build: FoundBuild,
    ) -> Result<(), LogInterruption> {
        let (mut failures, mut missing) = (0, 0);
        let first_line = self.sink.next();
        let mut done = 0;
        // The attempts that were read. They are no new ones, whatever the clocks of their daemons say.
        let mut read: Vec<LogCopyKey> = Vec::new();
        let mut begun: Option<(u64, SystemTime)> = None;
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
                    return Ok(());
                }
            } else if let Some(mask) = build.mask.clone() {
                for index in 0..build.attempts.len() {
                    let attempt = &build.attempts[index];
                    let number = log_section(attempt);
                    // Whoever began it again did not know of the attempt that was read before.
                    let key = LogCopyKey::of(attempt);
                    let is_restarted = !read.contains(&key)
                        && begun
                            .zip(attempt.started_at)
                            .is_some_and(|((last_number, last_start), start)| {
                                number <= last_number && start > last_start
                            });
                    if is_restarted {
                        done = number - 1;
                        let first = done * LINE_NUMBERS_PER_ATTEMPT + 1;
                        if self.sink.send_notice_and_restart_numbers(first).await.is_err() {
                            return Ok(());
                        }
                    }
                    if number <= done {
                        continue;
                    }
                    // Another attempt of that part may come.
                    if !build.record.phase.is_terminal() && follows_unfinished_part(attempt, &build.attempts)
                    {
                        break;
                    }
                    begun = attempt.started_at.map(|start| (number, start));
                    read.push(key);
                    match self.send_attempt_until_it_ends(number, attempt, &mask).await {
                        Ok(()) => done = number,
                        Err(EarlyLogEnd::ReaderGone) => return Ok(()),
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
            let mut attempts = build.attempts.iter();
            let is_running = attempts.any(|attempt| attempt.state == BuildState::Running);
            if build.record.phase.is_terminal()
                && !is_running
                && (failures == 0 || failures > READ_FAILURES_MAX)
            {
                // A reader that has the terminal record may continue after it.
                let may_be_known = first_line <= self.last_line + 2;
                if problem.is_none()
                    && !build.attempts.is_empty()
                    && build.mask.is_some()
                    && self.sink.next() == first_line
                    && !may_be_known
                {
                    problem = Some(format!(
                        "it ends before line {first_line}; if that was sent before, its attempt is lost, and the build began \
                         again: read the log from its beginning"
                    ));
                }
                self.send_terminal_record(&build, problem).await;
                return Ok(());
            }
            // Nobody here can say more about a build of another builder whose deployment is unknown.
            if failures == 0 && build.record.phase == BuildPhase::Unknown && !is_running {
                self.send_terminal_record(&build, problem).await;
                return Ok(());
            }
            if build.own.is_none() && self.shutdown.has_begun() {
                return Err(LogInterruption::Shutdown);
            }
            if self.wait_for_change_or_poll_interval(&mut build).await.is_err() {
                return Ok(());
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
                        self.send_record_of_lost_build(&build).await;
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Sends the lines that the record of a rollback has.
    async fn send_rollback_lines(&mut self, build: &FoundBuild) -> Result<(), ReaderGone> {
        for (seq, text) in (1..).zip(&build.record.log) {
            let line = LogLine {
                seq,
                step: None,
                kind: LineKind::Ordinary,
                text: text.clone(),
            };
            self.sink.buffer_line_if_new(&line).await?;
        }
        self.sink.flush().await
    }

    /// Waits until there may be more to send; fails once the reader has gone.
    async fn wait_for_change_or_poll_interval(&mut self, build: &mut FoundBuild) -> Result<(), ReaderGone> {
        self.sink.send_keep_alive_record_if_due().await?;
        let changed = async {
            if let Some(own) = &mut build.own
                && own.changed().await.is_ok()
            {
                return;
            }
            std::future::pending().await
        };
        tokio::select! {
            () = self.sink.closed() => Err(ReaderGone),
            () = changed => Ok(()),
            // A build of this process may be handed over to another builder.
            _ = self.shutdown.wait_until_begun(), if !self.shutdown.has_begun() => Ok(()),
            () = tokio::time::sleep(POLL_INTERVAL) => Ok(()),
        }
    }

    /// Sends the lines of an attempt that the reader does not have, until the attempt ends.
    async fn send_attempt_until_it_ends(
        &mut self,
        number: u64,
        attempt: &ListedBuild,
        mask: &SecretMask,
    ) -> Result<(), EarlyLogEnd> {
        let copies = self.lookup.records.log_copies().cloned();
        let copied = match &copies {
            Some(copies) => match copies.find(&LogCopyKey::of(attempt)) {
                Some(reader) => Some(reader),
                None => Some(copies.begin_or_join_copy(connect(attempt).await?, attempt, number, mask)),
            },
            None => None,
        };
        if let Some(reader) = copied {
            let sent = self.send_lines(&mut LogSource::Copy(reader)).await;
            self.sink.flush().await?;
            match sent? {
                SentLogPart::Whole => return Ok(()),
                // There was no room for the rest.
                SentLogPart::Beginning => {}
            }
        }
        let connection = connect(attempt).await?;
        let log =
            NumberedLog::open(&connection, attempt, number, mask).may_skip_output_before(self.sink.next());
        let sent = self.send_lines(&mut LogSource::Daemon(Box::new(log))).await;
        self.sink.flush().await?;
        sent.map(drop)
    }

    /// Sends the lines of an attempt as they come, until the last one of the source.
    async fn send_lines(&mut self, log: &mut LogSource) -> Result<SentLogPart, EarlyLogEnd> {
        loop {
            let lines = tokio::select! {
                () = self.sink.closed() => return Err(EarlyLogEnd::ReaderGone),
                lines = log.next_lines_and_maybe_some_before(self.sink.next()) => lines,
                () = tokio::time::sleep(KEEP_ALIVE_INTERVAL) => {
                    self.sink.send_keep_alive_record_if_due().await?;
                    continue;
                }
            };
            match lines {
                Ok(CopiedLines::Lines(lines)) => {
                    for line in &lines {
                        self.sink.buffer_line_if_new(line).await?;
                    }
                    self.sink.flush().await?;
                }
                Ok(CopiedLines::End) => {
                    self.last_line = self.last_line.max(log.last_line_number_so_far());
                    return Ok(SentLogPart::Whole);
                }
                Ok(CopiedLines::NotCopied) => return Ok(SentLogPart::Beginning),
                Err(status) => return Err(EarlyLogEnd::Unreadable(status.message().to_owned())),
            }
        }
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
    async fn send_terminal_record(self, build: &FoundBuild, problem: Option<String>) {
        let mut record = build.record.to_terminal_record(self.sink.next());
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
        // A reader that has gone needs no terminal record.
        let _ = self.sink.end(&Value::Object(record)).await;
    }
}

/// Adds a text to the warnings in a record.
fn add_warning(record: &mut Map<String, Value>, text: &str) {
    if let Value::Array(warnings) = record.entry("warnings").or_insert_with(|| json!([])) {
        warnings.push(json!(text));
    }
}
