//! Reads the tar of a build request as it arrives, in pieces of any size, and notes what lies where.
//!
//! Nothing is kept of the content but the two small files that go with the context. Whoever feeds the pieces keeps
//! them in a [`Spool`](super::Spool): the offsets noted here are offsets into what was fed.
//!
//! Formats: v7, ustar, GNU (long names), PAX. Where two tars would read an archive differently, it is refused rather
//! than read in one of the ways: sparse files, content after the end, folders with content.

mod described;
mod error;
mod header;
mod limits;
mod name;
mod pax;

pub use error::{ArchiveError, EntryName, EntryProblem};
pub use limits::ArchiveLimits;

use described::{Described, Extensions, Type};
use header::{BLOCK, Header};
use name::Place;
use pax::Records;

use super::content::ContentHasher;
use super::tree::{Conflict, Tree};
use super::{Attributes, ContentHash, Entry, Index, Kind};

/// Longest extended header, or long name, in bytes.
const EXTENSION_MAX: u64 = 1 << 20;
/// How many names of ignored entries are kept.
const IGNORED_SHOWN: usize = 5;

/// What was in a tar.
pub struct Contents {
    /// The entries of `context/`.
    pub entries: Index,
    /// The last `com.openfaas.docker.config`.
    pub config: Option<Vec<u8>>,
    /// The last `com.openfaas.secrets`.
    pub secrets: Option<Vec<u8>>,
    /// What its sender might want to know.
    pub warnings: Vec<String>,
}

/// A tar that is being read.
pub struct ArchiveReader {
    limits: ArchiveLimits,
    offset: u64,
    state: State,
    block: Box<[u8; BLOCK]>,
    /// Said by extended headers of the entry to come.
    next: Extensions,
    /// The time of entries that say none themselves, from a global header.
    global_mtime_ns: Option<i64>,
    /// The entry that was begun last.
    last: EntryName,
    /// Entries so far, without those only implied.
    headers: usize,
    seen_context: bool,
    tree: Tree,
    hasher: Box<ContentHasher>,
    /// The file of the context whose content is being read.
    file: Option<u32>,
    config: Option<Vec<u8>>,
    secrets: Option<Vec<u8>>,
    ignored: Vec<EntryName>,
    ignored_count: usize,
}

enum State {
    /// In a header block, of which this much is there.
    Header(usize),
    /// In the content of an entry and its padding.
    Content {
        left: u64,
        padding: u64,
        sink: Option<Sink>,
    },
    /// After the end.
    End,
}

/// Content that is read here.
struct Sink {
    meaning: Meaning,
    bytes: Vec<u8>,
}

enum Meaning {
    Records,
    GlobalRecords,
    LongName,
    LongLink,
    Config,
    Secrets,
}

impl ArchiveReader {
    /// A reader at the start of a tar.
    pub fn new(limits: ArchiveLimits) -> Self {
        Self {
            limits: limits.that_can_be(),
            offset: 0,
            state: State::Header(0),
            block: Box::new([0; BLOCK]),
            next: Extensions::default(),
            global_mtime_ns: None,
            last: EntryName::start(),
            headers: 0,
            seen_context: false,
            tree: Tree::default(),
            hasher: Box::default(),
            file: None,
            config: None,
            secrets: None,
            ignored: Vec::new(),
            ignored_count: 0,
        }
    }

