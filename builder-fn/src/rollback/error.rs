//! The reasons why a rollback is not begun, or a function's versions are not listed.

use function_host::http::StatusCode;
use function_host::policy::Violations;

use crate::builds::StoreError;
use crate::error::Error;
use crate::versions::NoVersionToRollBackTo;

/// The reason why a rollback is not begun, or a function's versions are not listed. The texts are written for the caller.
#[derive(Debug, thiserror::Error)]
pub(super) enum RollbackError {
    /// The request is not authentic, or that cannot be checked.
    #[error("{1}")]
    Unauthenticated(StatusCode, String),
    /// The path or the query is wrong.
    #[error("{0}")]
    Query(String),
    /// The builder has no record store.
    #[error(
        "this builder keeps no versions of functions, because its setting records_repository is not set: nothing was changed; \
         deploy the earlier source again, or have the operator set it, which keeps the versions that are deployed from then on"
    )]
    NoStore,
    /// Hand-overs reach the deployer as part of a build's answer.
    #[error(
        "this builder leaves hand-overs to the caller of a build (deploy_via=callback), and cannot roll back: nothing was \
         changed; have the operator set deploy_via=function"
    )]
    Callback,
    /// The builder cannot sign hand-overs.
    #[error(transparent)]
    Signer(Error),
    /// The record store cannot be read or written.
    #[error(
        "the versions of the function cannot be read or the rollback recorded: nothing was changed; try again"
    )]
    Store(#[from] StoreError),
    /// No version can be chosen.
    #[error(transparent)]
    NoVersionToRollBackTo(#[from] NoVersionToRollBackTo),
    /// Today's rules do not allow the version.
    #[error("the version {id} is not allowed any more, and nothing was changed: {violations}")]
    Forbidden {
        /// The ID of the version.
        id: String,
        /// What the version violates, with the names of the rules.
        violations: Violations,
    },
    /// The registry does not have the image of the version any more.
    #[error(
        "the registry does not have the image {image} of the version {id} any more: nothing was changed; choose another version, \
         or build its source again"
    )]
    ImageGone {
        /// The image by digest.
        image: String,
        /// The ID of the version.
        id: String,
    },
    /// A version was handed in after the request was signed.
    #[error(
        "the version {id} was handed in after this rollback was signed: nothing was changed; sign it again if that version is to be \
         rolled back, and check the clock"
    )]
    Outdated {
        /// The ID of the version.
        id: String,
    },
    /// The ID belongs to something else.
    #[error("the ID {id} belongs to another build; choose a new one")]
    IdTaken {
        /// The ID.
        id: String,
    },
    /// A rollback of the function runs.
    #[error("the rollback {id} of this function is under way; ask about it, or try again when it has ended")]
    UnderWay {
        /// The ID of the rollback that runs.
        id: String,
    },
    /// As many rollbacks run as may.
    #[error("{limit} rollbacks are running, which is this builder's limit; try again")]
    Busy {
        /// The limit.
        limit: usize,
    },
    /// The builder is shutting down.
    #[error("the builder is shutting down and begins no rollback; try again")]
    Draining,
    /// The policy's daemon for the tenant cannot be used.
    #[error("the policy is wrong: {0}")]
    TenantDaemon(String),
}

impl RollbackError {
    /// Returns the HTTP status of the answer.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Unauthenticated(status, _) => *status,
            Self::Query(_) => StatusCode::BAD_REQUEST,
            Self::NoStore | Self::Callback | Self::Signer(Error::NoDeploySecret { .. }) => {
                StatusCode::NOT_IMPLEMENTED
            }
            Self::Signer(_) | Self::Store(_) | Self::TenantDaemon(_) => StatusCode::BAD_GATEWAY,
            Self::NoVersionToRollBackTo(_) => StatusCode::NOT_FOUND,
            Self::Forbidden { .. } => StatusCode::FORBIDDEN,
            Self::ImageGone { .. } => StatusCode::GONE,
            Self::IdTaken { .. } | Self::UnderWay { .. } | Self::Outdated { .. } => StatusCode::CONFLICT,
            Self::Busy { .. } | Self::Draining => StatusCode::TOO_MANY_REQUESTS,
        }
    }
}
