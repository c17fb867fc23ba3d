//! The log of a part: a file of bounded size, and one file with older lines.

use std::{
    fs::{self, File},
    io::{self, PipeReader, Write as _},
    path::{Path, PathBuf},
};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::unix::pipe::Receiver,
};

/// The largest size of a part's log file, in bytes; it is rotated before it would exceed this.
const PART_LOG_MAX_BYTES: u64 = 8 << 20;

/// The size of the buffer for reading a part's output, in bytes.
const READ_BUFFER_BYTES: usize = 64 << 10;

/// A part's log file that is open for writing.
#[derive(Debug)]
struct PartLog {
    path: PathBuf,
    file: File,
    size: u64,
}

impl PartLog {
    /// Opens a log, which is created if it is missing, and counts the bytes that it has already.
    fn open_for_appending(path: &Path) -> io::Result<Self> {
        let file = File::options().append(true).create(true).open(path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            size,
        })
    }

    /// Appends bytes; first rotates the log if they would take it over the limit.
    fn append_after_rotating_if_full(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.size > 0 && self.size + bytes.len() as u64 > PART_LOG_MAX_BYTES {
            fs::rename(&self.path, rotated_log_path(&self.path))?;
            *self = Self::open_for_appending(&self.path)?;
        }
        self.file.write_all(bytes)?;
        self.size += bytes.len() as u64;
        Ok(())
    }
}

/// Returns the path of the file with a log's older lines.
pub(crate) fn rotated_log_path(path: &Path) -> PathBuf {
    path.with_extension("older.log")
}

/// Copies a part's output into its log, until the part and all its children have closed the pipe.
pub(crate) async fn copy_output_to_log(pipe: PipeReader, path: PathBuf) -> io::Result<()> {
    let mut log = PartLog::open_for_appending(&path)?;
    let mut pipe = BufReader::with_capacity(READ_BUFFER_BYTES, Receiver::from_owned_fd(pipe.into())?);
    loop {
        let read = pipe.fill_buf().await?;
        if read.is_empty() {
            return Ok(());
        }
        log.append_after_rotating_if_full(read)?;
        let length = read.len();
        pipe.consume(length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parts_log_stays_within_its_size_limit_and_is_continued_when_reopened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("part.log");
        let mut log = PartLog::open_for_appending(&path).unwrap();
        let mebibyte = vec![b'x'; 1 << 20];
        for _ in 0..20 {
            log.append_after_rotating_if_full(&mebibyte).unwrap();
        }
        drop(log);
        let size = |path: &Path| fs::metadata(path).unwrap().len();
        assert_eq!(size(&rotated_log_path(&path)), PART_LOG_MAX_BYTES);
        assert_eq!(size(&path), 4 << 20);
        PartLog::open_for_appending(&path)
            .unwrap()
            .append_after_rotating_if_full(b"after")
            .unwrap();
        assert_eq!(size(&path), (4 << 20) + 5);
    }
}
