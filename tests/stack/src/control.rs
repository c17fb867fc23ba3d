//! What the launcher and a stack's supervisor say to each other: JSON lines over a Unix socket in the stack's
//! directory. A command is one line; the answer is lines until one of them is the last.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
};

use crate::{
    error::{At as _, Error, Result},
    part::Part,
};

/// What the supervisor is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub(crate) enum Command {
    /// Start every part.
    Begin,
    /// Say how the parts are.
    Status,
    /// Start one part.
    Start { part: Part },
    /// Stop one part.
    Stop { part: Part },
    /// Stop every part, and end.
    Down,
}

/// What the supervisor answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum Event {
    /// A part is being started.
    Starting { part: Part },
    /// A part is ready.
    Ready { part: Part, seconds: f64 },
    /// A part has stopped.
    Stopped { part: Part },
    /// A part did not become ready: the last line.
    Failed { part: Part, reason: String },
    /// How the parts are: the last line.
    Status { parts: Vec<PartStatus> },
    /// All is done: the last line.
    Done,
    /// The command makes no sense now: the last line.
    Refused { reason: String },
}

/// How one part is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartStatus {
    /// Which part.
    pub part: Part,
    /// How it is.
    pub state: State,
    /// For how long it has been so, in seconds.
    pub seconds: u64,
}

/// How a part is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum State {
    /// Not running, as it should be.
    Stopped,
    /// Started, and not ready yet.
    Starting,
    /// Running.
    Running,
    /// It ended by itself.
    Ended {
        /// How.
        how: String,
    },
}

/// A conversation with a supervisor.
#[derive(Debug)]
pub(crate) struct Conversation {
    stream: BufReader<UnixStream>,
}

impl Conversation {
    /// Connects to the supervisor behind a socket.
    pub(crate) async fn open(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).await.at("connect to", socket)?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Sends a command and tells each event but the last, which is the answer.
    pub(crate) async fn ask(&mut self, command: Command, mut told: impl FnMut(Event)) -> Result<Event> {
        let lost = |why: String| Error::Refused(format!("the stack's supervisor went away: {why}"));
        let mut line = serde_json::to_string(&command).map_err(|error| lost(error.to_string()))?;
        line.push('\n');
        let stream = self.stream.get_mut();
        stream
            .write_all(line.as_bytes())
            .await
            .map_err(|error| lost(error.to_string()))?;
        loop {
            let mut line = String::new();
            let read = self
                .stream
                .read_line(&mut line)
                .await
                .map_err(|error| lost(error.to_string()))?;
            if read == 0 {
                return Err(lost("it closed the connection".into()));
            }
            match serde_json::from_str(&line).map_err(|error| lost(error.to_string()))? {
                Event::Refused { reason } => return Err(Error::Refused(reason)),
                event @ (Event::Starting { .. } | Event::Ready { .. } | Event::Stopped { .. }) => told(event),
                last => return Ok(last),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_events_are_one_line_of_json() {
        let command = serde_json::to_string(&Command::Stop {
            part: Part::QueueWorker,
        })
        .unwrap();
        assert_eq!(command, r#"{"command":"stop","part":"queue-worker"}"#);
        let event = serde_json::to_string(&Event::Failed {
            part: Part::Nats,
            reason: "a\nb".into(),
        })
        .unwrap();
        assert_eq!(event, r#"{"event":"failed","part":"nats","reason":"a\nb"}"#);
    }
}
