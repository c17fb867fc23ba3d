//! The reasons to reject a build request.

use std::time::Duration;

use function_host::policy::Violations;
use function_host::unverified::DisplacedForOthers;
use function_host::{BodyError, BoxError, duration};

use super::config::ConfigError;
use super::frontend::ForbiddenFrontend;
use crate::context::{ArchiveError, ReadError, SpoolError};

/// The error of a request, or of a fetched tar, that cannot become a build or a stored context.
///
/// The texts are complete and meant for the caller. Only failures of the platform and the connection have a source.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The request's signature header is missing.
    #[error(
        "the request is not signed; X-Build-Signature should be sha256= and the hexadecimal HMAC-SHA256 of the body"
    )]
    NotSigned,
    /// The request's signature header cannot be parsed.
    #[error("X-Build-Signature should be sha256= and 64 hexadecimal digits")]
    MalformedSignature,
    /// The request's signature belongs to another body, or was made with another key.
    #[error("X-Build-Signature does not match the body and the keys of this builder")]
    WrongSignature,
    /// The configuration's `notAfter` has passed.
    #[error("the request expired at {not_after} (notAfter); sign a new one")]
    Expired {
        /// The time at which the request expired, as RFC 3339.
        not_after: String,
    },
    /// The configuration's `submittedAt` is further ahead of the builder's clock than is allowed.
    #[error(
        "submittedAt {submitted_at} is ahead of this builder's clock, {now}, by more than {}; it should be the time at \
         which the request was signed",
        duration::format_duration(*bound)
    )]
    SubmittedAhead {
        /// The configuration's `submittedAt`, formatted as RFC 3339.
        submitted_at: String,
        /// The time of the builder's clock, as RFC 3339.
        now: String,
        /// The time by which `submittedAt` may be ahead of the builder's clock.
        bound: Duration,
    },
    /// The configuration's `submittedAt` is too long ago.
    #[error(
        "submittedAt {submitted_at} is more than {} before this builder's time, {now}, the limit of this builder \
         (max_age); sign the request again with a new submittedAt",
        duration::format_duration(*max_age)
    )]
    TooOld {
        /// The `submittedAt` of the configuration, as RFC 3339.
        submitted_at: String,
        /// The time of the builder's clock, as RFC 3339.
        now: String,
        /// The largest age that a request may have.
        max_age: Duration,
    },
    /// The configuration has no `submittedAt`, and this builder requires it.
    #[error(
        "submittedAt is missing; this builder requires it (require_fresh): it should be the time at which the request was \
         signed, like 2030-01-31T12:00:00Z, and at most {} ago (max_age)",
        duration::format_duration(*max_age)
    )]
    NotDated {
        /// The largest age that a request may have.
        max_age: Duration,
    },
    /// The request's body exceeds the size limit.
    #[error("the body is larger than {limit} bytes, which is the limit of this builder")]
    TooLarge {
        /// The size limit in bytes.
        limit: u64,
    },
    /// The request's body is too large to be hashed with the keys of all tenants.
    #[error(
        "the body is larger than {limit} bytes, which is the limit of this builder for requests without the header \
         X-Slipway-Tenant; it should name the tenant whose key signed the request"
    )]
    TooLargeWithoutTenant {
        /// The size limit in bytes.
        limit: u64,
    },
    /// The caller sent nothing of the body for too long.
    #[error(
        "the body stalled: nothing arrived for {}, the limit of this builder (read_timeout)",
        duration::format_duration(*limit)
    )]
    Stalled {
        /// The longest pause that a caller may make in a body.
        limit: Duration,
    },
    /// The body arrived at less than the lowest rate for too long.
    #[error(
        "the body arrived at less than {rate} bytes a second (receive_rate) for {} (receive_grace), the limits of this \
         builder",
        duration::format_duration(*grace)
    )]
    TooSlow {
        /// The lowest rate, in bytes per second.
        rate: u64,
        /// The time for which a caller may be slower.
        grace: Duration,
    },
    /// The body gave way to others: the bodies without a verified signature used up their budget.
    #[error("{0}; try again")]
    Displaced(DisplacedForOthers),
    /// The connection broke before the end of the request's body.
    #[error("the body could not be read to its end")]
    Body {
        /// The error of the connection with the caller.
        #[source]
        source: BoxError,
    },
    /// The request's tar is unusable.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The request's tar has no configuration.
    #[error(
        "com.openfaas.docker.config: not in the tar; it should be a file with at least {{\"image\": \"…\"}}"
    )]
    NoConfig,
    /// The request's configuration is unusable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The body of a JSON request is too large.
    #[error(
        "the JSON request is larger than {limit} bytes, twice the limit on a configuration (max_config); it should refer to its \
         context instead of carrying it"
    )]
    JsonTooLarge {
        /// The size limit in bytes.
        limit: u64,
    },
    /// The request violates the rules of its tenant, or a rule that holds under every policy.
    #[error(transparent)]
    Forbidden(#[from] Violations),
    /// The Dockerfile names a frontend that is not allowed.
    #[error(transparent)]
    Frontend(#[from] ForbiddenFrontend),
    /// The request's tar has no file where the configuration, or the default, expects the Dockerfile.
    #[error("context/{path}: not in the tar; {}", missing_dockerfile_hint(*is_named))]
    NoDockerfile {
        /// The path of the missing Dockerfile in the context.
        path: String,
        /// Whether the configuration names the missing Dockerfile.
        is_named: bool,
    },
    /// The request's tar could not be spooled.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The spooled body or tar could not be read back.
    #[error("could not read the spooled body")]
    ReadSpool(#[source] std::io::Error),
    /// The process is shutting down, or the index of the request's context was dropped.
    #[error("the builder was shut down while it read the request")]
    Interrupted,
}

/// Returns the end of the text of [`RequestError::NoDockerfile`]: how to correct the request.
fn missing_dockerfile_hint(is_named: bool) -> &'static str {
    match is_named {
        true => "the config's \"dockerfile\" names it",
        false => "the file to build from belongs there, or the config should name it as \"dockerfile\"",
    }
}

/// The kind of a [`RequestError`], which decides the status of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestErrorKind {
    /// The caller is not authenticated, or its request has expired.
    Unauthorized,
    /// The caller has to change the request.
    Invalid,
    /// The rules do not allow the request.
    Forbidden,
    /// The body, or the tar that was compressed in it, exceeds a limit. The rest of the body may not have been read.
    TooLarge,
    /// The caller's connection broke; an answer may not reach it.
    Broken,
    /// The body arrived too slowly. The rest of it has not been read.
    TooSlow,
    /// The body gave way to others; a retry later may succeed. The rest of it has not been read.
    Displaced,
    /// There is no space for the body now; a retry later, or elsewhere, may succeed.
    NoSpace,
    /// The platform failed, and not the caller.
    Platform,
}

