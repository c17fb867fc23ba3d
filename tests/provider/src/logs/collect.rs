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

use super::{LogRecord, Stream, read};
use crate::error::Error;

/// The size at which a log file is rotated, in bytes; one older file is kept.
const FILE_LIMIT: u64 = 8 << 20;

/// The longest line in a log record, in bytes; a longer line continues in the next record.
const LINE_LIMIT: usize = 32 << 10;

/// The time limit for collecting each remaining record after SIGTERM.
const REST_TIMEOUT: Duration = Duration::from_secs(2);

/// Collects a container's output into a file in `directory` until the container has ended.
///
/// # Errors
///
/// Fails if containerd's shim did not start this process, or if the file cannot be written.
pub async fn collect(directory: &Path) -> Result<(), Error> {
    let id = std::env::var("CONTAINER_ID").map_err(|_| Error::Invalid("CONTAINER_ID is not set".into()))?;
    let mut file = LogFile::open(directory, &id, FILE_LIMIT)?;
    let (sender, mut records) = mpsc::channel(256);
    for (descriptor, stream) in [(3, Stream::Stdout), (4, Stream::Stderr)] {
        tokio::spawn(read_lines(inherited(descriptor)?, stream, sender.clone()));
    }
    drop(sender);
    let mut terminated = signal(SignalKind::terminate()).map_err(Error::io("handle", "SIGTERM"))?;
    signal_ready()?;

    loop {
        tokio::select! {
            record = records.recv() => match record {
                Some(record) => file.append(&record)?,
                None => return Ok(()),
            },
            _ = terminated.recv() => break,
        }
    }
    while let Ok(Some(record)) = timeout(REST_TIMEOUT, records.recv()).await {
        file.append(&record)?;
    }
    Ok(())
}

/// Opens an inherited pipe for reading by its name in `/proc`, which makes a second descriptor of it.
fn inherited(descriptor: u32) -> Result<pipe::Receiver, Error> {
    let path = format!("/proc/self/fd/{descriptor}");
    pipe::OpenOptions::new()
        .open_receiver(&path)
        .map_err(Error::io("open", path))
}

fn signal_ready() -> Result<(), Error> {
    let path = "/proc/self/fd/5";
    let mut pipe = OpenOptions::new()
        .write(true)
        .open(path)
        .map_err(Error::io("open", path))?;
    pipe.write_all(b"\n").map_err(Error::io("write", path))
}

async fn read_lines(mut pipe: pipe::Receiver, stream: Stream, records: mpsc::Sender<LogRecord>) {
    let mut lines = LineAssembler::default();
    let mut buffer = vec![0; LINE_LIMIT];
    loop {
        let read = pipe.read(&mut buffer).await.unwrap_or(0);
        let complete = match read {
            0 => lines.rest(),
            read => lines.push(&buffer[..read]),
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
    fn push(&mut self, chunk: &[u8]) -> Vec<Vec<u8>> {
        let mut complete = Vec::new();
        for part in chunk.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(part);
            if self.partial.last() == Some(&b'\n') {
                self.partial.pop();
                complete.push(std::mem::take(&mut self.partial));
            } else if self.partial.len() >= LINE_LIMIT {
                complete.push(std::mem::take(&mut self.partial));
            }
        }
        complete
    }

    fn rest(&mut self) -> Vec<Vec<u8>> {
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
    fn open(directory: &Path, id: &str, limit: u64) -> Result<Self, Error> {
        fs::create_dir_all(directory).map_err(Error::io("create", directory))?;
        let path = read::log_file(directory, id);
        let file = append_to(&path)?;
        let length = file
            .metadata()
            .map_err(Error::io("read the size of", &path))?
            .len();
        Ok(Self {
            path,
            file,
            length,
            limit,
        })
    }

    fn append(&mut self, record: &LogRecord) -> Result<(), Error> {
        let Ok(mut line) = serde_json::to_vec(record) else {
            return Ok(());
        };
        line.push(b'\n');
        if self.length > 0 && self.length + line.len() as u64 > self.limit {
            let rotated = read::rotated(&self.path);
            fs::rename(&self.path, &rotated).map_err(Error::io("rotate", &self.path))?;
            self.file = append_to(&self.path)?;
            self.length = 0;
        }
        self.file
            .write_all(&line)
            .map_err(Error::io("write", &self.path))?;
        self.length += line.len() as u64;
        Ok(())
    }
}

fn append_to(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(Error::io("open", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(lines: Vec<Vec<u8>>) -> Vec<String> {
        lines
            .into_iter()
            .map(|line| String::from_utf8(line).unwrap())
            .collect()
    }

    #[test]
    fn lines_are_assembled_from_chunks() {
        let mut lines = LineAssembler::default();
        assert!(lines.push(b"on").is_empty());
        assert_eq!(texts(lines.push(b"e\ntwo\n\nth")), ["one", "two", ""]);
        assert_eq!(texts(lines.rest()), ["th"]);
        assert!(lines.rest().is_empty());
    }

    #[test]
    fn a_line_longer_than_the_limit_is_split() {
        let mut lines = LineAssembler::default();
        let long = vec![b'x'; LINE_LIMIT];
        assert_eq!(lines.push(&long).len(), 1);
        assert_eq!(texts(lines.push(b"rest\n")), ["rest"]);
    }

    #[test]
    fn a_full_file_is_rotated() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = LogFile::open(directory.path(), "hello.1", 200).unwrap();
        for number in 0..5 {
            let text = format!("line {number}");
            file.append(&LogRecord {
                timestamp: Timestamp::now(),
                stream: Stream::Stdout,
                text,
            })
            .unwrap();
        }
        let path = read::log_file(directory.path(), "hello.1");
        let (new, old) = (
            fs::read_to_string(&path).unwrap(),
            fs::read_to_string(read::rotated(&path)).unwrap(),
        );
        assert!(new.contains("line 4") && !new.contains("line 3"), "{new}");
        assert!(old.contains("line 3"), "{old}");
    }
}
