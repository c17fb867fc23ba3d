//! The mask of a build's secrets.
//!
//! It masks a value, each of its lines, and its base64: in the standard and the URL-safe alphabet, wrapped as `base64`
//! and `openssl base64` wrap their output, and behind a prefix of any length, as in `user:password`. The base64 of
//! small values is also masked if it is wrapped otherwise, at [`BASE64_WINDOW_LENGTH`] characters or more. Values and
//! lines shorter than [`MIN_MASKED_BYTES`] bytes are not masked, and neither is the base64 of values shorter than 6
//! bytes. Up to three characters at an end of a value's base64, which depend on what surrounds the value, remain; and
//! of base64 that is wrapped otherwise, lines with fewer characters of the value than [`BASE64_WINDOW_LENGTH`].

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde_json::Value;

use super::needles::{MAX_NEEDLE_BYTES, SearchedStrings};
use super::{MASK_TEXT, MIN_MASKED_BYTES};

/// The lengths of the lines that `base64` and `openssl base64` write, in characters.
const BASE64_LINE_LENGTHS: [usize; 2] = [76, 64];

/// The number of characters of base64 that are masked wherever they are in a small value: one group of six bytes.
const BASE64_WINDOW_LENGTH: usize = 8;

/// The limit on the total size, in bytes, of the values of a mask whose base64 is masked in windows: there are up to
/// eight windows for each byte of a value, and each is a string of its own.
const MAX_BYTES_OF_VALUES_MASKED_IN_WINDOWS: usize = 8 * 1024;

/// Masks secret values in texts. The default masks nothing. Clones share the values.
#[derive(Clone, Default)]
pub(crate) struct SecretMask(Arc<SearchedStrings>);

impl fmt::Debug for SecretMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Mask").finish_non_exhaustive()
    }
}

impl SecretMask {
    /// Creates a mask for all of `values`. It takes about 12 bytes of memory for each of their bytes, and more for the
    /// windows of the smallest of them, up to [`MAX_BYTES_OF_VALUES_MASKED_IN_WINDOWS`].
    pub(crate) fn new<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut strings = BTreeSet::new();
        let mut values: Vec<_> = values.into_iter().collect();
        values.sort_by_key(|value| value.len());
        let mut windowed_bytes = 0;
        for value in values {
            for line in value.split(|byte| *byte == b'\n') {
                add_text_in_pieces(&mut strings, line.trim_ascii(), MAX_NEEDLE_BYTES);
            }
            let value = value.trim_ascii_end();
            windowed_bytes += value.len();
            add_base64(
                &mut strings,
                value,
                windowed_bytes <= MAX_BYTES_OF_VALUES_MASKED_IN_WINDOWS,
            );
        }
        Self(Arc::new(SearchedStrings::new(strings)))
    }

    /// Returns how many bytes of an unfinished line must be withheld, so that no secret value is shown in two
    /// halves.
    pub(crate) fn bytes_to_withhold(&self) -> usize {
        if self.0.is_empty() { 0 } else { MAX_NEEDLE_BYTES }
    }

    /// Masks the secret values in `text`.
    pub(crate) fn mask_text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.mask_bytes(text.as_bytes()) {
            Cow::Borrowed(_) => Cow::Borrowed(text),
            Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
        }
    }

    /// Masks the secret values in `bytes`, which need not be UTF-8.
    pub(crate) fn mask_bytes<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let found = self.0.find(bytes);
        if found.is_empty() {
            return Cow::Borrowed(bytes);
        }
        let mut masked = Vec::with_capacity(bytes.len());
        let mut from = 0;
        for range in found {
            masked.extend_from_slice(&bytes[from..range.start]);
            masked.extend_from_slice(MASK_TEXT.as_bytes());
            from = range.end;
        }
        masked.extend_from_slice(&bytes[from..]);
        Cow::Owned(masked)
    }

    /// Masks the secret values in every string of a JSON value. Keys of objects stay.
    pub(crate) fn mask_json(&self, value: &mut Value) {
        match value {
            Value::String(text) => {
                if let Cow::Owned(masked) = self.mask_text(text) {
                    *text = masked;
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.mask_json(item)),
            Value::Object(map) => map.values_mut().for_each(|item| self.mask_json(item)),
            _ => {}
        }
    }

    /// Returns the first position from `end` on at which `bytes` can be cut without cutting a secret value. At least
    /// [`bytes_to_withhold`](Self::bytes_to_withhold) bytes must follow `end`.
    pub(crate) fn next_safe_cut(&self, bytes: &[u8], end: usize) -> usize {
        let contains_end = |range: &Range<usize>| range.start < end && end < range.end;
        let found = self.0.find(bytes);
        found
            .into_iter()
            .find(contains_end)
            .map_or(end, |range| range.end)
    }
}

