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

/// `text` without line breaks, so that one event stays one line, and without what moves a terminal's cursor.
fn one_line(text: &str) -> String {
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

    fn line(format: Format, message: &str, fields: &[(&str, Value)]) -> String {
        let mut line = Line::new(format, SystemTime::UNIX_EPOCH, Level::WARN, "shop::cart");
        line.message(message);
        for (name, value) in fields {
            line.field(name, value);
        }
        String::from_utf8(line.finish()).unwrap()
    }

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    #[test]
    fn a_line_is_one_json_object() {
        let line = line(
            Format::Json,
            "a \"b\"\n",
            &[("n", Value::Plain("1".to_owned())), ("t", text("\u{1}ü"))],
        );
        let start = r#"{"time":"1970-01-01T00:00:00.000000Z","level":"WARN","target":"shop::cart","#;
        let rest = "\"message\":\"a \\\"b\\\"\\n\",\"n\":1,\"t\":\"\\u0001ü\"}\n";
        assert_eq!(line, format!("{start}{rest}"));
    }

    #[test]
    fn a_line_of_text_stays_one_line() {
        let line = line(
            Format::Text,
            "first\nsecond\u{1b}[2J",
            &[("t", text("a\nb")), ("n", Value::Plain("1".to_owned()))],
        );
        let expected =
            "1970-01-01T00:00:00.000000Z  WARN shop::cart: first\\nsecond\\u{1b}[2J t=\"a\\nb\" n=1\n";
        assert_eq!(line, expected);
    }

    #[test]
    fn a_field_does_not_take_the_place_of_the_lines_own() {
        let line = line(Format::Json, "m", &[("level", text("mine"))]);
        let line: Json = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&line["level"], &line["field_level"]),
            (&"WARN".into(), &"mine".into())
        );
    }

    #[test]
    fn what_is_cut_says_so_and_what_comes_first_stays() {
        for format in [Format::Json, Format::Text] {
            for long in [
                "x".repeat(200_000),
                "\u{1}".repeat(200_000),
                "\\".repeat(200_000),
                "€".repeat(200_000),
            ] {
                let line = line(
                    format,
                    "m",
                    &[("id", text("c-1")), ("a", text(&long)), ("b", text(&long))],
                );
                assert!(
                    line.len() <= MAX_LINE && line.len() > MAX_LINE / 8,
                    "{}",
                    line.len()
                );
                assert!(line.contains("c-1") && line.contains("cut"));
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_is_logged_is_one_bounded_line_of_json(
            message in ".{0,40}",
            name in "[a-z.\\PC]{1,10}",
            texts in prop::collection::vec((any::<String>(), 0_usize..3000), 0..6),
        ) {
            let fields: Vec<_> =
                texts.iter().map(|(unit, times)| (name.as_str(), text(&unit.repeat(*times)))).collect();
            let json = line(Format::Json, &message, &fields);
            prop_assert!(json.len() <= MAX_LINE);
            prop_assert_eq!(json.find('\n'), Some(json.len() - 1));
            prop_assert!(serde_json::from_str::<Json>(&json).is_ok(), "{}", json);
            let plain = line(Format::Text, &message, &fields);
            prop_assert!(plain.len() <= MAX_LINE);
            prop_assert_eq!(plain.find('\n'), Some(plain.len() - 1));
        }
    }
}
