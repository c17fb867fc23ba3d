//! The entries that were announced under one shared key, as two hashes: of what makes BuildKit take two entries for the
//! same, and of what may differ between them all the same.
//!
//! Contents are hashed while they are sent, or when an entry looks like a remembered one: nothing else is read for
//! this.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

use crate::context::{ContentHash, ContentHasher, Entry, Kind};

/// The modification times that every file system stores unchanged, in seconds since 1970. BuildKit compares the time
/// that its file system has kept; two times that could become the same there count as the same here.
const PORTABLE_MTIME_SECONDS: std::ops::RangeInclusive<i64> = 0..=i32::MAX as i64;

/// The approximate length of one list of fingerprints, if there are as many entries as were expected.
const INTENDED_FINGERPRINTS_PER_LIST: usize = 1024;

/// The content hash that marks an entry that was announced with different contents, or with a content whose hash is not
/// known. A content with this very hash, of which there is one in 2⁹⁶, counts as different too.
pub(super) const DIFFERENT_CONTENTS_MARK: ContentHash = ContentHash([0xff; 12]);

/// The result of comparing an entry of a context with the daemon's possible copies of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NewSameOrMayDiffer {
    /// The entry is new: no copy that the daemon could take for it was ever announced.
    New,
    /// The entry is unchanged: every copy that the daemon could take for it has the same content.
    Same,
    /// The entry may have changed unnoticed: a copy may have the same stat and another content.
    MayDiffer,
}

/// The entries that were announced under one shared key.
///
/// It only grows: the daemon can have several folders under one key (one that was in use when the next transfer
/// began, one for each hint, one on each of several daemons behind one address), each with another part of this.
///
/// Identities are hashes of 64 bits. A collision is unlikely and does no harm: if the contents differ, they count as
/// two contents of one identity; if they are the same, everything that was ever announced under either identity is the
/// same too. So an entry that is not known to be the same is sent again, as any that differs.
///
/// An entry takes 20 bytes, and no memory is reserved for entries to come: at 300,000 entries that is 6 MiB, where a
/// hash map would take 10.5 MiB, and half as much again while it grows to that.
#[derive(Debug)]
pub(super) struct AnnouncedEntries {
    /// The fingerprints, in a power of two of lists. The first bits of an identity choose the list, which is sorted by
    /// identity. The lists are short, so that their growth takes little more memory than the new entries.
    lists: Vec<Vec<EntryFingerprint>>,
    /// For large files with one content: the hash, by the blocks of its spool, of the last context's file with that
    /// content, instead of the content's own hash.
    by_blocks: HashMap<IdentityHash, ContentHash>,
    hasher: RandomState,
}

/// An approximate upper bound on the memory that the hash of one large file by its blocks takes, in bytes: 20, in a hash
/// map that may be less than half full.
const BYTES_OF_HASH_BY_BLOCKS: usize = 48;

/// The hashes of an entry of a context, as far as they are known.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct KnownHashes {
    /// The hash of the content, of a file that was sent.
    pub(super) sent: Option<ContentHash>,
    /// The hash of a large file's content by the blocks of the spool.
    pub(super) by_blocks: Option<ContentHash>,
}

/// The hash of an entry's path and kind, and of a file's size and modification time: BuildKit may take entries with the
/// same hash for the same. Two halves, so that the size of a fingerprint is not rounded up to a multiple of 8 bytes.
type IdentityHash = [u32; 2];

/// The hashes of one announced entry, in 20 bytes.
#[derive(Clone, Copy, Debug)]
struct EntryFingerprint {
    /// The hash of the entry's path and kind, and of a file's size and modification time.
    identity: IdentityHash,
    /// The hash of the parts that may change unnoticed: see [`hash_unnoticed_parts`].
    content: ContentHash,
}

impl AnnouncedEntries {
    /// Creates an empty set of announcements with the number of lists that suits `entries`. It reserves no memory for
    /// them.
    pub(super) fn with_lists_for_expected_entries(entries: usize) -> Self {
        let lists = (entries / INTENDED_FINGERPRINTS_PER_LIST).next_power_of_two();
        Self {
            lists: vec![Vec::new(); lists],
            by_blocks: HashMap::new(),
            hasher: RandomState::new(),
        }
    }

    /// Returns the memory that `entries` more announced entries take, in bytes, without hashes by blocks.
    pub(super) fn bytes_for_entries(entries: usize) -> usize {
        entries.saturating_mul(size_of::<EntryFingerprint>())
    }

    /// Returns an upper bound on the memory that the hashes of `files` large files by their blocks take, in bytes.
    pub(super) fn bytes_for_hashes_by_blocks(files: usize) -> usize {
        files.saturating_mul(BYTES_OF_HASH_BY_BLOCKS)
    }

