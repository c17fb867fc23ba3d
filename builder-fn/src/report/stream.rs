//! Streams the records of an answer while the build runs.
//!
//! The build runs in a task of its own. A slow reader therefore does not hold it up, and a terminal record follows
//! whatever becomes of it, a panic included: clients take a stream without a terminal record for a success. The stream
//! owns the task. Dropping the stream, because the reader disconnected or stopped reading, cancels the task, and with
//! it the build in BuildKit.

use std::time::Duration;

use bytes::Bytes;
use function_host::trace;
use futures_util::stream::{self, Stream};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::record::{RecordSpace, StreamFormat};
use super::{LogFeed, Report};

/// The time to wait for more log lines to put into the same record.
const GATHER_TIME: Duration = Duration::from_millis(5);

/// The size of the waiting log lines, in bytes, from which a record is sent without waiting for more.
const SEND_AT_ONCE_BYTES: usize = 32 << 10;

/// The longest time without a record. A record without lines then shows proxies with an idle timeout that the
/// build is running, and shows the builder whether the reader is still connected.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// The state of the stream of one build's records.
struct RecordStream {
    format: StreamFormat,
    arrived: Instant,
    feed: LogFeed,
    phase: StreamPhase,
    /// The report for the terminal record if the build panics.
    if_panicked: Option<Report>,
}

/// The phase of a stream of records, which decides the next record.
enum StreamPhase {
    /// The build runs, and no record has been sent.
    Started(AbortOnDropHandle<Report>),
    /// The build runs, and the first record was sent.
    Running(AbortOnDropHandle<Report>),
    /// The build has ended with this report; the rest of its log is sent before the terminal record.
    SendingRestOfLog(Box<Report>),
    Ended,
}

/// Runs `build` and returns the stream of the records of its answer.
///
/// `build` writes its log to `feed` and returns the terminal record; if it panics, that is `if_panicked`. Durations
/// count from `arrived`.
pub(crate) fn stream_records(
    format: StreamFormat,
    feed: LogFeed,
    arrived: Instant,
    build: impl Future<Output = Report> + Send + 'static,
    if_panicked: Report,
) -> impl Stream<Item = Bytes> + Send + 'static {
    let task = tokio::spawn(trace::in_current_span(build.in_current_span()));
    let records = RecordStream {
        format,
        arrived,
        feed,
        phase: StreamPhase::Started(AbortOnDropHandle::new(task)),
        if_panicked: Some(if_panicked),
    };
    stream::unfold(records, |mut records| async move {
        let record = records.next().await?;
        Some((record, records))
    })
}

