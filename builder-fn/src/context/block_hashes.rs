//! The hashes of a spool's blocks, computed while its bytes are appended: whether a large file has changed is known from
//! them without reading it again.
//!
//! Blocks are counted from the beginning of the spool, so nothing has to be known of the bytes in them.

use std::ops::Range;

use super::{ContentHash, ContentHasher};

/// The length of a block in bytes: long enough that a hash takes 1/2700 of the memory, and short enough that the two
/// ends of a file, which are in blocks with other bytes, are quickly read.
const BLOCK_BYTES: usize = 32 << 10;

/// The length from which a range of bytes is compared by the hashes of its blocks, in bytes. Of a shorter one, most would
/// be read.
const MIN_BYTES_OF_RANGE: u64 = 4 * BLOCK_BYTES as u64;

/// The hashes of the whole blocks of a spool, of which more bytes may be appended.
#[derive(Debug)]
pub(super) struct BlockHashes {
    /// The length of a block in bytes.
    block_bytes: usize,
    /// The length of the shortest range for which blocks are returned, in bytes.
    min_bytes_of_range: u64,
    hashes: Vec<ContentHash>,
    /// The hasher of the last block, which is not whole.
    last: ContentHasher,
    /// The number of bytes in the last block.
    last_bytes: usize,
}

/// The blocks that are whole within a range of bytes, and the bytes before and after them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BlocksOfRange<'a> {
    /// The range of the bytes before the first block.
    pub(super) before: Range<u64>,
    pub(super) hashes: &'a [ContentHash],
    /// The range of the bytes after the last block.
    pub(super) after: Range<u64>,
}

impl Default for BlockHashes {
    fn default() -> Self {
        Self::with_lengths(BLOCK_BYTES, MIN_BYTES_OF_RANGE)
    }
}

impl BlockHashes {
    /// Creates hashes of blocks of this length, for ranges of at least the second length.
    pub(super) fn with_lengths(block_bytes: usize, min_bytes_of_range: u64) -> Self {
        Self {
            block_bytes,
            min_bytes_of_range,
            hashes: Vec::new(),
            last: ContentHasher::default(),
            last_bytes: 0,
        }
    }

    /// Adds the next bytes of the spool.
    pub(super) fn add_piece(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() {
            let (first, rest) = piece.split_at(piece.len().min(self.block_bytes - self.last_bytes));
            self.last.hash_piece(first);
            self.last_bytes += first.len();
            if self.last_bytes == self.block_bytes {
                self.hashes.push(self.last.finish_and_reset());
                self.last_bytes = 0;
            }
            piece = rest;
        }
    }

    /// Returns the blocks that are whole within `range`; `None` if there are none, not all of them were added, or the
    /// range is short.
    pub(super) fn blocks_of_range(&self, range: Range<u64>) -> Option<BlocksOfRange<'_>> {
        if range.end.saturating_sub(range.start) < self.min_bytes_of_range {
            return None;
        }
        let block = self.block_bytes as u64;
        let (first, end) = (range.start.div_ceil(block), range.end / block);
        let blocks = usize::try_from(first).ok()?..usize::try_from(end).ok()?;
        let hashes = self.hashes.get(blocks).filter(|hashes| !hashes.is_empty())?;
        Some(BlocksOfRange {
            before: range.start..first * block,
            hashes,
            after: end * block..range.end,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns bytes without a period of a block's length.
    fn bytes(len: usize) -> Vec<u8> {
        (0..len)
            .map(|at| u8::try_from(at % 251).expect("small"))
            .collect()
    }

    #[test]
    fn block_hashes_depend_on_the_bytes_of_each_block_and_not_on_the_pieces_in_which_they_are_added() {
        let content = bytes(3 * BLOCK_BYTES + 5);
        for piece_bytes in [1000, BLOCK_BYTES, 3 * BLOCK_BYTES + 5] {
            let mut hashes = BlockHashes::default();
            content
                .chunks(piece_bytes)
                .for_each(|piece| hashes.add_piece(piece));
            let expected: Vec<_> = content.chunks_exact(BLOCK_BYTES).map(ContentHash::of).collect();
            assert_eq!(hashes.hashes, expected, "{piece_bytes}");
        }
    }

    #[test]
    fn the_blocks_of_a_range_and_the_bytes_around_them_are_the_range() {
        let mut hashes = BlockHashes::with_lengths(BLOCK_BYTES, 0);
        hashes.add_piece(&bytes(4 * BLOCK_BYTES + 100));
        let block = BLOCK_BYTES as u64;
        for (range, whole) in [
            (0..4 * block, Some(0..4)),
            (0..4 * block + 100, Some(0..4)),
            (1..2 * block, Some(1..2)),
            (512..3 * block - 1, Some(1..2)),
            (1..2 * block - 1, None),
            (0..block - 1, None),
            (5..5, None),
            (0..5 * block, None),
            (9 * block..20 * block, None),
        ] {
            let expected = whole.map(|whole| BlocksOfRange {
                before: range.start..whole.start * block,
                after: whole.end * block..range.end,
                hashes: &hashes.hashes[whole.start as usize..whole.end as usize],
            });
            assert_eq!(hashes.blocks_of_range(range.clone()), expected, "{range:?}");
        }
    }

    #[test]
    fn a_short_range_has_no_blocks() {
        let mut hashes = BlockHashes::default();
        hashes.add_piece(&bytes(8 * BLOCK_BYTES));
        let has_blocks = |range| hashes.blocks_of_range(range).is_some();
        assert!(has_blocks(512..512 + MIN_BYTES_OF_RANGE));
        assert!(!has_blocks(512..511 + MIN_BYTES_OF_RANGE));
    }
}
