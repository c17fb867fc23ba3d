//! Errors before a rollout: the hand-over is not acted on, and nothing has been changed.
//!
//! A failure after that is not an error of this kind: it is part of the outcome.

use function_host::BodyError;
use function_host::ErrorChain;
use function_host::secret::SecretError;
use function_host::signature::{MalformedSignature, SignatureMismatch};

/// The reason why a hand-over was not acted on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There is no signature.
    #[error("the header X-Deploy-Signature is missing")]
    Unsigned,
    /// The signature has another form.
    #[error("the header X-Deploy-Signature is malformed")]
    MalformedSignature(#[source] MalformedSignature),
    /// The signature was made with none of the deployer's keys.
    #[error("the hand-over is not signed with a key of this deployer")]
    WrongSignature(#[source] SignatureMismatch),
    /// The body is too large, too slow, or ended early.
    #[error("could not read the hand-over")]
    Body(#[source] BodyError),
    /// The body is signed, but not JSON.
    #[error("could not parse the hand-over")]
    NotJson(#[source] serde_json::Error),
    /// The body is JSON, but not a valid hand-over.
    #[error("the hand-over is not valid")]
    Invalid {
        /// The problems, one an entry.
        problems: Vec<String>,
        /// Whether it asks for a dry run.
        dry_run: bool,
    },
    /// The secret with the signing keys could not be read.
    #[error("could not read the key that checks signatures")]
    Key(#[source] SecretError),
    /// The secret with the signing keys has none.
    #[error("the secret {name} has no signing key")]
    NoKey {
        /// The secret's name.
        name: &'static str,
    },
    /// The deployment panicked before or after its rollout.
    #[error("the deployment ended unexpectedly")]
    Panicked(#[source] tokio::task::JoinError),
}

/// Kinds of errors, by what the caller can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    /// Sign with the right key.
    Unauthorized,
    /// Send a smaller body.
    TooLarge,
    /// Send the same body faster.
    Slow,
    /// Send another hand-over.
    Invalid,
    /// Nothing: the operator has to act.
    Internal,
}

impl Error {
    /// Returns the kind of the error.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Unsigned | Self::MalformedSignature(_) | Self::WrongSignature(_) => ErrorKind::Unauthorized,
            Self::Body(BodyError::TooLarge { .. }) => ErrorKind::TooLarge,
            Self::Body(BodyError::Stalled { .. }) => ErrorKind::Slow,
            Self::Body(_) | Self::NotJson(_) | Self::Invalid { .. } => ErrorKind::Invalid,
            Self::Key(_) | Self::NoKey { .. } | Self::Panicked(_) => ErrorKind::Internal,
        }
    }

    /// Returns the reasons for the caller: each problem of an invalid hand-over, or the error with its causes.
    pub(crate) fn reasons(&self) -> Vec<String> {
        match self {
            Self::Invalid { problems, .. } => problems.clone(),
            other => vec![ErrorChain(other).to_string()],
        }
    }
}