impl RecordStream {
    /// Waits for the next record; returns `None` after the terminal one.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            match std::mem::replace(&mut self.phase, StreamPhase::Ended) {
                // Immediately, even without lines: the reader learns that the build was accepted.
                StreamPhase::Started(task) => {
                    self.phase = StreamPhase::Running(task);
                    return Some(self.take_progress_record());
                }
                StreamPhase::Running(mut task) => {
                    let ended = tokio::select! {
                        biased;
                        ended = &mut task => ended,
                        () = self.wait_for_lines_or_keep_alive() => {
                            self.phase = StreamPhase::Running(task);
                            return Some(self.take_progress_record());
                        }
                    };
                    self.phase = match ended {
                        Ok(report) => StreamPhase::SendingRestOfLog(Box::new(report)),
                        // The panic hook has logged the panic. If the runtime is shutting down instead, nobody reads
                        // on.
                        Err(_) => StreamPhase::SendingRestOfLog(Box::new(Report {
                            duration: self.arrived.elapsed().as_secs_f64(),
                            ..self.if_panicked.take()?
                        })),
                    };
                }
                StreamPhase::SendingRestOfLog(report) => {
                    if self.feed.has_lines() || self.feed.release_kept_end() {
                        self.phase = StreamPhase::SendingRestOfLog(report);
                        return Some(self.take_progress_record());
                    }
                    return Some(self.build_terminal_record(*report));
                }
                StreamPhase::Ended => return None,
            }
        }
    }

    /// Waits for log lines, and a moment longer for more of them; at most [`KEEP_ALIVE_INTERVAL`].
    async fn wait_for_lines_or_keep_alive(&self) {
        let waiting = self.feed.wait_for_lines();
        if tokio::time::timeout(KEEP_ALIVE_INTERVAL, waiting).await.is_ok()
            && self.feed.waiting_lines_cost_bytes() < SEND_AT_ONCE_BYTES
        {
            tokio::time::sleep(GATHER_TIME).await;
        }
    }

    /// Returns the terminal record, with warnings about log lines that the reader did not get.
    fn build_terminal_record(&self, mut report: Report) -> Bytes {
        self.feed.warn_of_losses(&mut report.warnings);
        self.format.terminal_record(report)
    }

    /// Takes as many waiting log lines as fit into one record, and returns the record.
    fn take_progress_record(&self) -> Bytes {
        let mut space = RecordSpace::new();
        let lines = self.feed.take_while(|line| space.reserve_for_line(line));
        self.format.progress_record(&lines, self.arrived.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use serde_json::{Value, json};
    use tokio::sync::oneshot;

    use super::*;
    use crate::report::record::MAX_RECORD_BYTES;
    use crate::report::{LogSink, SuccessOrFailedStatus, Warnings};

    fn report_with_status(status: SuccessOrFailedStatus) -> Report {
        Report {
            log: None,
            image: None,
            digest: None,
            commit: None,
            status,
            error: (status == SuccessOrFailedStatus::Failed).then(|| "internal error".into()),
            code: None,
            hint: None,
            superseded_by: None,
            deployment: None,
            page: None,
            warnings: Warnings::default(),
            duration: 0.0,
        }
    }

    /// Returns the parsed records of the answer to `build`.
    fn records_of(
        feed: &LogFeed,
        build: impl Future<Output = Report> + Send + 'static,
    ) -> std::pin::Pin<Box<dyn Stream<Item = Value> + Send>> {
        let records = stream_records(
            StreamFormat::Ndjson,
            feed.clone(),
            Instant::now(),
            build,
            report_with_status(SuccessOrFailedStatus::Failed),
        );
        Box::pin(records.map(|record| {
            assert!(record.len() <= MAX_RECORD_BYTES);
            serde_json::from_slice(&record).expect("JSON")
        }))
    }

    fn log_of_record(record: &Value) -> Vec<&str> {
        record["log"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_record_is_sent_immediately_and_others_when_there_are_lines() {
        let mut feed = LogFeed::new(1 << 20);
        let (end, ended) = oneshot::channel();
        let mut records = records_of(&feed, async move { ended.await.expect("the test ends it") });
        let begun = Instant::now();

        assert_eq!(
            records.next().await,
            Some(json!({"log": [], "status": "in_progress", "duration": 0.0}))
        );
        assert_eq!(Instant::now(), begun);

        feed.push("l: 1".into());
        feed.push("l: 2".into());
        let record = records.next().await.expect("a record");
        assert_eq!(
            (log_of_record(&record), &record["status"]),
            (vec!["l: 1", "l: 2"], &json!("in_progress"))
        );

        feed.push("l: 3".into());
        end.send(report_with_status(SuccessOrFailedStatus::Success))
            .expect("the build waits");
        assert_eq!(log_of_record(&records.next().await.expect("a record")), ["l: 3"]);
        let last = records.next().await.expect("a terminal record");
        assert_eq!(last, json!({"status": "success", "duration": 0.0}));
        assert_eq!(records.next().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_followed_by_a_terminal_record() {
        let feed = LogFeed::new(1 << 20);
        let mut inside = feed.clone();
        let records = records_of(&feed, async move {
            inside.push("l: before".into());
            panic!("a test")
        });

        let records: Vec<_> = records.collect().await;
        let (last, before) = records.split_last().expect("records");
        assert_eq!(last["status"], "failed");
        assert_eq!(last["error"], "internal error");
        assert_eq!(
            before.iter().flat_map(log_of_record).collect::<Vec<_>>(),
            ["l: before"]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn dropping_the_stream_cancels_its_build() {
        let (held, dropped) = oneshot::channel::<()>();
        let mut records = records_of(&LogFeed::new(1 << 20), async move {
            let _held = held;
            std::future::pending().await
        });
        records.next().await;

        drop(records);

        tokio::time::timeout(KEEP_ALIVE_INTERVAL, dropped)
            .await
            .expect("the build is dropped with the stream")
            .expect_err("nothing is sent");
    }

    #[tokio::test(start_paused = true)]
    async fn a_record_without_lines_is_sent_after_15_seconds_of_silence() {
        let mut records = records_of(&LogFeed::new(1 << 20), std::future::pending());
        let begun = Instant::now();
        records.next().await;

        let record = records.next().await.expect("a record");

        assert_eq!(
            record,
            json!({"log": [], "status": "in_progress", "duration": 15.0})
        );
        assert_eq!(begun.elapsed(), KEEP_ALIVE_INTERVAL);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_gets_the_newest_lines_the_number_of_the_dropped_and_the_outcome() {
        let feed = LogFeed::new(usize::MAX);
        let mut inside = feed.clone();
        let records = records_of(&feed, async move {
            for number in 0..100_000 {
                inside.push(format!("l: {number}"));
            }
            report_with_status(SuccessOrFailedStatus::Success)
        });
        tokio::task::yield_now().await;

        let records: Vec<_> = records.collect().await;
        let (last, before) = records.split_last().expect("records");
        assert_eq!(last["status"], "success");
        let lines: Vec<_> = before.iter().flat_map(log_of_record).collect();
        let dropped = 100_000 - (lines.len() - 1);
        assert!(
            lines[0].contains(&format!("… {dropped} lines dropped")),
            "{}",
            lines[0]
        );
        assert_eq!(lines.last(), Some(&"l: 99999"));
        let warning = format!("the log is incomplete: {dropped} lines were not read in time");
        assert_eq!(last["warnings"], json!([warning]));
    }
}
