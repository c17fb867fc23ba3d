//! The registry credentials of one build of a tenant.

use std::sync::Arc;

use function_host::registry::{RegistryClient, RegistryToken};

use super::{Registries, RepositoryAccess};
use crate::buildkit::{CredentialStore, RegistryCredentials, RegistryError, TokenRequest};

/// The registry credentials of one build of a tenant: those of the tenant only, and tokens only for what the build may
/// do.
///
/// A registry with tokens never gets the tenant's password through the daemon. One with passwords does, and decides
/// itself what the tenant may do.
#[derive(Clone, Debug)]
pub struct ScopeLimitedTenantCredentials {
    /// The client of the registries, with the credentials of the build's tenant.
    pub registries: Arc<Registries>,
    /// The repositories that the build may use.
    pub access: RepositoryAccess,
}

#[tonic::async_trait]
impl CredentialStore for ScopeLimitedTenantCredentials {
    async fn credentials_or_empty(&self, host: &str) -> RegistryCredentials {
        self.registries.credentials.credentials_or_empty(host).await
    }

    async fn look_up_credentials_or_reason(&self, host: &str) -> Result<RegistryCredentials, String> {
        self.registries
            .credentials
            .look_up_credentials_or_reason(host)
            .await
    }

    async fn fetches_tokens(&self, host: &str) -> bool {
        !self.credentials_or_empty(host).await.secret.is_empty()
    }

    async fn fetch_token_if_permitted(
        &self,
        request: &TokenRequest,
    ) -> Result<Option<RegistryToken>, RegistryError> {
        let scopes = self.access.granted_scopes(&request.host, &request.scopes);
        if scopes.is_empty() {
            tracing::warn!(
                host = request.host,
                scopes = request.scopes.join(" "),
                "refused a registry token for repositories that the build may not use"
            );
            return Ok(None);
        }
        let registries = &self.registries;
        let realms = registries.token_realms.clone();
        let client = RegistryClient::new(&registries.secrets, registries.insecure, realms)?;
        let credentials = self.credentials_or_empty(&request.host).await;
        let service = Some(&*request.service).filter(|service| !service.is_empty());
        let token = client.fetch_token(&request.host, &request.realm, service, &scopes, &credentials);
        token.await.map(Some)
    }
}

/// A store without credentials: registries are used anonymously.
#[derive(Clone, Copy, Debug)]
pub struct NoCredentials;

#[tonic::async_trait]
impl CredentialStore for NoCredentials {
    async fn credentials_or_empty(&self, _host: &str) -> RegistryCredentials {
        RegistryCredentials::default()
    }
}
