//! Events of a build as lines of its log.
//!
//! `v: TIME NAME` when a step begins and `v: TIME NAME 1.23s` when it ends, `s: TIME ID CURRENT` when part of one moves
//! on, `l: TIME TEXT` for what it writes. Times are RFC 3339 in whole seconds.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use crate::buildkit::Event;

/// Bytes of text in one line; longer ones are split. Clients stop reading at 64 KiB, and JSON may write a byte as six.
pub const MAX_LINE: usize = 8 << 10;

/// Steps whose state is remembered; beyond that, a line may be repeated.
const MAX_STEPS: usize = 10_000;

/// Makes lines of events, in order.
#[derive(Debug, Default)]
pub struct Lines {
    steps: HashMap<String, (Option<SystemTime>, Option<SystemTime>)>,
    unfinished: HashMap<(String, i64), Unfinished>,
}

/// Output whose line has no end yet.
#[derive(Debug)]
struct Unfinished {
    at: SystemTime,
    text: Vec<u8>,
}

impl Lines {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The lines that `event` completes.
    pub fn of(&mut self, event: Event) -> Vec<String> {
        match event {
            Event::Step {
                digest,
                name,
                started,
                completed,
                ..
            } => self.step(digest, &name, started, completed),
            Event::Progress { id, current, at } => {
                vec![format!("s: {} {} {current}", time(at), one_line(&id))]
            }
            Event::Output {
                step,
                stream,
                at,
                text,
            } => self.output(step, stream, at, &text),
            Event::Warning { text } => vec![Self::warning(&text)],
        }
    }

    /// What was written without an end of line, once there is no more to come.
    pub fn rest(&mut self) -> Vec<String> {
        let mut rest: Vec<_> = self
            .unfinished
            .drain()
            .map(|(_, unfinished)| unfinished)
            .collect();
        rest.sort_by_key(|unfinished| unfinished.at);
        rest.iter()
            .flat_map(|unfinished| output_lines(unfinished.at, &unfinished.text))
            .collect()
    }

    /// A line about something that works, but better were otherwise.
    pub fn warning(text: &str) -> String {
        format!("l: {} warning: {}", time(SystemTime::now()), one_line(text))
    }

    fn step(
        &mut self,
        digest: String,
        name: &str,
        started: Option<SystemTime>,
        completed: Option<SystemTime>,
    ) -> Vec<String> {
        // The daemon repeats itself, and reports steps that merely wait.
        if self.steps.get(&digest) == Some(&(started, completed)) {
            return Vec::new();
        }
        let name = one_line(name);
        let line = match (started, completed) {
            (None, _) => return Vec::new(),
            (Some(started), None) => format!("v: {} {name}", time(started)),
            (Some(started), Some(completed)) => {
                let took = completed.duration_since(started).unwrap_or(Duration::ZERO);
                format!("v: {} {name} {:.2}s", time(completed), took.as_secs_f64())
            }
        };
        let mut lines: Vec<_> = match completed {
            // What the step wrote last belongs before its end.
            Some(_) => [1, 2]
                .into_iter()
                .filter_map(|stream| self.unfinished.remove(&(digest.clone(), stream)))
                .flat_map(|unfinished| output_lines(unfinished.at, &unfinished.text))
                .collect(),
            None => Vec::new(),
        };
        lines.push(line);
        if self.steps.len() < MAX_STEPS {
            self.steps.insert(digest, (started, completed));
        }
        lines
    }

    fn output(&mut self, step: String, stream: i64, at: SystemTime, text: &[u8]) -> Vec<String> {
        let key = (step, stream);
        let mut pending = self
            .unfinished
            .remove(&key)
            .map(|unfinished| unfinished.text)
            .unwrap_or_default();
        pending.extend_from_slice(text);
        let end = match pending.iter().rposition(|byte| *byte == b'\n') {
            Some(newline) => newline + 1,
            None if pending.len() >= MAX_LINE => pending.len(),
            None => 0,
        };
        let lines = output_lines(at, &pending[..end]);
        pending.drain(..end);
        if !pending.is_empty() {
            self.unfinished.insert(key, Unfinished { at, text: pending });
        }
        lines
    }
}

fn output_lines(at: SystemTime, text: &[u8]) -> Vec<String> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    if text.is_empty() {
        return Vec::new();
    }
    let at = time(at);
    let text = String::from_utf8_lossy(text);
    text.split('\n')
        .flat_map(|line| pieces(line.trim_end_matches('\r')))
        .map(|piece| format!("l: {at} {piece}"))
        .collect()
}

/// `line` in pieces of at most [`MAX_LINE`] bytes, between characters. An empty line is one empty piece.
fn pieces(line: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(line);
    std::iter::from_fn(move || {
        let line = rest?;
        let end = line.floor_char_boundary(MAX_LINE);
        rest = (end < line.len()).then(|| &line[end..]);
        Some(&line[..end])
    })
}

