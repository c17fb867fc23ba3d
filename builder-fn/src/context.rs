//! The source context of one build: the folder `context/` of the tar in its request, or of the tar that it refers to.
//!
//! The tar is never extracted. Its bytes are in a [`Spool`], and the [`Index`] maps each file to its range of bytes. So
//! no path can escape, a crash leaves nothing to clean up, and a file that BuildKit does not request is never read
//! again.

mod archive;
mod attributes;
mod block_hashes;
mod content;
mod entry;
mod file_tree;
mod index;
mod quota;
mod spool;
mod tree;
mod view;
mod write_behind;

use std::io;
use std::sync::Arc;

pub use archive::{ArchiveContents, ArchiveLimits, ArchiveReader};
pub(crate) use archive::{ArchiveError, ReadError};
pub(crate) use attributes::ExtendedAttributes;
pub use content::{ContentHash, set_content_hash_key_if_unset};
pub(crate) use content::{ContentHasher, content_hash_key_name};
pub use entry::{Entry, Kind};
pub(crate) use file_tree::{ChangedAddedAndRemovedPaths, FileDigestTree};
pub use index::Index;
pub use quota::SpoolQuota;
pub use spool::{Spool, SpoolSettings};
pub(crate) use spool::{SpoolError, check_spool_folder_writable};
#[cfg(test)]
pub(crate) use view::view;
pub(crate) use view::{ContextView, ViewEntry, ViewFilter, pattern_problems, view_while};
pub use view::{
    IgnoreDecision, IgnoreRules, PatternOrCancellationError, PatternsMatchingFolder,
    excluding_pattern_if_found,
};

/// The entries of a source context, and the bytes of their files.
#[derive(Debug)]
pub struct SourceContext {
    index: Index,
    spool: Arc<Spool>,
}

impl SourceContext {
    /// Combines an index of entries with the spool that holds the contents of their files.
    pub fn new(index: Index, spool: impl Into<Arc<Spool>>) -> Self {
        let spool = spool.into();
        Self { index, spool }
    }

    /// Parses the tar of a build request, which stays in memory, and returns its context; for tests.
    ///
    /// # Errors
    /// Fails if the tar has no usable context.
    pub fn from_tar(tar: &[u8]) -> Result<Self, ArchiveError> {
        let mut reader = ArchiveReader::new(ArchiveLimits::default());
        reader.parse_piece(tar)?;
        let spool = Spool::in_memory(tar.to_vec());
        Ok(Self::new(reader.finish()?.entries, spool))
    }

    /// Returns the hash of the content of the file `entry`, which is read for it.
    ///
    /// # Errors
    /// As [`read_file`](Self::read_file).
    pub(crate) fn hash_content(&self, entry: Entry<'_>) -> io::Result<ContentHash> {
        const PIECE_BYTES: usize = 64 << 10;
        let mut hasher = ContentHasher::default();
        let mut buffer = vec![
            0;
            usize::try_from(entry.size())
                .unwrap_or(PIECE_BYTES)
                .min(PIECE_BYTES)
        ];
        let mut offset = 0;
        loop {
            let count = self.read_file(entry, offset, &mut buffer)?;
            if count == 0 {
                // A content that is cut short must not count as the whole.
                return match offset == entry.size() {
                    true => Ok(hasher.finish_and_reset()),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
            hasher.hash_piece(&buffer[..count]);
            offset += count as u64;
        }
    }

    /// Returns a hash of the content of a large file and of its place in the blocks of the spool: files with the same hash
    /// have the same content, and the same content elsewhere may have another hash. Only the two ends of the file are
    /// read. Returns `None` for a small file, if the blocks of the spool were not hashed, and if it cannot be read.
    pub(crate) fn hash_content_by_blocks(&self, entry: Entry<'_>) -> Option<ContentHash> {
        let Kind::File { offset, size } = entry.kind else {
            return None;
        };
        let blocks = self.spool.blocks_of_range(offset..offset.checked_add(size)?)?;
        let mut hasher = ContentHasher::default();
        for end in [blocks.before, blocks.after] {
            let mut bytes = vec![0; usize::try_from(end.end - end.start).ok()?];
            self.read_file_exact(entry, end.start - offset, &mut bytes).ok()?;
            hasher.hash_piece(&(bytes.len() as u64).to_le_bytes());
            hasher.hash_piece(&bytes);
        }
        blocks.hashes.iter().for_each(|hash| hasher.hash_piece(&hash.0));
        Some(hasher.finish_and_reset())
    }

    /// Returns the memory that the index takes, in bytes.
    pub(crate) fn index_memory_bytes(&self) -> usize {
        self.index.memory_bytes()
    }

    /// Returns the spool that holds the contents of the files.
    pub(crate) fn spool(&self) -> &Arc<Spool> {
        &self.spool
    }

    /// Returns the index of the context's entries.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Returns the context's entry with this number in its [`Index`].
    pub fn entry_by_number(&self, number: u32) -> Entry<'_> {
        self.index.entry_by_number(number)
    }

    /// Returns the context's entry at `path`, which is relative, without `./` and without a trailing slash.
    pub fn get(&self, path: &str) -> Option<Entry<'_>> {
        self.index.get(path)
    }

