//! The source context of one build: the folder `context/` of a tar, as BuildKit will be shown it.
//!
//! The tar is never extracted. Its bytes lie in a [`Spool`], and the index says which of them are which file. So
//! there is no path to escape to, nothing to clean up after a crash, and a file that BuildKit does not ask for is
//! never read again.

mod archive;
mod entry;
mod order;
mod spool;
mod tree;
mod view;

use std::io;

pub use archive::{ArchiveError, ArchiveLimits, ArchiveReader, Contents, EntryName, EntryProblem};
pub use entry::{ContentHash, Entry, Kind};
pub use spool::{Spool, SpoolError, SpoolRoom, SpoolSettings, check_spool};
pub use view::{Filter, PatternError, Visible, view};

/// The entries of a source context and the bytes they point to.
#[derive(Debug)]
pub struct SourceContext {
    entries: Vec<Entry>,
    spool: Spool,
}

impl SourceContext {
    /// The context whose entries point into `spool`, in order.
    pub fn new(entries: Vec<Entry>, spool: Spool) -> Self {
        Self { entries, spool }
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

    /// All entries but the root, in the order in which BuildKit wants them: per path component, a folder before
    /// what is in it. Every entry's folder is an entry too.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry at `path`, which is relative to the context, without `./` and without a trailing slash.
    pub fn get(&self, path: &str) -> Option<&Entry> {
        let found = self
            .entries
            .binary_search_by(|entry| order::compare(&entry.path, path));
        found.ok().map(|at| &self.entries[at])
    }

    /// What is directly in the folder at `path`, by name; `.` is the context itself.
    pub(crate) fn children(&self, path: &str) -> impl Iterator<Item = &Entry> {
        let (inside, prefix) = match path {
            "." => (&self.entries[..], 0),
            _ => match self
                .entries
                .binary_search_by(|entry| order::compare(&entry.path, path))
            {
                Ok(at) => (&self.entries[at + 1..], path.len() + 1),
                Err(_) => (&[][..], 0),
            },
        };
        inside
            .iter()
            .take_while(move |entry| prefix == 0 || order::is_within(&entry.path, path))
            .filter(move |entry| !entry.path[prefix..].contains('/'))
    }

    /// Whether reading is a copy, and never waits for a disk.
    pub(crate) fn is_in_memory(&self) -> bool {
        !self.spool.on_disk()
    }

    /// Fills `buffer` from the file `entry`, from `offset` of its content on.
    ///
    /// # Errors
    /// As [`read`](Self::read); and when there is less than that.
    pub fn read_exact(&self, entry: &Entry, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
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
    pub fn read(&self, entry: &Entry, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
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
