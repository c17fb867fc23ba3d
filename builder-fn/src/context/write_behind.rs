//! Writing a large file to the disk while it grows, in place of all at once when memory is short.
//!
//! What is written to a file stays in the page cache, which counts against the memory limit of the container. At the
//! limit, the process waits for the disk in every call that takes memory. So pages are written to the disk early, and
//! leave the cache when a file has many.

use std::fs::File;
use std::num::NonZeroU64;

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
        self.written += bytes;
        if self.written <= UNWRITTEN_MAX_BYTES || self.written - self.passed < PART_BYTES {
            return;
        }
        // The kernel begins to write the dirty pages of the range, and drops the clean ones.
        advise_dont_need(file, self.passed, self.written - self.passed);
        self.passed = self.written;
        let droppable = self.passed.saturating_sub(CACHED_BYTES);
        if droppable > self.dropped {
            advise_dont_need(file, self.dropped, droppable - self.dropped);
            self.dropped = droppable;
        }
    }
}

/// Advises the kernel that a range of `file` is not needed in the page cache.
fn advise_dont_need(file: &File, offset: u64, len: u64) {
    // Advice that cannot be taken changes nothing but the time that the file takes.
    let _ = fadvise(file, offset, NonZeroU64::new(len), Advice::DontNeed);
}
