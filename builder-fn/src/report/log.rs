//! The lines of one build, for an answer that comes at its end.

use super::Sink;
use super::lines::remark;
use super::ring::{Ring, cost};

/// Lines, in order, as many as memory is given to: a quarter of it from the beginning, the rest from the end. What is
/// between them is counted only: the beginning says what was built, the end why it failed.
#[derive(Debug)]
pub struct Log {
    head: Vec<String>,
    head_room: usize,
    in_head: bool,
    tail: Ring,
    limit: usize,
}

impl Log {
    /// An empty one, of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            head: Vec::new(),
            head_room: limit / 4,
            in_head: true,
            tail: Ring::new(limit - limit / 4),
            limit,
        }
    }

    /// All lines, with a remark where some are left out.
    pub fn into_lines(mut self) -> Vec<String> {
        let mut lines = self.head;
        match self.tail.take_lost() {
            0 => {}
            lost => lines.push(left_out(lost, self.limit)),
        }
        lines.extend(std::iter::from_fn(|| self.tail.pop()));
        lines
    }
}

impl Sink for Log {
    fn push(&mut self, line: String) {
        self.in_head &= cost(&line) <= self.head_room;
        if self.in_head {
            self.head_room -= cost(&line);
            self.head.push(line);
        } else {
            self.tail.push(line);
        }
    }
}

/// What stands in the place of lines that there was no room for.
pub(super) fn left_out(lines: usize, limit: usize) -> String {
    remark(&format!(
        "… {lines} lines left out: a log may have {limit} bytes …"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(count: usize) -> Vec<String> {
        let mut log = Log::new(8 * cost("line 00000"));
        for number in 0..count {
            log.push(format!("line {number:05}"));
        }
        log.into_lines()
    }

    #[test]
    fn a_log_of_ordinary_size_is_kept_whole() {
        assert_eq!(kept(8).len(), 8);
        assert_eq!(kept(8)[7], "line 00007");
    }

    #[test]
    fn of_a_large_one_the_beginning_and_the_end_are_kept() {
        let mut lines = kept(1000);
        let remark = lines.remove(2);

        assert!(
            remark.starts_with("l: ")
                && remark.ends_with("Z … 992 lines left out: a log may have 336 bytes …"),
            "{remark}"
        );
        let numbers = [0, 1, 994, 995, 996, 997, 998, 999];
        assert_eq!(lines, numbers.map(|number| format!("line {number:05}")));
    }
}
