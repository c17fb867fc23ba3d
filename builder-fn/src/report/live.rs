//! A streamed answer: what happens in a build, as it happens, and how it ended.
//!
//! The build runs in a task of its own, so that a reader who is slow does not hold it up, and so that whatever becomes of
//! it, a panic included, is followed by a terminal record: clients take a stream without one for success. The stream owns
//! the task. When the stream is dropped, because the reader went away or takes nothing any more, the task is, and with it
//! the build at the daemon.

use std::time::Duration;

use bytes::Bytes;
use function_host::trace;
use futures_util::stream::{self, Stream};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::record::{Format, Room};
use super::{Feed, Report};

/// Lines that come this close together go into one record.
const GATHER: Duration = Duration::from_millis(5);

/// With this many bytes waiting there is no more gathering.
const ENOUGH: usize = 32 << 10;

/// How long there may be nothing to tell until a record without lines shows that the build goes on, to proxies that
/// count idle time, and that the reader is still there.
const SILENCE: Duration = Duration::from_secs(15);

/// A build and its reader.
struct Live {
    format: Format,
    begun: Instant,
    feed: Feed,
    phase: Phase,
}

enum Phase {
    /// Nothing has been told yet.
    Begun(AbortOnDropHandle<Report>),
    Running(AbortOnDropHandle<Report>),
    /// Its last lines are told.
    Ending(Report),
    Over,
}

/// The records of `build`, which writes to `feed` and gives its terminal record. `panicked` is the one it has when the
/// build panics. `begun` is what durations are counted from.
pub fn live(
    format: Format,
    feed: Feed,
    begun: Instant,
    build: impl Future<Output = Report> + Send + 'static,
    panicked: Report,
) -> impl Stream<Item = Bytes> + Send + 'static {
    let task = tokio::spawn(trace::in_current_span(build.in_current_span()));
    let live = Live {
        format,
        begun,
        feed,
        phase: Phase::Begun(AbortOnDropHandle::new(task)),
    };
    stream::unfold((live, Some(panicked)), |(mut live, mut panicked)| async move {
        let record = live.next(&mut panicked).await?;
        Some((record, (live, panicked)))
    })
}

impl Live {
    async fn next(&mut self, panicked: &mut Option<Report>) -> Option<Bytes> {
        loop {
            match std::mem::replace(&mut self.phase, Phase::Over) {
                // At once, and without lines if there are none: the reader learns that the build was taken.
                Phase::Begun(task) => {
                    self.phase = Phase::Running(task);
                    return Some(self.progress());
                }
                Phase::Running(mut task) => {
                    let ended = tokio::select! {
                        biased;
                        ended = &mut task => ended,
                        () = self.lines() => {
                            self.phase = Phase::Running(task);
                            return Some(self.progress());
                        }
                    };
                    self.phase = match ended {
                        Ok(report) => Phase::Ending(report),
                        // The hook has logged the panic. Or the runtime is being shut down, and nobody reads on.
                        Err(_) => Phase::Ending(Report {
                            duration: self.begun.elapsed().as_secs_f64(),
                            ..panicked.take()?
                        }),
                    };
                }
                Phase::Ending(report) => {
                    if self.feed.has_lines() || self.feed.end() {
                        self.phase = Phase::Ending(report);
                        return Some(self.progress());
                    }
                    return Some(self.format.terminal(report));
                }
                Phase::Over => return None,
            }
        }
    }

    /// Waits for lines, and a moment more for others; or long enough for a sign of life.
    async fn lines(&self) {
        if tokio::time::timeout(SILENCE, self.feed.some()).await.is_ok() && self.feed.held() < ENOUGH {
            tokio::time::sleep(GATHER).await;
        }
    }

    fn progress(&self) -> Bytes {
        let mut room = Room::new();
        let lines = self.feed.take_while(|line| room.fits(line));
        self.format.progress(&lines, self.begun.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use serde_json::{Value, json};
    use tokio::sync::oneshot;

    use super::*;
    use crate::report::{Ending, MAX_RECORD, Sink};

    fn report(status: Ending) -> Report {
        Report {
            log: None,
            image: None,
            digest: None,
            status,
            error: (status == Ending::Failed).then(|| "internal error".into()),
            deployment: None,
            duration: 0.0,
        }
    }

    /// The records of `build` in the format of lines.
    fn told(
        feed: &Feed,
        build: impl Future<Output = Report> + Send + 'static,
    ) -> std::pin::Pin<Box<dyn Stream<Item = Value> + Send>> {
        let records = live(
            Format::Lines,
            feed.clone(),
            Instant::now(),
            build,
            report(Ending::Failed),
        );
        Box::pin(records.map(|record| {
            assert!(record.len() <= MAX_RECORD);
            serde_json::from_slice(&record).expect("JSON")
        }))
    }

    fn log(record: &Value) -> Vec<&str> {
        record["log"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_record_comes_at_once_and_the_others_as_things_happen() {
        let mut feed = Feed::new(1 << 20);
        let (end, ended) = oneshot::channel();
        let mut records = told(&feed, async move { ended.await.expect("an end") });
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
            (log(&record), &record["status"]),
            (vec!["l: 1", "l: 2"], &json!("in_progress"))
        );

        feed.push("l: 3".into());
        end.send(report(Ending::Success)).expect("it waits");
        assert_eq!(log(&records.next().await.expect("a record")), ["l: 3"]);
        let last = records.next().await.expect("a terminal record");
        assert_eq!(last, json!({"status": "success", "duration": 0.0}));
        assert_eq!(records.next().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_ends_with_a_terminal_record() {
        let feed = Feed::new(1 << 20);
        let mut inside = feed.clone();
        let records = told(&feed, async move {
            inside.push("l: before".into());
            panic!("as it happens")
        });

        let records: Vec<_> = records.collect().await;
        let (last, before) = records.split_last().expect("records");
        assert_eq!(last["status"], "failed");
        assert_eq!(last["error"], "internal error");
        assert_eq!(before.iter().flat_map(log).collect::<Vec<_>>(), ["l: before"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_is_dropped_ends_its_build() {
        let (alive, gone) = oneshot::channel::<()>();
        let mut records = told(&Feed::new(1 << 20), async move {
            let _alive = alive;
            std::future::pending().await
        });
        records.next().await;

        drop(records);

        gone.await
            .expect_err("the build was dropped, and its sender with it");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_broken_by_records_without_lines() {
        let mut records = told(&Feed::new(1 << 20), std::future::pending());
        let begun = Instant::now();
        records.next().await;

        let sign = records.next().await.expect("a sign of life");

        assert_eq!(
            sign,
            json!({"log": [], "status": "in_progress", "duration": 15.0})
        );
        assert_eq!(begun.elapsed(), SILENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_who_is_late_is_told_the_newest_lines_how_many_are_missing_and_the_end() {
        let feed = Feed::new(usize::MAX);
        let mut inside = feed.clone();
        let records = told(&feed, async move {
            for number in 0..100_000 {
                inside.push(format!("l: {number}"));
            }
            report(Ending::Success)
        });
        tokio::task::yield_now().await;

        let records: Vec<_> = records.collect().await;
        let (last, before) = records.split_last().expect("records");
        assert_eq!(last["status"], "success");
        let lines: Vec<_> = before.iter().flat_map(log).collect();
        let dropped = 100_000 - (lines.len() - 1);
        assert!(
            lines[0].contains(&format!("… {dropped} lines dropped")),
            "{}",
            lines[0]
        );
        assert_eq!(lines.last(), Some(&"l: 99999"));
    }
}
