//! The errors of the record store.

use std::time::Duration;

use function_host::duration;
use function_host::registry::RegistryError;
use function_host::secret::SecretError;

use crate::registry::UploadError;

/// The error of reading or writing a record.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The secret that records are sealed with cannot be read.
    #[error("the key of the records cannot be read")]
    Key(#[source] SecretError),
    /// The secret that records are sealed with has no key.
    #[error("the secret with the key of the records has no key")]
    NoKey,
    /// A record is sealed with another key.
    #[error("a record is sealed with another key")]
    OtherKey,
    /// A manifest is not a record of the store.
    #[error("a manifest in the repository of the records is not a record of the build that its tag names")]
    Malformed,
    /// The registry failed, or rejected a request.
    #[error("the registry of the records failed")]
    Registry(#[from] UploadError),
    /// The registry did not answer in time.
    #[error("the registry of the records did not answer within {}", duration::format_duration(*limit))]
    Timeout {
        /// The time limit.
        limit: Duration,
    },
    /// The name of the tenant is not valid in the name of a repository.
    #[error("the tenant {tenant:?} can have no repository for records")]
    Tenant {
        /// The name of the tenant.
        tenant: String,
    },
}

impl From<RegistryError> for StoreError {
    fn from(error: RegistryError) -> Self {
        Self::Registry(error.into())
    }
}