/// Adds `text` to the strings to mask, in pieces of `length` bytes. If the last piece would be too short, it
/// overlaps the one before it.
fn add_text_in_pieces(strings: &mut BTreeSet<Vec<u8>>, text: &[u8], length: usize) {
    for (index, piece) in text.chunks(length).enumerate() {
        if piece.len() >= MIN_MASKED_BYTES {
            strings.insert(piece.to_vec());
        } else if index > 0 {
            strings.insert(text[text.len() - length..].to_vec());
        }
    }
}

/// Adds the base64 of `value` to the strings to mask, as it is encoded behind a prefix of any length; if
/// `also_in_windows`, also every part of [`BASE64_WINDOW_LENGTH`] characters of it.
fn add_base64(strings: &mut BTreeSet<Vec<u8>>, value: &[u8], also_in_windows: bool) {
    for skipped in 0..3 {
        let Some(rest) = value.get(skipped..) else { return };
        // Only whole groups of three bytes are encoded the same whatever comes before and after them.
        let whole = &rest[..rest.len() / 3 * 3];
        if whole.len() < 6 {
            return;
        }
        let encoded = STANDARD.encode(whole);
        for encoded in [&encoded, &URL_SAFE.encode(whole)] {
            add_text_in_pieces(strings, encoded.as_bytes(), MAX_NEEDLE_BYTES);
            if also_in_windows {
                let windows = encoded.as_bytes().windows(BASE64_WINDOW_LENGTH);
                strings.extend(windows.map(<[u8]>::to_vec));
            }
        }
        if skipped == 0 && encoded.len() > BASE64_LINE_LENGTHS[1] {
            BASE64_LINE_LENGTHS
                .iter()
                .for_each(|wrap| add_text_in_pieces(strings, encoded.as_bytes(), *wrap));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask_of_values(values: &[&str]) -> SecretMask {
        SecretMask::new(values.iter().map(|value| value.as_bytes()))
    }

    #[test]
    fn values_each_of_their_lines_and_the_base64_of_values_are_masked() {
        let mask = mask_of_values(&[
            "hunter2\n",
            "first line\nsecond line\n",
            "abc",
            "token",
            "kentucky",
        ]);
        let prefixed = STANDARD.encode("user:hunter2");
        for (text, expected) in [
            ("nothing here", "nothing here"),
            ("password=hunter2;", "password=***;"),
            ("hunter2hunter2", "***"),
            ("a second line, no first line", "a ***, no ***"),
            ("abc is too short", "abc is too short"),
            ("tokentucky", "***"),
            (&STANDARD.encode("hunter2"), "***Mg=="),
            (&prefixed, "dXNlcjpo***"),
        ] {
            assert_eq!(mask.mask_text(text), expected);
        }
        let mut value = serde_json::json!({"reasons": ["it wrote hunter2"], "status": "failed"});
        mask.mask_json(&mut value);
        assert_eq!(
            value,
            serde_json::json!({"reasons": ["it wrote ***"], "status": "failed"})
        );
    }

    #[test]
    fn a_mask_without_values_or_with_short_ones_only_changes_nothing() {
        assert_eq!(SecretMask::default().mask_text("a  b"), "a  b");
        assert_eq!(mask_of_values(&["", "\n\n", "abc"]).mask_text("abc"), "abc");
    }

    #[test]
    fn a_long_value_and_its_base64_are_masked_up_to_a_few_characters_wrapped_or_not() {
        let value: String = (0..2000).map(|number| format!("{number} ")).collect();
        let mask = mask_of_values(&[&value]);
        assert_eq!(mask.mask_text(value.trim_end()), "***");
        let encoded = STANDARD.encode(value.trim_end());
        for wrap in [encoded.len(), 76, 64] {
            for line in encoded.as_bytes().chunks(wrap) {
                let line = std::str::from_utf8(line).expect("ASCII");
                let masked = mask.mask_text(line);
                assert!(masked.len() < 8, "{wrap}: {masked}");
            }
        }
    }

    #[test]
    fn the_base64_of_a_small_value_is_masked_in_lines_of_8_characters_or_more() {
        let value = "//host/:_authToken=t0ken\nsecond?>>?~~?>>? line\n";
        let mask = mask_of_values(&[value, &"large ".repeat(100_000)]);
        for before in ["", "a", "user:"] {
            for engine in [STANDARD, URL_SAFE] {
                let encoded = engine.encode(format!("{before}{value}"));
                // The first characters that depend on the value alone, and the last ones.
                let end_of_value = before.len() + value.trim_end().len();
                let (from, to) = (before.len().div_ceil(3) * 4, end_of_value / 3 * 4);
                for wrap in BASE64_WINDOW_LENGTH..80 {
                    for (number, line) in encoded.as_bytes().chunks(wrap).enumerate() {
                        let line = std::str::from_utf8(line).expect("ASCII");
                        let (start, end) = (number * wrap, number * wrap + line.len());
                        let of_value = to.min(end).saturating_sub(from.max(start));
                        let masked = mask.mask_text(line);
                        if of_value >= BASE64_WINDOW_LENGTH {
                            let rest = line.len() - of_value;
                            let shown = masked.len() - MASK_TEXT.len();
                            assert!(masked.contains(MASK_TEXT), "{wrap}: {masked}");
                            assert!(shown <= rest, "{wrap}: {masked}, {rest}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_memory_for_windows_of_base64_is_bounded() {
        let value: String = (1000..)
            .map(|number: u32| format!("{number}-"))
            .take(MAX_BYTES_OF_VALUES_MASKED_IN_WINDOWS / 5 + 1)
            .collect();
        let value = &value[..MAX_BYTES_OF_VALUES_MASKED_IN_WINDOWS];
        let many: Vec<String> = (0..100).map(|number| format!("{number}{value}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let mut strings = BTreeSet::new();
        add_base64(&mut strings, value.as_bytes(), true);
        // No value fits the limit together with another.
        let mask = mask_of_values(&many);
        let line = &STANDARD.encode(many[99])[300..300 + BASE64_WINDOW_LENGTH];
        assert_eq!(mask.mask_text(line), line);
        assert!(
            strings.len() <= 2 * 3 * 4 * MAX_BYTES_OF_VALUES_MASKED_IN_WINDOWS / 3,
            "{}",
            strings.len()
        );
    }

    #[test]
    fn the_last_bytes_of_a_long_value_are_masked_too() {
        for length in MAX_NEEDLE_BYTES - 1..=MAX_NEEDLE_BYTES + MIN_MASKED_BYTES {
            let value: String = (0..)
                .flat_map(|n: u32| format!("{n} ").into_bytes())
                .map(char::from)
                .take(length)
                .collect();
            let value = value.replace(' ', "_");
            assert_eq!(
                mask_of_values(&[&value]).mask_text(&format!("<{value}>")),
                "<***>",
                "{length}"
            );
        }
    }

    /// Uses three values of 960,000 bytes in total, no two lines of which are the same. Checks every 97th line of a
    /// value, and every 97th of the lines of 76 characters in which the base64 of the whole value is wrapped.
    #[test]
    fn each_line_of_a_large_secret_and_of_its_wrapped_base64_is_masked() {
        let values: Vec<String> = (0..3)
            .map(|value| (0..32_000).map(|line| format!("{value}-{line:07}\n")).collect())
            .collect();
        let mask = SecretMask::new(values.iter().map(|value| value.as_bytes()));

        for value in &values {
            for line in value.lines().step_by(97).chain(value.lines().last()) {
                assert_eq!(mask.mask_text(line), "***");
            }
            let encoded = STANDARD.encode(value.trim_end());
            for wrapped in encoded.as_bytes().chunks(76).step_by(97) {
                let line = std::str::from_utf8(wrapped).expect("ASCII");
                assert_eq!(mask.mask_text(line), "***");
            }
        }
    }
}
