//! `moby.filesync.v1.Auth`: credentials for the registries that BuildKit pulls from and pushes to.

use std::fmt;
use std::sync::Arc;

use bollard_buildkit_proto::moby::filesync::v1::{
    CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse, GetTokenAuthorityRequest,
    GetTokenAuthorityResponse, VerifyTokenAuthorityRequest, VerifyTokenAuthorityResponse, auth_server,
};
use tonic::{Request, Response, Status};

use crate::docker_config::Credentials;

/// Where credentials come from.
#[tonic::async_trait]
pub trait CredentialStore: fmt::Debug + Send + Sync + 'static {
    /// Those for `host`, which is a name with a port where there is one. Empty where none are known: that is not an
    /// error, the registry may be open to everybody.
    async fn credentials(&self, host: &str) -> Credentials;
}

/// Answers from a [`CredentialStore`].
///
/// Tokens are left to BuildKit: it asks for a token authority first, and where there is none (`Unimplemented`), it
/// asks for credentials and fetches the token with them itself (`util/resolver/authorizer.go`).
#[derive(Clone, Debug)]
pub struct Auth {
    store: Arc<dyn CredentialStore>,
}

impl Auth {
    /// Answers from `store`.
    pub fn new(store: Arc<dyn CredentialStore>) -> Self {
        Self { store }
    }
}

#[tonic::async_trait]
impl auth_server::Auth for Auth {
    async fn credentials(
        &self,
        request: Request<CredentialsRequest>,
    ) -> Result<Response<CredentialsResponse>, Status> {
        let host = request.into_inner().host;
        let Credentials { username, secret } = self.store.credentials(&host).await;
        tracing::debug!(host, known = !secret.is_empty(), "BuildKit asked for credentials");
        Ok(Response::new(CredentialsResponse { username, secret }))
    }

    async fn fetch_token(
        &self,
        _: Request<FetchTokenRequest>,
    ) -> Result<Response<FetchTokenResponse>, Status> {
        Err(Status::unimplemented("tokens are fetched with credentials"))
    }

    async fn get_token_authority(
        &self,
        _: Request<GetTokenAuthorityRequest>,
    ) -> Result<Response<GetTokenAuthorityResponse>, Status> {
        Err(Status::unimplemented("tokens are fetched with credentials"))
    }

    async fn verify_token_authority(
        &self,
        _: Request<VerifyTokenAuthorityRequest>,
    ) -> Result<Response<VerifyTokenAuthorityResponse>, Status> {
        Err(Status::unimplemented("tokens are fetched with credentials"))
    }
}
