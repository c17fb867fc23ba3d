//! What can go wrong with a stack.

use std::{io, path::PathBuf};

use crate::part::Part;

/// Why the launcher could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory could not be used.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the launcher's own does not hold what it should.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Where, and why.
        source: serde_json::Error,
    },
    /// A program could not be started.
    #[error("cannot run {program}")]
    Spawn {
        /// Which program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// A program ended with something else than success.
    #[error("{program} failed ({status})\n{output}")]
    Program {
        /// The program with its first arguments.
        program: String,
        /// How it ended.
        status: String,
        /// The end of what it wrote.
        output: String,
    },
    /// A part did not become ready, or did not stay so.
    #[error("{part} did not become ready: {reason}\nthe end of {}:\n{tail}", log.display())]
    NotReady {
        /// Which part.
        part: Part,
        /// What was seen of it.
        reason: String,
        /// Where its whole log is.
        log: PathBuf,
        /// The end of its log.
        tail: String,
    },
    /// The supervisor did not start, or was lost.
    #[error("the stack's supervisor {reason}\nthe end of {}:\n{tail}", log.display())]
    Supervisor {
        /// What happened.
        reason: String,
        /// Where its log is.
        log: PathBuf,
        /// The end of its log.
        tail: String,
    },
    /// The supervisor refused a command.
    #[error("{0}")]
    Refused(String),
    /// An HTTP request got no answer.
    #[error("no answer to {request}")]
    NoAnswer {
        /// Method and address.
        request: String,
        /// Why.
        source: reqwest::Error,
    },
    /// An HTTP request got another answer than the one needed.
    #[error("{request} was answered with {status}: {body}")]
    Answer {
        /// Method and address.
        request: String,
        /// The status.
        status: u16,
        /// The beginning of the body.
        body: String,
    },
    /// The machine lacks something that the launcher cannot give it.
    #[error("{0}")]
    Machine(String),
    /// Something took longer than it may.
    #[error("{what} took longer than {seconds} s")]
    TooLong {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
    },
}

/// What most of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Gives an [`io::Error`] its file.
pub(crate) trait At<T> {
    /// Says what was tried with which file.
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(|source| Error::File {
            action,
            path: path.into(),
            source,
        })
    }
}

impl<T> At<T> for rustix::io::Result<T> {
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(io::Error::from).at(action, path)
    }
}

/// The whole chain of causes in one line, for the end of a program.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
