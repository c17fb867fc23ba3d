//! The lines of one build, for an answer that comes at its end.

use std::collections::VecDeque;

/// Bytes that are kept from the beginning and from the end of a log. What is between them is counted only: the
/// beginning says what was built, the end why it failed.
const HEAD: usize = 1 << 20;
const TAIL: usize = 3 << 20;

/// Lines, in order, as many as memory is given to.
#[derive(Debug)]
pub struct Log {
    head: Vec<String>,
    head_room: usize,
    tail: VecDeque<String>,
    tail_room: usize,
    left_out: usize,
}

impl Default for Log {
    fn default() -> Self {
        Self::with_room(HEAD, TAIL)
    }
}

impl Log {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    fn with_room(head_room: usize, tail_room: usize) -> Self {
        Self {
            head: Vec::new(),
            head_room,
            tail: VecDeque::new(),
            tail_room,
            left_out: 0,
        }
    }

    /// Appends.
    pub fn push(&mut self, line: String) {
        if self.tail.is_empty() && self.left_out == 0 && line.len() <= self.head_room {
            self.head_room -= line.len();
            self.head.push(line);
            return;
        }
        while line.len() > self.tail_room {
            let Some(oldest) = self.tail.pop_front() else {
                self.left_out += 1;
                return;
            };
            self.tail_room += oldest.len();
            self.left_out += 1;
        }
        self.tail_room -= line.len();
        self.tail.push_back(line);
    }

    /// All lines, with a remark where some are left out.
    pub fn into_lines(self) -> Vec<String> {
        let remark = (self.left_out > 0).then(|| format!("l: … {} lines left out …", self.left_out));
        self.head.into_iter().chain(remark).chain(self.tail).collect()
    }
}

impl Extend<String> for Log {
    fn extend<T: IntoIterator<Item = String>>(&mut self, lines: T) {
        for line in lines {
            self.push(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(count: usize) -> Vec<String> {
        let mut log = Log::with_room(20, 30);
        log.extend((0..count).map(|number| format!("line {number:05}")));
        log.into_lines()
    }

    #[test]
    fn a_log_of_ordinary_size_is_kept_whole() {
        assert_eq!(kept(5).len(), 5);
        assert_eq!(kept(5)[4], "line 00004");
    }

    #[test]
    fn of_a_large_one_the_beginning_and_the_end_are_kept() {
        assert_eq!(
            kept(1000),
            [
                "line 00000",
                "line 00001",
                "l: … 995 lines left out …",
                "line 00997",
                "line 00998",
                "line 00999"
            ]
        );
    }
}
