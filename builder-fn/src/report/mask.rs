//! Hides the values of secrets in what a build writes.
//!
//! Hidden are a value, each of its lines, and its base64, also wrapped, and also where other text was encoded before it.
//! What is shorter than [`SHORTEST`] is not looked for: it would hide half of every log.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use aho_corasick::AhoCorasick;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde_json::Value;

/// Bytes of the shortest text that is hidden.
pub const SHORTEST: usize = 4;

/// Longer texts are looked for in pieces of this many bytes, so that little of a line has to be held back for them.
const LONGEST: usize = 256;

/// Bytes of all texts that are looked for. Lines of values come before what they are encoded as.
const ALL: usize = 512 << 10;

/// As `base64` and `openssl base64` wrap what they write.
const WRAPS: [usize; 2] = [76, 64];

const HIDDEN: &[u8] = b"***";

/// What hides. The default hides nothing.
#[derive(Clone, Default)]
pub struct Mask(Option<Arc<AhoCorasick>>);

impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Mask").finish_non_exhaustive()
    }
}

impl Mask {
    /// One for these values.
    pub fn of<'a>(values: impl Iterator<Item = &'a [u8]> + Clone) -> Self {
        let mut texts = Texts::default();
        for value in values.clone() {
            for line in value.split(|byte| *byte == b'\n') {
                texts.add(line.trim_ascii(), LONGEST);
            }
        }
        for value in values {
            texts.add_encoded(value.trim_ascii_end());
        }
        if texts.found.is_empty() {
            return Self(None);
        }
        // Fails for more texts than there can be. Then nothing is shown at all: see `ranges`.
        Self(AhoCorasick::new(&texts.found).ok().map(Arc::new))
    }

    /// How much of a line without end has to be held back, in bytes, so that nothing is told by halves.
    pub(super) fn reach(&self) -> usize {
        self.0.as_ref().map_or(0, |_| LONGEST)
    }

    /// `text` with what is secret hidden.
    pub fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.bytes(text.as_bytes()) {
            Cow::Borrowed(_) => Cow::Borrowed(text),
            Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
        }
    }

    /// The same for what may be no text.
    pub(super) fn bytes<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let ranges = self.ranges(bytes);
        if ranges.is_empty() {
            return Cow::Borrowed(bytes);
        }
        let mut shown = Vec::with_capacity(bytes.len());
        let mut from = 0;
        for range in ranges {
            shown.extend_from_slice(&bytes[from..range.start]);
            shown.extend_from_slice(HIDDEN);
            from = range.end;
        }
        shown.extend_from_slice(&bytes[from..]);
        Cow::Owned(shown)
    }

    /// Hides in every text of a JSON value.
    pub fn json(&self, value: &mut Value) {
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

    /// `end`, or the next place after it that is not within a secret, in bytes of which [`reach`](Self::reach) follow.
    pub(super) fn cut(&self, bytes: &[u8], end: usize) -> usize {
        let around = |range: &Range<usize>| range.start < end && end < range.end;
        let ranges = self.ranges(bytes);
        ranges.into_iter().find(around).map_or(end, |range| range.end)
    }

    /// What is secret, in order. What overlaps or touches is one.
    fn ranges(&self, bytes: &[u8]) -> Vec<Range<usize>> {
        let Some(searcher) = &self.0 else {
            return Vec::new();
        };
        let mut ranges: Vec<Range<usize>> = Vec::new();
        // By where they end: a later one may begin before an earlier one.
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

/// Texts to look for.
#[derive(Default)]
struct Texts {
    found: BTreeSet<Vec<u8>>,
    size: usize,
}

impl Texts {
    fn add(&mut self, text: &[u8], piece: usize) {
        for piece in text.chunks(piece).filter(|piece| piece.len() >= SHORTEST) {
            if self.size + piece.len() <= ALL && self.found.insert(piece.to_vec()) {
                self.size += piece.len();
            }
        }
    }

    fn add_encoded(&mut self, value: &[u8]) {
        for before in 0..3 {
            // Only whole groups of three are encoded the same whatever is around them.
            let Some(rest) = value.get(before..) else { return };
            let whole = &rest[..rest.len() / 3 * 3];
            if whole.len() < 6 {
                return;
            }
            let encoded = STANDARD.encode(whole);
            self.add(encoded.as_bytes(), LONGEST);
            self.add(URL_SAFE.encode(whole).as_bytes(), LONGEST);
            if before == 0 && encoded.len() > WRAPS[1] {
                WRAPS.iter().for_each(|wrap| self.add(encoded.as_bytes(), *wrap));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(values: &[&str]) -> Mask {
        Mask::of(values.iter().map(|value| value.as_bytes()))
    }

    #[test]
    fn values_their_lines_and_their_base64_are_hidden() {
        let mask = mask(&[
            "hunter2\n",
            "first line\nsecond line\n",
            "abc",
            "token",
            "kentucky",
        ]);
        let wrapped = STANDARD.encode("user:hunter2");
        for (text, expected) in [
            ("nothing here", "nothing here"),
            ("password=hunter2;", "password=***;"),
            ("hunter2hunter2", "***"),
            ("a second line, no first line", "a ***, no ***"),
            ("abc is too short", "abc is too short"),
            ("tokentucky", "***"),
            (&STANDARD.encode("hunter2"), "***Mg=="),
            (&wrapped, "dXNlcjpo***"),
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
    fn without_values_nothing_is_hidden() {
        assert_eq!(Mask::default().text("a  b"), "a  b");
        assert_eq!(mask(&["", "\n\n", "abc"]).text("abc"), "abc");
    }

    #[test]
    fn of_a_long_value_no_piece_is_shown_whether_wrapped_or_not() {
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
