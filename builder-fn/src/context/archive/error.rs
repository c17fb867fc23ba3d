//! Errors in the tar of a build request, which the caller has to fix.

use std::fmt;

/// The reason why the tar of a build request is rejected.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The body of the request is empty.
    #[error("the body is empty; it must be a tar with com.openfaas.docker.config and context/")]
    Empty,
    /// The tar itself begins like a compressed file.
    #[error(
        "the body is compressed with {format}; send a plain tar, or one compressed once with gzip or zstd"
    )]
    Compressed {
        /// The name of the compression format.
        format: &'static str,
    },
    /// The body cannot be decompressed.
    #[error("the body looks compressed with {format} and cannot be decompressed")]
    Decompression {
        /// The name of the compression format.
        format: &'static str,
        /// The error with which the decompressor rejected the data.
        #[source]
        source: std::io::Error,
    },
    /// Data follows the zeros at the end of a gzip stream.
    #[error("the gzip stream has data after the zeros at its end; send one stream, with only zeros after it")]
    AfterPadding,
    /// A zstd frame of the body needs a larger window than the limit.
    #[error(
        "the body is compressed by zstd with a window of more than {limit} bytes, which is the limit of this builder; \
         compress it without --long and --ultra"
    )]
    WindowTooLarge {
        /// The largest window that this builder accepts, in bytes.
        limit: u64,
    },
    /// The decompressed body exceeds the limit.
    #[error("the body decompresses to more than {limit} bytes, which is the limit of this builder")]
    DecompressedTooLarge {
        /// The largest decompressed body that this builder accepts, in bytes.
        limit: u64,
    },
    /// The body's compression ratio exceeds the limit, like that of a decompression bomb.
    #[error("the body decompresses to more than {ratio} times its size; send the tar without compression")]
    DecompressionBomb {
        /// The largest compression ratio that is accepted.
        ratio: u64,
    },
    /// The first block of the body is not a tar header.
    #[error("the body is not a tar: its first 512 bytes are not a tar header")]
    NotTar,
    /// A later block of the tar is not a header.
    #[error("the tar is damaged: the header at byte {offset}, after {after}, has a wrong checksum")]
    Checksum {
        /// The offset in the tar at which a header was expected.
        offset: u64,
        /// The name of the entry before the damaged header.
        after: ShownEntryName,
    },
    /// The tar ends within an entry.
    #[error("the tar is cut short at byte {offset}, within {within}")]
    Truncated {
        /// The length of the received part of the tar, in bytes.
        offset: u64,
        /// The name of the entry within which the tar ends.
        within: ShownEntryName,
    },
    /// Data follows the end of the tar.
    #[error("the tar has data at byte {offset}, after its end; send one archive, with only zeros after it")]
    AfterEnd {
        /// The offset in the tar at which the data begins.
        offset: u64,
    },
    /// An entry of the tar is unusable.
    #[error("entry \"{entry}\" {problem}")]
    Entry {
        /// The name of the unusable entry.
        entry: ShownEntryName,
        /// The problem of the entry, and what would be right.
        problem: EntryProblem,
    },
    /// The tar has more entries than the builder accepts.
    #[error("the tar has more than {limit} entries")]
    TooManyEntries {
        /// The limit on the number of entries.
        limit: usize,
    },
    /// The index of the tar takes too much memory.
    #[error(
        "the entries of the tar, with their names, link targets and attributes, take more than {limit} bytes"
    )]
    IndexTooLarge {
        /// The limit on the memory of the index, in bytes.
        limit: usize,
    },
    /// The tar has no folder `context/`.
    #[error("context/: not in the tar; the files to build from belong there")]
    NoContext,
}

/// The name of a tar entry, escaped and shortened for messages.
#[derive(Clone, PartialEq, Eq)]
pub struct ShownEntryName(String);

impl ShownEntryName {
    /// Cuts a name after 200 bytes, and then escapes its characters, so that the result may be longer.
    pub(super) fn new(name: &[u8]) -> Self {
        const MAX_SHOWN_BYTES: usize = 200;
        let cut = &name[..name.len().min(MAX_SHOWN_BYTES)];
        let mut shown = String::from_utf8_lossy(cut).escape_debug().to_string();
        if cut.len() < name.len() {
            shown.push('…');
        }
        Self(shown)
    }

    /// Returns the name that stands for the start of the tar, before its first entry.
    pub(super) fn for_start_of_tar() -> Self {
        Self("the first header".to_owned())
    }
}

impl fmt::Display for ShownEntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ShownEntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The reason why a tar entry is unusable. The texts follow the name of the entry.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryProblem {
    #[error("has no name")]
    NoName,
    #[error("is an absolute path; names must be relative, such as context/Dockerfile")]
    Absolute,
    #[error("has '..' in its name or target; names must stay below the folder they start in")]
    ParentComponent,
    #[error("has a NUL in its name or target")]
    Nul,
    #[error("has a name or target that is not UTF-8")]
    NotUtf8,
    #[error("has a name or target of more than {limit} bytes")]
    PathTooLong { limit: usize },
    #[error("has a component of more than {limit} bytes in its name")]
    ComponentTooLong { limit: usize },
    #[error("has a {field} that is not a number in a format of tar")]
    Number { field: &'static str },
    #[error("has a size of {size} bytes; it can have from 0 to {limit}")]
    Size { size: i64, limit: u64 },
    #[error("is an extended header of {size} bytes; the limit is {limit}")]
    ExtensionTooLarge { size: i64, limit: u64 },
    #[error("has a malformed extended header: {reason}")]
    Extension { reason: &'static str },
    #[error("is the second extended header to set {field} of the entry after it")]
    DuplicateField { field: &'static str },
    #[error("is a global header that sets {field} for all entries; each entry has to set that itself")]
    GlobalField { field: &'static str },
    #[error("is a sparse file; archive it without --sparse")]
    Sparse,
    #[error("is a {kind}; only files, folders and links can be sent")]
    Special { kind: &'static str },
    #[error("has the unknown type {flag:?}; only files, folders and links can be sent")]
    UnknownType { flag: char },
    #[error(
        "has a name that is continued where its header has no such field, so tar programs read different names; use the \
         ustar, GNU or PAX format"
    )]
    StrayPrefix,
    #[error(
        "is a folder for some tar programs and a file for others; only the name of a folder may end with '/'"
    )]
    FolderOrFile,
    #[error("is a global header between an entry and its extended header; it belongs before both")]
    MisplacedGlobal,
    #[error("is in the tar twice, with different contents; a request has only one")]
    Contradictory,
    #[error("must be a regular file")]
    NotAFile,
    #[error("must be a folder")]
    NotAFolder,
    #[error("has more than {limit} bytes, which is the limit of this builder")]
    FileTooLarge { limit: usize },
    #[error("is a link without a target")]
    NoTarget,
    #[error("is in {parent}, which is a file, not a folder")]
    InFile { parent: ShownEntryName },
    #[error("is below {parent}, which is a symbolic link, not a folder")]
    ThroughLink { parent: ShownEntryName },
    #[error("would replace a folder that is not empty")]
    ReplacesFolder,
    #[error("is a hard link to {target}, which is not in the tar before it")]
    HardLinkToNothing { target: ShownEntryName },
    #[error("is a hard link to {target}, which is a folder")]
    HardLinkToFolder { target: ShownEntryName },
    #[error("is a hard link to {target}, which is not in context/")]
    HardLinkOutside { target: ShownEntryName },
}
