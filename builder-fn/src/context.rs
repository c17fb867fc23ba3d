//! The source context of one build: the folder `context/` of a tar, as BuildKit will be shown it.
//!
//! The tar is never extracted. Its bytes lie in a [`Spool`], and the index says which of them are which file. So
//! there is no path to escape to, nothing to clean up after a crash, and a file that BuildKit does not ask for is
//! never read again.

mod archive;
mod attributes;
mod content;
mod entry;
mod index;
mod spool;
mod tree;
mod view;

use std::io;

pub use archive::{ArchiveError, ArchiveLimits, ArchiveReader, Contents, EntryName, EntryProblem};
pub use attributes::Attributes;
pub use content::ContentHash;
pub(crate) use content::ContentHasher;
pub use entry::{Entry, Kind};
pub use index::{Index, Walk};
pub use spool::{Spool, SpoolError, SpoolRoom, SpoolSettings, check_spool};
pub use view::{Filter, PatternError, View, Visible, view};

/// The entries of a source context and the bytes they point to.
#[derive(Debug)]
pub struct SourceContext {
    index: Index,
    spool: Spool,
}

impl SourceContext {
    /// The context whose entries point into `spool`.
    pub fn new(index: Index, spool: Spool) -> Self {
        Self { index, spool }
    }

    /// Reads a tar that is already here, for what needs no signature.
    ///
    /// # Errors
    /// When it is no tar of a build request.
    pub fn from_tar(tar: &[u8]) -> Result<Self, ArchiveError> {
        let mut reader = ArchiveReader::new(ArchiveLimits::default());
        reader.feed(tar)?;
        let spool = Spool::in_memory(tar.to_vec());
        Ok(Self::new(reader.finish()?.entries, spool))
    }

    /// What there is.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The entry with a number.
    pub fn entry(&self, at: u32) -> Entry<'_> {
        self.index.entry(at)
    }

    /// The entry at `path`, which is relative to the context, without `./` and without a trailing slash.
    pub fn get(&self, path: &str) -> Option<Entry<'_>> {
        self.index.get(path)
    }

    /// Whether reading is a copy, and never waits for a disk.
    pub(crate) fn is_in_memory(&self) -> bool {
        !self.spool.on_disk()
    }

    /// Fills `buffer` from the file `entry`, from `offset` of its content on.
    ///
    /// # Errors
    /// As [`read`](Self::read); and when there is less than that.
    pub fn read_exact(&self, entry: Entry<'_>, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.read(entry, offset, buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => {
                    offset += count as u64;
                    buffer = &mut buffer[count..];
                }
            }
        }
        Ok(())
    }

    /// Reads from the file `entry`, from `offset` of its content on, into `buffer`. Zero is the file's end.
    ///
    /// This is a `pread` (mostly from the page cache) or a copy, and blocks accordingly.
    ///
    /// # Errors
    /// Whatever reading the spool file yields; [`io::ErrorKind::InvalidInput`] for an entry that is no file.
    pub fn read(&self, entry: Entry<'_>, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
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
