//! The formatting of one log line, of bounded length.
//!
//! of-watchdog stops forwarding logs forever at a line of 64 KiB, and other programs split or drop such lines. So
//! lines are much shorter: fields that do not fit are truncated, and the line says so (`cut`).

use jiff::Timestamp;
use tracing::Level;

use super::LogFormat;
use super::fields::FieldValue;

/// The length of the longest log line in bytes, including the newline.
pub(crate) const MAX_LINE_BYTES: usize = 32 * 1024;

/// The bytes of a log line that are reserved for the mark of truncation and the end of the line.
const RESERVED_END_BYTES: usize = 32;

/// The names of the fields that every log line has. A field of an event with such a name gets the prefix
/// `field_`.
const OWN_FIELD_NAMES: [&str; 4] = ["time", "level", "target", "message"];

/// A log line that is being written.
pub(crate) struct LogLine {
    format: LogFormat,
    text: String,
    cut: bool,
}

impl LogLine {
    /// Starts a log line with its time (RFC 3339, in microseconds), level and target.
    pub(crate) fn new(format: LogFormat, time: Timestamp, level: Level, target: &str) -> Self {
        let mut line = Self {
            format,
            text: String::with_capacity(256),
            cut: false,
        };
        match format {
            LogFormat::Json => {
                line.text
                    .push_str(&format!("{{\"time\":\"{time:.6}\",\"level\":\"{level}\""));
                line.push_field_or_mark_cut("target", target, true);
            }
            LogFormat::Text => line.text.push_str(&format!("{time:.6} {level:>5} {target}")),
        }
        line
    }

    /// Adds the event's message to the log line.
    pub(crate) fn add_message(&mut self, text: &str) {
        match self.format {
            LogFormat::Json => self.push_field_or_mark_cut("message", text, true),
            LogFormat::Text => {
                self.text.push_str(": ");
                let room = self.remaining_bytes();
                self.push_truncated(text, room, escape_control_characters);
            }
        }
    }

    /// Adds a field of the event or its spans to the log line.
    pub(crate) fn add_field_prefixed_if_name_is_taken(&mut self, name: &str, value: &FieldValue) {
        let prefixed;
        let name = if OWN_FIELD_NAMES.contains(&name) {
            prefixed = format!("field_{name}");
            &prefixed
        } else {
            name
        };
        match value {
            FieldValue::Text(text) => self.push_field_or_mark_cut(name, text, true),
            FieldValue::Literal(text) => self.push_field_or_mark_cut(name, text, false),
        }
    }

    /// Returns the finished log line, including the newline.
    pub(crate) fn into_finished_text(mut self) -> Vec<u8> {
        match (self.format, self.cut) {
            (LogFormat::Json, true) => self.text.push_str(",\"cut\":true}"),
            (LogFormat::Json, false) => self.text.push('}'),
            (LogFormat::Text, true) => self.text.push_str(" (cut)"),
            (LogFormat::Text, false) => {}
        }
        self.text.push('\n');
        self.text.into_bytes()
    }

    /// Returns the number of bytes that may still be added to the log line.
    fn remaining_bytes(&self) -> usize {
        (MAX_LINE_BYTES - RESERVED_END_BYTES).saturating_sub(self.text.len())
    }

    /// Adds a field to the log line, truncated if need be, or only marks the line as truncated if there is no room.
    fn push_field_or_mark_cut(&mut self, name: &str, value: &str, quoted: bool) {
        let begin = match self.format {
            LogFormat::Json => format!(",{}:", json_string(name)),
            LogFormat::Text => format!(" {name}="),
        };
        // A number is never truncated: it is written whole or not at all.
        let least = begin.len() + if quoted { 3 } else { value.len() };
        if self.remaining_bytes() < least {
            self.cut = true;
            return;
        }
        self.text.push_str(&begin);
        let room = self.remaining_bytes();
        match (quoted, self.format) {
            (true, LogFormat::Json) => self.push_truncated(value, room, json_string),
            (true, LogFormat::Text) => self.push_truncated(value, room, |text| format!("{text:?}")),
            (false, _) => self.text.push_str(value),
        }
    }

