//! The logs of functions, which are stored in files.
//!
//! containerd's shim sends the output of a function to a separate process of this program ([`mod@collect`]),
//! as faasd does: every line gets its time, the files stay bounded, and nothing is lost while the provider is
//! not running. Each function has a directory with one file for each instance. The API reads the files
//! ([`read`]) and can wait for more lines ([`follow`]).

mod collect;
mod follow;
mod read;

use std::{
    fs,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, time::Instant};

pub use self::collect::collect_output;
use self::{follow::DirectoryWatch, read::LogReader};
use crate::{error::ProviderError, key::FunctionKey};

/// The number of instances of a function whose logs are kept.
const KEPT_INSTANCE_LOGS: usize = 5;

/// A line of a function's output, as stored in a log file.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct LogRecord {
    timestamp: Timestamp,
    stream: OutputStream,
    text: String,
}

/// The output stream that a line was written to.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum OutputStream {
    Stdout,
    Stderr,
}

/// A log line in an answer of the API (faas-provider's `logs.Message`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct LogMessage {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) instance: String,
    pub(crate) timestamp: Timestamp,
    pub(crate) text: String,
}

/// A query for a function's log lines (faas-provider's `logs.Request`).
#[derive(Clone, Debug)]
pub(crate) struct LogQuery {
    pub(crate) function: FunctionKey,
    /// The name of the only instance whose lines are returned; `None` for all instances.
    pub(crate) instance: Option<String>,
    /// The time of the oldest log line to return.
    pub(crate) since: Timestamp,
    /// The number of existing log lines to return, from the end; 0 for all.
    pub(crate) tail: usize,
    /// Whether to wait for more log lines.
    pub(crate) follow: bool,
}

/// The store of the logs of all functions.
#[derive(Clone, Debug)]
pub(crate) struct LogStore {
    root: PathBuf,
    /// The path of this program, whose `collect` command writes the logs.
    program: PathBuf,
}

impl LogStore {
    /// Opens the directory with the functions' logs; creates the directory if it does not exist.
    pub(crate) fn open(root: PathBuf) -> Result<Self, ProviderError> {
        fs::create_dir_all(&root).map_err(ProviderError::io_error("create", &root))?;
        let root = root
            .canonicalize()
            .map_err(ProviderError::io_error("resolve", &root))?;
        let program = std::env::current_exe().map_err(ProviderError::io_error("find", "this program"))?;
        Ok(Self { root, program })
    }

    /// Returns the URI to which containerd's shim sends the output of a function's instance: a program to
    /// run.
    pub(crate) fn sink_uri(&self, function: &FunctionKey) -> String {
        let directory = percent_encoded_path(&self.directory_of_function(function));
        format!(
            "binary://{}?collect={directory}",
            percent_encoded_path(&self.program)
        )
    }

    /// Removes the oldest logs of a function's other instances, so that the log of this instance fits the limit. An
    /// instance that is started again has a log already, so nothing is removed for it a second time.
    pub(crate) fn make_room_for_log_of_instance(&self, function: &FunctionKey, instance: &str) {
        let directory = self.directory_of_function(function);
        let own = read::log_file_path(&directory, instance);
        let mut others = read::list_log_files(&directory);
        others.retain(|path| *path != own);
        // The names of later instances sort after those of earlier ones.
        others.sort_unstable();
        let too_many = (others.len() + 1).saturating_sub(KEPT_INSTANCE_LOGS);
        for path in &others[..too_many] {
            let _ = fs::remove_file(path);
            let _ = fs::remove_file(read::rotated_file_path(path));
        }
    }

    /// Deletes all logs of a function.
    pub(crate) fn delete_logs_of_function_ignoring_errors(&self, function: &FunctionKey) {
        let _ = fs::remove_dir_all(self.directory_of_function(function));
    }

    /// Starts to read the log lines that a query selects, and returns the channel that gets them. The channel ends
    /// after the last line unless the query follows the log, and in any case at the deadline. Reading ends when the
    /// receiver is dropped.
    pub(crate) fn stream_messages(&self, query: LogQuery, deadline: Instant) -> mpsc::Receiver<LogMessage> {
        let (sender, receiver) = mpsc::channel(64);
        let reader = LogReader::new(self.directory_of_function(&query.function), query);
        tokio::spawn(async move {
            let finished =
                tokio::time::timeout_at(deadline, send_messages_and_follow_if_watchable(reader, &sender));
            if let Ok(Err(error)) = finished.await {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot read a log");
            }
        });
        receiver
    }

    fn directory_of_function(&self, function: &FunctionKey) -> PathBuf {
        self.root.join(&function.namespace).join(&function.name)
    }
}

