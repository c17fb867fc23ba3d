//! The lines of one build on their way to a reader, who may be slower than they come.
//!
//! Three things are bounded. Lines that wait to be read take little memory, and the oldest are lost when there are more:
//! the reader is told how many. What is passed on as it happens is three quarters of what a log may have. Of what comes
//! after that the end is kept, and passed on once the build is over, because it says how the build went.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Sink;
use super::lines::remark;
use super::log::left_out;
use super::ring::{Ring, cost};

/// Bytes of lines that may wait for the reader.
const WAITING: usize = 256 << 10;

/// Where lines go in and come out. Clones are the same feed.
#[derive(Clone, Debug)]
pub struct Feed {
    state: Arc<Mutex<State>>,
    news: Arc<Notify>,
}

#[derive(Debug)]
struct State {
    waiting: Ring,
    /// Bytes that may still be passed on as they come.
    room: usize,
    full: bool,
    end: Ring,
    limit: usize,
}

impl Feed {
    /// An empty one, of a log of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                waiting: Ring::new(WAITING),
                room: limit - limit / 4,
                full: false,
                end: Ring::new(limit / 4),
                limit,
            })),
            news: Arc::default(),
        }
    }

    /// Waits until there is a line to take.
    pub(super) async fn some(&self) {
        while !self.has_lines() {
            self.news.notified().await;
        }
    }

    /// Whether there is a line to take.
    pub(super) fn has_lines(&self) -> bool {
        !self.lock().waiting.is_empty()
    }

    /// Bytes of lines that wait to be taken.
    pub(super) fn held(&self) -> usize {
        self.lock().waiting.held()
    }

    /// Takes lines for as long as `fits` says that the next one is wanted.
    pub(super) fn take_while(&self, mut fits: impl FnMut(&str) -> bool) -> Vec<String> {
        let mut state = self.lock();
        let mut taken = Vec::new();
        match state.waiting.take_lost() {
            0 => {}
            lost => {
                let line = remark(&format!("… {lost} lines dropped: they were not read in time …"));
                // Nothing is taken yet, so it is wanted.
                fits(&line);
                taken.push(line);
            }
        }
        while state.waiting.front().is_some_and(&mut fits) {
            taken.extend(state.waiting.pop());
        }
        taken
    }

    /// No more lines come: what was kept of the end may be taken now. True where there is any.
    pub(super) fn end(&self) -> bool {
        let mut state = self.lock();
        let limit = state.limit;
        let mut end = std::mem::replace(&mut state.end, Ring::new(0));
        if end.is_empty() {
            return false;
        }
        // All that waited before has been taken.
        state.waiting = Ring::new(usize::MAX);
        match end.take_lost() {
            0 => {}
            lost => state.waiting.push(left_out(lost, limit)),
        }
        while let Some(line) = end.pop() {
            state.waiting.push(line);
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whole between its operations, whatever panicked elsewhere.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for Feed {
    fn push(&mut self, line: String) {
        let mut state = self.lock();
        if !state.full && cost(&line) <= state.room {
            state.room -= cost(&line);
            state.waiting.push(line);
        } else {
            if !state.full {
                state.full = true;
                let limit = state.limit;
                let text =
                    format!("… a log may have {limit} bytes; its end follows when the build is over …");
                state.waiting.push(remark(&text));
            }
            state.end.push(line);
        }
        drop(state);
        self.news.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(feed: &Feed) -> Vec<String> {
        feed.take_while(|_| true)
    }

    #[tokio::test]
    async fn lines_come_out_as_they_went_in() {
        let mut feed = Feed::new(1 << 20);
        let reader = feed.clone();
        let reading = tokio::spawn(async move {
            reader.some().await;
            all(&reader)
        });
        feed.push("one".into());

        assert_eq!(reading.await.expect("no panic"), ["one"]);
        feed.push("two".into());
        feed.push("three".into());
        let mut room = 1;
        let first = feed.take_while(|_| std::mem::replace(&mut room, 0) == 1);
        assert_eq!(
            (first, all(&feed)),
            (vec!["two".to_owned()], vec!["three".to_owned()])
        );
        assert!(!feed.end());
    }

    #[test]
    fn lines_that_are_not_read_are_lost_from_the_oldest_and_counted() {
        let mut feed = Feed::new(usize::MAX);
        for number in 0..1_000_000 {
            feed.push(format!("line {number}"));
        }

        assert!(feed.held() <= WAITING);
        let lines = all(&feed);
        let lost = 1_000_000 - (lines.len() - 1);
        assert!(
            lines[0].starts_with("l: ") && lines[0].contains(&format!("… {lost} lines dropped")),
            "{}",
            lines[0]
        );
        assert_eq!(lines[1], format!("line {lost}"));
        assert_eq!(lines.last().map(String::as_str), Some("line 999999"));
    }

    #[test]
    fn of_a_log_over_the_limit_the_end_comes_when_it_is_over() {
        let mut feed = Feed::new(8 * cost("line 0"));
        for number in 0..10 {
            feed.push(format!("line {number}"));
            feed.push("x".repeat(40));
        }

        let live = all(&feed);
        assert_eq!(live[0], "line 0");
        assert!(
            live.last().is_some_and(|line| line.contains("its end follows")),
            "{live:?}"
        );
        assert!(feed.end());
        let end = all(&feed);
        assert!(
            end[0].contains("lines left out: a log may have 304 bytes"),
            "{end:?}"
        );
        assert_eq!(end.last(), Some(&"x".repeat(40)));
        assert!(!feed.end() && all(&feed).is_empty());
    }
}
