//! `moby.filesync.v1.Auth`: credentials for the registries that BuildKit pulls from and pushes to.

use std::fmt;
use std::sync::Arc;

use bollard_buildkit_proto::moby::filesync::v1::{
    CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse, GetTokenAuthorityRequest,
    GetTokenAuthorityResponse, VerifyTokenAuthorityRequest, VerifyTokenAuthorityResponse, auth_server,
};
pub use function_host::registry::RegistryCredentials;
use tonic::{Request, Response, Status};

/// The error text with which the token methods of the auth service answer BuildKit.
const TOKENS_UNSUPPORTED_MESSAGE: &str = "this client serves credentials and no tokens";

/// A source of credentials for registries.
#[tonic::async_trait]
pub trait CredentialStore: fmt::Debug + Send + Sync + 'static {
    /// Returns the credentials for the registry `host`, a host name with a port if it has one.
    ///
    /// Returns empty ones if none are known. That is not an error: the registry may allow anonymous access.
    async fn credentials(&self, host: &str) -> RegistryCredentials;
}

/// The auth service of a session, with the credentials of a [`CredentialStore`].
///
/// BuildKit fetches tokens itself: it asks for a token authority first, and if there is none (`Unimplemented`), it
/// asks for credentials and fetches the token with them (`util/resolver/authorizer.go`).
#[derive(Clone, Debug)]
pub(super) struct AuthService {
    store: Arc<dyn CredentialStore>,
}

impl AuthService {
    pub(super) fn new(store: Arc<dyn CredentialStore>) -> Self {
        Self { store }
    }
}

#[tonic::async_trait]
impl auth_server::Auth for AuthService {
    async fn credentials(
        &self,
        request: Request<CredentialsRequest>,
    ) -> Result<Response<CredentialsResponse>, Status> {
        let host = request.into_inner().host;
        let RegistryCredentials { username, secret } = self.store.credentials(&host).await;
        tracing::debug!(host, known = !secret.is_empty(), "BuildKit asked for credentials");
        Ok(Response::new(CredentialsResponse { username, secret }))
    }

    async fn fetch_token(
        &self,
        _: Request<FetchTokenRequest>,
    ) -> Result<Response<FetchTokenResponse>, Status> {
        Err(Status::unimplemented(TOKENS_UNSUPPORTED_MESSAGE))
    }

    async fn get_token_authority(
        &self,
        _: Request<GetTokenAuthorityRequest>,
    ) -> Result<Response<GetTokenAuthorityResponse>, Status> {
        Err(Status::unimplemented(TOKENS_UNSUPPORTED_MESSAGE))
    }

    async fn verify_token_authority(
        &self,
        _: Request<VerifyTokenAuthorityRequest>,
    ) -> Result<Response<VerifyTokenAuthorityResponse>, Status> {
        Err(Status::unimplemented(TOKENS_UNSUPPORTED_MESSAGE))
    }
}
