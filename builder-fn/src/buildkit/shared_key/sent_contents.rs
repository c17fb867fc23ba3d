//! The hashes of the contents that one transfer sends, computed on the way.

use std::collections::HashMap;

use crate::context::{ContentHash, ContentHasher};

/// The hashes of the contents that one transfer has sent.
#[derive(Default)]
pub(super) struct SentContents {
    /// The hash of each file that was sent to its end, by the number of its entry; the default for all others. It has
    /// room for every entry once one was sent.
    hashes: Vec<ContentHash>,
    /// The files that were sent in part, by the number of their entries.
    begun: HashMap<u32, PartlySentFile>,
}

/// A file that was sent in part.
#[derive(Default)]
struct PartlySentFile {
    /// The length of the part in bytes.
    len: u64,
    hasher: ContentHasher,
}

impl SentContents {
    /// Adds a piece of the file `entry`, one of the `entries_in_context`. Pieces of one file are added in their
    /// order. A daemon may request a file twice; the pieces that it gets again are ignored.
    pub(super) fn add_piece(&mut self, entry: u32, entries_in_context: usize, piece: SentPiece<'_>) {
        if self.hash_of_whole_file(entry).is_some() {
            return;
        }
        let file = self.begun.entry(entry).or_default();
        if piece.offset != file.len {
            return;
        }
        file.hasher.hash_piece(piece.data);
        file.len += piece.data.len() as u64;
        if piece.is_last {
            let hash = file.hasher.finish_and_reset();
            self.begun.remove(&entry);
            if self.hashes.is_empty() {
                self.hashes = vec![ContentHash::default(); entries_in_context];
            }
            if let Some(slot) = self.hashes.get_mut(entry as usize) {
                *slot = hash;
            }
        }
    }

    /// Returns the hash of the file `entry`, if it was sent to its end.
    pub(super) fn hash_of_whole_file(&self, entry: u32) -> Option<ContentHash> {
        let hash = self.hashes.get(entry as usize)?;
        Some(*hash).filter(|hash| *hash != ContentHash::default())
    }
}

/// A piece of a file that is sent.
#[derive(Clone, Copy, Debug)]
pub(in crate::buildkit) struct SentPiece<'a> {
    /// The offset of the piece in its file, in bytes.
    pub(in crate::buildkit) offset: u64,
    pub(in crate::buildkit) data: &'a [u8],
    /// Whether the file ends with the piece.
    pub(in crate::buildkit) is_last: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(offset: u64, data: &[u8], is_last: bool) -> SentPiece<'_> {
        SentPiece {
            offset,
            data,
            is_last,
        }
    }

    #[test]
    fn a_file_has_the_hash_of_its_content_once_it_was_sent_to_its_end() {
        let mut sent = SentContents::default();
        sent.add_piece(1, 3, piece(0, b"ab", false));
        sent.add_piece(2, 3, piece(0, b"", true));
        assert_eq!(
            (sent.hash_of_whole_file(0), sent.hash_of_whole_file(1)),
            (None, None)
        );
        assert_eq!(sent.hash_of_whole_file(2), Some(ContentHash::of(b"")));
        sent.add_piece(1, 3, piece(2, b"c", true));
        assert_eq!(sent.hash_of_whole_file(1), Some(ContentHash::of(b"abc")));
        assert_eq!(sent.hash_of_whole_file(3), None);
    }

    #[test]
    fn a_file_that_is_requested_twice_at_once_has_the_hash_of_its_content() {
        let mut sent = SentContents::default();
        for (offset, data, is_last) in [
            (0, b"ab", false),
            (0, b"ab", false),
            (2, b"cd", false),
            (2, b"cd", false),
            (4, b"ef", true),
            (4, b"ef", true),
            (0, b"ab", false),
        ] {
            sent.add_piece(0, 1, piece(offset, data, is_last));
        }
        assert_eq!(sent.hash_of_whole_file(0), Some(ContentHash::of(b"abcdef")));
        assert!(sent.begun.is_empty());
    }
}