    /// Reads the next piece.
    ///
    /// # Errors
    /// As soon as the tar is known to be unusable. Nothing must be fed after that.
    pub fn feed(&mut self, mut piece: &[u8]) -> Result<(), ArchiveError> {
        while !piece.is_empty() {
            let used = match &mut self.state {
                State::Header(filled) => {
                    let used = piece.len().min(BLOCK - *filled);
                    self.block[*filled..*filled + used].copy_from_slice(&piece[..used]);
                    *filled += used;
                    used
                }
                State::Content { left, padding, sink } => {
                    let content = clamp(*left, piece.len());
                    if let Some(sink) = sink {
                        sink.bytes.extend_from_slice(&piece[..content]);
                    } else if self.file.is_some() {
                        self.hasher.update(&piece[..content]);
                    }
                    *left -= content as u64;
                    let skipped = clamp(*padding, piece.len() - content);
                    *padding -= skipped as u64;
                    content + skipped
                }
                State::End => match piece.iter().position(|byte| *byte != 0) {
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
            self.advance()?;
        }
        Ok(())
    }

    /// Ends the tar.
    ///
    /// # Errors
    /// When it ends within an entry, or has nothing to build from. Missing blocks of zeros at the end are no error,
    /// as for any tar, but worth a warning.
    pub fn finish(self) -> Result<Contents, ArchiveError> {
        let within_header = matches!(self.state, State::Header(filled) if filled > 0);
        let within_content = matches!(self.state, State::Content { .. });
        if self.offset == 0 {
            return Err(ArchiveError::Empty);
        }
        if self.offset < BLOCK as u64 {
            return Err(compression(&self.block[..]).unwrap_or(ArchiveError::NotTar));
        }
        if within_header || within_content || !self.next.is_empty() {
            return Err(ArchiveError::Truncated {
                offset: self.offset,
                within: self.last,
            });
        }
        if !self.seen_context {
            return Err(ArchiveError::NoContext);
        }
        let mut warnings = Vec::new();
        if !matches!(self.state, State::End) {
            warnings
                .push("the tar has no end: if entries are missing, its sender was interrupted".to_owned());
        }
        if self.ignored_count > 0 {
            let names: Vec<String> = self.ignored.iter().map(ToString::to_string).collect();
            warnings.push(format!(
                "{} entries outside of context/ are ignored, such as {}",
                self.ignored_count,
                names.join(", ")
            ));
        }
        Ok(Contents {
            entries: self.tree.into_index(),
            config: self.config,
            secrets: self.secrets,
            warnings,
        })
    }

    /// Does what is due once a header or an entry's content is complete.
    fn advance(&mut self) -> Result<(), ArchiveError> {
        if let State::Header(BLOCK) = self.state {
            self.header()?;
        }
        if let State::Content {
            left: 0,
            padding: 0,
            sink,
        } = &mut self.state
        {
            let sink = sink.take();
            self.state = State::Header(0);
            self.know_content();
            return sink.map_or(Ok(()), |sink| self.take(sink));
        }
        Ok(())
    }

    /// A file's content has been read.
    fn know_content(&mut self) {
        if let Some(file) = self.file.take() {
            self.tree.set_content(file, self.hasher.finish());
        }
    }

    fn header(&mut self) -> Result<(), ArchiveError> {
        if self.block.iter().all(|byte| *byte == 0) {
            if !self.next.is_empty() {
                return Err(ArchiveError::Truncated {
                    offset: self.offset,
                    within: self.last.clone(),
                });
            }
            self.state = State::End;
            return Ok(());
        }
        let block = *self.block;
        let start = self.offset - BLOCK as u64;
        let Some(header) = Header::parse(&block) else {
            return Err(match start {
                0 => compression(&block[..]).unwrap_or(ArchiveError::NotTar),
                _ => ArchiveError::Checksum {
                    offset: start,
                    after: self.last.clone(),
                },
            });
        };
        let extension = match header.flag() {
            b'x' => Some(Meaning::Records),
            b'g' => Some(Meaning::GlobalRecords),
            b'L' => Some(Meaning::LongName),
            b'K' => Some(Meaning::LongLink),
            _ => None,
        };
        match extension {
            Some(meaning) => {
                self.last = EntryName::new(&header.name());
                self.extension(&header, meaning)
                    .map_err(|problem| self.refuse(problem))
            }
            None => self.entry(&header),
        }
    }

    fn extension(&mut self, header: &Header<'_>, meaning: Meaning) -> Result<(), EntryProblem> {
        let size = header.size().ok_or(EntryProblem::Number { field: "size" })?;
        match u64::try_from(size) {
            Ok(size) if size <= EXTENSION_MAX => {
                self.content(size, Some(meaning));
                Ok(())
            }
            _ => Err(EntryProblem::ExtensionTooLarge {
                size,
                limit: EXTENSION_MAX,
            }),
        }
    }

    fn entry(&mut self, header: &Header<'_>) -> Result<(), ArchiveError> {
        let extensions = std::mem::take(&mut self.next);
        let name = extensions.name(header);
        self.last = EntryName::new(&name);
        Described::read(name, header, extensions, self.global_mtime_ns, self.limits.body)
            .and_then(|described| self.place(described))
            .map_err(|problem| self.refuse(problem))?;
        self.headers += 1;
        if self.headers.max(self.tree.len()) > self.limits.entries {
            return Err(ArchiveError::TooManyEntries {
                limit: self.limits.entries,
            });
        }
        if self.tree.bytes() > self.limits.index {
            return Err(ArchiveError::IndexTooLarge {
                limit: self.limits.index,
            });
        }
        Ok(())
    }

    /// Puts an entry where it belongs, and gets ready for its content.
    fn place(&mut self, entry: Described) -> Result<(), EntryProblem> {
        let size = entry.size;
        let mut meaning = None;
        match Place::of(&entry.name)? {
            Place::Root | Place::Context if entry.what != Type::Folder => {
                return Err(EntryProblem::NotAFolder);
            }
            Place::Config | Place::Secrets if entry.what != Type::File => return Err(EntryProblem::NotAFile),
            Place::Config | Place::Secrets if size > self.limits.small_file as u64 => {
                return Err(EntryProblem::FileTooLarge {
                    limit: self.limits.small_file,
                });
            }
            Place::Root => {}
            Place::Context => self.seen_context = true,
            Place::Config => meaning = Some(Meaning::Config),
            Place::Secrets => meaning = Some(Meaning::Secrets),
            Place::Elsewhere => {
                self.ignored_count += 1;
                if self.ignored.len() < IGNORED_SHOWN {
                    self.ignored.push(self.last.clone());
                }
            }
            Place::InContext(path) => {
                self.seen_context = true;
                self.file = self.add(&path, entry)?;
            }
        }
        self.content(size, meaning);
        Ok(())
    }

    /// Adds an entry to the context, and says the number of one whose content follows.
    fn add(&mut self, path: &str, entry: Described) -> Result<Option<u32>, EntryProblem> {
        let Described {
            what,
            link,
            size,
            mode,
            mtime_ns,
            xattrs,
            ..
        } = entry;
        let target = EntryName::new(&link);
        let attributes = xattrs
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_slice()));
        let attributes = Attributes::pack(attributes);
        let entry = |kind, mode| Entry {
            kind,
            mode,
            mtime_ns,
            xattrs: Attributes::packed(&attributes),
            content: ContentHash::default(),
        };
        let offset = self.offset;
        let added = match what {
            Type::Folder => self
                .tree
                .insert(path, &entry(Kind::Directory, mode))
                .map(|_| None),
            Type::File => self
                .tree
                .insert(path, &entry(Kind::File { offset, size }, mode))
                .map(Some),
            Type::Symlink => {
                let target = name::symlink_target(&link)?;
                self.tree
                    .insert(path, &entry(Kind::Symlink { target: &target }, 0o777))
                    .map(|_| None)
            }
            Type::HardLink => match Place::of(&link)? {
                Place::InContext(target) => self.tree.link(path, &target).map(|()| None),
                Place::Context => Err(Conflict::FolderTarget),
                _ => return Err(EntryProblem::HardLinkOutside { target }),
            },
        };
        let shown = |path: String| EntryName::new(format!("context/{path}").as_bytes());
        added.map_err(|conflict| match conflict {
            Conflict::InFile(parent) => EntryProblem::InFile {
                parent: shown(parent),
            },
            Conflict::ThroughLink(parent) => EntryProblem::ThroughLink {
                parent: shown(parent),
            },
            Conflict::ReplacesFolder => EntryProblem::ReplacesFolder,
            Conflict::NoTarget => EntryProblem::HardLinkToNothing { target },
            Conflict::FolderTarget => EntryProblem::HardLinkToFolder { target },
        })
    }

