//! A set of a context's entries.

/// A set of a context's entries by number, one bit each. An empty set takes no memory.
#[derive(Debug, Default)]
pub(super) struct EntrySet {
    words: Vec<u64>,
    len: usize,
}

impl EntrySet {
    /// Inserts the number `entry`, one of the `entries_in_context`.
    pub(super) fn insert(&mut self, entry: u32, entries_in_context: usize) {
        if self.words.is_empty() {
            self.words = vec![0; entries_in_context.div_ceil(64)];
        }
        let (word, bit) = word_and_bit(entry);
        if let Some(word) = self.words.get_mut(word) {
            self.len += usize::from(*word & bit == 0);
            *word |= bit;
        }
    }

    pub(super) fn contains(&self, entry: u32) -> bool {
        let (word, bit) = word_and_bit(entry);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Returns the number of entries in the set.
    pub(super) fn len(&self) -> usize {
        self.len
    }
}

/// Returns the index of the word that holds the bit of `entry`, and the bit.
fn word_and_bit(entry: u32) -> (usize, u64) {
    ((entry / 64) as usize, 1 << (entry % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_set_contains_exactly_the_entries_that_were_inserted() {
        let mut set = EntrySet::default();
        assert!(!set.contains(0));
        let inserted = [0, 63, 64, 129];
        inserted
            .iter()
            .chain(&inserted)
            .for_each(|entry| set.insert(*entry, 130));
        assert_eq!(set.len(), inserted.len());
        assert!((0..130).all(|entry| set.contains(entry) == inserted.contains(&entry)));
        assert!(!set.contains(u32::MAX));
    }
}
