//! Where a body waits until it is known to be wanted: in memory while it is small, then in a file without a name.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use function_host::prometheus::IntGauge;

/// Where and from which size on a spool goes to disk.
#[derive(Clone, Debug)]
pub struct SpoolSettings {
    /// Folder for the file. It never has a name there (`O_TMPFILE`, or removed as soon as it is made).
    pub dir: PathBuf,
    /// Bytes that are kept in memory before the file is made.
    pub memory: usize,
    /// Shared with all others.
    pub room: SpoolRoom,
}

/// How much all spools may hold together, and how much they do. Cloned, it is the same.
#[derive(Clone)]
pub struct SpoolRoom {
    limit: i64,
    used: IntGauge,
}

impl SpoolRoom {
    /// Room for `limit` bytes; `used` shows how many are taken.
    pub fn new(limit: u64, used: IntGauge) -> Self {
        Self {
            limit: i64::try_from(limit).unwrap_or(i64::MAX),
            used,
        }
    }

    fn take(&self, bytes: usize) -> Result<(), SpoolError> {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        // Two at a time may both be refused where one would have fitted, and never both be let in.
        self.used.add(bytes);
        if self.used.get() <= self.limit {
            return Ok(());
        }
        self.used.sub(bytes);
        Err(SpoolError::Limit { limit: self.limit })
    }

    fn give_back(&self, bytes: u64) {
        self.used.sub(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

impl fmt::Debug for SpoolRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes", self.used.get(), self.limit)
    }
}

/// Whether a file without a name can be made in `dir`, to be known before it is needed.
///
/// # Errors
/// When it cannot.
pub fn check_spool(dir: &Path) -> Result<(), SpoolError> {
    tempfile::tempfile_in(dir).map_err(|source| failed(dir, source))?;
    Ok(())
}

fn failed(dir: &Path, source: io::Error) -> SpoolError {
    let dir = dir.to_owned();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => SpoolError::Full { dir },
        _ => SpoolError::Io { dir, source },
    }
}

/// Why bytes could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The file system of the spool folder (or its quota) is full.
    #[error("no space left in the spool folder {dir}")]
    Full {
        /// The folder.
        dir: PathBuf,
    },
    /// All requests together take as much as they may.
    #[error("the requests under way take all of the {limit} bytes that the builder may spool")]
    Limit {
        /// The limit in bytes.
        limit: i64,
    },
    /// Anything else.
    #[error("the spool in {dir} failed")]
    Io {
        /// The folder.
        dir: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Bytes, appended once and read at any offset. Dropping it frees them; so does the kernel when the process dies.
#[derive(Debug)]
pub struct Spool {
    /// Nothing for what was in memory before.
    settings: Option<SpoolSettings>,
    store: Store,
    len: u64,
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Some(settings) = &self.settings {
            settings.room.give_back(self.len);
        }
    }
}

enum Store {
    Memory(Vec<u8>),
    File(File),
}

impl Store {
    fn append(&mut self, settings: &SpoolSettings, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::File(file) => file.write_all(bytes)?,
            Self::Memory(held) if held.len() + bytes.len() <= settings.memory => {
                held.extend_from_slice(bytes);
            }
            Self::Memory(held) => {
                // `O_TMPFILE`, or made and removed at once where the file system has no such thing.
                let mut file = tempfile::tempfile_in(&settings.dir)?;
                file.write_all(held)?;
                file.write_all(bytes)?;
                *self = Self::File(file);
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Store::Memory(_) => "Memory",
            Store::File(_) => "File",
        })
    }
}

impl Spool {
    /// An empty one. Nothing is made on disk yet.
    pub fn new(settings: SpoolSettings) -> Self {
        Self {
            settings: Some(settings),
            store: Store::Memory(Vec::new()),
            len: 0,
        }
    }

    /// One that holds `bytes` already.
    pub fn in_memory(bytes: Vec<u8>) -> Self {
        Self {
            settings: None,
            len: bytes.len() as u64,
            store: Store::Memory(bytes),
        }
    }

