//! A part of a build's log that fits on a page, and the facts about its steps.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use function_host::ErrorChain;
use tokio::time::{Instant, timeout_at};

use super::BuildPhase;
use super::lookup::FoundBuild;
use super::numbered_log::{LINE_NUMBERS_PER_ATTEMPT, LineKind, LogLine, NumberedLog};
use super::record::{deciding_attempt, last_attempts_of_parts, log_section};
use crate::buildkit::{AttemptFacts, StepOrExportPartFacts};

/// The most lines on a page.
pub(super) const PAGE_LINES_MAX: u64 = 300;

const LINES_MAX: usize = PAGE_LINES_MAX as usize;

/// The most bytes of lines on a page, without the last line.
const PAGE_BYTES_MAX: usize = 16 << 10;

/// How much longer the answer waits for a part of the log that the address names.
const NAMED_PART_WAIT_FACTOR: u32 = 10;

/// The part of a log that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LogPart {
    /// The beginning of the last attempt's log.
    Start,
    /// The end of the last attempt's log, as far as there is one.
    End,
    /// The lines from this number on.
    From(u64),
}

impl fmt::Display for LogPart {
    /// Writes the value of `from=`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str("1"),
            Self::End => f.write_str("end"),
            Self::From(number) => number.fmt(f),
        }
    }
}

impl LogPart {
    /// Parses the value of `from=`; `None` if it is neither the number of a line nor `end`.
    pub(super) fn parse_line_number_or_end(value: &str) -> Option<Self> {
        match value.parse::<u64>() {
            Ok(number) if number < 1 << 53 => Some(Self::From(number.max(1))),
            Ok(_) => None,
            Err(_) => (value == "end").then_some(Self::End),
        }
    }
}

/// A part of the log of one attempt.
#[derive(Debug, Default)]
pub(super) struct LogExcerpt {
    /// The lines.
    pub(super) lines: Vec<LogLine>,
    /// Whether they are the last lines that there are, and not the first ones.
    pub(super) is_end: bool,
    /// Whether there are lines before them.
    pub(super) has_earlier: bool,
    /// The number of the first line after them. Of a log that has ended, there may be none.
    pub(super) next: u64,
    /// Whether there are lines after them, or there may be some.
    pub(super) has_later: bool,
    /// The facts about the steps, as far as the log was read.
    pub(super) facts: AttemptFacts,
    /// The steps of the facts, with their numbers in the log.
    pub(super) steps: Vec<(Option<u32>, StepOrExportPartFacts)>,
    /// Whether the whole log was read.
    pub(super) is_complete: bool,
    /// The part to ask for if the lines were not all read in time: with `from=`, the answer waits longer for them.
    pub(super) unread: Option<LogPart>,
    /// The reason why the log cannot be shown.
    pub(super) problem: Option<String>,
}

/// The lines that are kept while a log is read.
struct FirstAndLastLines {
    first: u64,
    head: Vec<LogLine>,
    head_bytes: usize,
    /// The number of the first line after the head, once the head is full.
    after_head: Option<u64>,
    skipped: bool,
    tail: VecDeque<LogLine>,
    tail_bytes: usize,
    tail_dropped: bool,
    last: u64,
}

impl LogExcerpt {
    /// Returns the log of a rollback, which its record has.
    fn of_rollback(build: &FoundBuild) -> Self {
        let lines = (1..).zip(&build.record.log).map(|(seq, text)| LogLine {
            seq,
            step: None,
            kind: LineKind::Ordinary,
            text: text.clone(),
        });
        let lines: Vec<_> = lines.collect();
        Self {
            next: lines.last().map_or(1, |last| last.seq + 1),
            is_complete: build.record.phase.is_terminal(),
            lines,
            ..Self::without_lines(None)
        }
    }

