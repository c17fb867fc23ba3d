//! A reader that indexes a stored tar: the body of a request, or a context that a request refers to.
//!
//! It reads the headers and the two small files beside the context. The contents of the context's files are skipped:
//! the index has their offsets in the [`Spool`](super::Spool).
//!
//! Formats: v7, ustar, GNU (long names), PAX. A tar that two tar programs could read differently is rejected: sparse
//! files, data after the end, names of which some programs read only a part.

mod error;
mod header;
mod limits;
mod name;
mod pax;
mod stored;
mod tar_entry;

pub(crate) use error::ArchiveError;
pub use limits::ArchiveLimits;
pub(crate) use stored::ReadError;

use error::{EntryProblem, ShownEntryName};
use header::{BLOCK_BYTES, TarHeader};
use name::EntryRole;
use pax::PaxRecords;
use tar_entry::{EntryType, ExtendedHeaders, TarEntry};

use super::tree::{ContextTree, TreeConflict};
use super::{Entry, ExtendedAttributes, Index, Kind};

/// The limit on the length of an extended header or a long name, in bytes.
const EXTENDED_HEADER_MAX_BYTES: u64 = 1 << 20;
/// The number of ignored entries that the warning names.
const MAX_IGNORED_ENTRIES_SHOWN: usize = 5;

/// The content of a build request's tar.
pub struct ArchiveContents {
    /// The index of the entries in `context/`.
    pub entries: Index,
    /// The content of the file `com.openfaas.docker.config`.
    pub config: Option<Vec<u8>>,
    /// The content of the file `com.openfaas.secrets`.
    pub secrets: Option<Vec<u8>>,
    /// The warnings about the tar, for the caller.
    pub warnings: Vec<String>,
}

/// A reader of a tar that is fed its bytes in order, except for contents that it skips; it builds the index of the
/// context.
pub struct ArchiveReader {
    limits: ArchiveLimits,
    offset: u64,
    state: ReaderState,
    block: Box<[u8; BLOCK_BYTES]>,
    /// The extended headers that apply to the next entry.
    extended: ExtendedHeaders,
    /// The modification time in a global header, for entries without one in their own extended headers.
    global_mtime_ns: Option<i64>,
    /// The name of the entry whose header was read last.
    current: ShownEntryName,
    /// The number of entries so far, without implied folders.
    headers: usize,
    seen_context: bool,
    tree: ContextTree,
    config: Option<Vec<u8>>,
    secrets: Option<Vec<u8>>,
    ignored: Vec<ShownEntryName>,
    ignored_count: usize,
}

/// The position of the reader in the tar.
enum ReaderState {
    /// The reader is in a header block, of which this many bytes have been read.
    TarHeader(usize),
    /// The reader is in the content of an entry, or in the padding after it.
    Content {
        left: u64,
        padding: u64,
        collector: Option<ContentCollector>,
    },
    /// The reader is after the end-of-archive block.
    End,
}

/// The collected content of an entry that is not a file of the context, and its purpose.
struct ContentCollector {
    purpose: CollectedEntryKind,
    bytes: Vec<u8>,
}

/// The kind of an entry whose content is collected: extended headers, the build configuration or the sealed secrets.
enum CollectedEntryKind {
    /// The content is the PAX records of the next entry.
    Records,
    /// The content is the PAX records of all later entries.
    GlobalRecords,
    /// The content is the name of the next entry, in GNU's format.
    LongName,
    /// The content is the link target of the next entry, in GNU's format.
    LongLink,
    /// The content is the build configuration.
    Config,
    /// The content is the sealed secrets.
    Secrets,
}

impl ArchiveReader {
    /// Creates a reader at the start of a tar.
    pub fn new(limits: ArchiveLimits) -> Self {
        Self {
            limits: limits.with_index_limit_capped(),
            offset: 0,
            state: ReaderState::TarHeader(0),
            block: Box::new([0; BLOCK_BYTES]),
            extended: ExtendedHeaders::default(),
            global_mtime_ns: None,
            current: ShownEntryName::for_start_of_tar(),
            headers: 0,
            seen_context: false,
            tree: ContextTree::default(),
            config: None,
            secrets: None,
            ignored: Vec::new(),
            ignored_count: 0,
        }
    }

