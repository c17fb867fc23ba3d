//! Why there is no image, or no function, and whose doing that is.

use std::error::Error as StdError;
use std::time::Duration;

use function_host::duration;
use function_host::secret::SecretError;

use crate::buildkit::{ConnectError, Failure, Fault, JobError};
use crate::places::Full;
use crate::request::{RequestError, RequestErrorKind};
use crate::sealed::SealError;

/// Whatever can go wrong with a build request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key that requests are signed with is not there.
    #[error("the builder cannot check signatures")]
    PayloadSecret(#[source] SecretError),
    /// `deploy` was asked for, and this builder was not given the secret to sign hand-overs with.
    #[error("this builder does not deploy: it has no secret {secret:?}, so `deploy` has to be left out")]
    NoDeployment {
        /// The name of the missing secret.
        secret: &'static str,
    },
    /// `deploy` was asked for with a streamed answer, and the hand-over is signed in a header, which comes before the stream.
    #[error(
        "this builder signs what is to be deployed in a header of its answer (deploy_via=callback), which a stream cannot have: \
         `Accept` or `deploy` has to be left out"
    )]
    StreamedHandOver,
    /// The secret is there and cannot be used.
    #[error("the builder cannot sign hand-overs")]
    DeploySecret(#[source] SecretError),
    /// The request cannot be trusted or understood.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The request brings sealed secrets along. Leaving them out of the build would be worse than refusing it.
    #[error("this builder has no key for sealed secrets, so com.openfaas.secrets has to be left out")]
    SealedSecrets,
    /// A list of the image's content was asked for, and nothing here makes one.
    #[error(
        "this builder makes no list of an image's content: its setting sbom_generator names no image that does, so `sbom` \
         has to be left out"
    )]
    NoSbomGenerator,
    /// As many builds run, and wait, as may.
    #[error("{limit} builds are running, which is as many as this builder runs at a time; try again")]
    Busy {
        /// How many may run at a time.
        limit: usize,
    },
    /// The builder is being ended, and begins nothing any more.
    #[error("the builder is being ended and begins no more builds; try again")]
    Draining,
    /// The sealed secrets cannot be opened.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// No daemon.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The daemon went away during the build.
    #[error("BuildKit was lost during the build")]
    Lost(#[source] Box<dyn StdError + Send + Sync>),
    /// The build failed.
    #[error(transparent)]
    Failed(Failure),
    /// The build was ended for taking too long.
    #[error("the build ran past its time limit of {}", duration::format(*limit))]
    TimeLimit {
        /// The limit.
        limit: Duration,
    },
    /// The builder is being ended, and the build with it.
    #[error("the builder is shutting down and ended the build; try again")]
    Interrupted,
    /// The daemon did not say what it built, so that there is nothing to deploy.
    #[error("BuildKit did not say which image it built")]
    NoDigest,
}

/// What kind of answer an error asks for. Callers of this crate branch on this, never on a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The sender has to show that it may.
    Unauthorized,
    /// The request cannot be served as it is, and never will be.
    Refused,
    /// The request is larger than what is read.
    TooLarge,
    /// The request was served, and what it asked for failed by its own doing.
    BuildFailed,
    /// There is no room for the request now. The rest of it has not been read.
    NoSpace,
    /// There is no place for it now; later there will be.
    Busy {
        /// How many builds may run at a time.
        limit: usize,
    },
    /// Another builder has to be asked, or this one's successor.
    Draining,
    /// Something of ours failed. It may work another time.
    Platform,
}

impl Error {
    /// The kind of answer.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Request(error) => match error.kind() {
                RequestErrorKind::Unauthorized => Kind::Unauthorized,
                RequestErrorKind::Invalid | RequestErrorKind::Broken => Kind::Refused,
                RequestErrorKind::TooLarge => Kind::TooLarge,
                RequestErrorKind::NoSpace => Kind::NoSpace,
                RequestErrorKind::Platform => Kind::Platform,
            },
            Self::NoDeployment { .. }
            | Self::StreamedHandOver
            | Self::SealedSecrets
            | Self::NoSbomGenerator => Kind::Refused,
            Self::Seal(error) if error.is_ours() => Kind::Platform,
            Self::Seal(_) => Kind::Refused,
            Self::TimeLimit { .. } => Kind::BuildFailed,
            Self::Busy { limit } => Kind::Busy { limit: *limit },
            Self::Draining => Kind::Draining,
            Self::Failed(failure) => match failure.fault {
                Fault::Caller => Kind::BuildFailed,
                Fault::Platform => Kind::Platform,
            },
            Self::PayloadSecret(_)
            | Self::DeploySecret(_)
            | Self::Connect(_)
            | Self::Lost(_)
            | Self::Interrupted
            | Self::NoDigest => Kind::Platform,
        }
    }
}

impl Error {
    /// Whether this is about a request whose signature holds, so that whoever asked for a stream is told in one.
    pub fn is_told_to_the_sender(&self) -> bool {
        match self {
            Self::Request(error) => error.is_from_verified_caller(),
            Self::PayloadSecret(_) => false,
            _ => true,
        }
    }
}

impl From<Full> for Error {
    fn from(Full { limit }: Full) -> Self {
        Self::Busy { limit }
    }
}

impl From<JobError> for Error {
    fn from(error: JobError) -> Self {
        match error {
            JobError::Failed(failure) => Self::Failed(failure),
            JobError::Lost(source) => Self::Lost(source),
        }
    }
}
