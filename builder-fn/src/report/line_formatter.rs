//! Formats the events of a build as the lines of its log.
//!
//! `v: TIME NAME` when a step starts and `v: TIME NAME 1.23s` when it ends, `s: TIME ID CURRENT` for progress within a
//! step, `l: TIME TEXT` for its output. Times are RFC 3339 in whole seconds.
//!
//! Every text from outside passes the mask of the build's secrets.

mod text;

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use super::json::escaped_json_bytes;
use super::{LogSink, Warnings};
use crate::buildkit::BuildEvent;
use crate::redact::SecretMask;
use text::{floor_char_boundary, format_rfc3339_in_whole_seconds, output_lines, to_one_cut_line};

/// The most bytes of text in one log line. Longer lines of output are split, and longer names of steps are cut. Clients
/// stop reading at records of 64 KiB, and JSON may need six bytes for one.
pub(crate) const MAX_LINE_BYTES: usize = 8 << 10;

/// The length, in bytes, up to which a line of output is one log line whatever its bytes are: to become UTF-8, a byte
/// may need three, and masked text is not longer than before.
const UNSPLIT_LINE_BYTES: usize = MAX_LINE_BYTES / 3;

/// The most bytes of JSON for the name of a cached step in a record that has the line of the step's end as well.
pub(super) const MAX_CACHED_NAME_BYTES: usize = 4 << 10;

/// Formats the events of a build as log lines, in order, and collects the warnings that are not BuildKit's.
#[derive(Debug, Default)]
pub(crate) struct LineFormatter {
    mask: SecretMask,
    /// The output of steps that has no line end yet, by step and stream.
    unfinished: HashMap<(String, i64), UnfinishedOutput>,
    warnings: Warnings,
}

/// The output of a stream of a step since its last line end, with the time of its last piece.
#[derive(Debug)]
struct UnfinishedOutput {
    at: SystemTime,
    text: Vec<u8>,
}

impl LineFormatter {
    /// Creates a formatter for a build with the secrets of `mask`.
    pub(crate) fn new(mask: SecretMask) -> Self {
        Self {
            mask,
            ..Self::default()
        }
    }

    /// Creates a formatter for a part of the same build, with the same secrets.
    pub(crate) fn new_for_part(&self) -> Self {
        Self::new(self.mask.clone())
    }

    /// Appends the warnings that the formatter of a part has recorded.
    pub(crate) fn append_warnings_of_part(&mut self, part: Self) {
        self.warnings.append(part.warnings);
    }

    /// Formats `event` with masked secrets, and returns the log lines that it completes; keeps output without a line
    /// end for later.
    pub(crate) fn format_event(&mut self, event: BuildEvent) -> Vec<String> {
        match event {
            BuildEvent::StepStarted { name, at, .. } => {
                vec![format!(
                    "v: {} {}",
                    format_rfc3339_in_whole_seconds(at),
                    to_one_cut_line(&self.mask.mask_text(&name))
                )]
            }
            BuildEvent::StepEnded {
                digest,
                name,
                started: Some(started),
                ended,
                ..
            } => self.format_step_end(&digest, &name, started, ended),
            BuildEvent::StepEnded { started: None, .. } => Vec::new(),
            BuildEvent::Progress { id, current, at, .. } => {
                let id = self.mask.mask_text(&id);
                vec![format!(
                    "s: {} {} {current}",
                    format_rfc3339_in_whole_seconds(at),
                    to_one_cut_line(&id)
                )]
            }
            BuildEvent::Output {
                step,
                stream,
                at,
                text,
            } => self.format_output(step, stream, at, &text),
            BuildEvent::Warning { text } => vec![self.format_unrecorded_warning(&text)],
            BuildEvent::Unsure { text } => vec![self.record_warning_and_return_line(&text)],
        }
    }

    /// Formats `event` as [`format_event`](Self::format_event) does, and appends the lines to `log`.
    pub(crate) fn log_event(&mut self, event: BuildEvent, log: &mut dyn LogSink) {
        let is_end_of_cached_step = matches!(event, BuildEvent::StepEnded { cached: true, .. });
        let mut lines = self.format_event(event);
        // The line of the end follows the rest of the step's output.
        let end = lines.pop_if(|_| is_end_of_cached_step);
        lines.into_iter().for_each(|line| log.push(line));
        if let Some(end) = end {
            log.push_end_of_cached_step(end);
        }
    }

    /// Returns the name of a step as it is in log lines, with masked secrets.
    pub(crate) fn format_step_name(&self, name: &str) -> String {
        to_one_cut_line(&self.mask.mask_text(name))
    }

