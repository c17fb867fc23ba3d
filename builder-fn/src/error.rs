//! The errors of a build request: why it produced no image or no running function, and who can fix it.

use std::error::Error as StdError;
use std::time::Duration;

use function_host::duration;
use function_host::secret::SecretError;

use crate::buildkit::{
    BuildFailure, BuildkitVersion, ConnectError, FaultyParty, JobError, LOWEST_SHARED_BUILDKIT_RELEASE,
    NoDaemonForPlatform, Platform,
};
use crate::hand_over::{DeploymentOutcome, DeploymentStatus};
use crate::registry::ImageName;
use crate::remote_context::{ContextError, ContextErrorKind};
use crate::request::{RequestError, RequestErrorKind};
use crate::sealed::SealedSecretsError;
use crate::slots::SlotRefused;
use crate::sources::{UrlRejection, WebUrl};
use crate::supersede::Superseded;

/// The name of the sealed secret with the token for the status of a commit.
pub(crate) const STATUS_TOKEN_SECRET_NAME: &str = "COMMIT_STATUS_TOKEN";

/// The error of a build request. The texts are written for the caller; causes are for the log only.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The secret that requests are signed with is missing or unusable.
    #[error("the builder cannot check signatures")]
    PayloadSecret(#[source] SecretError),
    /// The config has `deploy`, and the builder has no secret to sign hand-overs with.
    #[error(
        "this builder does not deploy, because it has no secret {secret:?}; leave \"deploy\" out of the config"
    )]
    NoDeploySecret {
        /// The name of the missing secret for hand-overs.
        secret: &'static str,
    },
    /// The config has `deploy`, `Accept` asks for a stream, and the signature of the hand-over is a header, which a
    /// stream sends before the image exists.
    #[error(
        "this builder signs the hand-over in a header of its answer (deploy_via=callback), which a streamed answer cannot \
         have; leave out the header Accept or the config's \"deploy\""
    )]
    StreamedHandOver,
    /// The secret that hand-overs are signed with is unusable.
    #[error("the builder cannot sign hand-overs")]
    DeploySecret(#[source] SecretError),
    /// The request cannot be received or is not authentic, or its body is invalid.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The context that the request refers to cannot be used, or a context cannot be stored.
    #[error(transparent)]
    Context(Box<ContextError>),
    /// The request has sealed secrets, and the builder has no key. Building without them would hide the mistake.
    #[error(
        "this builder has no key for sealed secrets; leave com.openfaas.secrets out of the tar, or sealedSecrets out of the \
         JSON request"
    )]
    NoSealKey,
    /// The git repository of the context is read without TLS, which the builder's settings do not allow.
    #[error("context.git.repository: {0}")]
    GitRepository(UrlRejection),
    /// The operator's token for the git repository of the context cannot be read.
    #[error("the operator's token for the git repository of the context cannot be read")]
    OperatorGitToken(#[source] SecretError),
    /// The result of the build may not be sent to the URL in the config's `notify`.
    #[error("notify: {0}")]
    Notify(UrlRejection),
    /// The status of the commit may not be set at the URL in the config's `commitStatus`.
    #[error("commitStatus: {0}")]
    CommitStatus(UrlRejection),
    /// The config's `commitStatus` names no commit, and the context has none.
    #[error(
        "commitStatus.commit is missing; it should be the full hash of a commit unless the context is a git repository"
    )]
    NoStatusCommit,
    /// There is no token for the status of the commit.
    #[error(
        "commitStatus: no token for {project}; it should be the sealed secret {STATUS_TOKEN_SECRET_NAME}, unless the operator has one \
         (status_tokens)"
    )]
    NoStatusToken {
        /// The URL of the project.
        project: Box<WebUrl>,
    },
    /// The operator's token for the status of the commit cannot be read.
    #[error("the operator's token for the status of the commit cannot be read")]
    StatusToken(#[source] SecretError),
    /// The config has `sbom`, and the builder has no generator.
    #[error(
        "this builder makes no SBOM, because its setting sbom_generator is not set; leave \"sbom\" out of the config"
    )]
    NoSbomGenerator,
    /// The request names the repository in which the builder keeps records of builds.
    #[error(
        "{image} is the builder's repository for records of builds, which no build uses; choose another name"
    )]
    RecordsRepository {
        /// The name in the request.
        image: ImageName,
    },
    /// The request names the repository in which the builder keeps caches.
    #[error("{image} is the builder's repository for caches, which no build names; choose another name")]
    CacheRepository {
        /// The name in the request.
        image: ImageName,
    },
    /// The deployer would refuse the image's hand-over, so that the image is not built.
    #[error("the image was not built, because its deployment would be refused: {}", .0.reasons_in_one_line())]
    DeploymentRefused(Box<DeploymentOutcome>),
    /// All build slots are taken.
    #[error("{limit} builds are running, which is this builder's limit; try again")]
    Busy {
        /// The limit on the builds that run at the same time.
        limit: usize,
    },
    /// The builder is shutting down and starts no builds.
    #[error("the builder is shutting down and starts no more builds; try again")]
    Draining,
    /// The sealed secrets cannot be opened.
    #[error(transparent)]
    Seal(#[from] SealedSecretsError),
    /// The policy names a BuildKit daemon for the tenant, whose address cannot be used.
    #[error("the policy is wrong: {0}")]
    TenantDaemon(String),
    /// Several tenants build on a daemon whose version does not keep them apart, or is not known.
    #[error(
        "several tenants share BuildKit at {daemon}, whose version is {version}; the operator should update it to {} or later, \
         or give each tenant a daemon of its own",
        LOWEST_SHARED_BUILDKIT_RELEASE
    )]
    UnsafeSharedDaemon {
        /// The address of the daemon, for messages.
        daemon: String,
        /// The version that the daemon reports.
        version: BuildkitVersion,
    },
    /// Every BuildKit daemon is bound to platforms, and none to one that the config names.
    #[error(
        "platforms: no BuildKit daemon of this builder builds for {platform}; choose among {}, or ask the operator for one \
         (buildkit_url)",
        .bound.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    NoDaemonForPlatform {
        /// The platform in the config.
        platform: String,
        /// The platforms that daemons are bound to.
        bound: Vec<Platform>,
    },
    /// BuildKit cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection to BuildKit was lost.
    #[error("BuildKit was lost during the build")]
    Lost(#[source] Box<dyn StdError + Send + Sync>),
    /// Another builder runs the build on another daemon, which has precedence.
    #[error(
        "another builder runs the build of this call on BuildKit at {daemon}, and it could not be followed"
    )]
    BuiltElsewhere {
        /// The address of the other daemon.
        daemon: String,
    },
    /// BuildKit reports that the build failed.
    #[error(transparent)]
    Failed(BuildFailure),
    /// The build was cancelled because it exceeded the config's `timeout` or the function's own time limit.
    #[error("the build ran past its time limit of {}", duration::format_duration(*limit))]
    TimeLimit {
        /// The time limit that the build exceeded.
        limit: Duration,
    },
    /// The build was cancelled because the builder is shutting down.
    #[error("the builder is shutting down and ended the build; try again")]
    Interrupted,
    /// No slot became free in time for an accepted build, which is resumed when there is one.
    #[error("no build slot became free in time; the build stays accepted, and is resumed when there is one")]
    StaysAccepted,
    /// The builder is shutting down, and another one resumes the build.
    #[error(
        "the builder is shutting down, and another builder resumes the build; ask about it by its call ID, or send it again to \
         get its result"
    )]
    HandedBack,
    /// The builder is shutting down, and submitted the call to its queue again, or left it to another delivery.
    #[error(
        "the builder is shutting down, and has submitted the call to the queue again; ask about it by its call ID, or send it \
         again to get its result"
    )]
    SubmittedAgain,
    /// The body of a build that is resumed is not signed by the tenant that it belongs to.
    #[error("the request is not signed by the tenant whose build is to be resumed")]
    OtherTenant,
    /// A newer build of the same function runs or has succeeded.
    #[error(transparent)]
    Superseded(#[from] Superseded),
    /// Somebody cancelled the build.
    #[error("cancelled")]
    Cancelled,
    /// Another call builds or has built the same signed request, which only one call may build because its age is
    /// limited.
    #[error("this signed request was already built as call {call_id}; sign it again with a new submittedAt")]
    AlreadyBuilt {
        /// The ID of the call that built the same request, or builds it.
        call_id: String,
    },
    /// The builds under all 16 references that a call may use have failed, were cancelled, or have lost their image.
    #[error(
        "this call was built too often, and no build of it is left; send the request again as another call, without its X-Call-Id"
    )]
    AttemptsUsedUp,
    /// BuildKit reported no digest, so there is nothing to deploy.
    #[error("BuildKit did not report the digest of the image, so it cannot be deployed")]
    NoDigest,
}

