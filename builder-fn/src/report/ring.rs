//! Lines that wait for a reader, as many as memory is given to: the oldest give way to the newest.

use std::collections::VecDeque;

/// Bytes of memory that a line takes besides its text, so that empty lines are bounded as well.
const OVERHEAD: usize = 32;

/// What a line counts for.
pub(super) fn cost(line: &str) -> usize {
    line.len() + OVERHEAD
}

/// The newest lines.
#[derive(Debug)]
pub(super) struct Ring {
    lines: VecDeque<String>,
    held: usize,
    capacity: usize,
    lost: usize,
}

impl Ring {
    /// Room for `capacity` bytes.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            lines: VecDeque::new(),
            held: 0,
            capacity,
            lost: 0,
        }
    }

    /// Appends. What there is no room for any more is lost, and counted.
    pub(super) fn push(&mut self, line: String) {
        self.held += cost(&line);
        self.lines.push_back(line);
        while self.held > self.capacity && self.pop().is_some() {
            self.lost += 1;
        }
    }

    /// The oldest line.
    pub(super) fn front(&self) -> Option<&str> {
        self.lines.front().map(String::as_str)
    }

    /// Takes the oldest line.
    pub(super) fn pop(&mut self) -> Option<String> {
        let line = self.lines.pop_front()?;
        self.held -= cost(&line);
        Some(line)
    }

    /// How many lines were lost before the oldest, since this was last asked.
    pub(super) fn take_lost(&mut self) -> usize {
        std::mem::take(&mut self.lost)
    }

    /// Whether there is neither a line nor the loss of one to be told.
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.lost == 0
    }

    /// Bytes held.
    pub(super) fn held(&self) -> usize {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_lines_give_way_and_are_counted() {
        let mut ring = Ring::new(3 * cost("1"));
        for number in 0..10 {
            ring.push(number.to_string());
        }

        assert_eq!(ring.take_lost(), 7);
        let rest: Vec<_> = std::iter::from_fn(|| ring.pop()).collect();
        assert_eq!(rest, ["7", "8", "9"]);
        assert!(ring.is_empty() && ring.held() == 0);
    }

    #[test]
    fn a_line_that_is_larger_than_all_the_room_is_lost() {
        let mut ring = Ring::new(10);
        ring.push("x".repeat(11));

        assert_eq!((ring.pop(), ring.is_empty()), (None, false));
        assert_eq!(ring.take_lost(), 1);
    }
}
