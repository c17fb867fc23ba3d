//! What a tar may take.

use crate::context::Index;

/// Memory for one entry, in bytes: 56 for what all have alike, and what is left for names and the like, of which most take
/// less than 20. So a builder of 200,000 entries has 16 MiB for them, and what else a build takes fits into as much.
const ENTRY_BYTES: usize = 84;

/// What a tar may be like.
#[derive(Clone, Debug)]
pub struct ArchiveLimits {
    /// Bytes of all of it.
    pub body: u64,
    /// Entries, with the folders that are only implied.
    pub entries: usize,
    /// Bytes of memory for what is noted of them, with names, links and attributes.
    pub index: usize,
    /// Bytes of `com.openfaas.docker.config`, and of `com.openfaas.secrets`.
    pub small_file: usize,
}

impl Default for ArchiveLimits {
    /// 1 GiB, 200,000 entries that take 16 MiB, 1 MiB for each of the two files.
    fn default() -> Self {
        Self {
            body: 1 << 30,
            entries: 200_000,
            index: 200_000 * ENTRY_BYTES,
            small_file: 1 << 20,
        }
    }
}

impl ArchiveLimits {
    /// Lets a tar have so many entries, and the memory that more of them than by default take.
    pub fn set_entries(&mut self, entries: usize) {
        self.entries = entries;
        self.index = self.index.max(entries.saturating_mul(ENTRY_BYTES));
    }

    /// No more than the index could hold.
    pub(super) fn that_can_be(self) -> Self {
        Self {
            index: self.index.min(Index::MAX),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_entries_may_take_more_memory_and_fewer_no_less() {
        let with = |entries| {
            let mut limits = ArchiveLimits::default();
            limits.set_entries(entries);
            assert_eq!(limits.entries, entries);
            limits.index
        };
        let default = ArchiveLimits::default();
        assert_eq!(with(default.entries), default.index);
        assert_eq!(with(default.entries * 3), default.index * 3);
        assert_eq!(with(1), default.index);
        assert_eq!(with(usize::MAX), usize::MAX);
    }
}