/// The kind of a build request's error, as its answer must express it. Code branches on the kind, never on the
/// text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    /// The caller must prove that it may build.
    Unauthorized,
    /// The request is invalid. It fails however often it is sent.
    Invalid,
    /// The rules do not allow the request. It fails however often it is sent.
    Forbidden,
    /// The request exceeds a size limit. The rest of its body may not have been read.
    TooLarge,
    /// The request is valid, and its build fails however often it is run.
    BuildFailed,
    /// The request is valid, and its deployment is refused however often it is sent.
    DeploymentRejected,
    /// A newer build of the same function replaces this one.
    Superseded,
    /// Somebody cancelled the build.
    Cancelled,
    /// Another call builds or has built the same request of limited age, or this call has used all its builds up.
    Conflict,
    /// There is no space for the request's body or its context now. The rest of the body may not have been read.
    NoSpace,
    /// The request's body arrived too slowly. The rest of it has not been read.
    TooSlow,
    /// The request's body gave way to others before its signature was verified. The rest of it has not been read.
    Displaced,
    /// All build slots are taken now.
    Busy {
        /// The limit on the builds that run at the same time.
        limit: usize,
    },
    /// This builder is shutting down. Another builder, or its successor, can build.
    Draining,
    /// The build was handed back, to the record store or to the queue: a builder runs it, this one or another.
    HandedBack,
    /// The operator has not set this builder up to store contexts.
    NotOffered,
    /// The builder or something that it depends on failed. A retry may succeed.
    Platform,
}

