//! A spool: the bytes of a request's body or of a fetched context, in memory while few, then in an unnamed file.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::SpoolQuota;
use super::block_hashes::{BlockHashes, BlocksOfRange};
use super::write_behind::WriteBehind;

/// The settings of a spool: its folder, its memory and its quota.
#[derive(Clone, Debug)]
pub struct SpoolSettings {
    /// The folder for the spool's file. The file has no name there (`O_TMPFILE`, or it is removed as soon as it is
    /// created).
    pub folder: PathBuf,
    /// The largest number of bytes that are kept in memory; a longer spool is moved to a file.
    pub memory: usize,
    /// The quota on bytes that all spools share.
    pub quota: SpoolQuota,
}

/// Checks that a spool file can be created in `folder`, so that a failure shows before a body arrives.
///
/// # Errors
/// Fails if it cannot be created.
pub(crate) fn check_spool_folder_writable(folder: &Path) -> Result<(), SpoolError> {
    tempfile::tempfile_in(folder).map_err(|source| to_spool_error(folder, source))?;
    Ok(())
}

/// Converts an I/O error in the spool folder; a full disk has a variant of its own.
fn to_spool_error(folder: &Path, source: io::Error) -> SpoolError {
    let folder = folder.to_owned();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => SpoolError::Full { folder },
        _ => SpoolError::Io { folder, source },
    }
}

/// The reason why bytes cannot be spooled.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The file system of the spool folder is full, or a disk quota on it is reached.
    #[error("no space left in the spool folder {folder}")]
    Full {
        /// The path of the spool folder.
        folder: PathBuf,
    },
    /// The bytes of all requests together would exceed the builder's spool quota, or those of one tenant its share of
    /// it.
    #[error(
        "the requests in progress use all of the {limit} bytes that this builder may spool (spool_limit), of which one tenant \
         may use as many as it leaves free"
    )]
    Quota {
        /// The builder's quota in bytes.
        limit: u64,
    },
    /// Spooling failed with another I/O error.
    #[error("could not write to the spool folder {folder}")]
    Io {
        /// The path of the spool folder.
        folder: PathBuf,
        /// The I/O error of the operating system.
        #[source]
        source: io::Error,
    },
}

/// A spool of bytes that are appended once and read at any offset. Dropping the spool frees them, which may wait for
/// the disk; so does the kernel when the process dies.
#[derive(Debug)]
pub struct Spool {
    /// The folder for the spool's file; `None` for bytes that were in memory already, and stay there.
    folder: Option<PathBuf>,
    /// The largest number of bytes that are kept in memory; a longer spool is moved to a file.
    memory: usize,
    /// The quota that the bytes count against; `None` if they are not counted.
    quota: Option<SpoolQuota>,
    store: SpoolStore,
    len: u64,
    /// The hashes of the blocks; `None` if they are not wanted. Boxed, because a hasher has 2 KB.
    blocks: Option<Box<BlockHashes>>,
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Some(quota) = &self.quota {
            quota.release_bytes(self.len);
        }
    }
}

/// The place of a spool's bytes: memory or a file.
enum SpoolStore {
    Memory(Vec<u8>),
    File(Box<WrittenFile>),
}

/// A file that is written from its beginning to its end.
struct WrittenFile {
    file: File,
    write_behind: WriteBehind,
}

impl WrittenFile {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.write_behind.record_written(&self.file, bytes.len() as u64);
        Ok(())
    }
}

impl fmt::Debug for SpoolStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SpoolStore::Memory(_) => "Memory",
            SpoolStore::File(_) => "File",
        })
    }
}

impl Spool {
    /// Creates an empty spool whose bytes count against the quota in `settings`. It has no file at first.
    pub fn new(settings: SpoolSettings) -> Self {
        let mut spool = Self::uncounted(&settings);
        spool.quota = Some(settings.quota);
        spool
    }

    /// Creates an empty spool whose bytes count against no quota, until [`count_against`](Self::count_against).
    pub(crate) fn uncounted(settings: &SpoolSettings) -> Self {
        Self {
            folder: Some(settings.folder.clone()),
            memory: settings.memory,
            quota: None,
            store: SpoolStore::Memory(Vec::new()),
            len: 0,
            blocks: None,
        }
    }

