//! One file, folder or symbolic link of a source context.

/// An entry of a source context.
///
/// There is no owner here: BuildKit's clients send every local file as owned by 0:0 (`buildctl` resets both, and
/// `COPY` without `--chown` counts on it), so those of the tar are nobody's business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the context, `/` between components, neither `./` in front nor `/` at the end.
    pub path: String,
    /// What is there.
    pub kind: Kind,
    /// The lower twelve bits of a Unix mode: permissions, set-user-id, set-group-id, sticky. `0o777` for links.
    pub mode: u32,
    /// Time of the last change, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Extended attributes, by name.
    pub xattrs: Vec<(String, Vec<u8>)>,
    /// What a file contains; the same for all that has no content.
    pub content: ContentHash,
}

/// A hash of a file's content: two files with the same one have the same content (BLAKE3, 128 bits of it).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContentHash(pub [u8; 16]);

/// What is at a path.
///
/// Hard links are files that share their `offset`: which of them is "the file" and which are links to it depends
/// on what is sent, so [`view`](super::view) says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
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
        target: String,
    },
}

impl Entry {
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