impl ErrorKind {
    /// Returns whether the request is only rejected for now, so that the same request is to be sent again later.
    pub(crate) fn is_rejected_for_now(self) -> bool {
        matches!(
            self,
            Self::Busy { .. } | Self::Displaced | Self::Draining | Self::HandedBack
        )
    }

    /// Returns whether the same request may succeed when it is sent again: at this builder, or at another one.
    pub(crate) fn is_transient(self) -> bool {
        self.is_rejected_for_now() || matches!(self, Self::NoSpace | Self::Platform)
    }

    fn of_request_kind(kind: RequestErrorKind) -> Self {
        match kind {
            RequestErrorKind::Unauthorized => Self::Unauthorized,
            RequestErrorKind::Invalid | RequestErrorKind::Broken => Self::Invalid,
            RequestErrorKind::Forbidden => Self::Forbidden,
            RequestErrorKind::TooLarge => Self::TooLarge,
            RequestErrorKind::TooSlow => Self::TooSlow,
            RequestErrorKind::Displaced => Self::Displaced,
            RequestErrorKind::NoSpace => Self::NoSpace,
            RequestErrorKind::Platform => Self::Platform,
        }
    }
}

impl Error {
    /// Returns the kind of the error, which the answer must express.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Request(error) => ErrorKind::of_request_kind(error.kind()),
            Self::Context(error) => match error.kind() {
                ContextErrorKind::Forbidden => ErrorKind::Forbidden,
                ContextErrorKind::Invalid => ErrorKind::Invalid,
                ContextErrorKind::TooLarge => ErrorKind::TooLarge,
                ContextErrorKind::NoSpace => ErrorKind::NoSpace,
                ContextErrorKind::Unusable(kind) => ErrorKind::of_request_kind(kind),
                ContextErrorKind::NotOffered => ErrorKind::NotOffered,
                ContextErrorKind::Platform => ErrorKind::Platform,
            },
            Self::NoDeploySecret { .. }
            | Self::StreamedHandOver
            | Self::NoSealKey
            | Self::NoSbomGenerator => ErrorKind::Invalid,
            Self::NoStatusCommit | Self::NoStatusToken { .. } => ErrorKind::Invalid,
            Self::Notify(rejection) | Self::CommitStatus(rejection) | Self::GitRepository(rejection) => {
                match rejection.is_forbidden_and_not_only_unencrypted() {
                    true => ErrorKind::Forbidden,
                    false => ErrorKind::Invalid,
                }
            }
            Self::RecordsRepository { .. } | Self::CacheRepository { .. } | Self::OtherTenant => {
                ErrorKind::Forbidden
            }
            Self::Seal(error) if error.is_platforms_fault() => ErrorKind::Platform,
            Self::Seal(_) => ErrorKind::Invalid,
            Self::TimeLimit { .. } | Self::NoDaemonForPlatform { .. } => ErrorKind::BuildFailed,
            Self::DeploymentRefused(deployment) => match deployment.status {
                DeploymentStatus::Superseded => ErrorKind::Superseded,
                _ => ErrorKind::DeploymentRejected,
            },
            Self::Busy { limit } => ErrorKind::Busy { limit: *limit },
            Self::Draining => ErrorKind::Draining,
            Self::HandedBack | Self::StaysAccepted | Self::SubmittedAgain => ErrorKind::HandedBack,
            Self::Failed(failure) => match failure.fault {
                FaultyParty::Caller => ErrorKind::BuildFailed,
                FaultyParty::Platform => ErrorKind::Platform,
            },
            Self::Superseded(_) => ErrorKind::Superseded,
            Self::Cancelled => ErrorKind::Cancelled,
            Self::AlreadyBuilt { .. } | Self::AttemptsUsedUp => ErrorKind::Conflict,
            Self::PayloadSecret(_)
            | Self::DeploySecret(_)
            | Self::OperatorGitToken(_)
            | Self::StatusToken(_)
            | Self::TenantDaemon(_)
            | Self::UnsafeSharedDaemon { .. }
            | Self::Connect(_)
            | Self::Lost(_)
            | Self::BuiltElsewhere { .. }
            | Self::Interrupted
            | Self::NoDigest => ErrorKind::Platform,
        }
    }

    /// Returns the ID of the call with the newer build that has superseded this one.
    pub(crate) fn superseding_call_id(&self) -> Option<&str> {
        match self {
            Self::Superseded(Superseded(newer)) => Some(&newer.call_id),
            Self::DeploymentRefused(deployment) => deployment.superseding_call_id(),
            _ => None,
        }
    }

    /// Returns the deployer's answer, if it is the reason for the error.
    pub(crate) fn refused_deployment(&self) -> Option<&DeploymentOutcome> {
        match self {
            Self::DeploymentRefused(deployment) => Some(deployment),
            _ => None,
        }
    }

    /// Returns whether a caller that asked for a stream may get this error in one, with status 200. It may only
    /// if the signature of its request was found valid before, and the request is not rejected for now only.
    pub(crate) fn may_be_sent_in_stream(&self) -> bool {
        match self {
            Self::Request(error) => error.is_from_verified_caller(),
            Self::PayloadSecret(_) => false,
            // A queue retries by the status.
            _ => !self.kind().is_rejected_for_now(),
        }
    }
}

