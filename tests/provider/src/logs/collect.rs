//! The collection of a function's output, line by line, in a process beside the function.
//!
//! containerd's shim starts this process with the read ends of two pipes as descriptors 3 and 4, a third pipe
//! as descriptor 5, on which it waits for a byte, and the container's id in `CONTAINER_ID`. When the function
//! has ended, the pipes reach their end and the shim sends SIGTERM.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::timeout,
};

use super::{LogRecord, OutputStream, read};
use crate::error::ProviderError;

/// The largest size of a log file, in bytes; it is rotated before it would exceed this, and one older file is kept.
const LOG_FILE_MAX_BYTES: u64 = 8 << 20;

/// The length from which an incomplete line becomes a log record, in bytes; the line continues in the next record. As
/// output is read in chunks of the same size, a record can be almost twice as long.
const LOG_LINE_MAX_BYTES: usize = 32 << 10;

/// The time limit for collecting each remaining record after SIGTERM.
const REMAINING_RECORD_TIMEOUT: Duration = Duration::from_secs(2);

/// Collects a container's output into a file in `directory` until the container has ended.
///
/// # Errors
///
/// Fails if containerd's shim did not start this process, or if the file cannot be written.
pub async fn collect_output(directory: &Path) -> Result<(), ProviderError> {
    let id = std::env::var("CONTAINER_ID")
        .map_err(|_| ProviderError::Invalid("CONTAINER_ID is not set".into()))?;
    let mut file = LogFile::open(directory, &id, LOG_FILE_MAX_BYTES)?;
    let (sender, mut records) = mpsc::channel(256);
    for (descriptor, stream) in [(3, OutputStream::Stdout), (4, OutputStream::Stderr)] {
        tokio::spawn(send_lines_as_records(
            open_inherited_pipe(descriptor)?,
            stream,
            sender.clone(),
        ));
    }
    drop(sender);
    let mut terminated =
        signal(SignalKind::terminate()).map_err(ProviderError::io_error("handle", "SIGTERM"))?;
    write_ready_byte_to_shim()?;

    loop {
        tokio::select! {
            record = records.recv() => match record {
                Some(record) => file.append_record(&record)?,
                None => return Ok(()),
            },
            _ = terminated.recv() => break,
        }
    }
    while let Ok(Some(record)) = timeout(REMAINING_RECORD_TIMEOUT, records.recv()).await {
        file.append_record(&record)?;
    }
    Ok(())
}

/// Opens an inherited pipe for reading by its name in `/proc`, which makes a second descriptor of it.
fn open_inherited_pipe(descriptor: u32) -> Result<pipe::Receiver, ProviderError> {
    let path = format!("/proc/self/fd/{descriptor}");
    pipe::OpenOptions::new()
        .open_receiver(&path)
        .map_err(ProviderError::io_error("open", path))
}

/// Writes the byte for which containerd's shim waits before it starts the function.
fn write_ready_byte_to_shim() -> Result<(), ProviderError> {
    let path = "/proc/self/fd/5";
    let mut pipe = OpenOptions::new()
        .write(true)
        .open(path)
        .map_err(ProviderError::io_error("open", path))?;
    pipe.write_all(b"\n")
        .map_err(ProviderError::io_error("write", path))
}

/// Sends each line of a pipe as a log record with the time of its arrival, until the pipe ends.
async fn send_lines_as_records(
    mut pipe: pipe::Receiver,
    stream: OutputStream,
    records: mpsc::Sender<LogRecord>,
) {
    let mut lines = LineAssembler::default();
    let mut buffer = vec![0; LOG_LINE_MAX_BYTES];
    loop {
        let read = pipe.read(&mut buffer).await.unwrap_or(0);
        let complete = match read {
            0 => lines.take_incomplete_line(),
            read => lines.push_chunk_and_take_complete_or_long_lines(&buffer[..read]),
        };
        for text in complete {
            let text = String::from_utf8_lossy(&text).into_owned();
            if records
                .send(LogRecord {
                    timestamp: Timestamp::now(),
                    stream,
                    text,
                })
                .await
                .is_err()
            {
                return;
            }
        }
        if read == 0 {
            return;
        }
    }
}

/// An assembler of lines from chunks of output.
#[derive(Default)]
struct LineAssembler {
    partial: Vec<u8>,
}

