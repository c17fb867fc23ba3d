//! A queue of log lines with a limit on its memory: the newest lines evict the oldest.

use std::collections::VecDeque;

use serde::{Serialize, Serializer};

/// The bytes of memory that a line takes besides its text, so that empty lines are limited as well.
const LINE_OVERHEAD_BYTES: usize = 32;

/// A log line, and whether it is that of the end of a step whose result came from the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FlaggedLine {
    pub(super) text: String,
    pub(super) ends_cached_step: bool,
}

impl From<String> for FlaggedLine {
    fn from(text: String) -> Self {
        Self {
            text,
            ends_cached_step: false,
        }
    }
}

impl Serialize for FlaggedLine {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

/// Returns the memory that a log line counts for, in bytes.
pub(super) fn line_cost_bytes(line: &str) -> usize {
    line.len() + LINE_OVERHEAD_BYTES
}

/// A queue of the newest log lines, and the number of lines evicted before them.
#[derive(Debug)]
pub(super) struct LineRing {
    lines: VecDeque<FlaggedLine>,
    held: usize,
    capacity: usize,
    evicted: usize,
}

impl LineRing {
    /// Creates an empty queue with a limit of `capacity` bytes.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            lines: VecDeque::new(),
            held: 0,
            capacity,
            evicted: 0,
        }
    }

    /// Appends a line, and evicts and counts the oldest ones until the limit holds.
    pub(super) fn push(&mut self, line: impl Into<FlaggedLine>) {
        let line = line.into();
        self.held += line_cost_bytes(&line.text);
        self.lines.push_back(line);
        while self.held > self.capacity && self.pop().is_some() {
            self.evicted += 1;
        }
    }

    /// Returns the oldest line in the queue.
    pub(super) fn front(&self) -> Option<&FlaggedLine> {
        self.lines.front()
    }

    /// Removes the oldest line from the queue and returns it.
    pub(super) fn pop(&mut self) -> Option<FlaggedLine> {
        let line = self.lines.pop_front()?;
        self.held -= line_cost_bytes(&line.text);
        Some(line)
    }

    /// Resets the number of evicted lines, and returns how many there were since the last call.
    pub(super) fn take_evicted_count(&mut self) -> usize {
        std::mem::take(&mut self.evicted)
    }

    /// Returns whether the queue has neither a line nor an eviction to report.
    pub(super) fn has_nothing_to_report(&self) -> bool {
        self.lines.is_empty() && self.evicted == 0
    }

    /// Returns the memory cost of all lines in the queue, in bytes.
    pub(super) fn held_bytes(&self) -> usize {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_lines_are_evicted_and_counted() {
        let mut ring = LineRing::new(3 * line_cost_bytes("1"));
        for number in 0..10 {
            ring.push(number.to_string());
        }

        assert_eq!(ring.take_evicted_count(), 7);
        let rest: Vec<_> = std::iter::from_fn(|| ring.pop()).map(|line| line.text).collect();
        assert_eq!(rest, ["7", "8", "9"]);
        assert!(ring.has_nothing_to_report() && ring.held_bytes() == 0);
    }

    #[test]
    fn a_line_above_the_limit_is_evicted_itself() {
        let mut ring = LineRing::new(10);
        ring.push("x".repeat(11));

        assert_eq!((ring.pop(), ring.has_nothing_to_report()), (None, false));
        assert_eq!(ring.take_evicted_count(), 1);
    }
}