    /// Adds `value` to the log line, escaped by `escape` and truncated to `room` bytes.
    fn push_truncated(&mut self, value: &str, room: usize, escape: impl Fn(&str) -> String) {
        let mut kept = &value[..value.floor_char_boundary(room)];
        let mut escaped = escape(kept);
        while escaped.len() > room && !kept.is_empty() {
            // An escape takes up to six bytes for one, so the second attempt fits.
            kept = &kept[..kept.floor_char_boundary(room.saturating_sub(2) / 6)];
            escaped = escape(kept);
        }
        self.cut |= kept.len() < value.len();
        if escaped.len() <= room {
            self.text.push_str(&escaped);
        }
    }
}

/// Returns `text` as a JSON string.
fn json_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Escapes the control characters of a text, so that its event stays on one line and cannot control a terminal.
fn escape_control_characters(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => line.extend(character.escape_debug()),
            false => line.push(character),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value as Json;

    use super::*;

    fn format_line(format: LogFormat, message: &str, fields: &[(&str, FieldValue)]) -> String {
        let mut line = LogLine::new(format, Timestamp::UNIX_EPOCH, Level::WARN, "shop::cart");
        line.add_message(message);
        for (name, value) in fields {
            line.add_field_prefixed_if_name_is_taken(name, value);
        }
        String::from_utf8(line.into_finished_text()).unwrap()
    }

    fn text_value(text: &str) -> FieldValue {
        FieldValue::Text(text.to_owned())
    }

    #[test]
    fn a_json_log_line_is_one_object() {
        let line = format_line(
            LogFormat::Json,
            "a \"b\"\n",
            &[
                ("n", FieldValue::Literal("1".to_owned())),
                ("t", text_value("\u{1}ü")),
            ],
        );
        let start = r#"{"time":"1970-01-01T00:00:00.000000Z","level":"WARN","target":"shop::cart","#;
        let rest = "\"message\":\"a \\\"b\\\"\\n\",\"n\":1,\"t\":\"\\u0001ü\"}\n";
        assert_eq!(line, format!("{start}{rest}"));
    }

    #[test]
    fn a_text_line_has_no_control_characters() {
        let line = format_line(
            LogFormat::Text,
            "first\nsecond\u{1b}[2J",
            &[
                ("t", text_value("a\nb")),
                ("n", FieldValue::Literal("1".to_owned())),
            ],
        );
        let expected =
            "1970-01-01T00:00:00.000000Z  WARN shop::cart: first\\nsecond\\u{1b}[2J t=\"a\\nb\" n=1\n";
        assert_eq!(line, expected);
    }

    #[test]
    fn a_field_of_an_event_never_replaces_one_of_the_lines_own_fields() {
        let line = format_line(LogFormat::Json, "m", &[("level", text_value("mine"))]);
        let line: Json = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&line["level"], &line["field_level"]),
            (&"WARN".into(), &"mine".into())
        );
    }

    #[test]
    fn a_truncated_log_line_is_marked_and_keeps_its_first_fields() {
        for format in [LogFormat::Json, LogFormat::Text] {
            for long in [
                "x".repeat(200_000),
                "\u{1}".repeat(200_000),
                "\\".repeat(200_000),
                "€".repeat(200_000),
            ] {
                let line = format_line(
                    format,
                    "m",
                    &[
                        ("id", text_value("c-1")),
                        ("a", text_value(&long)),
                        ("b", text_value(&long)),
                    ],
                );
                assert!(
                    line.len() <= MAX_LINE_BYTES && line.len() > MAX_LINE_BYTES / 8,
                    "{}",
                    line.len()
                );
                assert!(line.contains("c-1") && line.contains("cut"));
            }
        }
    }

    proptest! {
        #[test]
        fn fields_of_any_text_and_length_leave_one_line_of_bounded_length(
            message in ".{0,40}",
            name in "[a-z.\\PC]{1,10}",
            texts in prop::collection::vec((any::<String>(), 0_usize..3000), 0..6),
        ) {
            let fields: Vec<_> =
                texts.iter().map(|(unit, times)| (name.as_str(), text_value(&unit.repeat(*times)))).collect();
            let json = format_line(LogFormat::Json, &message, &fields);
            prop_assert!(json.len() <= MAX_LINE_BYTES);
            prop_assert_eq!(json.find('\n'), Some(json.len() - 1));
            prop_assert!(serde_json::from_str::<Json>(&json).is_ok(), "{}", json);
            let plain = format_line(LogFormat::Text, &message, &fields);
            prop_assert!(plain.len() <= MAX_LINE_BYTES);
            prop_assert_eq!(plain.find('\n'), Some(plain.len() - 1));
        }
    }
}