    /// Parses the next piece of the tar.
    ///
    /// # Errors
    /// As soon as the tar turns out to be unusable. After that, nothing may be fed.
    pub fn parse_piece(&mut self, mut piece: &[u8]) -> Result<(), ArchiveError> {
        while !piece.is_empty() {
            let used = match &mut self.state {
                ReaderState::TarHeader(filled) => {
                    let used = piece.len().min(BLOCK_BYTES - *filled);
                    self.block[*filled..*filled + used].copy_from_slice(&piece[..used]);
                    *filled += used;
                    used
                }
                ReaderState::Content {
                    left,
                    padding,
                    collector,
                } => {
                    let content = min_length(*left, piece.len());
                    if let Some(collector) = collector {
                        collector.bytes.extend_from_slice(&piece[..content]);
                    }
                    *left -= content as u64;
                    let skipped = min_length(*padding, piece.len() - content);
                    *padding -= skipped as u64;
                    content + skipped
                }
                ReaderState::End => match piece.iter().position(|byte| *byte != 0) {
                    Some(at) => {
                        return Err(ArchiveError::AfterEnd {
                            offset: self.offset + at as u64,
                        });
                    }
                    None => piece.len(),
                },
            };
            self.offset += used as u64;
            piece = &piece[used..];
            self.interpret_complete_part()?;
        }
        Ok(())
    }

    /// Skips the rest of the current entry's content and padding, unless the reader needs it. Skips at most `available`
    /// bytes, and returns how many.
    ///
    /// # Errors
    /// As [`parse_piece`](Self::parse_piece).
    pub fn skip_content(&mut self, available: u64) -> Result<u64, ArchiveError> {
        let ReaderState::Content {
            left,
            padding,
            collector: None,
        } = &mut self.state
        else {
            return Ok(0);
        };
        let content = available.min(*left);
        let skipped = available.min(*left + *padding);
        *left -= content;
        *padding -= skipped - content;
        self.offset += skipped;
        self.interpret_complete_part()?;
        Ok(skipped)
    }

    /// Checks that the tar is complete, and returns its content.
    ///
    /// # Errors
    /// Fails if the tar ends within an entry, or has no context. A missing end-of-archive block is only a warning, as
    /// for other tar readers.
    pub fn finish(self) -> Result<ArchiveContents, ArchiveError> {
        let within_header = matches!(self.state, ReaderState::TarHeader(filled) if filled > 0);
        let within_content = matches!(self.state, ReaderState::Content { .. });
        if self.offset == 0 {
            return Err(ArchiveError::Empty);
        }
        if self.offset < BLOCK_BYTES as u64 {
            return Err(compressed_tar_error(&self.block[..]).unwrap_or(ArchiveError::NotTar));
        }
        if within_header || within_content || !self.extended.is_empty() {
            return Err(ArchiveError::Truncated {
                offset: self.offset,
                within: self.current,
            });
        }
        if !self.seen_context {
            return Err(ArchiveError::NoContext);
        }
        let mut warnings = Vec::new();
        if !matches!(self.state, ReaderState::End) {
            warnings.push(
                "the tar has no end-of-archive block; entries may be missing if the caller was interrupted"
                    .to_owned(),
            );
        }
        if self.ignored_count > 0 {
            let names: Vec<String> = self.ignored.iter().map(ToString::to_string).collect();
            warnings.push(format!(
                "{} entries outside of context/ are ignored, such as {}",
                self.ignored_count,
                names.join(", ")
            ));
        }
        Ok(ArchiveContents {
            entries: self.tree.into_index(),
            config: self.config,
            secrets: self.secrets,
            warnings,
        })
    }

    /// Interprets a header or an entry's content once it is complete.
    fn interpret_complete_part(&mut self) -> Result<(), ArchiveError> {
        if let ReaderState::TarHeader(BLOCK_BYTES) = self.state {
            self.read_header()?;
        }
        if let ReaderState::Content {
            left: 0,
            padding: 0,
            collector,
        } = &mut self.state
        {
            let collector = collector.take();
            self.state = ReaderState::TarHeader(0);
            return collector.map_or(Ok(()), |collector| self.interpret_content(collector));
        }
        Ok(())
    }

    /// Reads the complete header block, and begins its entry. A block of zeros ends the tar.
    fn read_header(&mut self) -> Result<(), ArchiveError> {
        if self.block.iter().all(|byte| *byte == 0) {
            if !self.extended.is_empty() {
                return Err(ArchiveError::Truncated {
                    offset: self.offset,
                    within: self.current.clone(),
                });
            }
            self.state = ReaderState::End;
            return Ok(());
        }
        let block = *self.block;
        let start = self.offset - BLOCK_BYTES as u64;
        let Some(header) = TarHeader::parse(&block) else {
            return Err(match start {
                0 => compressed_tar_error(&block[..]).unwrap_or(ArchiveError::NotTar),
                _ => ArchiveError::Checksum {
                    offset: start,
                    after: self.current.clone(),
                },
            });
        };
        let extension = match header.type_flag() {
            b'x' => Some(CollectedEntryKind::Records),
            b'g' => Some(CollectedEntryKind::GlobalRecords),
            b'L' => Some(CollectedEntryKind::LongName),
            b'K' => Some(CollectedEntryKind::LongLink),
            _ => None,
        };
        match extension {
            Some(purpose) => {
                self.current = ShownEntryName::new(&header.name());
                self.begin_extended_header(&header, purpose)
                    .map_err(|problem| self.entry_error(problem))
            }
            None => self.begin_entry(&header),
        }
    }