    /// Bytes held.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing was appended.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the bytes have gone to disk.
    pub fn on_disk(&self) -> bool {
        matches!(self.store, Store::File(_))
    }

    /// Appends. Blocks while the file is written.
    ///
    /// # Errors
    /// When the spool folder is full, missing or not writable, and when all spools together hold as much as they may.
    /// What was appended before stays readable.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), SpoolError> {
        if let Some(settings) = &self.settings {
            settings.room.take(bytes.len())?;
            if let Err(source) = self.store.append(settings, bytes) {
                settings.room.give_back(bytes.len() as u64);
                return Err(failed(&settings.dir, source));
            }
        } else if let Store::Memory(held) = &mut self.store {
            held.extend_from_slice(bytes);
        }
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Fills `buffer` from `offset` on, as far as there are bytes, and says how far.
    ///
    /// # Errors
    /// What reading the file yields.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match &self.store {
            Store::Memory(held) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(held.len());
                let count = buffer.len().min(held.len() - start);
                buffer[..count].copy_from_slice(&held[start..start + count]);
                Ok(count)
            }
            Store::File(file) => loop {
                match file.read_at(buffer, offset) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    result => return result,
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(limit: u64) -> SpoolRoom {
        SpoolRoom::new(limit, IntGauge::new("used", "used").unwrap())
    }

    fn settings(memory: usize) -> (tempfile::TempDir, SpoolSettings) {
        let dir = tempfile::tempdir().unwrap();
        let settings = SpoolSettings {
            dir: dir.path().to_owned(),
            memory,
            room: room(u64::MAX),
        };
        (dir, settings)
    }

    #[test]
    fn bytes_are_read_as_they_were_appended_in_memory_and_on_disk() {
        for memory in [0, 4, 10, 11, 100] {
            let (dir, settings) = settings(memory);
            let mut spool = Spool::new(settings);
            for piece in [&b"0123"[..], b"", b"456789", b"X"] {
                spool.append(piece).unwrap();
            }
            assert_eq!((spool.len(), spool.on_disk()), (11, memory < 11));
            for (offset, expected) in [
                (0, &b"01234"[..]),
                (3, b"34567"),
                (8, b"89X"),
                (11, b""),
                (999, b""),
            ] {
                let mut buffer = [0; 5];
                let count = spool.read_at(&mut buffer, offset).unwrap();
                assert_eq!(&buffer[..count], expected, "{memory}, {offset}");
            }
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn nothing_is_made_on_disk_while_memory_is_enough() {
        let (dir, settings) = settings(3);
        drop(dir);
        let mut spool = Spool::new(settings.clone());
        spool.append(b"abc").unwrap();
        assert!(matches!(spool.append(b"d"), Err(SpoolError::Io { .. })));
        // What was there before stays.
        let mut buffer = [0; 9];
        assert_eq!(spool.read_at(&mut buffer, 0).unwrap(), 3);
        assert!(check_spool(&settings.dir).is_err());
    }

    #[test]
    fn all_spools_share_their_room_and_give_it_back() {
        let (_dir, settings) = settings(2);
        let settings = SpoolSettings {
            room: room(10),
            ..settings
        };
        let (mut one, mut two) = (Spool::new(settings.clone()), Spool::new(settings.clone()));
        one.append(b"123456").unwrap();
        two.append(b"1234").unwrap();
        for spool in [&mut one, &mut two] {
            assert!(matches!(spool.append(b"x"), Err(SpoolError::Limit { limit: 10 })));
        }
        assert_eq!(settings.room.used.get(), 10);
        drop(one);
        two.append(b"567890").unwrap();
        drop(two);
        assert_eq!(settings.room.used.get(), 0);
    }

    #[test]
    fn a_full_disk_is_told_from_a_broken_one() {
        let (_dir, settings) = settings(0);
        assert!(check_spool(&settings.dir).is_ok());
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            assert!(matches!(
                failed(&settings.dir, kind.into()),
                SpoolError::Full { .. }
            ));
        }
        assert!(matches!(
            failed(&settings.dir, io::ErrorKind::PermissionDenied.into()),
            SpoolError::Io { .. }
        ));
    }
}
