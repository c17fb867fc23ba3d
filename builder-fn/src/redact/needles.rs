//! A set of byte strings that are searched for at the same time.
//!
//! Not an automaton: one takes about 50 bytes of memory for each byte searched for, and the base64 forms of a secret of
//! 500 KiB alone are 6 MB. A sorted list with a small filter before it takes little more than the strings themselves,
//! and building it cannot fail. Text that contains nothing to be masked costs one filter lookup per byte.

use std::collections::BTreeSet;
use std::ops::Range;

use super::MIN_MASKED_BYTES;

/// The length, in bytes, of the longest string that is searched for as a whole. Longer ones are split, so that
/// no more than this many bytes of a line that has not ended yet need to be withheld.
pub(super) const MAX_NEEDLE_BYTES: usize = 256;

/// The number of bits of the Bloom filter per string: at most about one text in 16 that begins with no string passes.
const FILTER_BITS_PER_STRING: usize = 16;

/// A sorted set of strings that are searched for at the same time.
#[derive(Default)]
pub(super) struct SearchedStrings {
    sorted: Vec<NeedleWithLongestPrefix>,
    filter: PrefixFilter,
}

/// A string that is searched for.
struct NeedleWithLongestPrefix {
    bytes: Vec<u8>,
    /// The index of the longest other string that this one begins with.
    prefix: Option<usize>,
}

impl SearchedStrings {
    /// Creates the set of `strings`. Those shorter than [`MIN_MASKED_BYTES`] bytes may not be found.
    pub(super) fn new(strings: BTreeSet<Vec<u8>>) -> Self {
        let mut filter = PrefixFilter::new(strings.len());
        let mut sorted: Vec<NeedleWithLongestPrefix> = Vec::with_capacity(strings.len());
        // The strings that the current one may begin with, the longest last.
        let mut open: Vec<usize> = Vec::new();
        for bytes in strings {
            while open
                .pop_if(|last| !bytes.starts_with(&sorted[*last].bytes))
                .is_some()
            {}
            let prefix = open.last().copied();
            open.push(sorted.len());
            filter.insert(&bytes);
            sorted.push(NeedleWithLongestPrefix { bytes, prefix });
        }
        Self { sorted, filter }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// Returns the ranges of `text` that contain any of the strings, in order. Ranges that overlap or touch are
    /// joined.
    pub(super) fn find(&self, text: &[u8]) -> Vec<Range<usize>> {
        let mut found: Vec<Range<usize>> = Vec::new();
        if self.is_empty() {
            return found;
        }
        for start in 0..text.len() {
            let Some(length) = self.longest_prefix_length(&text[start..]) else {
                continue;
            };
            let end = start + length;
            match found.last_mut() {
                Some(last) if start <= last.end => last.end = last.end.max(end),
                _ => found.push(start..end),
            }
        }
        found
    }

    /// Returns the length of the longest string of the set that `text` begins with.
    fn longest_prefix_length(&self, text: &[u8]) -> Option<usize> {
        if !self.filter.may_begin(text) {
            return None;
        }
        let text = &text[..text.len().min(MAX_NEEDLE_BYTES)];
        let after = self
            .sorted
            .partition_point(|needle| needle.bytes.as_slice() <= text);
        // Every string that `text` begins with is the closest one before `text`, or that one begins with it.
        let mut candidate = self.sorted.get(after.checked_sub(1)?)?;
        let shared = shared_prefix_length(&candidate.bytes, text);
        while candidate.bytes.len() > shared {
            candidate = self.sorted.get(candidate.prefix?)?;
        }
        Some(candidate.bytes.len())
    }
}

/// Counts the bytes that `a` and `b` have in common at the beginning.
fn shared_prefix_length(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// A Bloom filter of one hash, over the first [`MIN_MASKED_BYTES`] bytes of the strings: rules out that any of them
/// begins at a position.
#[derive(Default)]
struct PrefixFilter {
    bits: Vec<u64>,
}

impl PrefixFilter {
    /// Creates an empty filter with room for this number of strings.
    fn new(string_count: usize) -> Self {
        let bits = (string_count * FILTER_BITS_PER_STRING)
            .next_power_of_two()
            .max(1024);
        Self {
            bits: vec![0; bits / 64],
        }
    }

    fn insert(&mut self, string: &[u8]) {
        if let Some((word, bit)) = self.word_and_bit_of(string) {
            self.bits[word] |= bit;
        }
    }

    /// Returns whether `text` may begin with a string of the set. If not, none of them is its beginning for certain.
    fn may_begin(&self, text: &[u8]) -> bool {
        self.word_and_bit_of(text)
            .is_some_and(|(word, bit)| self.bits[word] & bit != 0)
    }

    /// Returns the filter's word and bit for a string; `None` if the string is too short, or if the filter is
    /// that of an empty set.
    fn word_and_bit_of(&self, string: &[u8]) -> Option<(usize, u64)> {
        let first = string.first_chunk::<MIN_MASKED_BYTES>()?;
        // Multiplicative hashing: the high bits of the product depend on all four bytes.
        let hash = u64::from(u32::from_le_bytes(*first)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let hash = usize::try_from(hash).ok()?;
        let word = (hash / 64).checked_rem(self.bits.len())?;
        Some((word, 1 << (hash % 64)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns the expected result of [`SearchedStrings::find`], by comparing every string at every position.
    fn find_slowly(strings: &BTreeSet<Vec<u8>>, text: &[u8]) -> Vec<Range<usize>> {
        let mut is_found = vec![false; text.len()];
        for start in 0..text.len() {
            for string in strings.iter().filter(|string| text[start..].starts_with(string)) {
                is_found[start..start + string.len()].fill(true);
            }
        }
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for at in (0..text.len()).filter(|at| is_found[*at]) {
            match ranges.last_mut() {
                Some(last) if last.end == at => last.end += 1,
                _ => ranges.push(at..at + 1),
            }
        }
        ranges
    }

    proptest! {
        #[test]
        fn every_string_is_found_at_every_position(
            strings in prop::collection::btree_set("[ab]{4,12}", 0..40),
            text in "[abc]{0,80}",
        ) {
            let strings: BTreeSet<Vec<u8>> = strings.into_iter().map(String::into_bytes).collect();
            let needles = SearchedStrings::new(strings.clone());

            prop_assert_eq!(needles.find(text.as_bytes()), find_slowly(&strings, text.as_bytes()));
        }
    }

    #[test]
    fn an_empty_set_finds_nothing() {
        assert!(SearchedStrings::default().find(b"some text").is_empty());
        assert!(
            SearchedStrings::new(BTreeSet::new())
                .find(b"some text")
                .is_empty()
        );
    }
}