    /// Creates a spool that holds `bytes` in memory, and counts against no quota.
    pub fn in_memory(bytes: Vec<u8>) -> Self {
        Self {
            folder: None,
            memory: usize::MAX,
            quota: None,
            len: bytes.len() as u64,
            store: SpoolStore::Memory(bytes),
            blocks: None,
        }
    }

    /// Hashes the blocks of the spool's file while it is written, so that large files in it are compared without reading
    /// them. Only for an empty spool.
    pub(crate) fn with_block_hashes(mut self) -> Self {
        self.blocks = self.is_empty().then(Box::default);
        self
    }

    /// Stops hashing blocks, and forgets the hashes, to save the time that they take.
    pub(crate) fn drop_block_hashes(&mut self) {
        self.blocks = None;
    }

    /// Returns the blocks that are whole within a range of bytes; `None` if there are none, or blocks are not hashed.
    pub(super) fn blocks_of_range(&self, range: Range<u64>) -> Option<BlocksOfRange<'_>> {
        self.blocks.as_ref()?.blocks_of_range(range)
    }

    /// Creates a spool that holds `bytes` in memory, and hashes its blocks, of `block_bytes` each, for files of any size.
    #[cfg(test)]
    pub(crate) fn in_memory_with_blocks_of(block_bytes: usize, bytes: Vec<u8>) -> Self {
        let mut blocks = BlockHashes::with_lengths(block_bytes, 0);
        blocks.add_piece(&bytes);
        let mut spool = Self::in_memory(bytes);
        spool.blocks = Some(Box::new(blocks));
        spool
    }

    /// Counts the bytes of the spool against `quota` from now on.
    ///
    /// # Errors
    /// Fails if they exceed it.
    pub(crate) fn count_against(mut self, quota: &SpoolQuota) -> Result<Self, SpoolError> {
        if !quota.try_reserve_bytes(self.len) {
            let limit = quota.limit();
            return Err(SpoolError::Quota { limit });
        }
        self.quota = Some(quota.clone());
        Ok(self)
    }

    /// Moves the bytes of the spool, and those that follow, to a file. Blocks while the file is written. A spool that
    /// was made [`in_memory`](Self::in_memory) stays there.
    ///
    /// # Errors
    /// Fails if the spool folder is full, missing or not writable.
    pub(crate) fn move_to_disk_unless_memory_only(&mut self) -> Result<(), SpoolError> {
        if self.folder.is_none() {
            return Ok(());
        }
        match self.move_to_file() {
            Ok(_) => Ok(()),
            Err(source) => Err(to_spool_error(self.folder_or_empty(), source)),
        }
    }

    fn folder_or_empty(&self) -> &Path {
        self.folder.as_deref().unwrap_or(Path::new(""))
    }

    /// Appends bytes in memory, or, once there are too many, to a file.
    fn store(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let SpoolStore::Memory(held) = &mut self.store
            && held.len() + bytes.len() <= self.memory
        {
            held.extend_from_slice(bytes);
            return Ok(());
        }
        self.move_to_file()?.write_all(bytes)?;
        if let Some(blocks) = &mut self.blocks {
            blocks.add_piece(bytes);
        }
        Ok(())
    }

    /// Writes what is in memory to a file, unless that was done before, and returns the file.
    fn move_to_file(&mut self) -> io::Result<&mut WrittenFile> {
        if let SpoolStore::Memory(held) = &mut self.store {
            // `O_TMPFILE`, or created and removed at once on file systems without it.
            let file = tempfile::tempfile_in(self.folder.as_deref().unwrap_or(Path::new("")))?;
            let write_behind = WriteBehind::default();
            let mut file = WrittenFile { file, write_behind };
            file.write_all(held)?;
            if let Some(blocks) = &mut self.blocks {
                blocks.add_piece(held);
            }
            self.store = SpoolStore::File(Box::new(file));
        }
        match &mut self.store {
            SpoolStore::File(file) => Ok(file),
            SpoolStore::Memory(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Returns the number of bytes in the spool.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns whether the spool holds no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns whether the bytes of the spool are in a file.
    pub fn is_on_disk(&self) -> bool {
        matches!(self.store, SpoolStore::File(_))
    }

    /// Appends bytes to the spool, and counts them against the quota. Blocks while the file is written.
    ///
    /// # Errors
    /// Fails if the spool folder is full, missing or not writable, or the quota is exceeded. Bytes appended before stay
    /// readable.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), SpoolError> {
        let more = bytes.len() as u64;
        if let Some(quota) = self.quota.as_ref().filter(|quota| !quota.try_reserve_bytes(more)) {
            let limit = quota.limit();
            return Err(SpoolError::Quota { limit });
        }
        if let Err(source) = self.store(bytes) {
            if let Some(quota) = &self.quota {
                quota.release_bytes(more);
            }
            return Err(to_spool_error(self.folder_or_empty(), source));
        }
        self.len += more;
        Ok(())
    }

    /// Reads bytes of the spool from `offset` on into `buffer`, and returns the number of bytes read; 0 at the end.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match &self.store {
            SpoolStore::Memory(held) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(held.len());
                let count = buffer.len().min(held.len() - start);
                buffer[..count].copy_from_slice(&held[start..start + count]);
                Ok(count)
            }
            SpoolStore::File(file) => loop {
                match file.file.read_at(buffer, offset) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    result => return result,
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use function_host::prometheus::IntGauge;

    use super::*;

    fn quota_with_limit(limit: u64) -> SpoolQuota {
        SpoolQuota::new(limit, IntGauge::new("used", "used").unwrap())
    }

    fn spool_settings(memory: usize) -> (tempfile::TempDir, SpoolSettings) {
        let dir = tempfile::tempdir().unwrap();
        let settings = SpoolSettings {
            folder: dir.path().to_owned(),
            memory,
            quota: quota_with_limit(u64::MAX),
        };
        (dir, settings)
    }

    #[test]
    fn a_spool_reads_back_the_appended_bytes_from_memory_and_from_disk() {
        for memory in [0, 4, 10, 11, 100] {
            let (dir, settings) = spool_settings(memory);
            let mut spool = Spool::new(settings);
            for piece in [&b"0123"[..], b"", b"456789", b"X"] {
                spool.append(piece).unwrap();
            }
            assert_eq!((spool.len(), spool.is_on_disk()), (11, memory < 11));
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
    fn a_spool_needs_no_folder_until_its_memory_is_full() {
        let (dir, settings) = spool_settings(3);
        drop(dir);
        let mut spool = Spool::new(settings.clone());
        spool.append(b"abc").unwrap();
        assert!(matches!(spool.append(b"d"), Err(SpoolError::Io { .. })));
        let mut buffer = [0; 9];
        assert_eq!(
            spool.read_at(&mut buffer, 0).unwrap(),
            3,
            "bytes appended before stay readable"
        );
        assert!(check_spool_folder_writable(&settings.folder).is_err());
    }

    #[test]
    fn spools_share_their_quota_and_release_it_when_dropped() {
        let (_dir, settings) = spool_settings(2);
        let settings = SpoolSettings {
            quota: quota_with_limit(10),
            ..settings
        };
        let (mut one, mut two) = (Spool::new(settings.clone()), Spool::new(settings.clone()));
        one.append(b"123456").unwrap();
        two.append(b"1234").unwrap();
        for spool in [&mut one, &mut two] {
            assert!(matches!(spool.append(b"x"), Err(SpoolError::Quota { limit: 10 })));
        }
        assert_eq!(settings.quota.used_bytes_of_all_tenants(), 10);
        drop(one);
        two.append(b"567890").unwrap();
        drop(two);
        assert_eq!(settings.quota.used_bytes_of_all_tenants(), 0);
    }

    #[test]
    fn a_full_disk_is_distinguished_from_other_errors() {
        let (_dir, settings) = spool_settings(0);
        assert!(check_spool_folder_writable(&settings.folder).is_ok());
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            assert!(matches!(
                to_spool_error(&settings.folder, kind.into()),
                SpoolError::Full { .. }
            ));
        }
        assert!(matches!(
            to_spool_error(&settings.folder, io::ErrorKind::PermissionDenied.into()),
            SpoolError::Io { .. }
        ));
    }
}