    /// Advances past output without formatting it, and returns the number of lines that
    /// [`format_event`](Self::format_event) would return for it. Costs a small part of the time.
    ///
    /// # Errors
    /// Returns the event unchanged if it is not output, completes more than `max_lines` lines, or may have a line that
    /// is split.
    pub(crate) fn skip_output(&mut self, event: BuildEvent, max_lines: u64) -> Result<u64, BuildEvent> {
        let BuildEvent::Output {
            step,
            stream,
            at,
            text,
        } = event
        else {
            return Err(event);
        };
        let key = (step, stream);
        let pending = self
            .unfinished
            .get(&key)
            .map_or(0, |unfinished| unfinished.text.len());
        let (count, rest) = match count_unsplit_lines_and_completed_bytes(pending, &text) {
            Some((count, completed)) if count <= max_lines => {
                (count, text.get(completed..).unwrap_or_default())
            }
            _ => {
                let (step, stream) = key;
                return Err(BuildEvent::Output {
                    step,
                    stream,
                    at,
                    text,
                });
            }
        };
        let begins_anew = rest.len() < text.len();
        let unfinished = self.unfinished.entry(key.clone());
        let unfinished = unfinished.or_insert_with(|| UnfinishedOutput { at, text: Vec::new() });
        unfinished.at = at;
        if begins_anew {
            unfinished.text.clear();
        }
        unfinished.text.extend_from_slice(rest);
        if unfinished.text.is_empty() {
            self.unfinished.remove(&key);
        }
        Ok(count)
    }

    /// Takes the output that has no line end, once the build is over, and returns it as log lines.
    pub(crate) fn take_unfinished_output(&mut self) -> Vec<String> {
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

    /// Records a warning, and returns its log line.
    pub(crate) fn record_warning_and_return_line(&mut self, text: &str) -> String {
        let masked = to_one_cut_line(&self.mask.mask_text(text)).to_string();
        self.warnings.push(masked);
        self.format_unrecorded_warning(text)
    }

    /// Returns the log line of a warning without recording it, because nothing was lost or left unchecked.
    pub(crate) fn format_unrecorded_warning(&self, text: &str) -> String {
        own_log_line_with_current_time(&format!("warning: {}", self.mask.mask_text(text)))
    }

    /// Returns the warnings recorded with [`record_warning_and_return_line`](Self::record_warning_and_return_line);
    /// BuildKit's are not among them.
    pub(crate) fn into_warnings(self) -> Warnings {
        self.warnings
    }

    /// Returns the log line for the start of a step of Slipway's own.
    pub(crate) fn format_own_step_start(&self, name: &str) -> String {
        format!(
            "v: {} {}",
            format_rfc3339_in_whole_seconds(SystemTime::now()),
            to_one_cut_line(&self.mask.mask_text(name))
        )
    }

    /// Returns the log line for the end of a step of Slipway's own: with the time that the step took, without its
    /// result.
    pub(crate) fn format_own_step_end(&self, name: &str, took: Duration) -> String {
        format!("{} {:.2}s", self.format_own_step_start(name), took.as_secs_f64())
    }

    /// Takes the unfinished output of a step, and returns it as log lines, followed by the line of the step's end.
    fn format_step_end(
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
        let name = self.mask.mask_text(name);
        lines.push(format!(
            "v: {} {} {:.2}s",
            format_rfc3339_in_whole_seconds(ended),
            to_one_cut_line(&name),
            took.as_secs_f64()
        ));
        lines
    }

    /// Appends a piece of output to the unfinished output of its step and stream, and returns the lines that it
    /// completes.
    fn format_output(&mut self, step: String, stream: i64, at: SystemTime, text: &[u8]) -> Vec<String> {
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
        // A long line without an end is passed on in pieces, so that it does not grow in memory. The rest waits.
        while pending.len() >= MAX_LINE_BYTES + self.mask.bytes_to_withhold() {
            let end = self
                .mask
                .next_safe_cut(&pending, floor_char_boundary(&pending, MAX_LINE_BYTES));
            lines.extend(output_lines(&self.mask, at, &pending[..end]));
            pending.drain(..end);
        }
        if !pending.is_empty() {
            self.unfinished
                .insert(key, UnfinishedOutput { at, text: pending });
        }
        lines
    }
}

/// Returns the name of the step whose end a log line says. Returns `None` if the name takes too many bytes to be
/// repeated beside the line.
pub(crate) fn name_of_ended_step(line: &str) -> Option<&str> {
    let (_, rest) = line.strip_prefix("v: ")?.split_once(' ')?;
    let (name, _) = rest.rsplit_once(' ')?;
    (escaped_json_bytes(name) <= MAX_CACHED_NAME_BYTES).then_some(name)
}

/// Counts the lines that `text` completes after `pending_bytes` of an unfinished line, and the bytes up to the end of
/// the last of them. Returns `None` if a line may be split.
fn count_unsplit_lines_and_completed_bytes(pending_bytes: usize, text: &[u8]) -> Option<(u64, usize)> {
    let (mut count, mut completed, mut length) = (0, 0, pending_bytes);
    for piece in text.split_inclusive(|byte| *byte == b'\n') {
        length += piece.len();
        if length > UNSPLIT_LINE_BYTES {
            return None;
        }
        if piece.ends_with(b"\n") {
            count += 1;
            completed += piece.len();
            length = 0;
        }
    }
    // A line end alone gives no line.
    if completed == 1 && pending_bytes == 0 {
        count = 0;
    }
    Some((count, completed))
}

/// Returns a log line of Slipway's own, with the current time.
pub(super) fn own_log_line_with_current_time(text: &str) -> String {
    format!(
        "l: {} {}",
        format_rfc3339_in_whole_seconds(SystemTime::now()),
        to_one_cut_line(text)
    )
}

#[cfg(test)]
mod tests;
