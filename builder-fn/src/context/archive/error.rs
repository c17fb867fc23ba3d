//! What can be wrong with the tar of a build request. All of it is its sender's doing.

use std::fmt;

/// Why a tar is refused.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Nothing came.
    #[error("the body is empty; it must be a tar with com.openfaas.docker.config and context/")]
    Empty,
    /// The first bytes are those of a compressed file, where the tar should be.
    #[error("the body is packed with {format}; send a tar as it is, or packed once with gzip or zstd")]
    Compressed {
        /// Name of the format.
        format: &'static str,
    },
    /// The compression cannot be taken off.
    #[error("the body looks packed with {format} and cannot be unpacked")]
    Broken {
        /// Name of the format.
        format: &'static str,
        /// What the decoder said.
        #[source]
        source: std::io::Error,
    },
    /// More comes out than allowed.
    #[error("the body unpacks to more than {limit} bytes, which is the limit of this builder")]
    UnpacksTooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// More comes out of it than of any source.
    #[error("the body unpacks to more than {ratio} times its size; send the tar as it is")]
    UnpacksTooMuch {
        /// How many times.
        ratio: u64,
    },
    /// The first block is no header.
    #[error("the body is not a tar: its first 512 bytes are not a tar header")]
    NotTar,
    /// A later block is no header.
    #[error("the tar is damaged: the header at byte {offset}, after {after}, has a wrong checksum")]
    Checksum {
        /// Where the header begins.
        offset: u64,
        /// The entry before it.
        after: EntryName,
    },
    /// The end came too early.
    #[error("the tar is cut short at byte {offset}, within {within}")]
    Truncated {
        /// Bytes that came.
        offset: u64,
        /// The entry in which it ends.
        within: EntryName,
    },
    /// Something stands after the end.
    #[error(
        "the tar goes on at byte {offset}, after its end; send one archive, with nothing but zeros after it"
    )]
    AfterEnd {
        /// Where.
        offset: u64,
    },
    /// Something is wrong with one entry.
    #[error("entry \"{entry}\" {problem}")]
    Entry {
        /// The entry.
        entry: EntryName,
        /// What it is, and what would be right.
        problem: EntryProblem,
    },
    /// Too many of them.
    #[error("the tar has more than {limit} entries")]
    TooManyEntries {
        /// The limit.
        limit: usize,
    },
    /// All of them, with names, links and attributes, take too much.
    #[error("the entries of the tar, with their names, links and attributes, take more than {limit} bytes")]
    IndexTooLarge {
        /// The limit.
        limit: usize,
    },
    /// Nothing to build from.
    #[error("the tar has no folder context/; the files to build from belong there")]
    NoContext,
}

/// The name of an entry as far as it can be shown: escaped, and shortened.
#[derive(Clone, PartialEq, Eq)]
pub struct EntryName(String);

impl EntryName {
    pub(super) fn new(name: &[u8]) -> Self {
        const SHOWN: usize = 200;
        let cut = &name[..name.len().min(SHOWN)];
        let mut shown = String::from_utf8_lossy(cut).escape_debug().to_string();
        if cut.len() < name.len() {
            shown.push('…');
        }
        Self(shown)
    }

    pub(super) fn start() -> Self {
        Self("the first header".to_owned())
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is wrong with an entry.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the texts say it, and nobody tells them apart but tests"
)]
pub enum EntryProblem {
    #[error("has no name")]
    NoName,
    #[error("is an absolute path; names must be relative, such as context/Dockerfile")]
    Absolute,
    #[error("has '..' in its name; names must stay below the folder they start in")]
    Climbs,
    #[error("has a NUL in its name or target")]
    Nul,
    #[error("has a name or target that is not UTF-8")]
    NotUtf8,
    #[error("has a name or target of more than {limit} bytes")]
    PathTooLong { limit: usize },
    #[error("has a component of more than {limit} bytes in its name")]
    ComponentTooLong { limit: usize },
    #[error("has a {field} that is not a number as tar writes it")]
    Number { field: &'static str },
    #[error("says it has {size} bytes; it can have from 0 to {limit}")]
    Size { size: i64, limit: u64 },
    #[error("has an extended header of {size} bytes; {limit} is the most")]
    ExtensionTooLarge { size: i64, limit: u64 },
    #[error("has a malformed extended header: {reason}")]
    Extension { reason: &'static str },
    #[error("is the second extended header to say {field} of the entry after it")]
    SaidTwice { field: &'static str },
    #[error("is a global header that gives {field} to all entries; only each entry can say that")]
    GlobalField { field: &'static str },
    #[error("is a sparse file; archive it without --sparse")]
    Sparse,
    #[error("is a {what}; only files, folders and links can be sent")]
    Special { what: &'static str },
    #[error("has the unknown type {flag:?}; only files, folders and links can be sent")]
    UnknownType { flag: char },
    #[error("is a folder or link with content of its own")]
    ContentOfLink,
    #[error("must be a regular file")]
    NotAFile,
    #[error("must be a folder")]
    NotAFolder,
    #[error("has more than {limit} bytes")]
    FileTooLarge { limit: usize },
    #[error("is a link without a target")]
    NoTarget,
    #[error("lies in {parent}, which is a file, not a folder")]
    InFile { parent: EntryName },
    #[error("lies beyond {parent}, which is a symbolic link, not a folder")]
    ThroughLink { parent: EntryName },
    #[error("would replace a folder that is not empty")]
    ReplacesFolder,
    #[error("is a hard link to {target}, which is not in the tar before it")]
    HardLinkToNothing { target: EntryName },
    #[error("is a hard link to {target}, which is a folder")]
    HardLinkToFolder { target: EntryName },
    #[error("is a hard link to {target}, which is not in context/")]
    HardLinkOutside { target: EntryName },
}
