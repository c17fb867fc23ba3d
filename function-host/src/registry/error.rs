//! Errors of requests to an image registry.

use std::time::Duration;

use http::StatusCode;

use crate::address_check::AddressDenied;
use crate::client::ExchangeError;
use crate::duration;
use crate::error_chain::BoxError;

/// An error of a request to an image registry or its token server. Its text never quotes the body of a response.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The certificates in the secret `gateway-ca`, or those of the system, cannot be used.
    #[error("could not load the certificates that authenticate registries")]
    Authority(#[source] BoxError),
    /// The registry, the repository or the digest is not valid in a URL.
    #[error("{name:?} is not valid in the address of a registry")]
    Name {
        /// The registry, repository or digest that was rejected.
        name: String,
    },
    /// The client may not connect to an address of the registry or its token server.
    #[error(transparent)]
    Denied(AddressDenied),
    /// No connection to the registry or its token server could be established.
    #[error("could not reach {host}")]
    Connect {
        /// The host that the request was sent to.
        host: String,
        /// The error of the HTTP client.
        #[source]
        source: BoxError,
    },
    /// The connection was lost before the registry's response was complete.
    #[error("lost the connection to {host}")]
    Lost {
        /// The host that the request was sent to.
        host: String,
        /// The error of the HTTP client.
        #[source]
        source: BoxError,
    },
    /// The registry's response was not complete within the time limit.
    #[error("{host} did not answer within {}", duration::format_duration(*limit))]
    Timeout {
        /// The host that the request was sent to.
        host: String,
        /// The time limit for the response.
        limit: Duration,
    },
    /// The registry's response is larger than the limit.
    #[error("the answer of {host} is larger than {limit} bytes")]
    TooLarge {
        /// The host that the request was sent to.
        host: String,
        /// The limit on the response, in bytes.
        limit: usize,
    },
    /// The registry's response has an unexpected status.
    #[error("the registry {registry} answered {status}")]
    Status {
        /// The host of the registry, with its port if it has one.
        registry: String,
        /// The status that the registry answered with.
        status: StatusCode,
    },
    /// The registry requires an authentication that is not supported.
    #[error("the registry {registry} wants neither basic authentication nor a bearer token")]
    Challenge {
        /// The host of the registry, with its port if it has one.
        registry: String,
    },
    /// The registry requires credentials, and none are configured.
    #[error("the registry {registry} wants credentials, and there are none for it")]
    NoCredentials {
        /// The host of the registry, with its port if it has one.
        registry: String,
    },
    /// The registry's credentials contain characters that a header excludes.
    #[error("the credentials for the registry {registry} are not valid in a header")]
    Credentials {
        /// The host of the registry, with its port if it has one.
        registry: String,
    },
    /// The realm in the registry's challenge is not a URL, has no host, has a user, or is too long.
    #[error("the token realm of the registry {registry} is not an address")]
    Realm {
        /// The host of the registry, with its port if it has one.
        registry: String,
    },
    /// The token server in the registry's challenge would receive the credentials in plain text.
    #[error("the token realm of the registry {registry} is not https")]
    PlainRealm {
        /// The host of the registry, with its port if it has one.
        registry: String,
    },
    /// The token server is on another host than the registry, and the operator has not allowed that host.
    #[error("the registry {registry} has its token realm on {realm}, which token_realms does not name")]
    ForeignRealm {
        /// The host of the registry, with its port if it has one.
        registry: String,
        /// The host of the token server.
        realm: String,
    },
    /// The token server's response has no token.
    #[error("the token server of the registry {registry} answered {status} without a token")]
    Token {
        /// The host of the registry, with its port if it has one.
        registry: String,
        /// The status of the token server's response.
        status: StatusCode,
    },
}

impl RegistryError {
    /// Converts the error of an HTTP exchange to one that names the host.
    pub(super) fn from_exchange(error: ExchangeError, host: &str) -> Self {
        let host = host.to_owned();
        match error {
            ExchangeError::Denied(denied) => Self::Denied(denied),
            ExchangeError::Connect(source) => Self::Connect { host, source },
            ExchangeError::Lost(source) => Self::Lost { host, source },
            ExchangeError::Timeout(limit) => Self::Timeout { host, limit },
            ExchangeError::TooLarge(limit) => Self::TooLarge { host, limit },
        }
    }
}