    /// Begins to collect the content of an extended header; fails if it is too long.
    fn begin_extended_header(
        &mut self,
        header: &TarHeader<'_>,
        purpose: CollectedEntryKind,
    ) -> Result<(), EntryProblem> {
        if matches!(purpose, CollectedEntryKind::GlobalRecords) && !self.extended.is_empty() {
            return Err(EntryProblem::MisplacedGlobal);
        }
        let size = header.size().ok_or(EntryProblem::Number { field: "size" })?;
        match u64::try_from(size) {
            Ok(size) if size <= EXTENDED_HEADER_MAX_BYTES => {
                self.begin_content(size, Some(purpose));
                Ok(())
            }
            _ => Err(EntryProblem::ExtensionTooLarge {
                size,
                limit: EXTENDED_HEADER_MAX_BYTES,
            }),
        }
    }

    /// Begins the entry of a header that is not an extended one, and checks the limits on entries and on the index.
    fn begin_entry(&mut self, header: &TarHeader<'_>) -> Result<(), ArchiveError> {
        let extended = std::mem::take(&mut self.extended);
        let name = extended.name(header);
        self.current = ShownEntryName::new(&name);
        TarEntry::from_headers(name, header, extended, self.global_mtime_ns, self.limits.body)
            .and_then(|entry| self.add_entry(entry))
            .map_err(|problem| self.entry_error(problem))?;
        self.headers += 1;
        if self.headers.max(self.tree.len()) > self.limits.entries {
            return Err(ArchiveError::TooManyEntries {
                limit: self.limits.entries,
            });
        }
        if self.tree.memory_bytes() > self.limits.index {
            return Err(ArchiveError::IndexTooLarge {
                limit: self.limits.index,
            });
        }
        Ok(())
    }

    /// Adds an entry to the index if it is in the context, and begins its content.
    fn add_entry(&mut self, entry: TarEntry) -> Result<(), EntryProblem> {
        let size = entry.size;
        let mut purpose = None;
        if entry.entry_type == EntryType::Label {
            self.begin_content(size, None);
            return Ok(());
        }
        match EntryRole::from_entry_name(&entry.name)? {
            EntryRole::Root | EntryRole::ContextRoot if entry.entry_type != EntryType::Folder => {
                return Err(EntryProblem::NotAFolder);
            }
            EntryRole::Config | EntryRole::Secrets if entry.entry_type != EntryType::File => {
                return Err(EntryProblem::NotAFile);
            }
            EntryRole::Config | EntryRole::Secrets if size > self.limits.small_file as u64 => {
                return Err(EntryProblem::FileTooLarge {
                    limit: self.limits.small_file,
                });
            }
            EntryRole::Root => {}
            EntryRole::ContextRoot => self.seen_context = true,
            EntryRole::Config => purpose = Some(CollectedEntryKind::Config),
            EntryRole::Secrets => purpose = Some(CollectedEntryKind::Secrets),
            EntryRole::Ignored => {
                self.ignored_count += 1;
                if self.ignored.len() < MAX_IGNORED_ENTRIES_SHOWN {
                    self.ignored.push(self.current.clone());
                }
            }
            EntryRole::InContext(path) => {
                self.seen_context = true;
                self.add_to_tree(&path, entry)?;
            }
        }
        self.begin_content(size, purpose);
        Ok(())
    }

