//! Failed requests to a registry.

use std::time::Duration;

use http::StatusCode;

use crate::client::ExchangeError;
use crate::duration;
use crate::error_chain::BoxError;

/// The reason why a registry gave no answer to a question. No text quotes the body of a response.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The certificates in the secret `gateway-ca`, or those of the system, cannot be used.
    #[error("could not load the certificates that authenticate registries")]
    Authority(#[source] BoxError),
    /// The registry, the repository or the digest is not valid in a URL.
    #[error("{name:?} is not valid in the address of a registry")]
    Name {
        /// The rejected text.
        name: String,
    },
    /// No connection could be established.
    #[error("could not reach {host}")]
    Connect {
        /// The host of the request.
        host: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// The connection was lost before the response was complete.
    #[error("lost the connection to {host}")]
    Lost {
        /// The host of the request.
        host: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// The response was not complete in time.
    #[error("{host} did not answer within {}", duration::format(*limit))]
    Timeout {
        /// The host of the request.
        host: String,
        /// The time limit.
        limit: Duration,
    },
    /// The response is too large.
    #[error("the answer of {host} is larger than {limit} bytes")]
    TooLarge {
        /// The host of the request.
        host: String,
        /// The limit in bytes.
        limit: usize,
    },
    /// The response has a status that answers neither yes nor no.
    #[error("the registry {registry} answered {status}")]
    Status {
        /// The host of the registry.
        registry: String,
        /// The status of its response.
        status: StatusCode,
    },
    /// The registry wants an authentication that is not supported.
    #[error("the registry {registry} wants neither basic authentication nor a bearer token")]
    Challenge {
        /// The host of the registry.
        registry: String,
    },
    /// The registry wants credentials.
    #[error("the registry {registry} wants credentials, and there are none for it")]
    NoCredentials {
        /// The host of the registry.
        registry: String,
    },
    /// The credentials contain characters that a header excludes.
    #[error("the credentials for the registry {registry} are not valid in a header")]
    Credentials {
        /// The host of the registry.
        registry: String,
    },
    /// The realm is not a URL.
    #[error("the token realm of the registry {registry} is not an address")]
    Realm {
        /// The host of the registry.
        registry: String,
    },
    /// The realm would receive credentials in plain text.
    #[error("the token realm of the registry {registry} is not https")]
    PlainRealm {
        /// The host of the registry.
        registry: String,
    },
    /// The realm is on a host that neither the registry nor the operator vouches for.
    #[error("the registry {registry} has its token realm on {realm}, which token_realms does not name")]
    ForeignRealm {
        /// The host of the registry.
        registry: String,
        /// The host of the realm.
        realm: String,
    },
    /// The token server gave no token.
    #[error("the token server of the registry {registry} answered {status} without a token")]
    Token {
        /// The host of the registry.
        registry: String,
        /// The status of the token server's response.
        status: StatusCode,
    },
}

impl RegistryError {
    /// Names the host that an exchange failed with.
    pub(super) fn exchange(error: ExchangeError, host: &str) -> Self {
        let host = host.to_owned();
        match error {
            ExchangeError::Connect(source) => Self::Connect { host, source },
            ExchangeError::Lost(source) => Self::Lost { host, source },
            ExchangeError::Timeout(limit) => Self::Timeout { host, limit },
            ExchangeError::TooLarge(limit) => Self::TooLarge { host, limit },
        }
    }
}
