//! A file, folder or symbolic link of a source context.

use super::ExtendedAttributes;

/// The metadata of an entry in a source context, without its path.
///
/// There is no owner: BuildKit's clients send every local file as owned by 0:0 (`buildctl` resets both ids, and `COPY`
/// without `--chown` relies on it), so the owners in the tar are not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The kind of the entry, with the data of that kind.
    pub kind: Kind<'a>,
    /// The lower twelve bits of the entry's Unix mode: permissions, set-user-id, set-group-id, sticky. `0o777` for
    /// symbolic links.
    pub mode: u32,
    /// The modification time of the entry, in nanoseconds since 1970.
    pub mtime_ns: i64,
    /// The extended attributes of the entry.
    pub xattrs: ExtendedAttributes<'a>,
}

/// The kind of an entry in a source context.
///
/// Hard links are files that share their `offset`. Which of them is sent as the file and which as links to it depends on
/// what is sent at all, so [`view`](super::view) decides that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// The entry is a folder.
    Folder,
    /// The entry is a regular file.
    File {
        /// The offset of the file's content in the spool, in bytes. Two files have the same offset exactly if they are
        /// hard links of each other.
        offset: u64,
        /// The length of the file's content in bytes.
        size: u64,
    },
    /// The entry is a symbolic link.
    Symlink {
        /// The target of the symbolic link, as it is in the tar.
        target: &'a str,
    },
}

impl Entry<'_> {
    /// Returns the size of the entry as `lstat` shows it: the length of a file's content or of a link's target; but 0
    /// for folders.
    pub fn size(&self) -> u64 {
        match &self.kind {
            Kind::Folder => 0,
            Kind::File { size, .. } => *size,
            Kind::Symlink { target } => target.len() as u64,
        }
    }

    /// Returns whether the entry is a folder.
    pub fn is_folder(&self) -> bool {
        matches!(self.kind, Kind::Folder)
    }
}
