//! Where a body waits until it is known to be wanted: in memory while it is small, then in a file without a name.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Where and from which size on a spool goes to disk.
#[derive(Clone, Debug)]
pub struct SpoolSettings {
    /// Folder for the file. It never has a name there (`O_TMPFILE`, or removed as soon as it is made).
    pub dir: PathBuf,
    /// Bytes that are kept in memory before the file is made.
    pub memory: usize,
}

impl SpoolSettings {
    /// Whether a file can be made there, to be known before it is needed.
    ///
    /// # Errors
    /// When it cannot.
    pub fn check(&self) -> Result<(), SpoolError> {
        tempfile::tempfile_in(&self.dir).map_err(|source| self.failed(source))?;
        Ok(())
    }

    fn failed(&self, source: io::Error) -> SpoolError {
        let dir = self.dir.clone();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => SpoolError::Full { dir },
            _ => SpoolError::Io { dir, source },
        }
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
    settings: SpoolSettings,
    store: Store,
    len: u64,
}

enum Store {
    Memory(Vec<u8>),
    File(File),
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
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
            settings,
            store: Store::Memory(Vec::new()),
            len: 0,
        }
    }

    /// One that holds `bytes` already.
    pub fn in_memory(bytes: Vec<u8>) -> Self {
        let settings = SpoolSettings {
            dir: std::env::temp_dir(),
            memory: usize::MAX,
        };
        Self {
            settings,
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
    /// When the spool folder is full, missing or not writable. What was appended before stays readable.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), SpoolError> {
        self.try_append(bytes)
            .map_err(|source| self.settings.failed(source))
    }

    fn try_append(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.store {
            Store::File(file) => file.write_all(bytes)?,
            Store::Memory(held) if held.len() + bytes.len() <= self.settings.memory => {
                held.extend_from_slice(bytes);
            }
            Store::Memory(held) => {
                // `O_TMPFILE`, or made and removed at once where the file system has no such thing.
                let mut file = tempfile::tempfile_in(&self.settings.dir)?;
                file.write_all(held)?;
                file.write_all(bytes)?;
                self.store = Store::File(file);
            }
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

    fn settings(memory: usize) -> (tempfile::TempDir, SpoolSettings) {
        let dir = tempfile::tempdir().unwrap();
        let settings = SpoolSettings {
            dir: dir.path().to_owned(),
            memory,
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
        assert!(settings.check().is_err());
    }

    #[test]
    fn a_full_disk_is_told_from_a_broken_one() {
        let (_dir, settings) = settings(0);
        assert!(settings.check().is_ok());
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            assert!(matches!(settings.failed(kind.into()), SpoolError::Full { .. }));
        }
        assert!(matches!(
            settings.failed(io::ErrorKind::PermissionDenied.into()),
            SpoolError::Io { .. }
        ));
    }
}