/// Sends the log lines that exist, and then, if the query follows the log, new ones until the receiver is dropped.
async fn send_messages_and_follow_if_watchable(
    mut reader: LogReader,
    sender: &mpsc::Sender<LogMessage>,
) -> Result<(), ProviderError> {
    // The watch starts before the first read, so that no line is missed in between.
    let mut watch = if reader.query().follow {
        DirectoryWatch::new(reader.directory()).ok()
    } else {
        None
    };
    loop {
        let (back, lines) = read_in_background(reader).await?;
        reader = back;
        for line in lines {
            if sender.send(line).await.is_err() {
                return Ok(());
            }
        }
        let Some(watch) = &mut watch else { return Ok(()) };
        tokio::select! {
            changed = watch.wait_for_change_since_last_call() => changed?,
            () = sender.closed() => return Ok(()),
        }
    }
}

/// Reads new log lines on a thread for blocking work, and returns the reader with them.
async fn read_in_background(mut reader: LogReader) -> Result<(LogReader, Vec<LogMessage>), ProviderError> {
    let task = tokio::task::spawn_blocking(move || {
        let lines = reader.read_new_messages();
        (reader, lines)
    });
    task.await.map_err(|_| ProviderError::Stopping)
}

/// Percent-encodes a path for a URI: all bytes except unreserved ones and slashes.
fn percent_encoded_path(path: &Path) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte);
    let bytes = path.as_os_str().as_encoded_bytes().iter();
    let escape = |byte: &u8| match plain(*byte) {
        true => char::from(*byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    bytes.map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sink_is_this_program_and_the_functions_directory() {
        let logs = LogStore {
            root: "/state dir/logs".into(),
            program: "/bin/provider".into(),
        };
        assert_eq!(
            logs.sink_uri(&FunctionKey::new("hello", "fn")),
            "binary:///bin/provider?collect=/state%20dir/logs/fn/hello"
        );
    }

    /// Writes empty logs of the generations 1 to `count` of an instance.
    fn write_empty_logs_of_generations(logs: &LogStore, key: &FunctionKey, count: usize) {
        let directory = logs.directory_of_function(key);
        fs::create_dir_all(&directory).unwrap();
        for generation in 1..=count {
            fs::write(directory.join(format!("hello.{generation}.log")), "").unwrap();
        }
    }

    fn log_file_names(logs: &LogStore, key: &FunctionKey) -> Vec<String> {
        let files = read::list_log_files(&logs.directory_of_function(key)).into_iter();
        let names = files.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned());
        let mut names: Vec<_> = names.collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn the_logs_of_the_oldest_instances_are_removed_first() {
        let directory = tempfile::tempdir().unwrap();
        let logs = LogStore::open(directory.path().into()).unwrap();
        let key = FunctionKey::new("hello", "fn");
        write_empty_logs_of_generations(&logs, &key, 7);
        logs.make_room_for_log_of_instance(&key, "hello.8");
        assert_eq!(
            log_file_names(&logs, &key),
            ["hello.4.log", "hello.5.log", "hello.6.log", "hello.7.log"]
        );
        logs.delete_logs_of_function_ignoring_errors(&key);
        assert!(!logs.directory_of_function(&key).exists());
    }

    #[test]
    fn an_instance_that_is_started_again_costs_no_other_log() {
        let directory = tempfile::tempdir().unwrap();
        let logs = LogStore::open(directory.path().into()).unwrap();
        let key = FunctionKey::new("hello", "fn");
        write_empty_logs_of_generations(&logs, &key, KEPT_INSTANCE_LOGS);
        let before = log_file_names(&logs, &key);
        for _ in 0..KEPT_INSTANCE_LOGS {
            logs.make_room_for_log_of_instance(&key, "hello.5");
        }
        assert_eq!(log_file_names(&logs, &key), before);
    }

    #[tokio::test]
    async fn a_followed_log_includes_lines_that_are_written_later() {
        let directory = tempfile::tempdir().unwrap();
        let logs = LogStore::open(directory.path().into()).unwrap();
        let key = FunctionKey::new("hello", "fn");
        fs::create_dir_all(logs.directory_of_function(&key)).unwrap();
        let write = |file: &str, text: &str| {
            let record = LogRecord {
                timestamp: Timestamp::now(),
                stream: OutputStream::Stdout,
                text: text.into(),
            };
            let line = format!("{}\n", serde_json::to_string(&record).unwrap());
            let path = logs.directory_of_function(&key).join(file);
            let before = fs::read_to_string(&path).unwrap_or_default();
            fs::write(path, before + &line).unwrap();
        };
        write("hello.1.log", "one");
        let query = LogQuery {
            function: key.clone(),
            instance: None,
            since: Timestamp::UNIX_EPOCH,
            tail: 0,
            follow: true,
        };
        let mut lines = logs.stream_messages(query, Instant::now() + std::time::Duration::from_secs(20));
        assert_eq!(lines.recv().await.unwrap().text, "one");
        write("hello.1.log", "two");
        assert_eq!(lines.recv().await.unwrap().text, "two");
        write("hello.2.log", "from another instance");
        let last = lines.recv().await.unwrap();
        assert_eq!(
            (last.text.as_str(), last.instance.as_str()),
            ("from another instance", "hello.2")
        );
    }
}
