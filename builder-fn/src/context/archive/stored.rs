//! Reads a stored tar: its headers and small contents. Large contents are skipped.

use std::io;

use super::{ArchiveContents, ArchiveError, ArchiveReader};
use crate::context::Spool;

/// The number of bytes that are read at once where entries are small, so that one read has many of them.
const MAX_READ_BYTES: usize = 64 << 10;

/// The number of bytes that are read at once after a large content was skipped: enough for a header with its extensions.
const READ_BYTES_AFTER_SKIP: usize = 4 << 10;

/// The reason why a stored tar cannot be indexed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The tar is unusable.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The spool cannot be read.
    #[error("could not read the spool")]
    Spool(#[from] io::Error),
}

impl ArchiveReader {
    /// Indexes the tar in `spool`, from its start to its end, without reading large contents. Blocks while the spool's
    /// file is read.
    ///
    /// # Errors
    /// Fails if the tar is unusable or the spool cannot be read.
    pub fn read(self, spool: &Spool) -> Result<ArchiveContents, ReadError> {
        self.read_with(spool.len(), |buffer, offset| spool.read_at(buffer, offset))
    }

    /// Reads a tar of `len` bytes with `read_at`, which fills a buffer from an offset on.
    fn read_with(
        mut self,
        len: u64,
        mut read_at: impl FnMut(&mut [u8], u64) -> io::Result<usize>,
    ) -> Result<ArchiveContents, ReadError> {
        let mut buffer = vec![0; usize::try_from(len).unwrap_or(MAX_READ_BYTES).min(MAX_READ_BYTES)];
        let mut wanted = MAX_READ_BYTES;
        let mut offset = 0;
        while offset < len {
            let end = wanted.min(buffer.len());
            let count = read_at(&mut buffer[..end], offset)?;
            if count == 0 {
                return Err(ReadError::Spool(io::ErrorKind::UnexpectedEof.into()));
            }
            self.parse_piece(&buffer[..count])?;
            offset += count as u64;
            let skipped = self.skip_content(len.saturating_sub(offset))?;
            offset += skipped;
            wanted = match skipped > MAX_READ_BYTES as u64 {
                true => READ_BYTES_AFTER_SKIP,
                false => (wanted * 2).min(MAX_READ_BYTES),
            };
        }
        Ok(self.finish()?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::TarBuilder;
    use super::*;
    use crate::context::ArchiveLimits;

    /// Reads a tar once in one piece and once as a stored one, and returns the outcomes.
    fn outcomes_of_whole_and_stored_reading(tar: &[u8]) -> [Result<String, String>; 2] {
        let limits = ArchiveLimits::default;
        let mut fed = ArchiveReader::new(limits());
        let fed = fed.parse_piece(tar).and_then(|()| fed.finish());
        let stored = ArchiveReader::new(limits()).read(&Spool::in_memory(tar.to_vec()));
        let shown = |contents: ArchiveContents| {
            format!(
                "{:?} {:?} {:?} {:?}",
                contents.entries, contents.config, contents.secrets, contents.warnings
            )
        };
        [
            fed.map(shown).map_err(|error| error.to_string()),
            stored.map(shown).map_err(|error| error.to_string()),
        ]
    }

    #[test]
    fn a_stored_tar_has_the_entries_of_one_that_is_read_whole_and_ends_where_it_ends() {
        let sizes = [
            0,
            1,
            511,
            512,
            513,
            READ_BYTES_AFTER_SKIP,
            MAX_READ_BYTES - 512,
            MAX_READ_BYTES,
            MAX_READ_BYTES + 1,
            300_000,
        ];
        let mut tar = TarBuilder::default();
        for (at, size) in sizes.into_iter().chain(sizes.into_iter().rev()).enumerate() {
            tar = tar
                .with_pax_header(
                    b'x',
                    &[("mtime", &b"12.5"[..]), ("SCHILY.xattr.user.a", &[b'v'; 700][..])],
                )
                .with_file(&format!("context/{at}"), &vec![7; size]);
        }
        let whole = tar
            .with_file("com.openfaas.docker.config", b"{}")
            .with_end_marker()
            .0;
        let [fed, stored] = outcomes_of_whole_and_stored_reading(&whole);
        assert!(fed.is_ok(), "{fed:?}");
        assert_eq!(fed, stored);
        for cut in (0..whole.len()).step_by(4099) {
            let [fed, stored] = outcomes_of_whole_and_stored_reading(&whole[..cut]);
            assert_eq!(fed, stored, "cut at {cut}");
        }
    }

    #[test]
    fn large_contents_are_read_only_at_their_beginnings() {
        let mut tar = TarBuilder::default();
        for number in 0..10 {
            tar = tar.with_file(&format!("context/{number}"), &vec![7; 1 << 20]);
        }
        let tar = tar.with_end_marker().0;
        let mut bytes_read = 0;
        let contents = ArchiveReader::new(ArchiveLimits::default())
            .read_with(tar.len() as u64, |buffer, offset| {
                let count = Spool::in_memory(tar.clone()).read_at(buffer, offset)?;
                bytes_read += count;
                Ok(count)
            })
            .unwrap();
        assert_eq!(contents.entries.len(), 10);
        assert!(
            bytes_read <= MAX_READ_BYTES + 10 * READ_BYTES_AFTER_SKIP,
            "{bytes_read}"
        );
    }

    #[test]
    fn a_spool_that_ends_early_is_an_error_of_the_spool() {
        let read = ArchiveReader::new(ArchiveLimits::default()).read_with(1024, |_, _| Ok(0));
        assert!(matches!(read, Err(ReadError::Spool(error)) if error.kind() == io::ErrorKind::UnexpectedEof));
    }
}