    /// Reads a part of the log of `build`: the part `named_part`, for at most ten times `wait`; or else its start if
    /// the build succeeded and its end otherwise, for at most `wait`. What was not read by then is left out.
    pub(super) async fn read_waiting_tenfold_for_named_part(
        build: &FoundBuild,
        named_part: Option<LogPart>,
        wait: Duration,
    ) -> Self {
        let part = named_part.unwrap_or(match build.record.phase {
            BuildPhase::Success => LogPart::Start,
            _ => LogPart::End,
        });
        let attempt = match part {
            LogPart::From(number) => {
                let wanted = (number - 1) / LINE_NUMBERS_PER_ATTEMPT + 1;
                let mut attempts = build.attempts.iter();
                attempts.find(|attempt| log_section(attempt) == wanted)
            }
            LogPart::Start => last_attempts_of_parts(&build.attempts).first().copied(),
            LogPart::End => deciding_attempt(&build.attempts),
        };
        if build.record.rollback.is_some() {
            return Self::of_rollback(build);
        }
        let Some(attempt) = attempt else {
            let has_begun = build.record.started_at.is_some();
            let problem = match build.unread.history {
                Some(_) => "the log could not be read; load the page again in a moment",
                None => "BuildKit's history no longer has the log of this build",
            };
            return Self::without_lines(has_begun.then(|| problem.to_owned()));
        };
        let Some(mask) = &build.mask else {
            return Self::without_lines(Some(
                "the log is not shown: the build had secrets, and this builder can no longer mask their values".to_owned(),
            ));
        };
        let number = log_section(attempt);
        let start = (number - 1) * LINE_NUMBERS_PER_ATTEMPT + 1;
        let first = match part {
            LogPart::From(number) => number,
            LogPart::Start | LogPart::End => start,
        };
        // The facts about the steps after the lines are worth the time `wait` only.
        let facts_deadline = Instant::now() + wait;
        let deadline = match named_part {
            Some(_) => Instant::now() + wait * NAMED_PART_WAIT_FACTOR,
            None => facts_deadline,
        };
        let unread = match part {
            LogPart::End => LogPart::End,
            LogPart::Start | LogPart::From(_) => LogPart::From(first),
        };
        let connection = match timeout_at(deadline, attempt.daemon.connect()).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Self::without_lines(Some(ErrorChain(&error).to_string())),
            Err(_) => {
                return Self {
                    next: first,
                    unread: Some(unread),
                    ..Self::default()
                };
            }
        };
        let mut log = NumberedLog::open(&connection, attempt, number, mask)
            .with_facts(mask)
            .passing_on_after_pauses_even_if_ended();
        let mut kept = FirstAndLastLines::new(first);
        let (mut is_complete, mut problem) = (false, None);
        // A daemon that answers at once is never waited for, so the time is checked here too.
        while Instant::now() < deadline {
            let has_lines = part != LogPart::End && kept.after_head.is_some();
            if has_lines && Instant::now() >= facts_deadline {
                break;
            }
            match timeout_at(deadline, log.next_lines()).await {
                Ok(Ok(Some(lines))) => lines.into_iter().for_each(|line| kept.add(line)),
                Ok(Ok(None)) => {
                    is_complete = true;
                    break;
                }
                Ok(Err(status)) => {
                    problem = Some(status.message().to_owned());
                    break;
                }
                Err(_) => break,
            }
        }
        let (steps, facts) = log.into_numbered_steps_and_facts_if_kept();
        let is_running = !build.record.phase.is_terminal();
        let takes_tail = part == LogPart::End;
        let (lines, has_earlier, after) = kept.into_lines_has_earlier_and_next(takes_tail, start);
        let after = after.or_else(|| {
            let later = build.attempts.iter().map(log_section);
            let later = later.filter(|later| is_complete && *later > number).min()?;
            Some((later - 1) * LINE_NUMBERS_PER_ATTEMPT + 1)
        });
        let next = after.unwrap_or_else(|| lines.last().map_or(first, |line| line.seq + 1));
        // The lines of the last second of a build are there once its log has ended, or has paused for a second.
        let lacks_end = !is_running && after.is_none();
        let is_late = !is_complete && problem.is_none() && (lines.is_empty() || lacks_end);
        Self {
            is_end: takes_tail,
            has_earlier: has_earlier || number > 1,
            next,
            has_later: after.is_some() || !is_complete,
            facts,
            steps,
            is_complete,
            unread: is_late.then_some(unread),
            problem,
            lines,
        }
    }

    fn without_lines(problem: Option<String>) -> Self {
        Self {
            next: 1,
            problem,
            ..Self::default()
        }
    }
}