impl From<ContextError> for Error {
    fn from(error: ContextError) -> Self {
        Self::Context(Box::new(error))
    }
}

impl From<SlotRefused> for Error {
    fn from(SlotRefused { limit }: SlotRefused) -> Self {
        Self::Busy { limit }
    }
}

impl From<NoDaemonForPlatform> for Error {
    fn from(NoDaemonForPlatform { platform, bound }: NoDaemonForPlatform) -> Self {
        Self::NoDaemonForPlatform { platform, bound }
    }
}

impl From<JobError> for Error {
    fn from(error: JobError) -> Self {
        match error {
            JobError::Failed(failure) => Self::Failed(failure),
            JobError::Lost(source) => Self::Lost(source),
            JobError::AlreadyBuilt { call_id } => Self::AlreadyBuilt { call_id },
            JobError::AttemptsUsedUp => Self::AttemptsUsedUp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_rejects_a_request_for_now_only_is_never_in_a_stream() {
        for error in [
            Error::Busy { limit: 1 },
            Error::Draining,
            Error::HandedBack,
            Error::StaysAccepted,
        ] {
            assert!(error.kind().is_rejected_for_now(), "{error}");
            assert!(!error.may_be_sent_in_stream(), "{error}");
        }
        for error in [Error::NoSealKey, Error::Cancelled, Error::NoDigest] {
            assert!(error.may_be_sent_in_stream(), "{error}");
        }
    }
}