    /// Returns the memory that the announced entries take, in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        let lists = self
            .lists
            .iter()
            .map(|list| Self::bytes_for_entries(list.capacity()));
        self.lists.len() * size_of::<Vec<EntryFingerprint>>()
            + lists.sum::<usize>()
            + Self::bytes_for_hashes_by_blocks(self.by_blocks.len())
    }

    /// Compares `entry`, which is at `path`, with the announced entries. `by_blocks` is the hash of a large file by the
    /// blocks of the spool, if it is known. `hash_content` returns the hash of a file's content, if it can be read; it is
    /// called only for a file that looks like an announced one, and only if `by_blocks` does not tell that it is the
    /// same.
    pub(super) fn compare_with_announced(
        &self,
        path: &str,
        entry: &Entry<'_>,
        by_blocks: Option<ContentHash>,
        hash_content: impl FnOnce() -> Option<ContentHash>,
    ) -> NewSameOrMayDiffer {
        let Some(identity) = self.hash_of_path_and_stat_unless_symlink(path, entry) else {
            return NewSameOrMayDiffer::Same;
        };
        let list = &self.lists[self.list_index(identity)];
        let Ok(at) = find_fingerprint(list, identity) else {
            return NewSameOrMayDiffer::New;
        };
        let known = list[at].content;
        if known == DIFFERENT_CONTENTS_MARK {
            return NewSameOrMayDiffer::MayDiffer;
        }
        if let Some(by_blocks) = by_blocks
            && self.by_blocks.get(&identity) == Some(&hash_unnoticed_parts(by_blocks, entry))
        {
            return NewSameOrMayDiffer::Same;
        }
        let content = match entry.kind {
            Kind::File { .. } => hash_content(),
            Kind::Folder | Kind::Symlink { .. } => Some(ContentHash::default()),
        };
        match content.map(|content| hash_unnoticed_parts(content, entry)) {
            Some(content) if content == known => NewSameOrMayDiffer::Same,
            _ => NewSameOrMayDiffer::MayDiffer,
        }
    }

    /// Adds the entries of a new announcement. `for_each_entry` calls the function that it is given for every one of
    /// them, with what is known of its content, and is called twice.
    /// `receive_content_of_each_entry` gets, in the same order, the hash of what the daemon has of each entry,
    /// [`DIFFERENT_CONTENTS_MARK`] if nobody knows.
    ///
    /// A file that was not sent is the one that the daemon has, if one with its path and stat was announced before: it
    /// has to be one that was [compared](Self::compare_with_announced) and is the same. Otherwise nobody knows what the
    /// daemon has.
    pub(super) fn add_announcement(
        &mut self,
        for_each_entry: impl Fn(&mut dyn FnMut(&str, &Entry<'_>, KnownHashes)),
        mut receive_content_of_each_entry: impl FnMut(ContentHash),
    ) {
        // Counts the new entries first, so that the lists grow by no more than those.
        let mut new = vec![0; self.lists.len()];
        for_each_entry(&mut |path, entry, known| {
            let Some(identity) = self.hash_of_path_and_stat_unless_symlink(path, entry) else {
                return receive_content_of_each_entry(ContentHash::default());
            };
            let list = self.list_index(identity);
            let content = unnoticed_parts_hash_if_sent(entry, known.sent);
            match find_fingerprint(&self.lists[list], identity) {
                Ok(at) => {
                    let fingerprint = &mut self.lists[list][at];
                    if let Some(content) = content {
                        fingerprint.mark_different_unless_same(content);
                    }
                    if fingerprint.content == DIFFERENT_CONTENTS_MARK {
                        self.by_blocks.remove(&identity);
                    } else if let Some(by_blocks) = known.by_blocks {
                        self.by_blocks
                            .insert(identity, hash_unnoticed_parts(by_blocks, entry));
                    }
                    // What was sent is known, whatever was sent before under the same identity.
                    receive_content_of_each_entry(content.unwrap_or(fingerprint.content));
                }
                Err(_) => {
                    new[list] += 1;
                    receive_content_of_each_entry(content.unwrap_or(DIFFERENT_CONTENTS_MARK));
                }
            }
        });
        if new.iter().all(|new| *new == 0) {
            return;
        }
        let lengths: Vec<usize> = self.lists.iter().map(Vec::len).collect();
        for (list, new) in self.lists.iter_mut().zip(new) {
            list.reserve_exact(new);
        }
        for_each_entry(&mut |path, entry, known| {
            if let Some(identity) = self.hash_of_path_and_stat_unless_symlink(path, entry) {
                let list = self.list_index(identity);
                if find_fingerprint(&self.lists[list][..lengths[list]], identity).is_err() {
                    let content =
                        unnoticed_parts_hash_if_sent(entry, known.sent).unwrap_or(DIFFERENT_CONTENTS_MARK);
                    self.lists[list].push(EntryFingerprint { identity, content });
                    if known.sent.is_some()
                        && let Some(by_blocks) = known.by_blocks
                    {
                        self.by_blocks
                            .insert(identity, hash_unnoticed_parts(by_blocks, entry));
                    }
                }
            }
        });
        for list in &mut self.lists {
            list.sort_unstable_by_key(|fingerprint| fingerprint.identity);
            list.dedup_by(|again, first| {
                let is_same = again.identity == first.identity;
                if is_same {
                    first.mark_different_unless_same(again.content);
                }
                is_same
            });
        }
    }

    /// Returns the index of the list for an identity.
    fn list_index(&self, identity: IdentityHash) -> usize {
        let bits = self.lists.len().ilog2();
        usize::try_from(u64::from(identity[0]) << bits >> u32::BITS).unwrap_or_default()
    }

    /// Hashes an entry's path and kind, and a file's size and modification time in whole seconds. Returns `None` for
    /// symbolic links, of which BuildKit compares everything.
    ///
    /// Of a file it compares size and time, and also mode, owner and link name. It compares neither the content nor
    /// extended attributes. Of a folder it compares everything but attributes and time; but a folder that was changed
    /// keeps its old checksum (fsutil `DiskWriter.HandleChange` reports it to nothing), so nothing of a folder may
    /// change.
    fn hash_of_path_and_stat_unless_symlink(&self, path: &str, entry: &Entry<'_>) -> Option<IdentityHash> {
        let mut identity = self.hasher.build_hasher();
        identity.write(path.as_bytes());
        match entry.kind {
            Kind::Symlink { .. } => return None,
            Kind::Folder => identity.write(b"\0folder"),
            Kind::File { size, .. } => {
                let seconds = entry.mtime_ns.div_euclid(1_000_000_000);
                identity.write(b"\0file");
                identity.write_u64(size);
                identity
                    .write_i64(seconds.clamp(*PORTABLE_MTIME_SECONDS.start(), *PORTABLE_MTIME_SECONDS.end()));
            }
        }
        let identity = identity.finish();
        let half = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or_default();
        Some([half(identity >> u32::BITS), half(identity)])
    }
}

impl EntryFingerprint {
    /// Marks the fingerprint as one with different contents, unless `content` is the one that it has.
    fn mark_different_unless_same(&mut self, content: ContentHash) {
        if self.content != content {
            self.content = DIFFERENT_CONTENTS_MARK;
        }
    }
}

/// Searches a sorted list for an identity. Returns its index, or as an error the index at which it would be.
fn find_fingerprint(list: &[EntryFingerprint], identity: IdentityHash) -> Result<usize, usize> {
    list.binary_search_by_key(&identity, |known| known.identity)
}

/// Returns the hash of the parts of an entry that may change unnoticed; `None` for a file that was not sent.
fn unnoticed_parts_hash_if_sent(entry: &Entry<'_>, sent: Option<ContentHash>) -> Option<ContentHash> {
    match entry.kind {
        Kind::File { .. } => sent.map(|content| hash_unnoticed_parts(content, entry)),
        Kind::Folder | Kind::Symlink { .. } => Some(hash_unnoticed_parts(ContentHash::default(), entry)),
    }
}

/// Hashes the parts of an entry whose change BuildKit does not notice, or does not take into its checksum: of a file,
/// its content, whose hash is `content`, and its extended attributes; of a folder, its mode and its extended
/// attributes.
pub(super) fn hash_unnoticed_parts(content: ContentHash, entry: &Entry<'_>) -> ContentHash {
    match entry.kind {
        Kind::File { .. } if entry.xattrs.is_empty() => content,
        Kind::File { .. } => hash_with_attributes(&content.0, entry),
        Kind::Folder | Kind::Symlink { .. } => hash_with_attributes(&entry.mode.to_le_bytes(), entry),
    }
}

/// Returns a hash of `first` and the extended attributes of `entry`.
fn hash_with_attributes(first: &[u8], entry: &Entry<'_>) -> ContentHash {
    let mut hasher = ContentHasher::default();
    hasher.hash_piece(first);
    for (name, value) in entry.xattrs.iter() {
        for part in [name.as_bytes(), value] {
            hasher.hash_piece(&(part.len() as u64).to_le_bytes());
            hasher.hash_piece(part);
        }
    }
    hasher.finish_and_reset()
}

#[cfg(test)]
mod tests;
