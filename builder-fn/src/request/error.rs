//! Why a request is refused.

use std::time::Duration;

use function_host::{BodyError, BoxError, duration};

use super::config::ConfigError;
use super::frontend::FrontendError;
use crate::context::{ArchiveError, SpoolError};

/// What kept a request from becoming a build. The texts are for its sender, and complete; only failures of this
/// side have causes behind them.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The header is missing.
    #[error(
        "the request is not signed; X-Build-Signature should be sha256= and the hexadecimal HMAC-SHA256 of the body"
    )]
    NotSigned,
    /// The header is no signature.
    #[error("X-Build-Signature should be sha256= and 64 hexadecimal digits")]
    MalformedSignature,
    /// The signature is that of another body, or made with another key.
    #[error("X-Build-Signature does not match the body and the key of this builder")]
    WrongSignature,
    /// The request says itself that it is too old.
    #[error("the request was good until {not_after} (notAfter); sign a new one")]
    Expired {
        /// Until when, as RFC 3339.
        not_after: String,
    },
    /// More than allowed.
    #[error("the body is larger than {limit} bytes, which is the limit of this builder")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// The sender paused for too long.
    #[error(
        "nothing came of the body for {}, which is as long as this builder waits (read_timeout)",
        duration::format(*limit)
    )]
    Stalled {
        /// How long it may pause.
        limit: Duration,
    },
    /// The sender broke off.
    #[error("the body could not be read to its end")]
    Body {
        /// What the connection said.
        #[source]
        source: BoxError,
    },
    /// The tar is not as it should be.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The tar has no configuration.
    #[error("the tar has no com.openfaas.docker.config; it should say at least {{\"image\": \"…\"}}")]
    NoConfig,
    /// The configuration is not as it should be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The Dockerfile wants to be read by something else.
    #[error(transparent)]
    Frontend(#[from] FrontendError),
    /// Nothing says what to build.
    #[error("the tar has no file context/{path}, which is to be built")]
    NoDockerfile {
        /// Where it should be in the context.
        path: String,
    },
    /// The tar could not be kept.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// What was kept of the tar cannot be read any more.
    #[error("could not read back what was kept of the body")]
    Reread(#[source] std::io::Error),
    /// The process is ending.
    #[error("the builder was shut down while it read the request")]
    Interrupted,
}

/// What to do about a [`RequestError`], and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestErrorKind {
    /// The sender has to show that it may.
    Unauthorized,
    /// The sender has to send something else.
    Invalid,
    /// The sender has to send less. The rest of the body has not been read.
    TooLarge,
    /// The sender went away, or stalled; nobody may be there to hear.
    Broken,
    /// There is no room for the body now. Later, or elsewhere, there may be.
    NoSpace,
    /// Something here failed.
    Platform,
}

impl RequestError {
    /// What became of a body.
    pub(super) fn of_body(error: BoxError) -> Self {
        match error.downcast_ref() {
            Some(BodyError::Stalled { limit }) => Self::Stalled { limit: *limit },
            _ => Self::Body { source: error },
        }
    }

    /// What kind of error this is.
    pub fn kind(&self) -> RequestErrorKind {
        match self {
            Self::NotSigned | Self::MalformedSignature | Self::WrongSignature | Self::Expired { .. } => {
                RequestErrorKind::Unauthorized
            }
            Self::Archive(ArchiveError::UnpacksTooLarge { .. }) => RequestErrorKind::TooLarge,
            Self::Archive(_)
            | Self::NoConfig
            | Self::Config(_)
            | Self::Frontend(_)
            | Self::NoDockerfile { .. } => RequestErrorKind::Invalid,
            Self::TooLarge { .. } => RequestErrorKind::TooLarge,
            Self::Stalled { .. } | Self::Body { .. } => RequestErrorKind::Broken,
            Self::Spool(SpoolError::Full { .. } | SpoolError::Limit { .. }) => RequestErrorKind::NoSpace,
            Self::Spool(SpoolError::Io { .. }) | Self::Reread(_) | Self::Interrupted => {
                RequestErrorKind::Platform
            }
        }
    }

    /// Whether the signature, where one is needed, held before this went wrong.
    pub fn is_of_a_known_sender(&self) -> bool {
        match self {
            // What is wrong with a tar is kept back until then.
            Self::Expired { .. }
            | Self::Archive(_)
            | Self::NoConfig
            | Self::Config(_)
            | Self::Frontend(_)
            | Self::Reread(_)
            | Self::NoDockerfile { .. } => true,
            Self::NotSigned
            | Self::MalformedSignature
            | Self::WrongSignature
            | Self::TooLarge { .. }
            | Self::Stalled { .. }
            | Self::Body { .. }
            | Self::Spool(_)
            | Self::Interrupted => false,
        }
    }
}
