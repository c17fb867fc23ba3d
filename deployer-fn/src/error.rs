//! Errors of handling a hand-over other than a failed rollout: the hand-over is rejected before its rollout, and
//! nothing has been changed; or its task panicked.
//!
//! The failure of a rollout is not an error of this kind: it is part of the outcome.

use function_host::policy::Violations;
use function_host::secret::SecretError;
use function_host::signature::{MalformedSignature, SignatureMismatch};
use function_host::unverified::ReceiveError;
use function_host::{BodyError, ConcurrencyLimitExceeded, ErrorChain};

/// The reason why a hand-over was rejected before its rollout, or why its deployment has no outcome.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandOverRejectionOrPanic {
    /// The request has no signature header.
    #[error("the header X-Deploy-Signature is missing")]
    Unsigned,
    /// The signature header does not have the form of an HMAC signature.
    #[error("the header X-Deploy-Signature is malformed")]
    MalformedSignature(#[source] MalformedSignature),
    /// The hand-over's signature was made with none of the deployer's keys, or with a key that two signers have.
    #[error("the hand-over is not signed with a key of this deployer")]
    WrongSignature(#[source] SignatureMismatch),
    /// The hand-over's body is too large, too slow, ended early, or was displaced by others.
    #[error("could not read the hand-over")]
    Receive(#[source] ReceiveError),
    /// As many authentic hand-overs are in progress as `max_inflight` allows.
    #[error(transparent)]
    Busy(#[from] ConcurrencyLimitExceeded),
    /// The hand-over's body is correctly signed, but is not JSON.
    #[error("could not parse the hand-over")]
    NotJson(#[source] serde_json::Error),
    /// The hand-over's body is JSON, but not a valid hand-over.
    #[error("the hand-over is not valid")]
    Invalid {
        /// The problems of the hand-over, one an entry.
        problems: Vec<String>,
        /// Whether the invalid hand-over asks for a dry run.
        dry_run: bool,
    },
    /// The hand-over violates its tenant's rules, or a rule that holds under every policy.
    #[error("the rules do not allow the hand-over")]
    Forbidden {
        /// Every violation of the rules.
        violations: Violations,
        /// Whether the rejected hand-over asks for a dry run.
        dry_run: bool,
    },
    /// The secret with the signing keys could not be read.
    #[error("could not read the key that checks signatures")]
    Key(#[source] SecretError),
    /// The secret for the signing keys contains no key.
    #[error("the secret {name} has no signing key")]
    NoKey {
        /// The name of the secret that contains no key.
        name: &'static str,
    },
    /// The deployment panicked before or after its rollout, so that it may have changed the function.
    #[error("the deployment ended unexpectedly")]
    Panicked(#[source] tokio::task::JoinError),
}

/// Kinds of hand-over errors, by what the caller can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    /// An unauthorized hand-over: the caller has to sign it with the right key.
    Unauthorized,
    /// A hand-over that is too large: the caller has to send a smaller body.
    TooLarge,
    /// A hand-over that arrived too slowly: the caller has to send the same body faster.
    Slow,
    /// Too many hand-overs at a time: the caller has to send the same one again.
    Busy,
    /// An invalid hand-over: the caller has to send another one.
    Invalid,
    /// A hand-over that the rules do not allow: the caller has to send another one, or the operator to change the
    /// rules.
    Forbidden,
    /// An error inside the deployer: the caller can do nothing, the operator has to act.
    Internal,
}

impl HandOverRejectionOrPanic {
    /// Returns the kind of this hand-over error.
    pub(crate) fn error_kind(&self) -> ErrorKind {
        match self {
            Self::Unsigned | Self::MalformedSignature(_) | Self::WrongSignature(_) => ErrorKind::Unauthorized,
            Self::Receive(ReceiveError::Displaced(_)) | Self::Busy(_) => ErrorKind::Busy,
            Self::Receive(ReceiveError::TooSlow { .. } | ReceiveError::Body(BodyError::Stalled { .. })) => {
                ErrorKind::Slow
            }
            Self::Receive(ReceiveError::Body(BodyError::TooLarge { .. })) => ErrorKind::TooLarge,
            Self::Receive(ReceiveError::Body(_)) | Self::NotJson(_) | Self::Invalid { .. } => {
                ErrorKind::Invalid
            }
            Self::Forbidden { .. } => ErrorKind::Forbidden,
            Self::Key(_) | Self::NoKey { .. } | Self::Panicked(_) => ErrorKind::Internal,
        }
    }

    /// Returns the reasons for the caller: each problem of an invalid hand-over, each violation of the rules, or the
    /// error with its causes.
    pub(crate) fn reasons_with_causes_for_caller(&self) -> Vec<String> {
        match self {
            Self::Invalid { problems, .. } => problems.clone(),
            Self::Forbidden { violations, .. } => violations.iter().map(ToString::to_string).collect(),
            other => vec![ErrorChain(other).to_string()],
        }
    }
}
