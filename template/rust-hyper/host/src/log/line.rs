//! One line of the log, and how long it may be.
//!
//! of-watchdog stops forwarding logs for good at a line of 64 KiB, and others split or drop such lines. So a line of
//! ours ends well before: what does not fit is cut, and the line says so.

use std::time::SystemTime;

use tracing::Level;

use super::Format;
use super::fields::Value;

/// The longest line, with its newline.
pub(crate) const MAX_LINE: usize = 32 * 1024;

/// Room for the mark of a cut line and its end.
const RESERVE: usize = 32;

/// Names that the line itself has.
const OWN: [&str; 4] = ["time", "level", "target", "message"];

pub(crate) struct Line {
    format: Format,
    text: String,
    cut: bool,
}

impl Line {
    pub(crate) fn new(format: Format, now: SystemTime, level: Level, target: &str) -> Self {
        let mut line = Self {
            format,
            text: String::with_capacity(256),
            cut: false,
        };
        let time = humantime::format_rfc3339_micros(now);
        match format {
            Format::Json => {
                line.text
                    .push_str(&format!("{{\"time\":\"{time}\",\"level\":\"{level}\""));
                line.put("target", target, true);
            }
            Format::Text => line.text.push_str(&format!("{time} {level:>5} {target}")),
        }
        line
    }

    pub(crate) fn message(&mut self, text: &str) {
        match self.format {
            Format::Json => self.put("message", text, true),
            Format::Text => {
                self.text.push_str(": ");
                let room = self.room();
                self.push_fitting(text, room, one_line);
            }
        }
    }

    pub(crate) fn field(&mut self, name: &str, value: &Value) {
        let prefixed;
        let name = if OWN.contains(&name) {
            prefixed = format!("field_{name}");
            &prefixed
        } else {
            name
        };
        match value {
            Value::Text(text) => self.put(name, text, true),
            Value::Plain(text) => self.put(name, text, false),
        }
    }

    /// The line with its newline.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        match (self.format, self.cut) {
            (Format::Json, true) => self.text.push_str(",\"cut\":true}"),
            (Format::Json, false) => self.text.push('}'),
            (Format::Text, true) => self.text.push_str(" (cut)"),
            (Format::Text, false) => {}
        }
        self.text.push('\n');
        self.text.into_bytes()
    }

    fn room(&self) -> usize {
        (MAX_LINE - RESERVE).saturating_sub(self.text.len())
    }

    fn put(&mut self, name: &str, value: &str, quoted: bool) {
        let begin = match self.format {
            Format::Json => format!(",{}:", json(name)),
            Format::Text => format!(" {name}="),
        };
        // A number is whole or not there.
        let least = begin.len() + if quoted { 3 } else { value.len() };
        if self.room() < least {
            self.cut = true;
            return;
        }
        self.text.push_str(&begin);
        let room = self.room();
        match (quoted, self.format) {
            (true, Format::Json) => self.push_fitting(value, room, json),
            (true, Format::Text) => self.push_fitting(value, room, |text| format!("{text:?}")),
            (false, _) => self.text.push_str(value),
        }
    }

    /// Adds as much of `value`, once escaped, as `room` has place for.
    fn push_fitting(&mut self, value: &str, room: usize, escape: impl Fn(&str) -> String) {
        let mut kept = &value[..value.floor_char_boundary(room)];
        let mut escaped = escape(kept);
        while escaped.len() > room && !kept.is_empty() {
            // Escapes take up to six bytes for one: the second try fits.
            kept = &kept[..kept.floor_char_boundary(room.saturating_sub(2) / 6)];
            escaped = escape(kept);
        }
        self.cut |= kept.len() < value.len();
        if escaped.len() <= room {
            self.text.push_str(&escaped);
        }
    }
}

/// `text` as a JSON string.
fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// `text` without line breaks: one event stays one line.
fn one_line(text: &str) -> String {
    text.replace('\n', "\\n").replace('\r', "\\r")
}
