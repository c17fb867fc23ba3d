//! The reasons why a context cannot be fetched or stored.

use std::time::Duration;

use function_host::policy::Violation;
use function_host::registry::RegistryError;
use function_host::{AddressDenied, BoxError, ExchangeError, duration};

use crate::context::SpoolError;
use crate::registry::{ImageName, UploadError};
use crate::request::{RequestError, RequestErrorKind, Sha256Digest};
use crate::sources::UrlRejection;

/// The member of a JSON request with the reference to a context in a registry.
pub(super) const OCI_MEMBER: &str = "context.oci";

/// The member of a JSON request with the reference to a context on a web server.
pub(super) const URL_MEMBER: &str = "context.url";

/// The error of a context that a request refers to, or that is stored. The texts are written for the caller; causes are
/// for the log only.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContextError {
    /// The rules of the tenant do not allow the source.
    #[error("context.oci: {0}")]
    Forbidden(Violation),
    /// The repository is for stored contexts, of another tenant than the caller's.
    #[error("context.oci: {image} is not a repository for this caller's stored contexts")]
    OtherTenant {
        /// The repository.
        image: ImageName,
    },
    /// The builder may not connect to the server, by its name or its address.
    #[error("{member}: {reason}")]
    Address {
        /// The member of the request with the reference.
        member: &'static str,
        /// The reason, which names the host.
        reason: String,
    },
    /// The registry rejects the credentials that the builder has for the caller, or wants some and there are none.
    #[error("context.oci: the registry of {image} does not let this builder read it ({status})")]
    Unauthorized {
        /// The repository.
        image: ImageName,
        /// The status of the registry's response.
        status: u16,
    },
    /// The registry does not have the artifact, or the layer of it.
    #[error(
        "context.oci: {what} is not there; a stored context may have expired, or was deleted after its build"
    )]
    NotFound {
        /// The artifact, or the part of it that is missing.
        what: String,
    },
    /// The artifact is not a context.
    #[error(
        "context.oci: {problem}; it should be an artifact with one layer, the tar, as `oras push` makes it"
    )]
    NotAContext {
        /// The problem of the artifact.
        problem: String,
    },
    /// The server of a URL answered that it has no file there, or none without credentials.
    #[error(
        "context.url: {url} answered {status}; it should answer 200 with the tar, also without credentials, because the builder \
         sends none"
    )]
    NoFile {
        /// The URL, without its query.
        url: String,
        /// The status of the response.
        status: u16,
    },
    /// The builder does not read the URL, or one that it redirects to.
    #[error("context.url: {0}")]
    Url(#[from] UrlRejection),
    /// What was fetched has another digest than the reference says.
    #[error("context: {what} has the digest {found} and should have {expected}")]
    WrongDigest {
        /// What was fetched.
        what: String,
        /// The digest of what was fetched.
        found: Sha256Digest,
        /// The digest that it should have.
        expected: Sha256Digest,
    },
    /// The context exceeds the size limit.
    #[error("the context is larger than {limit} bytes, which is the limit of this builder")]
    TooLarge {
        /// The size limit in bytes.
        limit: u64,
    },
    /// The server redirects too often, to an address that may not be used, or to something that is no address.
    #[error("{member}: {host} {problem}")]
    Redirect {
        /// The member of the request with the reference.
        member: &'static str,
        /// The host that redirects.
        host: String,
        /// The problem of the redirect.
        problem: String,
    },
    /// The certificates that authenticate servers cannot be used.
    #[error("could not load the certificates that authenticate servers of contexts")]
    Authority(#[source] BoxError),
    /// The registry failed.
    #[error("the registry of the context failed: {0}")]
    Registry(RegistryError),
    /// No connection to a server, which is not the registry, could be established.
    #[error("could not reach {host}, from which the context is fetched")]
    Unreachable {
        /// The server.
        host: String,
        /// The error of the HTTP client.
        #[source]
        source: BoxError,
    },
    /// A server answered with a status that says nothing about the context.
    #[error("{host} answered {status} instead of sending the context")]
    Status {
        /// The server.
        host: String,
        /// The status of the response.
        status: u16,
    },
    /// The server sent nothing of the context for too long.
    #[error("the context stalled: nothing arrived for {}", duration::format_duration(*limit))]
    Stalled {
        /// The longest pause.
        limit: Duration,
    },
    /// The connection broke, the server ended the context early, or the spool of a context to be stored cannot be read.
    #[error("the context was not received to its end")]
    Lost(#[source] BoxError),
    /// The context could not be spooled.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The fetched tar is unusable, or could not be processed.
    #[error("the fetched context: {0}")]
    Unusable(RequestError),
    /// The builder stores no contexts.
    #[error(
        "this builder stores no contexts, because its setting contexts_repository is not set; send the tar to POST /build, or \
         push it to a registry and refer to it as context.oci"
    )]
    NotStored,
    /// A task that processed the context did not complete, because the process is shutting down.
    #[error("the builder was shut down while it processed the context")]
    Interrupted,
}

