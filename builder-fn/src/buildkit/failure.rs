//! Why a build failed, and whose doing it was.
use tonic::{Code, Status};

/// Whose doing a failed build is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The Dockerfile's, the context's.
    Caller,
    /// A registry's, or the daemon's.
    Platform,
}

/// A build that BuildKit says has failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// In BuildKit's words.
    pub message: String,
    /// Whose doing.
    pub fault: Fault,
}

impl Failure {
    pub(super) fn new(status: &Status, step: Option<&str>) -> Self {
        let fault = match (status.code(), step) {
            (Code::Unknown, _) => Fault::Caller,
            _ => Fault::Platform,
        };
        Self {
            message: status.message().to_owned(),
            fault,
        }
    }
}