impl FirstAndLastLines {
    fn new(first: u64) -> Self {
        Self {
            first,
            head: Vec::new(),
            head_bytes: 0,
            after_head: None,
            skipped: false,
            tail: VecDeque::new(),
            tail_bytes: 0,
            tail_dropped: false,
            last: 0,
        }
    }

    /// Adds the next line of the log. The names of cached steps without lines are left out: the page has them as steps.
    fn add(&mut self, line: LogLine) {
        if line.kind == LineKind::NameOfCachedStep {
            return;
        }
        self.last = line.seq;
        if line.seq < self.first {
            self.skipped = true;
            return;
        }
        self.tail_bytes += line.text.len();
        match self.head.len() < LINES_MAX && self.head_bytes < PAGE_BYTES_MAX {
            true => {
                self.head_bytes += line.text.len();
                self.head.push(line.clone());
            }
            false => {
                self.after_head.get_or_insert(line.seq);
            }
        }
        self.tail.push_back(line);
        while self.tail.len() > LINES_MAX || (self.tail_bytes > PAGE_BYTES_MAX && self.tail.len() > 1) {
            if let Some(dropped) = self.tail.pop_front() {
                self.tail_bytes -= dropped.text.len();
                self.tail_dropped = true;
            }
        }
    }

    /// Returns the last lines or the first ones, whether there are lines before them, and the number of the first line
    /// after them. `start` is the number of the attempt's first line.
    fn into_lines_has_earlier_and_next(
        self,
        takes_tail: bool,
        start: u64,
    ) -> (Vec<LogLine>, bool, Option<u64>) {
        match takes_tail {
            true => (self.tail.into(), self.tail_dropped || self.skipped, None),
            false => (self.head, self.skipped || self.first > start, self.after_head),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(first_wanted: u64, line_count: u64, bytes_per_line: usize) -> FirstAndLastLines {
        let mut kept = FirstAndLastLines::new(first_wanted);
        for seq in 1..=line_count {
            kept.add(LogLine {
                seq,
                step: None,
                kind: LineKind::Ordinary,
                text: "x".repeat(bytes_per_line),
            });
        }
        kept
    }

    fn first_and_last_number(lines: &[LogLine]) -> Option<(u64, u64)> {
        Some((lines.first()?.seq, lines.last()?.seq))
    }

    #[test]
    fn a_page_has_the_first_lines_or_the_last_ones_up_to_a_limit_of_lines_and_of_bytes() {
        for (first, lines, bytes, takes_tail, expected) in [
            (1, 10, 10, false, (Some((1, 10)), false, None)),
            (1, 1000, 10, false, (Some((1, 300)), false, Some(301))),
            (301, 1000, 10, false, (Some((301, 600)), true, Some(601))),
            (1, 1000, 10, true, (Some((701, 1000)), true, None)),
            (1, 1000, 8192, false, (Some((1, 2)), false, Some(3))),
            (1, 1000, 8192, true, (Some((999, 1000)), true, None)),
            (1, 10, 20_000, true, (Some((10, 10)), true, None)),
            (50, 10, 10, false, (None, true, None)),
        ] {
            let (lines, has_earlier, after) =
                kept(first, lines, bytes).into_lines_has_earlier_and_next(takes_tail, 1);
            assert_eq!((first_and_last_number(&lines), has_earlier, after), expected);
        }
    }
}
