//! The bounded log of a build whose answer is sent at its end.

use super::line_formatter::own_log_line_with_current_time;
use super::ring::{LineRing, line_cost_bytes};
use super::{LogSink, Warnings};

/// A log with a limit on its memory: a quarter for the first lines, the rest for the last ones.
///
/// The beginning says what was built, the end why it failed. Lines between them are counted and dropped.
#[derive(Debug)]
pub(crate) struct BoundedLog {
    head: Vec<String>,
    head_room: usize,
    in_head: bool,
    tail: LineRing,
    limit: usize,
}

impl BoundedLog {
    /// Creates an empty log with a limit of `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            head: Vec::new(),
            head_room: limit / 4,
            in_head: true,
            tail: LineRing::new(limit - limit / 4),
            limit,
        }
    }

    /// Returns the log's lines, with a notice in place of those that were dropped, of which it also adds a warning to
    /// `warnings`.
    pub(crate) fn into_lines(mut self, warnings: &mut Warnings) -> Vec<String> {
        let mut lines = self.head;
        match self.tail.take_evicted_count() {
            0 => {}
            dropped => {
                warnings.push_incomplete_log(&omission_text(dropped, self.limit));
                lines.push(omission_log_line(dropped, self.limit));
            }
        }
        lines.extend(std::iter::from_fn(|| self.tail.pop()).map(|line| line.text));
        lines
    }
}

impl LogSink for BoundedLog {
    fn push(&mut self, line: String) {
        self.in_head &= line_cost_bytes(&line) <= self.head_room;
        if self.in_head {
            self.head_room -= line_cost_bytes(&line);
            self.head.push(line);
        } else {
            self.tail.push(line);
        }
    }
}

/// Returns the notice in place of lines that were dropped from the middle of a log.
pub(super) fn omission_log_line(lines: usize, limit: usize) -> String {
    own_log_line_with_current_time(&format!("… {} …", omission_text(lines, limit)))
}

/// Returns the text that says how many lines were dropped from the middle of a log, and the log's limit in bytes.
pub(super) fn omission_text(lines: usize, limit: usize) -> String {
    format!("{lines} lines left out: a log may have {limit} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_lines_kept_after_pushing(count: usize) -> Vec<String> {
        let mut log = BoundedLog::new(8 * line_cost_bytes("line 00000"));
        for number in 0..count {
            log.push(format!("line {number:05}"));
        }
        log.into_lines(&mut Warnings::default())
    }

    #[test]
    fn a_log_within_the_limit_is_kept_whole() {
        assert_eq!(log_lines_kept_after_pushing(8).len(), 8);
        assert_eq!(log_lines_kept_after_pushing(8)[7], "line 00007");
    }

    #[test]
    fn a_log_above_the_limit_keeps_its_beginning_and_its_end() {
        let mut lines = log_lines_kept_after_pushing(1000);
        let notice = lines.remove(2);

        assert!(
            notice.starts_with("l: ")
                && notice.ends_with("Z … 992 lines left out: a log may have 336 bytes …"),
            "{notice}"
        );
        let numbers = [0, 1, 994, 995, 996, 997, 998, 999];
        assert_eq!(lines, numbers.map(|number| format!("line {number:05}")));
    }
}