    /// Returns the names of the entries directly in a folder, or in the context if `folder` is empty; `None` if there
    /// is no such entry.
    pub(crate) fn child_names_if_entry_exists(&self, folder: &str) -> Option<impl Iterator<Item = &str>> {
        let number = match folder {
            "" => None,
            folder => Some(self.index.find(folder)?),
        };
        Some(self.index.children(number).map(|child| self.index.name(child)))
    }

    /// Returns up to `limit` bytes from the beginning of the file at `path`; `None` if it is no file or cannot be read.
    pub(crate) fn read_beginning(&self, path: &str, limit: usize) -> Option<Vec<u8>> {
        let entry = self.get(path)?;
        let size = usize::try_from(entry.size()).unwrap_or(usize::MAX);
        let mut beginning = vec![0; size.min(limit)];
        self.read_file_exact(entry, 0, &mut beginning).ok()?;
        Some(beginning)
    }

    /// Returns whether the contents of all files are in memory, so that reading never waits for a disk.
    pub(crate) fn is_in_memory(&self) -> bool {
        !self.spool.is_on_disk()
    }

    /// Fills `buffer` with the content of the file `entry` from `offset` on.
    ///
    /// # Errors
    /// As [`read_file`](Self::read_file), and when the content ends before the buffer is full.
    pub fn read_file_exact(
        &self,
        entry: Entry<'_>,
        mut offset: u64,
        mut buffer: &mut [u8],
    ) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.read_file(entry, offset, buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => {
                    offset += count as u64;
                    buffer = &mut buffer[count..];
                }
            }
        }
        Ok(())
    }

    /// Reads the content of the file `entry` from `offset` on into `buffer`, and returns the number of bytes; 0 at the
    /// end.
    ///
    /// Blocks as long as a `pread` (mostly from the page cache) or a copy does.
    ///
    /// # Errors
    /// Fails if the spool file cannot be read; [`io::ErrorKind::InvalidInput`] for an entry that is not a file.
    pub fn read_file(&self, entry: Entry<'_>, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let Kind::File { offset: start, size } = entry.kind else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "only files have content",
            ));
        };
        let left = size.saturating_sub(offset);
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        self.spool
            .read_at(&mut buffer[..wanted], start.saturating_add(offset))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCK_BYTES: usize = 8;

    /// Returns the hash, by blocks, of the file in a spool of which `file` is the range.
    fn hash_file_by_blocks(spool: &[u8], file: std::ops::Range<usize>) -> Option<ContentHash> {
        let kind = Kind::File {
            offset: file.start as u64,
            size: file.len() as u64,
        };
        let entry = Entry {
            kind,
            mode: 0o644,
            mtime_ns: 0,
            xattrs: ExtendedAttributes::NONE,
        };
        let index = Index::of_entries_linking_same_offset([("f".to_owned(), entry)]);
        let spool = Spool::in_memory_with_blocks_of(BLOCK_BYTES, spool.to_vec());
        let context = SourceContext::new(index, spool);
        context.hash_content_by_blocks(context.entry_by_number(0))
    }

    proptest! {
        #[test]
        fn a_hash_by_blocks_changes_with_each_byte_of_the_file_and_with_no_other(
            spool in prop::collection::vec(any::<u8>(), 1..100),
            start in 0..100_usize,
            len in 0..100_usize,
            changed in 0..100_usize,
        ) {
            let start = start.min(spool.len());
            let file = start..spool.len().min(start + len);
            let hash = hash_file_by_blocks(&spool, file.clone());
            let has_whole_block = file.start.div_ceil(BLOCK_BYTES) < file.end / BLOCK_BYTES;
            prop_assert_eq!(hash.is_some(), has_whole_block);
            let changed = changed.min(spool.len() - 1);
            let mut other = spool.clone();
            other[changed] ^= 1;
            let is_same = hash_file_by_blocks(&other, file.clone()) == hash;
            prop_assert_eq!(is_same, !has_whole_block || !file.contains(&changed));
        }
    }
}
