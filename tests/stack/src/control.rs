//! The protocol between the launcher and a stack's supervisor: JSON lines over a Unix socket in the stack's
//! directory.
//!
//! A command is one line. The answer is any number of progress events, followed by one final event.

use std::path::Path;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
};

use crate::{
    error::{IoResultExt as _, LauncherError, Result},
    part::StackPart,
};

/// A command of the launcher for the stack's supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub(crate) enum SupervisorCommand<P = StackPart> {
    /// Start every part of the stack that does not run.
    #[serde(rename = "begin")]
    StartAll,
    /// Report the state of the stack's parts.
    Status,
    /// Start one part of the stack.
    Start { part: P },
    /// Stop one part of the stack.
    Stop { part: P },
    /// Stop every part of the stack, then end the supervisor.
    #[serde(rename = "down")]
    Shutdown,
}

/// An event in the supervisor's answer to a command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum CommandAnswerEvent<P = StackPart> {
    /// The supervisor is starting a part.
    Starting { part: P },
    /// A part of the stack is ready, `seconds` after its start began.
    Ready { part: P, seconds: f64 },
    /// The supervisor has stopped a part.
    Stopped { part: P },
    /// A part did not become ready. This event ends the answer.
    Failed { part: P, reason: String },
    /// The state of the stack's parts. This event ends the answer.
    Status { parts: Vec<PartStateAndDuration<P>> },
    /// The command succeeded. This event ends the answer.
    Done,
    /// The supervisor rejected the command. This event ends the answer.
    #[serde(rename = "refused")]
    Rejected { reason: String },
}

/// The state of one part of the stack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartStateAndDuration<P = StackPart> {
    /// The part whose state this is.
    pub part: P,
    /// Whether the part is starting, runs, was stopped, or ended by itself.
    pub state: PartState,
    /// The time since the part's state last changed, in seconds.
    pub seconds: u64,
}

/// The state of a part of the stack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum PartState {
    /// The part was stopped on request.
    Stopped,
    /// The part was started, but is not ready yet.
    Starting,
    /// The part was started and is ready.
    Running,
    /// The part ended without a request to stop.
    Ended {
        /// The exit status of the part, or the reason for which its start failed.
        #[serde(rename = "how")]
        reason: String,
    },
}

/// A connection to a supervisor's control socket.
#[derive(Debug)]
pub(crate) struct ControlClient {
    stream: BufReader<UnixStream>,
}

impl ControlClient {
    /// Connects to a supervisor's control socket.
    pub(crate) async fn connect_to_supervisor(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .await
            .with_operation("connect to", socket)?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Sends a command to the supervisor, passes progress events to `on_event`, and returns the final event; fails if
    /// the supervisor rejects the command.
    pub(crate) async fn send_command_and_return_done_failed_or_status<P: Serialize + DeserializeOwned>(
        &mut self,
        command: SupervisorCommand<P>,
        mut on_event: impl FnMut(CommandAnswerEvent<P>),
    ) -> Result<CommandAnswerEvent<P>> {
        let lost = LauncherError::ConnectionLost;
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
                return Err(lost("the supervisor closed it".into()));
            }
            match serde_json::from_str(&line).map_err(|error| lost(error.to_string()))? {
                CommandAnswerEvent::Rejected { reason } => return Err(LauncherError::Rejected(reason)),
                event @ (CommandAnswerEvent::Starting { .. }
                | CommandAnswerEvent::Ready { .. }
                | CommandAnswerEvent::Stopped { .. }) => on_event(event),
                last => return Ok(last),
            }
        }
    }
}

/// Returns the process id, on this machine, of the supervisor that listens on a control socket.
pub(crate) fn supervisor_pid(socket: &Path) -> Result<u32> {
    let stream = std::os::unix::net::UnixStream::connect(socket).with_operation("connect to", socket)?;
    let peer = rustix::net::sockopt::socket_peercred(&stream)
        .with_operation("read the process id of the listener on", socket)?;
    Ok(peer.pid.as_raw_nonzero().get().unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_events_are_one_line_of_json() {
        let command = serde_json::to_string(&SupervisorCommand::Stop {
            part: StackPart::QueueWorker,
        })
        .unwrap();
        assert_eq!(command, r#"{"command":"stop","part":"queue-worker"}"#);
        let event = serde_json::to_string(&CommandAnswerEvent::Failed {
            part: StackPart::Nats,
            reason: "a\nb".into(),
        })
        .unwrap();
        assert_eq!(event, r#"{"event":"failed","part":"nats","reason":"a\nb"}"#);
    }

    #[test]
    fn the_names_of_commands_events_and_states_stay_those_of_earlier_builds() {
        let command = |command: SupervisorCommand| serde_json::to_string(&command).unwrap();
        assert_eq!(command(SupervisorCommand::StartAll), r#"{"command":"begin"}"#);
        assert_eq!(command(SupervisorCommand::Shutdown), r#"{"command":"down"}"#);
        let rejected: CommandAnswerEvent =
            serde_json::from_str(r#"{"event":"refused","reason":"r"}"#).unwrap();
        assert_eq!(rejected, CommandAnswerEvent::Rejected { reason: "r".into() });
        let state: PartState = serde_json::from_str(r#"{"state":"ended","how":"signal 9"}"#).unwrap();
        assert_eq!(
            state,
            PartState::Ended {
                reason: "signal 9".into()
            }
        );
    }
}
