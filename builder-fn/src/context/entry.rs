//! One file, folder or symbolic link of a source context.

use super::{Attributes, ContentHash};

/// What is known of an entry besides its path.
///
/// There is no owner here: BuildKit's clients send every local file as owned by 0:0 (`buildctl` resets both, and
/// `COPY` without `--chown` counts on it), so those of the tar are nobody's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// What is there.
    pub kind: Kind<'a>,
    /// The lower twelve bits of a Unix mode: permissions, set-user-id, set-group-id, sticky. `0o777` for links.
    pub mode: u32,
    /// Time of the last change, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Extended attributes.
    pub xattrs: Attributes<'a>,
    /// What a file contains; the same for all that has no content.
    pub content: ContentHash,
}

/// What is at a path.
///
/// Hard links are files that share their `offset`: which of them is "the file" and which are links to it depends
/// on what is sent, so [`view`](super::view) says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// A folder.
    Directory,
    /// A regular file.
    File {
        /// Where its content begins in the spool, in bytes. Two files have the same offset exactly when they are
        /// hard links of each other.
        offset: u64,
        /// Bytes.
        size: u64,
    },
    /// A symbolic link.
    Symlink {
        /// What it points to, as it was archived.
        target: &'a str,
    },
}

impl Entry<'_> {
    /// The size that `lstat` would show, but 0 for folders: bytes of a file, length of a link's target.
    pub fn size(&self) -> u64 {
        match &self.kind {
            Kind::Directory => 0,
            Kind::File { size, .. } => *size,
            Kind::Symlink { target } => target.len() as u64,
        }
    }

    /// Whether this is a folder.
    pub fn is_directory(&self) -> bool {
        matches!(self.kind, Kind::Directory)
    }
}
