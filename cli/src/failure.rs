//! The error of a command.

use crate::exit_status::ExitStatus;

/// The error of a command: what failed, what to do next, and the exit status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    /// The exit status that the command ends with.
    pub(crate) status: ExitStatus,
    /// The operation, its subject, and what was wrong.
    pub(crate) message: String,
    /// The next step for the person at the terminal.
    pub(crate) next: String,
}

impl Failure {
    /// Creates the error of a wrong command line, file or key.
    pub(crate) fn usage(message: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(ExitStatus::Usage, message, next)
    }

    /// Creates the error of a platform that does not answer as it should.
    pub(crate) fn platform(message: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(ExitStatus::PlatformFailed, message, next)
    }

    /// Creates an error with an exit status.
    pub(crate) fn new(status: ExitStatus, message: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            next: next.into(),
        }
    }
}
