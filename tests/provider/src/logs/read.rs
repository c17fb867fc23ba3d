//! The reading of a function's logs: first the existing lines, then those that were added since.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{LogMessage, LogQuery, LogRecord};

/// The suffix of a log file's name, after the instance's name.
const LOG_FILE_SUFFIX: &str = ".log";

/// Returns the path of an instance's log.
pub(super) fn log_file_path(directory: &Path, instance: &str) -> PathBuf {
    directory.join(format!("{instance}{LOG_FILE_SUFFIX}"))
}

/// Returns the path of a log file's rotated predecessor.
pub(super) fn rotated_file_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// Returns the log files in a directory, one for each instance, in no particular order.
pub(super) fn list_log_files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    entries
        .filter(|path| path.to_string_lossy().ends_with(LOG_FILE_SUFFIX))
        .collect()
}

/// A reader of one function's logs, which returns new lines at each call.
#[derive(Debug)]
pub(super) struct LogReader {
    directory: PathBuf,
    query: LogQuery,
    /// The number of bytes that were read of each log file, by inode.
    read: HashMap<u64, u64>,
    started: bool,
}

impl LogReader {
    pub(super) fn new(directory: PathBuf, query: LogQuery) -> Self {
        Self {
            directory,
            query,
            read: HashMap::new(),
            started: false,
        }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn query(&self) -> &LogQuery {
        &self.query
    }

    /// Reads the log lines that were not read yet, and returns them sorted by time. The first time, returns
    /// only the last `tail` lines if the query has a `tail`.
    pub(super) fn read_new_messages(&mut self) -> Vec<LogMessage> {
        let mut lines = Vec::new();
        for path in list_log_files(&self.directory) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let instance = name.trim_end_matches(LOG_FILE_SUFFIX).to_owned();
            if self
                .query
                .instance
                .as_ref()
                .is_some_and(|wanted| *wanted != instance)
            {
                continue;
            }
            for part in [rotated_file_path(&path), path] {
                let records = self.read_new_records_of_one_file(&part);
                let wanted = records
                    .into_iter()
                    .filter(|record| record.timestamp >= self.query.since);
                lines.extend(wanted.map(|record| self.message_of_record(&instance, record)));
            }
        }
        lines.sort_by_key(|line| line.timestamp);
        let first = !std::mem::replace(&mut self.started, true);
        if first && self.query.tail > 0 {
            lines.drain(..lines.len().saturating_sub(self.query.tail));
        }
        lines
    }

    /// Returns the complete records that were added to a file since it was read last; malformed lines are skipped.
    fn read_new_records_of_one_file(&mut self, path: &Path) -> Vec<LogRecord> {
        let Ok(mut file) = File::open(path) else {
            return Vec::new();
        };
        let Ok(metadata) = file.metadata() else {
            return Vec::new();
        };
        let offset = self.read.entry(metadata.ino()).or_default();
        if *offset > metadata.len() {
            // A new file reuses the inode of a removed one.
            *offset = 0;
        }
        let mut bytes = Vec::new();
        if file.seek(SeekFrom::Start(*offset)).is_err() || file.read_to_end(&mut bytes).is_err() {
            return Vec::new();
        }
        // An incomplete line is read the next time.
        let complete = bytes
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        *offset += complete as u64;
        let lines = bytes[..complete].split(|byte| *byte == b'\n');
        lines
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect()
    }

    fn message_of_record(&self, instance: &str, record: LogRecord) -> LogMessage {
        LogMessage {
            name: self.query.function.name.clone(),
            namespace: self.query.function.namespace.clone(),
            instance: instance.to_owned(),
            timestamp: record.timestamp,
            text: record.text,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use jiff::Timestamp;

    use super::*;
    use crate::key::FunctionKey;

    fn log_query(tail: usize, since_second: i64, instance: Option<&str>) -> LogQuery {
        LogQuery {
            function: FunctionKey::new("hello", "fn"),
            instance: instance.map(str::to_owned),
            since: Timestamp::from_second(since_second).unwrap(),
            tail,
            follow: false,
        }
    }

    fn append_a_line_for_each_second(path: &Path, seconds: &[i64]) {
        let mut file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        for second in seconds {
            let timestamp = Timestamp::from_second(*second).unwrap();
            writeln!(
                file,
                r#"{{"timestamp":"{timestamp}","stream":"stdout","text":"{second}"}}"#
            )
            .unwrap();
        }
    }

    fn message_texts(lines: &[LogMessage]) -> Vec<&str> {
        lines.iter().map(|line| line.text.as_str()).collect()
    }

    #[test]
    fn lines_of_all_instances_are_sorted_by_time() {
        let directory = tempfile::tempdir().unwrap();
        let first = log_file_path(directory.path(), "hello.1");
        append_a_line_for_each_second(&rotated_file_path(&first), &[1]);
        append_a_line_for_each_second(&first, &[2, 4]);
        append_a_line_for_each_second(&log_file_path(directory.path(), "hello.2"), &[3, 5]);
        let read = |query| LogReader::new(directory.path().into(), query).read_new_messages();
        assert_eq!(
            message_texts(&read(log_query(0, 0, None))),
            ["1", "2", "3", "4", "5"]
        );
        assert_eq!(message_texts(&read(log_query(2, 0, None))), ["4", "5"]);
        assert_eq!(message_texts(&read(log_query(0, 3, None))), ["3", "4", "5"]);
        assert_eq!(message_texts(&read(log_query(0, 0, Some("hello.2")))), ["3", "5"]);
    }

    #[test]
    fn only_new_and_complete_lines_are_read_even_after_a_rotation() {
        let directory = tempfile::tempdir().unwrap();
        let file = log_file_path(directory.path(), "hello.1");
        append_a_line_for_each_second(&file, &[1, 2]);
        let mut reader = LogReader::new(directory.path().into(), log_query(1, 0, None));
        assert_eq!(message_texts(&reader.read_new_messages()), ["2"]);
        assert!(reader.read_new_messages().is_empty());
        append_a_line_for_each_second(&file, &[3]);
        fs::rename(&file, rotated_file_path(&file)).unwrap();
        append_a_line_for_each_second(&file, &[4]);
        fs::OpenOptions::new()
            .append(true)
            .open(&file)
            .unwrap()
            .write_all(b"{\"timest")
            .unwrap();
        assert_eq!(message_texts(&reader.read_new_messages()), ["3", "4"]);
    }
}