impl From<DisplacedForOthers> for RequestError {
    fn from(displaced: DisplacedForOthers) -> Self {
        Self::Displaced(displaced)
    }
}

impl From<ReadError> for RequestError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Archive(error) => Self::Archive(error),
            ReadError::Spool(error) => Self::ReadSpool(error),
        }
    }
}

impl RequestError {
    /// Converts an error of the request body's stream.
    pub(super) fn from_stalled_or_broken_body(error: BoxError) -> Self {
        match error.downcast_ref() {
            Some(BodyError::Stalled { limit }) => Self::Stalled { limit: *limit },
            _ => Self::Body { source: error },
        }
    }

    /// Returns the kind of this request error.
    pub fn kind(&self) -> RequestErrorKind {
        match self {
            Self::NotSigned | Self::MalformedSignature | Self::WrongSignature | Self::Expired { .. } => {
                RequestErrorKind::Unauthorized
            }
            Self::Archive(ArchiveError::DecompressedTooLarge { .. }) => RequestErrorKind::TooLarge,
            Self::Archive(_)
            | Self::NoConfig
            | Self::Config(_)
            | Self::SubmittedAhead { .. }
            | Self::TooOld { .. }
            | Self::NotDated { .. }
            | Self::Frontend(_)
            | Self::NoDockerfile { .. } => RequestErrorKind::Invalid,
            Self::Forbidden(_) => RequestErrorKind::Forbidden,
            Self::TooLarge { .. } | Self::TooLargeWithoutTenant { .. } | Self::JsonTooLarge { .. } => {
                RequestErrorKind::TooLarge
            }
            Self::Stalled { .. } | Self::TooSlow { .. } => RequestErrorKind::TooSlow,
            Self::Displaced(_) => RequestErrorKind::Displaced,
            Self::Body { .. } => RequestErrorKind::Broken,
            Self::Spool(SpoolError::Full { .. } | SpoolError::Quota { .. }) => RequestErrorKind::NoSpace,
            Self::Spool(SpoolError::Io { .. }) | Self::ReadSpool(_) | Self::Interrupted => {
                RequestErrorKind::Platform
            }
        }
    }

    /// Returns whether the error counts as that of a caller whose signature was verified before, if one is required. A
    /// failure to write the spool, and a shutdown, do not count, although they may occur after that as well.
    pub fn is_from_verified_caller(&self) -> bool {
        match self {
            // The tar is interpreted only after the signature has been verified.
            Self::Expired { .. }
            | Self::SubmittedAhead { .. }
            | Self::TooOld { .. }
            | Self::NotDated { .. }
            | Self::Archive(_)
            | Self::NoConfig
            | Self::Config(_)
            | Self::JsonTooLarge { .. }
            | Self::Forbidden(_)
            | Self::Frontend(_)
            | Self::ReadSpool(_)
            | Self::NoDockerfile { .. } => true,
            Self::NotSigned
            | Self::MalformedSignature
            | Self::WrongSignature
            | Self::TooLarge { .. }
            | Self::TooLargeWithoutTenant { .. }
            | Self::Stalled { .. }
            | Self::TooSlow { .. }
            | Self::Displaced(_)
            | Self::Body { .. }
            | Self::Spool(_)
            | Self::Interrupted => false,
        }
    }
}
