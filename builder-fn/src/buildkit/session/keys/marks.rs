//! Some of a context's entries, by number, in a bit for each.

/// Entries that are marked. Takes nothing while there are none, and an eighth of a byte for each entry otherwise.
#[derive(Debug, Default)]
pub(super) struct Marks {
    words: Vec<u64>,
    count: usize,
}

impl Marks {
    /// Marks an entry, where `entries` is how many there are.
    pub(super) fn add(&mut self, at: u32, entries: usize) {
        if self.words.is_empty() {
            self.words = vec![0; entries.div_ceil(64)];
        }
        let (word, bit) = place(at);
        if let Some(word) = self.words.get_mut(word) {
            self.count += usize::from(*word & bit == 0);
            *word |= bit;
        }
    }

    pub(super) fn contains(&self, at: u32) -> bool {
        let (word, bit) = place(at);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    /// How many are marked.
    pub(super) fn len(&self) -> usize {
        self.count
    }
}

fn place(at: u32) -> (usize, u64) {
    ((at / 64) as usize, 1 << (at % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_are_marked_that_have_been_marked() {
        let mut marks = Marks::default();
        assert!(!marks.contains(0));
        let marked = [0, 63, 64, 129];
        marked.iter().chain(&marked).for_each(|at| marks.add(*at, 130));
        assert_eq!(marks.len(), marked.len());
        assert!((0..130).all(|at| marks.contains(at) == marked.contains(&at)));
        assert!(!marks.contains(u32::MAX));
    }
}
