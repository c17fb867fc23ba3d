//! Contexts that requests refer to: fetched into a spool, where they become contexts as bodies do, and stored for
//! callers that have no credentials for a registry.
//!
//! The caller chooses what is fetched, and from where. Therefore each connection is checked ([`ConnectionRule`]),
//! credentials go only to the registry that they are for, sizes and pauses are limited, and what arrived counts only if
//! its digest is the one that the signed request names.
//!
//! [`ConnectionRule`]: crate::sources::ConnectionRule

mod artifact;
mod download;
mod error;
mod oci;
mod store;
mod url;

use std::sync::Arc;

use function_host::http::Uri;
use function_host::policy::Tenant;
use function_host::registry::{AdditionalTokenHosts, RegistryClient, RepositoryClient};
use function_host::{HttpClient, Secrets};
use tokio::sync::Semaphore;

use crate::buildkit::CredentialStore;
use crate::context::Spool;
use crate::registry::{ImageName, OperatorRepository};
use crate::request::{ContextTarReference, ReferencedContext};
use crate::sources::{AllowedPrivateHosts, ConnectionRule};
use crate::tenants::TenantResources;
use error::OCI_MEMBER;
pub(crate) use error::{ContextError, ContextErrorKind};

/// The largest number of contexts that are stored at a time; further ones wait.
const MAX_CONCURRENT_CONTEXT_UPLOADS: usize = 4;

/// Fetches contexts from registries and web servers, and stores and deletes contexts in the operator's registry. Clones
/// share the limit on uploads.
#[derive(Clone, Debug)]
pub struct RemoteContexts {
    /// The operator's credentials for registries.
    pub credentials: Arc<dyn CredentialStore>,
    /// The credentials of tenants.
    pub tenants: TenantResources,
    /// The secrets, among them the certificates of private authorities.
    pub secrets: Secrets,
    /// Whether registries speak plain HTTP, and web servers with contexts may.
    pub insecure: bool,
    /// The hosts that registry tokens may be fetched from, besides those of the registries.
    pub token_realms: AdditionalTokenHosts,
    /// The private hosts that contexts may be fetched from.
    pub allowed: AllowedPrivateHosts,
    /// The settings for stored contexts.
    pub stored: StoredContextRepositorySettings,
    /// Limits how many contexts are stored at a time.
    pub uploads: ContextUploadConcurrencyLimit,
}

/// The settings for contexts that callers store.
#[derive(Clone, Debug, Default)]
pub struct StoredContextRepositorySettings {
    /// The repository in which contexts are stored; those of a tenant in one below it that has the tenant's name.
    /// Without one, none are stored.
    pub repository: Option<OperatorRepository>,
    /// Whether a stored context is deleted once it was built.
    pub deletes_built: bool,
}

/// A limit on the number of contexts that are stored at a time. Clones share it.
#[derive(Clone, Debug)]
pub struct ContextUploadConcurrencyLimit(Arc<Semaphore>);

impl Default for ContextUploadConcurrencyLimit {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_CONCURRENT_CONTEXT_UPLOADS)))
    }
}

/// A repository that the caller of a request may read, with the credentials and the connection rule for it.
struct OpenRepository {
    handle: RepositoryClient,
    /// The rule for connections to the registry.
    rule: ConnectionRule,
}

impl RemoteContexts {
    /// Fetches the tar of the context that a request refers to, from a registry or a web server. Dropping the future
    /// discards what has arrived.
    ///
    /// # Errors
    /// Fails if the builder may not read the context, or if the context is missing or has another digest than the
    /// reference.
    pub(crate) async fn fetch(&self, context: &ReferencedContext) -> Result<Spool, ContextError> {
        match &context.reference {
            ContextTarReference::Oci(oci) => self.fetch_oci(oci, &context.rules).await,
            ContextTarReference::Url(url) => self.fetch_url(url, &context.rules).await,
        }
    }

