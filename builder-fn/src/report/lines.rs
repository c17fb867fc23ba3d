//! Events of a build as lines of its log.
//!
//! `v: TIME NAME` when a step begins and `v: TIME NAME 1.23s` when it ends, `s: TIME ID CURRENT` when part of one moves
//! on, `l: TIME TEXT` for what it writes. Times are RFC 3339 in whole seconds. Of what moves on steadily there is a line
//! when it begins, one a second, and one when it is done.

mod text;

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use super::Mask;
use crate::buildkit::Event;
use text::{floor_char_boundary, one_line, output_lines, time};

/// Bytes of text in one line; longer ones are split. Clients stop reading at 64 KiB, and JSON may write a byte as six.
pub const MAX_LINE: usize = 8 << 10;

/// Steps whose state is remembered; beyond that, a line may be repeated.
const MAX_STEPS: usize = 10_000;

/// Between two lines about the same progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Makes lines of events, in order.
#[derive(Debug, Default)]
pub struct Lines {
    steps: HashMap<String, (Option<SystemTime>, Option<SystemTime>)>,
    progress: HashMap<String, Told>,
    mask: Mask,
    unfinished: HashMap<(String, i64), Unfinished>,
}

/// What was last told of something that moves on.
#[derive(Clone, Copy, Debug)]
struct Told {
    at: SystemTime,
    current: i64,
    done: bool,
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

    /// None yet, of a build whose secrets `mask` hides.
    pub fn masked(mask: Mask) -> Self {
        Self {
            mask,
            ..Self::default()
        }
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
            Event::Progress {
                id,
                current,
                at,
                done,
            } => self.progress(id, Told { at, current, done }),
            Event::Output {
                step,
                stream,
                at,
                text,
            } => self.output(step, stream, at, &text),
            Event::Warning { text } => vec![Self::warning(&self.mask.text(&text))],
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
            .flat_map(|unfinished| output_lines(&self.mask, unfinished.at, &unfinished.text))
            .collect()
    }

    /// A line about something that works, but better were otherwise.
    pub fn warning(text: &str) -> String {
        remark(&format!("warning: {text}"))
    }

    /// A line about a step of ours that begins.
    pub fn begin(name: &str) -> String {
        format!("v: {} {}", time(SystemTime::now()), one_line(name))
    }

    /// A line about a step of ours that has ended.
    pub fn end(name: &str, took: Duration) -> String {
        format!("{} {:.2}s", Self::begin(name), took.as_secs_f64())
    }

    fn progress(&mut self, id: String, now: Told) -> Vec<String> {
        if let Some(told) = self.progress.get(&id) {
            let again = told.done && !now.done;
            let soon = now
                .at
                .duration_since(told.at)
                .is_ok_and(|since| since < PROGRESS_INTERVAL);
            let nothing_new = match (told.done, now.done) {
                (true, true) => true,
                (_, true) => false,
                _ => soon || told.current == now.current,
            };
            if nothing_new && !again {
                return Vec::new();
            }
        }
        let line = format!(
            "s: {} {} {}",
            time(now.at),
            one_line(&self.mask.text(&id)),
            now.current
        );
        if self.progress.len() < MAX_STEPS || self.progress.contains_key(&id) {
            self.progress.insert(id, now);
        }
        vec![line]
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
        let name = one_line(&self.mask.text(name));
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
                .flat_map(|unfinished| output_lines(&self.mask, unfinished.at, &unfinished.text))
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
        let mut lines = Vec::new();
        if let Some(newline) = pending.iter().rposition(|byte| *byte == b'\n') {
            lines = output_lines(&self.mask, at, &pending[..=newline]);
            pending.drain(..=newline);
        }
        // A line without end is told in pieces. What is left over waits for the rest of it.
        while pending.len() >= MAX_LINE + self.mask.reach() {
            let end = self.mask.cut(&pending, floor_char_boundary(&pending, MAX_LINE));
            lines.extend(output_lines(&self.mask, at, &pending[..end]));
            pending.drain(..end);
        }
        if !pending.is_empty() {
            self.unfinished.insert(key, Unfinished { at, text: pending });
        }
        lines
    }
}

/// A line that is none of the build's.
pub(super) fn remark(text: &str) -> String {
    format!("l: {} {}", time(SystemTime::now()), one_line(text))
}

#[cfg(test)]
mod tests;
