//! Serializes JSON in which every line end is escaped, by any reader's definition of one.
//!
//! JSON escapes the control characters of ASCII. Readers that split lines by the rules of Unicode, such as Python's
//! `str.splitlines`, end a line at three more characters, which JSON leaves as they are.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, Serializer};

/// The line ends of Unicode that JSON does not escape: next line, line separator, paragraph separator.
const LINE_ENDS_JSON_LEAVES_UNESCAPED: [char; 3] = ['\u{85}', '\u{2028}', '\u{2029}'];

/// Returns `value` as compact JSON in which every line end is escaped.
pub(crate) fn to_json_with_escaped_line_ends(value: &impl Serialize) -> Vec<u8> {
    let mut json = Vec::new();
    // Texts and numbers, into memory: this cannot fail.
    let _ = value.serialize(&mut Serializer::with_formatter(&mut json, EscapeLineEnds));
    json
}

/// Returns the length in bytes of `text` within a JSON string of [`to_json_with_escaped_line_ends`].
pub(crate) fn escaped_json_bytes(text: &str) -> usize {
    let escaped = |character: char| match character {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\0'..' ' => 6,
        character if LINE_ENDS_JSON_LEAVES_UNESCAPED.contains(&character) => 6,
        character => character.len_utf8(),
    };
    text.chars().map(escaped).sum()
}

/// A formatter for compact JSON that also escapes [`LINE_ENDS_JSON_LEAVES_UNESCAPED`].
struct EscapeLineEnds;

impl Formatter for EscapeLineEnds {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        for piece in fragment.split_inclusive(LINE_ENDS_JSON_LEAVES_UNESCAPED) {
            let (text, end) = match piece.char_indices().next_back() {
                Some((at, last)) if LINE_ENDS_JSON_LEAVES_UNESCAPED.contains(&last) => {
                    (&piece[..at], Some(last))
                }
                _ => (piece, None),
            };
            CompactFormatter.write_string_fragment(writer, text)?;
            if let Some(end) = end {
                write!(writer, "\\u{:04x}", u32::from(end))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn no_character_that_ends_a_line_is_left_unescaped() {
        for (text, expected) in [
            ("a\u{2028}b\u{2029}c\u{85}", r#""a\u2028b\u2029c\u0085""#),
            ("\u{2028}\u{2028}", r#""\u2028\u2028""#),
            ("\n\r\u{b}\u{c}\u{1c}", r#""\n\r\u000b\f\u001c""#),
            ("ü – …", r#""ü – …""#),
        ] {
            assert_eq!(
                String::from_utf8(to_json_with_escaped_line_ends(&text)).expect("UTF-8"),
                expected
            );
        }
        let key = json!({"a\u{2028}": {"b": ["\u{85}"]}});
        assert_eq!(
            to_json_with_escaped_line_ends(&key),
            br#"{"a\u2028":{"b":["\u0085"]}}"#
        );
    }

    proptest! {
        #[test]
        fn a_text_survives_json_and_its_escaped_length_is_right(text in "(.|[\u{85}\u{2028}\u{2029}\u{0}-\u{20}\"\\\\])*") {
            let json = to_json_with_escaped_line_ends(&text);

            prop_assert_eq!(json.len(), escaped_json_bytes(&text) + 2);
            prop_assert_eq!(serde_json::from_slice::<Value>(&json).expect("JSON"), Value::String(text));
            let json = String::from_utf8(json).expect("UTF-8");
            prop_assert!(!json.contains(LINE_ENDS_JSON_LEAVES_UNESCAPED));
        }
    }
}