impl LineAssembler {
    /// Adds a chunk of output and returns the lines that it completes or makes too long.
    fn push_chunk_and_take_complete_or_long_lines(&mut self, chunk: &[u8]) -> Vec<Vec<u8>> {
        let mut complete = Vec::new();
        for part in chunk.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(part);
            if self.partial.last() == Some(&b'\n') {
                self.partial.pop();
                complete.push(std::mem::take(&mut self.partial));
            } else if self.partial.len() >= LOG_LINE_MAX_BYTES {
                complete.push(std::mem::take(&mut self.partial));
            }
        }
        complete
    }

    /// Takes the incomplete last line, and returns it as the only line of a list; empty if there is none.
    fn take_incomplete_line(&mut self) -> Vec<Vec<u8>> {
        let rest = std::mem::take(&mut self.partial);
        if rest.is_empty() { Vec::new() } else { vec![rest] }
    }
}

/// A log file that is rotated at its size limit.
struct LogFile {
    path: PathBuf,
    file: File,
    length: u64,
    limit: u64,
}

impl LogFile {
    /// Opens the log of the instance `instance_id` for appending, with the size limit `max_bytes`.
    fn open(directory: &Path, instance_id: &str, max_bytes: u64) -> Result<Self, ProviderError> {
        fs::create_dir_all(directory).map_err(ProviderError::io_error("create", directory))?;
        let path = read::log_file_path(directory, instance_id);
        let file = open_for_appending_with_default_mode(&path)?;
        let length = file
            .metadata()
            .map_err(ProviderError::io_error("read the size of", &path))?
            .len();
        Ok(Self {
            path,
            file,
            length,
            limit: max_bytes,
        })
    }

    /// Appends a record as a line of JSON; first rotates the file if the line would take it over the limit.
    fn append_record(&mut self, record: &LogRecord) -> Result<(), ProviderError> {
        let Ok(mut line) = serde_json::to_vec(record) else {
            return Ok(());
        };
        line.push(b'\n');
        if self.length > 0 && self.length + line.len() as u64 > self.limit {
            let rotated = read::rotated_file_path(&self.path);
            fs::rename(&self.path, &rotated).map_err(ProviderError::io_error("rotate", &self.path))?;
            self.file = open_for_appending_with_default_mode(&self.path)?;
            self.length = 0;
        }
        self.file
            .write_all(&line)
            .map_err(ProviderError::io_error("write", &self.path))?;
        self.length += line.len() as u64;
        Ok(())
    }
}

fn open_for_appending_with_default_mode(path: &Path) -> Result<File, ProviderError> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(ProviderError::io_error("open", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_as_text(lines: Vec<Vec<u8>>) -> Vec<String> {
        lines
            .into_iter()
            .map(|line| String::from_utf8(line).unwrap())
            .collect()
    }

    #[test]
    fn log_lines_are_assembled_from_chunks_of_output() {
        let mut lines = LineAssembler::default();
        assert!(lines.push_chunk_and_take_complete_or_long_lines(b"on").is_empty());
        assert_eq!(
            lines_as_text(lines.push_chunk_and_take_complete_or_long_lines(b"e\ntwo\n\nth")),
            ["one", "two", ""]
        );
        assert_eq!(lines_as_text(lines.take_incomplete_line()), ["th"]);
        assert!(lines.take_incomplete_line().is_empty());
    }

    #[test]
    fn a_log_line_longer_than_the_limit_is_split() {
        let mut lines = LineAssembler::default();
        let long = vec![b'x'; LOG_LINE_MAX_BYTES];
        assert_eq!(lines.push_chunk_and_take_complete_or_long_lines(&long).len(), 1);
        assert_eq!(
            lines_as_text(lines.push_chunk_and_take_complete_or_long_lines(b"rest\n")),
            ["rest"]
        );
    }

    #[test]
    fn a_full_log_file_is_rotated() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = LogFile::open(directory.path(), "hello.1", 200).unwrap();
        for number in 0..5 {
            let text = format!("line {number}");
            file.append_record(&LogRecord {
                timestamp: Timestamp::now(),
                stream: OutputStream::Stdout,
                text,
            })
            .unwrap();
        }
        let path = read::log_file_path(directory.path(), "hello.1");
        let (new, old) = (
            fs::read_to_string(&path).unwrap(),
            fs::read_to_string(read::rotated_file_path(&path)).unwrap(),
        );
        assert!(new.contains("line 4") && !new.contains("line 3"), "{new}");
        assert!(old.contains("line 3"), "{old}");
    }
}
