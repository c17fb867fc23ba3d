//! The log of a build whose answer is streamed: a bounded queue between the build and the answer's reader.
//!
//! Three things are limited. Lines that wait for the reader take little memory: if there are more, the oldest are
//! dropped, and the reader gets their number. Three quarters of the log's limit are passed on while the build runs. Of
//! the lines after that, the last ones are kept and passed on when the build is over, because they say how it went.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::bounded_log::{omission_log_line, omission_text};
use super::line_formatter::own_log_line_with_current_time;
use super::ring::{FlaggedLine, LineRing, line_cost_bytes};
use super::{LogSink, Warnings};

/// The most bytes of log lines that may wait for the reader.
const MAX_WAITING_BYTES: usize = 256 << 10;

/// A queue of log lines. Clones share the queue: the build pushes into one, the reader takes from another.
#[derive(Clone, Debug)]
pub(crate) struct LogFeed {
    state: Arc<Mutex<FeedState>>,
    /// Notified when lines are pushed into the queue.
    pushed: Arc<Notify>,
}

/// The lines of a [`LogFeed`] that were not taken yet, and the number of those that were lost.
#[derive(Debug)]
struct FeedState {
    /// The lines that wait for the reader.
    waiting: LineRing,
    /// The number of bytes that may still be passed on while the build runs.
    live_room: usize,
    is_live_full: bool,
    /// The last log lines of those that came after `live_room` was used up.
    tail: LineRing,
    limit: usize,
    /// Lines that the reader did not read in time.
    unread: usize,
    /// Lines above the limit that are not in the kept end.
    left_out: usize,
}

impl LogFeed {
    /// Creates an empty queue of a log with a limit of `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            state: Arc::new(Mutex::new(FeedState {
                waiting: LineRing::new(MAX_WAITING_BYTES),
                live_room: limit - limit / 4,
                is_live_full: false,
                tail: LineRing::new(limit / 4),
                limit,
                unread: 0,
                left_out: 0,
            })),
            pushed: Arc::default(),
        }
    }

    /// Waits until the queue has a line to take.
    pub(super) async fn wait_for_lines(&self) {
        while !self.has_lines() {
            self.pushed.notified().await;
        }
    }

    /// Returns whether the queue has a line to take.
    pub(super) fn has_lines(&self) -> bool {
        !self.lock().waiting.has_nothing_to_report()
    }

    /// Returns the memory cost of the lines in the queue, in bytes.
    pub(super) fn waiting_lines_cost_bytes(&self) -> usize {
        self.lock().waiting.held_bytes()
    }

    /// Takes lines from the queue as long as `fits` returns true for the next one. Where lines were dropped because
    /// they were not read in time, the first line says how many.
    pub(super) fn take_while(&self, mut fits: impl FnMut(&FlaggedLine) -> bool) -> Vec<FlaggedLine> {
        let mut state = self.lock();
        let mut taken = Vec::new();
        match state.waiting.take_evicted_count() {
            0 => {}
            dropped => {
                state.unread += dropped;
                let line = own_log_line_with_current_time(&format!(
                    "… {dropped} lines dropped: they were not read in time …"
                ));
                let line = FlaggedLine::from(line);
                // The first line always fits; the call makes it count.
                fits(&line);
                taken.push(line);
            }
        }
        while state.waiting.front().is_some_and(&mut fits) {
            taken.extend(state.waiting.pop());
        }
        taken
    }

    /// Makes the kept end of a log above its limit available, once the build is over and all other lines are
    /// taken. Returns whether there is any.
    pub(super) fn release_kept_end(&self) -> bool {
        let mut state = self.lock();
        let limit = state.limit;
        let mut tail = std::mem::replace(&mut state.tail, LineRing::new(0));
        if tail.has_nothing_to_report() {
            return false;
        }
        state.waiting = LineRing::new(usize::MAX);
        match tail.take_evicted_count() {
            0 => {}
            dropped => {
                state.left_out += dropped;
                state.waiting.push(omission_log_line(dropped, limit));
            }
        }
        while let Some(line) = tail.pop() {
            state.waiting.push(line);
        }
        true
    }

    /// Adds a warning for lines that the reader did not get, once all others are taken.
    pub(super) fn warn_of_losses(&self, warnings: &mut Warnings) {
        let state = self.lock();
        if state.unread > 0 {
            warnings.push_incomplete_log(&format!("{} lines were not read in time", state.unread));
        }
        if state.left_out > 0 {
            warnings.push_incomplete_log(&omission_text(state.left_out, state.limit));
        }
    }

    fn lock(&self) -> MutexGuard<'_, FeedState> {
        // Every operation leaves the state whole, even if a thread panicked while it held the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LogSink for LogFeed {
    fn push(&mut self, line: String) {
        self.push_flagged(line.into());
    }

    fn push_end_of_cached_step(&mut self, line: String) {
        self.push_flagged(FlaggedLine {
            text: line,
            ends_cached_step: true,
        });
    }
}

