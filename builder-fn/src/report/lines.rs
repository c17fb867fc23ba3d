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

/// Makes lines of events, in order.
#[derive(Debug, Default)]
pub struct Lines {
    mask: Mask,
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
            Event::StepStarted { name, at, .. } => {
                vec![format!("v: {} {}", time(at), one_line(&self.mask.text(&name)))]
            }
            Event::StepEnded {
                digest,
                name,
                started: Some(started),
                ended,
                ..
            } => self.end_of_step(&digest, &name, started, ended),
            Event::StepEnded { started: None, .. } => Vec::new(),
            Event::Progress { id, current, at, .. } => {
                let id = self.mask.text(&id);
                vec![format!("s: {} {} {current}", time(at), one_line(&id))]
            }
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

    /// Returns the end of the step's output, which belongs before the line about its end, and that line.
    fn end_of_step(
        &mut self,
        digest: &str,
        name: &str,
        started: SystemTime,
        ended: SystemTime,
    ) -> Vec<String> {
        let mut lines: Vec<_> = [1, 2]
            .into_iter()
            .filter_map(|stream| self.unfinished.remove(&(digest.to_owned(), stream)))
            .flat_map(|unfinished| output_lines(&self.mask, unfinished.at, &unfinished.text))
            .collect();
        let took = ended.duration_since(started).unwrap_or(Duration::ZERO);
        let name = self.mask.text(name);
        lines.push(format!(
            "v: {} {} {:.2}s",
            time(ended),
            one_line(&name),
            took.as_secs_f64()
        ));
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