    fn content(&mut self, size: u64, meaning: Option<Meaning>) {
        let padding = size.next_multiple_of(BLOCK as u64) - size;
        let sink = meaning.map(|meaning| Sink {
            meaning,
            bytes: Vec::new(),
        });
        self.state = State::Content {
            left: size,
            padding,
            sink,
        };
    }

    /// Understands content that was collected.
    fn take(&mut self, Sink { meaning, bytes }: Sink) -> Result<(), ArchiveError> {
        match meaning {
            Meaning::Config => self.config = Some(bytes),
            Meaning::Secrets => self.secrets = Some(bytes),
            Meaning::LongName => self.extend(Extensions::with_name(unterminated(bytes)))?,
            Meaning::LongLink => self.extend(Extensions::with_link(unterminated(bytes)))?,
            Meaning::Records => self.extend(Extensions::with_records(self.records(&bytes)?))?,
            Meaning::GlobalRecords => {
                let records = self.records(&bytes)?;
                if let Some(field) = records.of_one_entry() {
                    return Err(self.refuse(EntryProblem::GlobalField { field }));
                }
                self.global_mtime_ns = records.mtime_ns;
            }
        }
        Ok(())
    }

    fn extend(&mut self, more: Extensions) -> Result<(), ArchiveError> {
        self.next.add(more).map_err(|problem| self.refuse(problem))
    }

    fn records(&self, bytes: &[u8]) -> Result<Records, ArchiveError> {
        Records::parse(bytes).map_err(|reason| self.refuse(EntryProblem::Extension { reason }))
    }

    fn refuse(&self, problem: EntryProblem) -> ArchiveError {
        ArchiveError::Entry {
            entry: self.last.clone(),
            problem,
        }
    }
}

fn clamp(wanted: u64, available: usize) -> usize {
    usize::try_from(wanted).unwrap_or(usize::MAX).min(available)
}

/// Long names are written with a NUL behind them.
fn unterminated(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.last() == Some(&0) {
        bytes.pop();
    }
    bytes
}

/// The compression that a file with these first bytes has.
fn compression(start: &[u8]) -> Option<ArchiveError> {
    const MAGICS: [(&[u8], &str); 4] = [
        (b"\x1f\x8b", "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"BZh", "bzip2"),
        (b"\xfd7zXZ\0", "xz"),
    ];
    let known = MAGICS.iter().find(|(magic, _)| start.starts_with(magic));
    known.map(|(_, format)| ArchiveError::Compressed { format })
}

#[cfg(test)]
mod tests;
