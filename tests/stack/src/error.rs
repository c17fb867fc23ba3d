//! Errors of the launcher.

use std::{io, path::PathBuf};

/// An error of the launcher.
#[derive(Debug, thiserror::Error)]
pub enum LauncherError {
    /// An operation on a file or directory failed.
    #[error("cannot {action} {}", path.display())]
    File {
        /// The operation that failed, as a verb.
        action: &'static str,
        /// The file or directory that the operation was on.
        path: PathBuf,
        /// The operating system's error for the operation.
        source: io::Error,
    },
    /// A file of the launcher, or other input of it, is not the JSON that it expects.
    #[error("{}: not a valid file of the launcher's", path.display())]
    InvalidFile {
        /// The path of the invalid file, or the name of the input.
        path: PathBuf,
        /// The JSON parser's error, with the position in the file.
        source: serde_json::Error,
    },
    /// A program could not be started.
    #[error("cannot run {program}")]
    Spawn {
        /// The program that could not be started.
        program: String,
        /// The operating system's error for the operation.
        source: io::Error,
    },
    /// A program did not exit successfully, or the build of a function or a queued call failed.
    #[error("{program} failed ({status})\n{output}")]
    Program {
        /// What failed: a program with its first arguments, the build of a function, or a queued call.
        program: String,
        /// The exit status of the program, the status of the build, or what is wrong with the outcome of the queued
        /// call.
        status: String,
        /// The last lines of the output of the program, of the build's log, or of builder-fn's log.
        output: String,
    },
    /// A part of the stack or cluster did not become ready, or ended.
    #[error("{part} did not become ready: {reason}\nlast lines of {}:\n{tail}", log.display())]
    NotReady {
        /// The name of the part that is not ready.
        part: String,
        /// The last observed state of the part.
        reason: String,
        /// The path of the part's log.
        log: PathBuf,
        /// The last lines of the part's log.
        tail: String,
    },
    /// The stack's supervisor did not start, or ended.
    #[error("the stack's supervisor {reason}\nlast lines of {}:\n{tail}", log.display())]
    Supervisor {
        /// The observed state of the supervisor.
        reason: String,
        /// The path of the supervisor's log.
        log: PathBuf,
        /// The last lines of the supervisor's log.
        tail: String,
    },
    /// The supervisor rejected a command.
    #[error("{0}")]
    Rejected(String),
    /// The connection to the supervisor was lost before its answer was complete.
    #[error("lost the connection to the stack's supervisor: {0}")]
    ConnectionLost(String),
    /// The supervisor's answer does not fit the command.
    #[error("unexpected answer: {0}")]
    UnexpectedAnswer(String),
    /// The stack is external: the launcher cannot start or stop its parts.
    #[error("the parts of an external stack cannot be started or stopped from here")]
    ExternalStack,
    /// An HTTP request got no complete answer.
    #[error("{request}: no answer")]
    NoAnswer {
        /// The URL of the request, with its method in front if not even the head of an answer arrived.
        request: String,
        /// The HTTP client's error.
        source: reqwest::Error,
    },
    /// An HTTP request was answered with an unexpected status.
    #[error("{request} was answered with {status}: {body}")]
    UnexpectedStatus {
        /// The URL of the request.
        request: String,
        /// The HTTP status of the answer.
        status: u16,
        /// The beginning of the answer's body.
        body: String,
    },
    /// The machine, its environment or an argument does not meet a requirement of the launcher.
    #[error("{0}")]
    Environment(String),
    /// An operation exceeded its time limit.
    #[error("{operation} took longer than {seconds} s{details}")]
    Timeout {
        /// The operation that took too long.
        operation: String,
        /// The time limit of the operation, in seconds.
        seconds: u64,
        /// An explanation on lines of its own, such as the end of a log; may be empty.
        details: String,
    },
}

/// A result with an error of the launcher.
pub type Result<T, E = LauncherError> = std::result::Result<T, E>;

/// An extension that adds the operation and the file to an [`io::Error`].
pub(crate) trait IoResultExt<T> {
    /// Converts an I/O error to [`LauncherError::File`], with the operation and the file.
    fn with_operation(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T>;
}

impl<T> IoResultExt<T> for io::Result<T> {
    fn with_operation(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(|source| LauncherError::File {
            action,
            path: path.into(),
            source,
        })
    }
}

impl<T> IoResultExt<T> for rustix::io::Result<T> {
    fn with_operation(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(io::Error::from).with_operation(action, path)
    }
}

/// Returns an error and its causes in one line.
pub(crate) fn error_with_causes(error: impl Into<anyhow::Error>) -> String {
    format!("{:#}", error.into())
}