impl LogFeed {
    fn push_flagged(&mut self, line: FlaggedLine) {
        let mut state = self.lock();
        if !state.is_live_full && line_cost_bytes(&line.text) <= state.live_room {
            state.live_room -= line_cost_bytes(&line.text);
            state.waiting.push(line);
        } else {
            if !state.is_live_full {
                state.is_live_full = true;
                let limit = state.limit;
                state.waiting.push(own_log_line_with_current_time(&format!(
                    "… a log may have {limit} bytes; its end follows when the build is over …"
                )));
            }
            state.tail.push(line);
        }
        drop(state);
        self.pushed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_all(feed: &LogFeed) -> Vec<String> {
        let lines = feed.take_while(|_| true).into_iter();
        lines.map(|line| line.text).collect()
    }

    #[tokio::test]
    async fn lines_are_taken_in_the_order_in_which_they_were_pushed() {
        let mut feed = LogFeed::new(1 << 20);
        let reader = feed.clone();
        let reading = tokio::spawn(async move {
            reader.wait_for_lines().await;
            take_all(&reader)
        });
        feed.push("one".into());

        assert_eq!(reading.await.expect("no panic"), ["one"]);
        feed.push("two".into());
        feed.push("three".into());
        let mut room = 1;
        let first = feed.take_while(|_| std::mem::replace(&mut room, 0) == 1);
        assert_eq!(
            (first, take_all(&feed)),
            (vec!["two".to_owned().into()], vec!["three".to_owned()])
        );
        assert!(!feed.release_kept_end());
    }

    #[test]
    fn the_oldest_lines_that_were_not_read_are_dropped_and_counted() {
        let mut feed = LogFeed::new(usize::MAX);
        for number in 0..1_000_000 {
            feed.push(format!("line {number}"));
        }

        assert!(feed.waiting_lines_cost_bytes() <= MAX_WAITING_BYTES);
        let lines = take_all(&feed);
        let dropped = 1_000_000 - (lines.len() - 1);
        assert!(
            lines[0].starts_with("l: ") && lines[0].contains(&format!("… {dropped} lines dropped")),
            "{}",
            lines[0]
        );
        assert_eq!(lines[1], format!("line {dropped}"));
        assert_eq!(lines.last().map(String::as_str), Some("line 999999"));
    }

    #[test]
    fn the_end_of_a_log_above_the_limit_follows_when_the_build_is_over() {
        let mut feed = LogFeed::new(8 * line_cost_bytes("line 0"));
        for number in 0..10 {
            feed.push(format!("line {number}"));
            feed.push("x".repeat(40));
        }

        let live = take_all(&feed);
        assert_eq!(live[0], "line 0");
        assert!(
            live.last().is_some_and(|line| line.contains("its end follows")),
            "{live:?}"
        );
        assert!(feed.release_kept_end());
        let tail = take_all(&feed);
        assert!(
            tail[0].contains("lines left out: a log may have 304 bytes"),
            "{tail:?}"
        );
        assert_eq!(tail.last(), Some(&"x".repeat(40)));
        assert!(!feed.release_kept_end() && take_all(&feed).is_empty());
    }
}
