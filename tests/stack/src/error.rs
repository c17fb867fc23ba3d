//! Errors of the launcher.

use std::{io, path::PathBuf};

use crate::part::Part;

/// An error of the launcher.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operation on a file or directory failed.
    #[error("cannot {action} {}", path.display())]
    File {
        /// The operation, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// A state file of the launcher's is not valid JSON.
    #[error("{}: not a valid file of the launcher's", path.display())]
    InvalidFile {
        /// The file.
        path: PathBuf,
        /// The position and the reason.
        source: serde_json::Error,
    },
    /// A program could not be started.
    #[error("cannot run {program}")]
    Spawn {
        /// The program.
        program: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// A program did not exit successfully.
    #[error("{program} failed ({status})\n{output}")]
    Program {
        /// The program and its first arguments.
        program: String,
        /// The exit status.
        status: String,
        /// The end of its output.
        output: String,
    },
    /// A part did not become ready, or ended.
    #[error("{part} did not become ready: {reason}\nlast lines of {}:\n{tail}", log.display())]
    NotReady {
        /// The part.
        part: Part,
        /// The last observation of the part.
        reason: String,
        /// The path of its log.
        log: PathBuf,
        /// The end of its log.
        tail: String,
    },
    /// The supervisor did not start, or ended.
    #[error("the stack's supervisor {reason}\nlast lines of {}:\n{tail}", log.display())]
    Supervisor {
        /// The state that was observed.
        reason: String,
        /// The path of its log.
        log: PathBuf,
        /// The end of its log.
        tail: String,
    },
    /// The supervisor rejected a command, or there is no supervisor to send it to.
    #[error("{0}")]
    Rejected(String),
    /// An HTTP request got no complete answer.
    #[error("{request}: no answer")]
    NoAnswer {
        /// Method and address.
        request: String,
        /// The client's error.
        source: reqwest::Error,
    },
    /// An HTTP request was answered with an unexpected status.
    #[error("{request} was answered with {status}: {body}")]
    UnexpectedStatus {
        /// Method and address.
        request: String,
        /// The status.
        status: u16,
        /// The beginning of the body.
        body: String,
    },
    /// The machine or its environment does not meet a requirement.
    #[error("{0}")]
    Environment(String),
    /// An operation exceeded its time limit.
    #[error("{operation} took longer than {seconds} s{details}")]
    Timeout {
        /// The operation.
        operation: String,
        /// The limit, in seconds.
        seconds: u64,
        /// An explanation on lines of its own, such as the end of a log; may be empty.
        details: String,
    },
}

/// A result with the launcher's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Adds the operation and the file to an [`io::Error`].
pub(crate) trait IoResultExt<T> {
    /// Converts the error to [`Error::File`].
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T>;
}

impl<T> IoResultExt<T> for io::Result<T> {
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(|source| Error::File {
            action,
            path: path.into(),
            source,
        })
    }
}

impl<T> IoResultExt<T> for rustix::io::Result<T> {
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(io::Error::from).at(action, path)
    }
}

/// Returns an error and its causes in one line.
pub(crate) fn with_causes(error: impl Into<anyhow::Error>) -> String {
    format!("{:#}", error.into())
}