    /// Returns a handle of the registry's repository `image` for a request of `tenant`, with the credentials for it.
    ///
    /// A repository for stored contexts belongs to the tenant whose name it has, and is used with the operator's
    /// credentials.
    ///
    /// # Errors
    /// Fails if the tenant may not read the repository, or the builder may not connect to its registry.
    async fn open_repository(
        &self,
        image: &ImageName,
        tenant: Option<&Arc<Tenant>>,
    ) -> Result<OpenRepository, ContextError> {
        let stored = self.stored.repository.as_ref();
        let is_stored = stored.is_some_and(|stored| stored.is_or_contains(image));
        let credentials = match (is_stored, tenant) {
            (true, tenant) => {
                let own =
                    stored.and_then(|stored| stored.of_tenant(tenant.map(|tenant| tenant.name().as_str())));
                if own.as_ref() != Some(image) {
                    return Err(ContextError::OtherTenant { image: image.clone() });
                }
                self.credentials.credentials_or_empty(image.registry()).await
            }
            (false, Some(tenant)) => {
                tenant
                    .may_read_image(&image.to_string())
                    .map_err(ContextError::Forbidden)?;
                let registries = self.tenants.registries_with_own_credentials(tenant);
                registries
                    .credentials
                    .credentials_or_empty(image.registry())
                    .await
            }
            (false, None) => self.credentials.credentials_or_empty(image.registry()).await,
        };
        let is_known = !credentials.secret.is_empty() || is_stored;
        let rule = self
            .allowed
            .connection_rule(image.host(), image.port_or_443(), is_known)
            .map_err(|reason| ContextError::Address {
                member: OCI_MEMBER,
                reason,
            })?;
        let client = RegistryClient::with_http_client(
            self.http_client(rule)?,
            self.insecure,
            self.token_realms.clone(),
        );
        Ok(OpenRepository {
            handle: client.repository(image.registry(), image.repository(), credentials),
            rule,
        })
    }

    /// Returns the rule for a connection to `location`, to which the registry `host` redirects. Only the registry
    /// itself keeps its own `rule`: other hosts are chosen by the registry, which the caller may have chosen.
    fn redirect_rule(
        &self,
        location: &Uri,
        host: &str,
        rule: ConnectionRule,
    ) -> Result<ConnectionRule, ContextError> {
        if location.authority().is_some_and(|authority| *authority == *host) {
            return Ok(rule);
        }
        let default_port = if location.scheme_str() == Some("http") {
            80
        } else {
            443
        };
        let port = location.port_u16().unwrap_or(default_port);
        self.allowed
            .connection_rule(location.host().unwrap_or_default(), port, false)
            .map_err(|reason| ContextError::Address {
                member: OCI_MEMBER,
                reason,
            })
    }

    /// Returns an HTTP client that connects as `rule` says.
    fn http_client(&self, rule: ConnectionRule) -> Result<HttpClient, ContextError> {
        rule.http_client(&self.secrets, self.insecure)
            .map_err(ContextError::Authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::docker_config::CredentialHelpers;
    use crate::registry::NoCredentials;

    fn contexts_allowing(allowed: &str) -> RemoteContexts {
        let secrets = Secrets::new("/nowhere");
        RemoteContexts {
            credentials: Arc::new(NoCredentials),
            tenants: TenantResources::new(
                secrets.clone(),
                true,
                AdditionalTokenHosts::default(),
                CredentialHelpers::default(),
                Arc::new(|_| Err("is not in this test".to_owned())),
            ),
            secrets,
            insecure: true,
            token_realms: AdditionalTokenHosts::default(),
            allowed: allowed.parse().unwrap(),
            stored: StoredContextRepositorySettings::default(),
            uploads: ContextUploadConcurrencyLimit::default(),
        }
    }

    /// A registry that the caller chose could otherwise redirect to itself, and change its address in between.
    #[test]
    fn only_a_redirect_to_the_registry_itself_keeps_the_rule_of_the_registry() {
        let contexts = contexts_allowing("storage.internal:9000");
        for (location, own_rule, expected) in [
            (
                "https://r.example/x",
                ConnectionRule::Public,
                Some(ConnectionRule::Public),
            ),
            (
                "https://r.example/x",
                ConnectionRule::Known,
                Some(ConnectionRule::Known),
            ),
            (
                "https://r.example:8443/x",
                ConnectionRule::Known,
                Some(ConnectionRule::Public),
            ),
            (
                "https://cdn.example/x",
                ConnectionRule::Known,
                Some(ConnectionRule::Public),
            ),
            (
                "http://storage.internal:9000/x",
                ConnectionRule::Public,
                Some(ConnectionRule::Any),
            ),
            ("http://storage.internal/x", ConnectionRule::Any, None),
            ("https://10.0.0.1/x", ConnectionRule::Any, None),
            ("https://[::ffff:127.0.0.1]/x", ConnectionRule::Known, None),
        ] {
            let rule = contexts.redirect_rule(&location.parse().unwrap(), "r.example", own_rule);
            assert_eq!(rule.ok(), expected, "{location}");
        }
    }
}