impl ContextError {
    /// Converts the error of an exchange with `host`, which is not the registry, for the reference in `member`.
    pub(super) fn from_exchange(error: ExchangeError, member: &'static str, host: &str) -> Self {
        match error {
            ExchangeError::Denied(denied) => Self::log_and_convert_denied_address(&denied, member),
            ExchangeError::Connect(source) => Self::Unreachable {
                host: host.to_owned(),
                source,
            },
            ExchangeError::Lost(source) => Self::Lost(source),
            ExchangeError::Timeout(limit) => Self::Stalled { limit },
            ExchangeError::TooLarge(limit) => Self::TooLarge { limit: limit as u64 },
        }
    }

    fn log_and_convert_denied_address(denied: &AddressDenied, member: &'static str) -> Self {
        let AddressDenied { host, address, kind } = denied;
        tracing::info!(host, %address, kind, "a server of a context has an address that the builder does not connect to");
        // The address that a name has within the platform is not the caller's to know.
        let is_callers = host.trim_matches(['[', ']']).parse() == Ok(*address);
        let subject = match is_callers {
            true => denied.to_string(),
            false => format!("{host} is resolved to {kind}"),
        };
        Self::Address {
            member,
            reason: format!(
                "{subject}, to which the builder does not connect, unless its setting allowed_sources names the host"
            ),
        }
    }

    /// Returns whether there is no context at the reference, where one may have been.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(
            self,
            Self::NotFound { .. }
                | Self::NoFile {
                    status: 404 | 410,
                    ..
                }
        )
    }

    /// Returns whether the exchange with a server failed, so that the same exchange may succeed a moment later.
    pub(crate) fn is_failed_exchange(&self) -> bool {
        matches!(
            self,
            Self::Registry(_)
                | Self::Unreachable { .. }
                | Self::Status { .. }
                | Self::Stalled { .. }
                | Self::Lost(_)
        )
    }

    /// Returns the kind of the error, which decides the status of the answer.
    pub(crate) fn kind(&self) -> ContextErrorKind {
        match self {
            Self::Url(rejection) if rejection.is_forbidden_and_not_only_unencrypted() => {
                ContextErrorKind::Forbidden
            }
            Self::Url(_) => ContextErrorKind::Invalid,
            Self::Forbidden(_)
            | Self::OtherTenant { .. }
            | Self::Address { .. }
            | Self::Unauthorized { .. }
            | Self::NoFile {
                status: 401 | 403, ..
            } => ContextErrorKind::Forbidden,
            Self::NotFound { .. }
            | Self::NoFile { .. }
            | Self::NotAContext { .. }
            | Self::WrongDigest { .. }
            | Self::Redirect { .. } => ContextErrorKind::Invalid,
            Self::TooLarge { .. } => ContextErrorKind::TooLarge,
            Self::Spool(SpoolError::Full { .. } | SpoolError::Quota { .. }) => ContextErrorKind::NoSpace,
            Self::Unusable(error) => ContextErrorKind::Unusable(error.kind()),
            Self::NotStored => ContextErrorKind::NotOffered,
            Self::Authority(_)
            | Self::Registry(_)
            | Self::Unreachable { .. }
            | Self::Status { .. }
            | Self::Stalled { .. }
            | Self::Lost(_)
            | Self::Spool(SpoolError::Io { .. })
            | Self::Interrupted => ContextErrorKind::Platform,
        }
    }
}

/// The kind of a [`ContextError`], which decides the status of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContextErrorKind {
    /// The rules of the tenant, the registry, or the limits on the builder's connections forbid reading the context.
    Forbidden,
    /// The caller has to change the reference, or what it refers to.
    Invalid,
    /// The context exceeds a limit.
    TooLarge,
    /// There is no space for the context now.
    NoSpace,
    /// The tar of the context is rejected, as one in a body would be.
    Unusable(RequestErrorKind),
    /// The operator has not set the builder up to store contexts.
    NotOffered,
    /// A registry or server failed, or the builder did. A retry may succeed.
    Platform,
}

impl From<RegistryError> for ContextError {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Denied(denied) => Self::log_and_convert_denied_address(&denied, OCI_MEMBER),
            error => Self::Registry(error),
        }
    }
}

impl From<UploadError> for ContextError {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::Registry(error) => error.into(),
            UploadError::Elsewhere { registry } => Self::Redirect {
                member: OCI_MEMBER,
                host: registry,
                problem: "begins an upload at another host".to_owned(),
            },
        }
    }
}
