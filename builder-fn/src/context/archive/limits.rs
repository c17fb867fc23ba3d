//! What a tar may take.

use crate::context::Index;

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
    /// 1 GiB, 200,000 entries that take 64 MiB, 1 MiB for each of the two files.
    fn default() -> Self {
        Self {
            body: 1 << 30,
            entries: 200_000,
            index: 64 << 20,
            small_file: 1 << 20,
        }
    }
}

impl ArchiveLimits {
    /// No more than the index could hold.
    pub(super) fn that_can_be(self) -> Self {
        Self {
            index: self.index.min(Index::MAX),
            ..self
        }
    }
}
