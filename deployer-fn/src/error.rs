//! What keeps a hand-over from being acted on. Nothing has been changed then.
//!
//! What goes wrong once the gateway is asked is not an error of this kind but an [`Outcome`](crate::outcome::Outcome).

use function_host::secret::SecretError;
use function_host::signature::{Malformed, Mismatch};
use function_host::{BodyError, ErrorChain};

/// Why a request was not acted on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No signature.
    #[error("the header X-Deploy-Signature is missing")]
    Unsigned,
    /// Something that cannot be a signature.
    #[error("the header X-Deploy-Signature is malformed")]
    Malformed(#[source] Malformed),
    /// A signature that none of our keys gives.
    #[error("the hand-over is not signed with this deployer's key")]
    Forged(#[source] Mismatch),
    /// The body is too large, too slow, or broke off.
    #[error("could not read the hand-over")]
    Body(#[source] BodyError),
    /// The body is signed and not JSON.
    #[error("could not parse the hand-over")]
    NotJson(#[source] serde_json::Error),
    /// The body is JSON and not a hand-over; one problem an entry.
    #[error("the hand-over is not valid")]
    Invalid(Vec<String>),
    /// The deployer has no key to check signatures with.
    #[error("could not read the key for signatures")]
    Key(#[source] SecretError),
    /// The secret is there, without a key in it.
    #[error("the secret {name} has no key in it")]
    NoKey {
        /// The secret's name.
        name: &'static str,
    },
    /// The rollout itself broke.
    #[error("the rollout ended unexpectedly")]
    Broken(#[source] tokio::task::JoinError),
}

/// What a caller can do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sign with the right key.
    Unauthorized,
    /// Send less.
    TooLarge,
    /// Send it again, without stalling.
    Slow,
    /// Send something else.
    Invalid,
    /// Nothing: the deployer has to be mended.
    Internal,
}

impl Error {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Unsigned | Self::Malformed(_) | Self::Forged(_) => Kind::Unauthorized,
            Self::Body(BodyError::TooLarge { .. }) => Kind::TooLarge,
            Self::Body(BodyError::Stalled { .. }) => Kind::Slow,
            Self::Body(_) | Self::NotJson(_) | Self::Invalid(_) => Kind::Invalid,
            Self::Key(_) | Self::NoKey { .. } | Self::Broken(_) => Kind::Internal,
        }
    }

    /// The reasons one by one, for the caller.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        match self {
            Self::Invalid(problems) => problems.clone(),
            other => vec![chain(other)],
        }
    }
}

/// Formats an error and its sources on one line.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    ErrorChain(error).to_string()
}
