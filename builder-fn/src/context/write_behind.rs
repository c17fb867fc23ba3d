//! Writing a large file to the disk while it grows, in place of all at once when memory is short.
//!
//! What is written to a file stays in the page cache, which counts against the memory limit of the container. At the
//! limit, the process waits for the disk in every call that takes memory. So pages are written to the disk early, and
//! leave the cache when a file has many.

use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;

use rustix::fs::{Advice, fadvise};

/// The length of the parts in which a file is written, in bytes.
const PART_BYTES: u64 = 8 << 20;

/// The length in bytes up to which nothing is written early: most files are gone before the kernel writes them.
const UNWRITTEN_MAX_BYTES: u64 = 32 << 20;

/// The number of bytes, before the last that were written, which stay in the page cache.
const CACHED_BYTES: u64 = 96 << 20;

/// How much of a file was written, and how much of it was passed to the disk and dropped from the page cache.
#[derive(Debug, Default)]
pub(super) struct WriteBehind {
    written: u64,
    passed: u64,
    dropped: u64,
}

impl WriteBehind {
    /// Records that the next `bytes` were written to `file`; has parts of it written to the disk, and drops parts from
    /// the cache, without waiting for the disk.
    pub(super) fn record_written(&mut self, file: &File, bytes: u64) {
        for range in self.add_written_and_return_unneeded(bytes) {
            // The kernel begins to write the dirty pages of a range, and drops the clean ones.
            let len = NonZeroU64::new(range.end - range.start);
            // Advice that cannot be taken changes nothing but the time that the file takes.
            let _ = fadvise(file, range.start, len, Advice::DontNeed);
        }
    }

    /// Adds `bytes` to those that were written, and returns the ranges of the file that the page cache need not keep: one
    /// that is to be passed to the disk, and one that was passed before and may be dropped.
    fn add_written_and_return_unneeded(&mut self, bytes: u64) -> impl Iterator<Item = Range<u64>> + use<> {
        self.written += bytes;
        let is_due = self.written > UNWRITTEN_MAX_BYTES && self.written - self.passed >= PART_BYTES;
        let to_pass = is_due.then(|| std::mem::replace(&mut self.passed, self.written)..self.written);
        let end = self.passed.saturating_sub(CACHED_BYTES);
        let to_drop = (end > self.dropped).then(|| std::mem::replace(&mut self.dropped, end)..end);
        to_pass.into_iter().chain(to_drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the ranges that are unneeded while a file of this length is written in pieces of 1 MiB.
    fn unneeded_ranges(file_bytes: u64) -> Vec<Range<u64>> {
        const PIECE_BYTES: u64 = 1 << 20;
        let mut write_behind = WriteBehind::default();
        let pieces = 0..file_bytes / PIECE_BYTES;
        let ranges = pieces.flat_map(|_| write_behind.add_written_and_return_unneeded(PIECE_BYTES));
        ranges.collect()
    }

    #[test]
    fn nothing_of_a_small_file_is_written_early() {
        assert_eq!(unneeded_ranges(UNWRITTEN_MAX_BYTES), []);
    }

    #[test]
    fn a_large_file_is_passed_to_the_disk_once_and_its_end_stays_in_the_cache() {
        const FILE_BYTES: u64 = 512 << 20;
        let ranges = unneeded_ranges(FILE_BYTES);
        let (mut passed, mut dropped) = (0, 0);
        for range in ranges {
            if range.start == passed && range.end > passed {
                passed = range.end;
            } else {
                assert_eq!(range.start, dropped, "{range:?}");
                dropped = range.end;
            }
            assert!(dropped <= passed.saturating_sub(CACHED_BYTES));
        }
        assert!(FILE_BYTES - passed < PART_BYTES, "{passed}");
        assert_eq!(dropped, passed - CACHED_BYTES);
    }
}