/// Names are one line each, and no longer than others: a `RUN` with a here-document has its whole text as its name.
fn one_line(text: &str) -> String {
    let end = text.floor_char_boundary(MAX_LINE);
    text[..end].replace(['\n', '\r'], " ")
}

fn time(time: SystemTime) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_seconds(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> SystemTime {
        // 2026-01-02T03:04:05Z
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_323_045) + Duration::from_millis(milliseconds)
    }

    fn step(started: Option<u64>, completed: Option<u64>) -> Event {
        Event::Step {
            digest: "sha256:1".into(),
            name: "[2/3] RUN make".into(),
            started: started.map(at),
            completed: completed.map(at),
            error: String::new(),
        }
    }

    fn output(stream: i64, milliseconds: u64, text: &str) -> Event {
        Event::Output {
            step: "sha256:1".into(),
            stream,
            at: at(milliseconds),
            text: text.into(),
        }
    }

    #[test]
    fn a_step_is_told_when_it_begins_and_with_its_time_when_it_ends() {
        let mut lines = Lines::new();

        assert_eq!(lines.of(step(None, None)), [""; 0]);
        assert_eq!(
            lines.of(step(Some(0), None)),
            ["v: 2026-01-02T03:04:05Z [2/3] RUN make"]
        );
        assert_eq!(
            lines.of(step(Some(0), Some(2340))),
            ["v: 2026-01-02T03:04:07Z [2/3] RUN make 2.34s"]
        );
    }

    #[test]
    fn what_the_daemon_repeats_is_told_once() {
        let mut lines = Lines::new();

        assert_eq!(lines.of(step(Some(0), Some(10))).len(), 1);
        assert_eq!(lines.of(step(Some(0), Some(10))), [""; 0]);
        assert_eq!(lines.of(step(Some(20), None)).len(), 1, "it began again");
    }

    #[test]
    fn progress_says_what_and_how_far() {
        let event = Event::Progress {
            id: "exporting layers".into(),
            current: 0,
            at: at(0),
        };

        assert_eq!(
            Lines::new().of(event),
            ["s: 2026-01-02T03:04:05Z exporting layers 0"]
        );
    }

    #[test]
    fn output_comes_in_whole_lines_however_it_was_cut() {
        let mut lines = Lines::new();

        assert_eq!(
            lines.of(output(1, 0, "one\r\ntw")),
            ["l: 2026-01-02T03:04:05Z one"]
        );
        assert_eq!(
            lines.of(output(2, 0, "error\n")),
            ["l: 2026-01-02T03:04:05Z error"],
            "streams do not mix"
        );
        assert_eq!(
            lines.of(output(1, 1000, "o\n\nthree")),
            ["l: 2026-01-02T03:04:06Z two", "l: 2026-01-02T03:04:06Z "]
        );
        assert_eq!(
            lines.of(step(Some(0), Some(1000))),
            [
                "l: 2026-01-02T03:04:06Z three",
                "v: 2026-01-02T03:04:06Z [2/3] RUN make 1.00s"
            ]
        );
        assert_eq!(lines.rest(), [""; 0]);
    }

    #[test]
    fn output_that_is_never_ended_is_told_at_the_end() {
        let mut lines = Lines::new();
        lines.of(output(1, 0, "no newline"));

        assert_eq!(lines.rest(), ["l: 2026-01-02T03:04:05Z no newline"]);
        assert_eq!(lines.rest(), [""; 0]);
    }

    #[test]
    fn long_lines_are_split_between_characters_and_nothing_is_lost() {
        let text = "äöü€".repeat(MAX_LINE);
        let mut told = Lines::new().of(output(1, 0, &format!("{text}\n")));
        let prefix = "l: 2026-01-02T03:04:05Z ";

        assert!(told.iter().all(|line| line.len() <= MAX_LINE + prefix.len()));
        let whole: String = told
            .drain(..)
            .map(|line| line[prefix.len()..].to_owned())
            .collect();
        assert_eq!(whole, text);
    }

    #[test]
    fn a_line_without_end_does_not_grow_in_memory() {
        let mut lines = Lines::new();
        let told: usize = (0..100)
            .map(|_| lines.of(output(1, 0, &"x".repeat(1000))).len())
            .sum();

        assert!(told >= 11, "{told}");
    }

    #[test]
    fn bytes_that_are_no_text_and_names_of_several_lines_do_no_harm() {
        let mut lines = Lines::new();
        let event = Event::Output {
            step: "x".into(),
            stream: 1,
            at: at(0),
            text: b"\xff\xfe\n".to_vec(),
        };
        assert_eq!(lines.of(event), ["l: 2026-01-02T03:04:05Z \u{fffd}\u{fffd}"]);

        let event = Event::Progress {
            id: "a\nb".into(),
            current: 1,
            at: at(0),
        };
        assert_eq!(lines.of(event), ["s: 2026-01-02T03:04:05Z a b 1"]);
    }
}
