//! Logs of functions.
//!
//! What a function writes goes from containerd's shim to a process of ours beside it ([`mod@collect`]), as faasd does
//! it: so every line has its time, the file stays bounded, and nothing is lost while the provider is away. There is
//! a folder a function with a file an instance; the API reads them ([`read`]) and can wait for more ([`follow`]).

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

pub use self::collect::collect;
use self::{follow::Watch, read::Reader};
use crate::{error::Error, key::Key};

/// How many instances of a function have their logs kept.
const INSTANCES: usize = 5;

/// A line of a log, as it stands in the file.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct Record {
    timestamp: Timestamp,
    stream: Stream,
    text: String,
}

/// Where a line was written to.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Stream {
    Stdout,
    Stderr,
}

/// A line of a log, as the API tells it (faas-provider's `logs.Message`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Message {
    name: String,
    namespace: String,
    instance: String,
    timestamp: Timestamp,
    text: String,
}

/// What is asked of the logs (faas-provider's `logs.Request`).
#[derive(Clone, Debug)]
pub(crate) struct Query {
    pub(crate) function: Key,
    /// Only this instance's lines.
    pub(crate) instance: Option<String>,
    /// Only lines from then on.
    pub(crate) since: Timestamp,
    /// Only so many of the last lines that there are; 0 for all.
    pub(crate) tail: usize,
    /// Whether to wait for more lines.
    pub(crate) follow: bool,
}

/// The logs of all functions.
#[derive(Clone, Debug)]
pub(crate) struct Logs {
    root: PathBuf,
    /// This program, which is also the one that collects.
    program: PathBuf,
}

impl Logs {
    /// Opens the folder with the logs, and makes it if needed.
    pub(crate) fn open(root: PathBuf) -> Result<Self, Error> {
        fs::create_dir_all(&root).map_err(Error::io("make", &root))?;
        let root = root.canonicalize().map_err(Error::io("find", &root))?;
        let program = std::env::current_exe().map_err(Error::io("find", "this program"))?;
        Ok(Self { root, program })
    }

    /// Where containerd's shim is to send the output of a function's instance: the URI of a program to run.
    pub(crate) fn sink(&self, function: &Key) -> String {
        let folder = escaped(&self.folder(function));
        format!("binary://{}?collect={folder}", escaped(&self.program))
    }

    /// Makes room for the log of one more instance.
    pub(crate) fn prune(&self, function: &Key) {
        let mut instances = read::instances(&self.folder(function));
        // Later instances sort after earlier ones.
        instances.sort_unstable();
        let too_many = (instances.len() + 1).saturating_sub(INSTANCES);
        for path in &instances[..too_many] {
            let _ = fs::remove_file(path);
            let _ = fs::remove_file(read::older(path));
        }
    }

    /// Deletes all logs of a function.
    pub(crate) fn delete(&self, function: &Key) {
        let _ = fs::remove_dir_all(self.folder(function));
    }

    /// Sends lines until there are no more, until the deadline when more are waited for, or until nobody listens.
    pub(crate) fn stream(&self, query: Query, deadline: Instant) -> mpsc::Receiver<Message> {
        let (sender, receiver) = mpsc::channel(64);
        let reader = Reader::new(self.folder(&query.function), query);
        tokio::spawn(async move {
            let finished = tokio::time::timeout_at(deadline, send(reader, &sender));
            if let Ok(Err(error)) = finished.await {
                tracing::warn!(error = crate::error::chain(&error), "a log cannot be read");
            }
        });
        receiver
    }

    fn folder(&self, function: &Key) -> PathBuf {
        self.root.join(&function.namespace).join(&function.name)
    }
}

async fn send(mut reader: Reader, sender: &mpsc::Sender<Message>) -> Result<(), Error> {
    // Watched from before the first look, so that no line falls in between.
    let mut watch = if reader.query().follow {
        Watch::new(reader.folder()).ok()
    } else {
        None
    };
    loop {
        let (back, lines) = read_on(reader).await?;
        reader = back;
        for line in lines {
            if sender.send(line).await.is_err() {
                return Ok(());
            }
        }
        let Some(watch) = &mut watch else { return Ok(()) };
        tokio::select! {
            changed = watch.changed() => changed?,
            () = sender.closed() => return Ok(()),
        }
    }
}

async fn read_on(mut reader: Reader) -> Result<(Reader, Vec<Message>), Error> {
    let task = tokio::task::spawn_blocking(move || {
        let lines = reader.read();
        (reader, lines)
    });
    task.await.map_err(|_| Error::Stopping)
}

/// Escapes a path for a URI: whatever is not plain.
fn escaped(path: &Path) -> String {
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
    fn the_sink_is_this_program_and_the_functions_folder() {
        let logs = Logs {
            root: "/state dir/logs".into(),
            program: "/bin/provider".into(),
        };
        assert_eq!(
            logs.sink(&Key::new("hello", "fn")),
            "binary:///bin/provider?collect=/state%20dir/logs/fn/hello"
        );
    }

    #[test]
    fn the_logs_of_the_oldest_instances_make_room() {
        let folder = tempfile::tempdir().unwrap();
        let logs = Logs::open(folder.path().into()).unwrap();
        let key = Key::new("hello", "fn");
        fs::create_dir_all(logs.folder(&key)).unwrap();
        for generation in 1..=7 {
            fs::write(logs.folder(&key).join(format!("hello.{generation}.log")), "").unwrap();
        }
        logs.prune(&key);
        let mut left: Vec<_> = read::instances(&logs.folder(&key));
        left.sort_unstable();
        let names: Vec<_> = left
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(
            names,
            ["hello.4.log", "hello.5.log", "hello.6.log", "hello.7.log"]
        );
        logs.delete(&key);
        assert!(!logs.folder(&key).exists());
    }

    #[tokio::test]
    async fn a_followed_log_goes_on_with_lines_written_later() {
        let folder = tempfile::tempdir().unwrap();
        let logs = Logs::open(folder.path().into()).unwrap();
        let key = Key::new("hello", "fn");
        fs::create_dir_all(logs.folder(&key)).unwrap();
        let write = |file: &str, text: &str| {
            let record = Record {
                timestamp: Timestamp::now(),
                stream: Stream::Stdout,
                text: text.into(),
            };
            let line = format!("{}\n", serde_json::to_string(&record).unwrap());
            let path = logs.folder(&key).join(file);
            let before = fs::read_to_string(&path).unwrap_or_default();
            fs::write(path, before + &line).unwrap();
        };
        write("hello.1.log", "one");
        let query = Query {
            function: key.clone(),
            instance: None,
            since: Timestamp::UNIX_EPOCH,
            tail: 0,
            follow: true,
        };
        let mut lines = logs.stream(query, Instant::now() + std::time::Duration::from_secs(20));
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
