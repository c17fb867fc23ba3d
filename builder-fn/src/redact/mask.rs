//! The mask of a build's secrets.
//!
//! It masks a value, each of its lines, and its base64: in the standard and the URL-safe alphabet, wrapped as `base64` and
//! `openssl base64` wrap their output, and behind a prefix of any length, as in `user:password`. Values and lines shorter
//! than [`MIN_LEN`] bytes are not masked.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use aho_corasick::AhoCorasick;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde_json::Value;

use super::{MASKED, MIN_LEN};

/// Bytes of the longest string that is searched for as a whole. Longer ones are split, so that a line that has not
/// ended yet needs to be withheld for no more than this many bytes.
const MAX_LEN: usize = 256;

/// Limit on the bytes of all strings searched for. Lines of values come before their base64.
const MAX_TOTAL: usize = 512 << 10;

/// Lengths of the lines that `base64` and `openssl base64` write.
const WRAPS: [usize; 2] = [76, 64];

/// Masks values in texts. The default masks nothing. Clones share the values.
#[derive(Clone, Default)]
pub(crate) struct Mask(Option<Arc<AhoCorasick>>);

impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Mask").finish_non_exhaustive()
    }
}

impl Mask {
    /// Creates a mask for `values`.
    pub(crate) fn new<'a>(values: impl IntoIterator<Item = &'a [u8], IntoIter: Clone>) -> Self {
        let values = values.into_iter();
        let mut strings = Strings::default();
        for value in values.clone() {
            for line in value.split(|byte| *byte == b'\n') {
                strings.add(line.trim_ascii(), MAX_LEN);
            }
        }
        for value in values {
            strings.add_encoded(value.trim_ascii_end());
        }
        if strings.found.is_empty() {
            return Self(None);
        }
        Self(AhoCorasick::new(&strings.found).ok().map(Arc::new))
    }

    /// Returns how many bytes of an unfinished line must be withheld, so that no value is shown in two halves.
    pub(crate) fn lookahead(&self) -> usize {
        self.0.as_ref().map_or(0, |_| MAX_LEN)
    }

    /// Masks the values in `text`.
    pub(crate) fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.bytes(text.as_bytes()) {
            Cow::Borrowed(_) => Cow::Borrowed(text),
            Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
        }
    }

    /// Masks the values in `bytes`, which need not be UTF-8.
    pub(crate) fn bytes<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let found = self.find(bytes);
        if found.is_empty() {
            return Cow::Borrowed(bytes);
        }
        let mut masked = Vec::with_capacity(bytes.len());
        let mut from = 0;
        for range in found {
            masked.extend_from_slice(&bytes[from..range.start]);
            masked.extend_from_slice(MASKED.as_bytes());
            from = range.end;
        }
        masked.extend_from_slice(&bytes[from..]);
        Cow::Owned(masked)
    }

    /// Masks the values in every string of a JSON value. Keys of objects stay.
    pub(crate) fn json(&self, value: &mut Value) {
        match value {
            Value::String(text) => {
                if let Cow::Owned(masked) = self.text(text) {
                    *text = masked;
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.json(item)),
            Value::Object(map) => map.values_mut().for_each(|item| self.json(item)),
            _ => {}
        }
    }

    /// Returns the first position from `end` on at which `bytes` can be cut without cutting a value. At least
    /// [`lookahead`](Self::lookahead) bytes must follow `end`.
    pub(crate) fn cut(&self, bytes: &[u8], end: usize) -> usize {
        let contains_end = |range: &Range<usize>| range.start < end && end < range.end;
        let found = self.find(bytes);
        found
            .into_iter()
            .find(contains_end)
            .map_or(end, |range| range.end)
    }

    /// Returns where `bytes` contains a value, in order. Ranges that overlap or touch are joined.
    fn find(&self, bytes: &[u8]) -> Vec<Range<usize>> {
        let Some(searcher) = &self.0 else {
            return Vec::new();
        };
        let mut ranges: Vec<Range<usize>> = Vec::new();
        // Ordered by their ends: a later one may begin before an earlier one.
        for found in searcher.find_overlapping_iter(bytes) {
            let mut range = found.range();
            while let Some(last) = ranges.pop_if(|last| range.start <= last.end) {
                range.start = range.start.min(last.start);
            }
            ranges.push(range);
        }
        ranges
    }
}

/// The strings that are searched for.
#[derive(Default)]
struct Strings {
    found: BTreeSet<Vec<u8>>,
    size: usize,
}

impl Strings {
    /// Adds `text` in pieces of `length` bytes.
    fn add(&mut self, text: &[u8], length: usize) {
        for piece in text.chunks(length).filter(|piece| piece.len() >= MIN_LEN) {
            if self.size + piece.len() <= MAX_TOTAL && self.found.insert(piece.to_vec()) {
                self.size += piece.len();
            }
        }
    }

    /// Adds the base64 of `value`, behind a prefix of any length.
    fn add_encoded(&mut self, value: &[u8]) {
        for skipped in 0..3 {
            let Some(rest) = value.get(skipped..) else { return };
            // Only whole groups of three bytes are encoded the same whatever comes before and after them.
            let whole = &rest[..rest.len() / 3 * 3];
            if whole.len() < 6 {
                return;
            }
            let encoded = STANDARD.encode(whole);
            self.add(encoded.as_bytes(), MAX_LEN);
            self.add(URL_SAFE.encode(whole).as_bytes(), MAX_LEN);
            if skipped == 0 && encoded.len() > WRAPS[1] {
                WRAPS.iter().for_each(|wrap| self.add(encoded.as_bytes(), *wrap));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(values: &[&str]) -> Mask {
        Mask::new(values.iter().map(|value| value.as_bytes()))
    }

    #[test]
    fn values_their_lines_and_their_base64_are_masked() {
        let mask = mask(&[
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
            assert_eq!(mask.text(text), expected);
        }
        let mut value = serde_json::json!({"reasons": ["it wrote hunter2"], "status": "failed"});
        mask.json(&mut value);
        assert_eq!(
            value,
            serde_json::json!({"reasons": ["it wrote ***"], "status": "failed"})
        );
    }

    #[test]
    fn a_mask_without_values_changes_nothing() {
        assert_eq!(Mask::default().text("a  b"), "a  b");
        assert_eq!(mask(&["", "\n\n", "abc"]).text("abc"), "abc");
    }

    #[test]
    fn no_piece_of_a_long_value_is_shown_wrapped_or_not() {
        let value: String = (0..2000).map(|number| format!("{number} ")).collect();
        let mask = mask(&[&value]);
        assert_eq!(mask.text(value.trim_end()), "***");
        let encoded = STANDARD.encode(value.trim_end());
        for wrap in [encoded.len(), 76, 64] {
            for line in encoded.as_bytes().chunks(wrap) {
                let line = std::str::from_utf8(line).expect("ASCII");
                let masked = mask.text(line);
                assert!(masked.len() < 8, "{wrap}: {masked}");
            }
        }
    }
}