    /// Adds an entry to the tree. The content of a file follows at the current offset.
    fn add_to_tree(&mut self, path: &str, entry: TarEntry) -> Result<(), EntryProblem> {
        let TarEntry {
            entry_type,
            link,
            size,
            mode,
            mtime_ns,
            xattrs,
            ..
        } = entry;
        let target = ShownEntryName::new(&link);
        let attributes = xattrs
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_slice()));
        let attributes = ExtendedAttributes::pack(attributes);
        let entry = |kind, mode| Entry {
            kind,
            mode,
            mtime_ns,
            xattrs: ExtendedAttributes::from_packed(&attributes),
        };
        let offset = self.offset;
        let added = match entry_type {
            EntryType::Folder => self.tree.insert(path, &entry(Kind::Folder, mode)),
            EntryType::File => self.tree.insert(path, &entry(Kind::File { offset, size }, mode)),
            EntryType::Symlink => {
                let target = name::parse_symlink_target(&link)?;
                self.tree
                    .insert(path, &entry(Kind::Symlink { target: &target }, 0o777))
            }
            EntryType::HardLink => match EntryRole::from_entry_name(&link)? {
                EntryRole::InContext(target) => self.tree.insert_hard_link_or_copy_of_symlink(path, &target),
                EntryRole::ContextRoot => Err(TreeConflict::FolderTarget),
                _ => return Err(EntryProblem::HardLinkOutside { target }),
            },
            // Labels are not in the tree.
            EntryType::Label => return Ok(()),
        };
        let shown = |path: String| ShownEntryName::new(format!("context/{path}").as_bytes());
        added.map_err(|conflict| match conflict {
            TreeConflict::InFile(parent) => EntryProblem::InFile {
                parent: shown(parent),
            },
            TreeConflict::ThroughLink(parent) => EntryProblem::ThroughLink {
                parent: shown(parent),
            },
            TreeConflict::ReplacesFolder => EntryProblem::ReplacesFolder,
            TreeConflict::NoTarget => EntryProblem::HardLinkToNothing { target },
            TreeConflict::FolderTarget => EntryProblem::HardLinkToFolder { target },
        })
    }

    /// Begins the content of an entry, of `size` bytes: it is collected if it has a purpose, and skipped otherwise.
    fn begin_content(&mut self, size: u64, purpose: Option<CollectedEntryKind>) {
        let padding = size.next_multiple_of(BLOCK_BYTES as u64) - size;
        let collector = purpose.map(|purpose| ContentCollector {
            purpose,
            bytes: Vec::new(),
        });
        self.state = ReaderState::Content {
            left: size,
            padding,
            collector,
        };
    }

    /// Interprets the collected content of an entry by its purpose.
    fn interpret_content(
        &mut self,
        ContentCollector { purpose, bytes }: ContentCollector,
    ) -> Result<(), ArchiveError> {
        match purpose {
            CollectedEntryKind::Config if self.config.as_ref().is_some_and(|other| *other != bytes) => {
                return Err(self.entry_error(EntryProblem::Contradictory));
            }
            CollectedEntryKind::Secrets if self.secrets.as_ref().is_some_and(|other| *other != bytes) => {
                return Err(self.entry_error(EntryProblem::Contradictory));
            }
            CollectedEntryKind::Config => self.config = Some(bytes),
            CollectedEntryKind::Secrets => self.secrets = Some(bytes),
            CollectedEntryKind::LongName => {
                self.add_extended_headers(ExtendedHeaders::with_name(without_trailing_nuls(bytes)))?
            }
            CollectedEntryKind::LongLink => {
                self.add_extended_headers(ExtendedHeaders::with_link(without_trailing_nuls(bytes)))?
            }
            CollectedEntryKind::Records => {
                self.add_extended_headers(ExtendedHeaders::with_records(self.parse_pax_records(&bytes)?))?
            }
            CollectedEntryKind::GlobalRecords => {
                let records = self.parse_pax_records(&bytes)?;
                if let Some(field) = records.field_forbidden_in_global_header() {
                    return Err(self.entry_error(EntryProblem::GlobalField { field }));
                }
                self.global_mtime_ns = records.mtime_ns;
            }
        }
        Ok(())
    }

    /// Adds extended headers to those of the next entry.
    fn add_extended_headers(&mut self, more: ExtendedHeaders) -> Result<(), ArchiveError> {
        self.extended
            .add_extended_header(more)
            .map_err(|problem| self.entry_error(problem))
    }

    fn parse_pax_records(&self, bytes: &[u8]) -> Result<PaxRecords, ArchiveError> {
        PaxRecords::parse(bytes).map_err(|reason| self.entry_error(EntryProblem::Extension { reason }))
    }

    /// Returns the error that rejects the current entry because of `problem`.
    fn entry_error(&self, problem: EntryProblem) -> ArchiveError {
        ArchiveError::Entry {
            entry: self.current.clone(),
            problem,
        }
    }
}

/// Returns the smaller of two lengths.
fn min_length(wanted: u64, available: usize) -> usize {
    usize::try_from(wanted).unwrap_or(usize::MAX).min(available)
}

/// Returns a long name without the NULs after it, of which GNU tar writes one.
fn without_trailing_nuls(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().rposition(|byte| *byte != 0);
    bytes.truncate(end.map_or(0, |at| at + 1));
    bytes
}

/// Returns the error for a tar that is still compressed after the gzip or zstd of the body was undone: `start` begins
/// with the magic number of a compression format. Returns `None` for any other.
fn compressed_tar_error(start: &[u8]) -> Option<ArchiveError> {
    const COMPRESSION_MAGICS: [(&[u8], &str); 4] = [
        (b"\x1f\x8b", "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"BZh", "bzip2"),
        (b"\xfd7zXZ\0", "xz"),
    ];
    let known = COMPRESSION_MAGICS
        .iter()
        .find(|(magic, _)| start.starts_with(magic));
    known.map(|(_, format)| ArchiveError::Compressed { format })
}

#[cfg(test)]
mod tests;
