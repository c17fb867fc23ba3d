//! Limits on the tar of a build request.

use crate::context::Index;

/// The index memory per entry, in bytes: 44 that every entry takes, and the rest for its name, link target and
/// attributes, which mostly take less than 32. So 200,000 entries take at most about 16 MiB, and everything else in a
/// build fits into as much.
const INDEX_BYTES_PER_ENTRY: usize = 84;

/// The limits on a tar, and on the memory of its index.
#[derive(Clone, Debug)]
pub struct ArchiveLimits {
    /// The limit on the length of the decompressed tar, in bytes.
    pub body: u64,
    /// The limit on the number of entries, including implied folders.
    pub entries: usize,
    /// The limit on the memory of the index, in bytes, including names, link targets and attributes.
    pub index: usize,
    /// The limit on the length of `com.openfaas.docker.config`, and of `com.openfaas.secrets`, in bytes.
    pub small_file: usize,
}

impl Default for ArchiveLimits {
    /// Returns limits of 1 GiB, 200,000 entries with an index of about 16 MiB, and 1 MiB for each of the two small
    /// files.
    fn default() -> Self {
        Self {
            body: 1 << 30,
            entries: 200_000,
            index: 200_000 * INDEX_BYTES_PER_ENTRY,
            small_file: 1 << 20,
        }
    }
}

impl ArchiveLimits {
    /// Sets the limit on the number of entries, and raises that on the index memory if more entries than by default are
    /// allowed.
    pub fn set_entry_limit_and_raise_index_limit(&mut self, entries: usize) {
        self.entries = entries;
        self.index = self.index.max(entries.saturating_mul(INDEX_BYTES_PER_ENTRY));
    }

    /// Returns the limits, with that on the index memory lowered to the most that an index can hold.
    pub(super) fn with_index_limit_capped(self) -> Self {
        Self {
            index: self.index.min(Index::MAX_BYTES),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_larger_entry_limit_raises_the_index_memory_limit_and_a_smaller_one_leaves_it() {
        let with = |entries| {
            let mut limits = ArchiveLimits::default();
            limits.set_entry_limit_and_raise_index_limit(entries);
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
