//! `moby.filesync.v1.Auth`: credentials and tokens for the registries that BuildKit pulls from and pushes to.

use std::fmt;
use std::sync::Arc;

use bollard_buildkit_proto::moby::filesync::v1::{
    CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse, GetTokenAuthorityRequest,
    GetTokenAuthorityResponse, VerifyTokenAuthorityRequest, VerifyTokenAuthorityResponse, auth_server,
};
use function_host::ErrorChain;
use function_host::registry::RegistryToken;
pub use function_host::registry::{RegistryCredentials, RegistryError};
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use tonic::{Request, Response, Status};

/// The error text for a registry whose tokens BuildKit has to fetch itself, with the credentials.
const TOKENS_UNSUPPORTED_MESSAGE: &str = "this client serves credentials and no tokens";

/// The validity that a token has if its server names none, in seconds: BuildKit's own value.
const TOKEN_LIFETIME_DEFAULT_SECONDS: i64 = 60;

/// BuildKit's request for a token of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRequest {
    /// The registry's host, with its port if it has one.
    pub host: String,
    /// The URL of the token server, as the registry names it.
    pub realm: String,
    /// The name by which the token server knows the registry; the registry sends it with the URL.
    pub service: String,
    /// The repositories and actions that the token is for: `repository:NAME:ACTION,…`.
    pub scopes: Vec<String>,
}

/// A source of credentials and tokens for registries.
#[tonic::async_trait]
pub trait CredentialStore: fmt::Debug + Send + Sync + 'static {
    /// Returns the credentials for the registry `host`, a host name with a port if it has one.
    ///
    /// Returns empty ones if none are known. That is not an error: the registry may allow anonymous access.
    async fn credentials_or_empty(&self, host: &str) -> RegistryCredentials;

    /// Returns the credentials for the registry `host` as [`credentials_or_empty`](Self::credentials_or_empty) does, by
    /// one look-up.
    ///
    /// # Errors
    /// Fails with the reason, for the caller of a build, if the credentials cannot be read.
    async fn look_up_credentials_or_reason(&self, host: &str) -> Result<RegistryCredentials, String> {
        Ok(self.credentials_or_empty(host).await)
    }

    /// Returns whether tokens for the registry `host` come from
    /// [`fetch_token_if_permitted`](Self::fetch_token_if_permitted). Otherwise, BuildKit fetches them with the
    /// credentials. By default, no tokens come from here.
    async fn fetches_tokens(&self, host: &str) -> bool {
        let _ = host;
        false
    }

    /// Fetches a token for a registry. Returns `None` if the build may do nothing of what the token is requested for.
    ///
    /// # Errors
    /// Fails if the token server is not allowed, or gives no token.
    async fn fetch_token_if_permitted(
        &self,
        request: &TokenRequest,
    ) -> Result<Option<RegistryToken>, RegistryError> {
        let _ = request;
        Ok(None)
    }
}

/// The auth service of a session, with the credentials of a [`CredentialStore`].
///
/// Where a registry wants a token, BuildKit asks for a token authority first (`util/resolver/authorizer.go`). If the
/// session is one, BuildKit asks it for a token with certain scopes, and otherwise (`Unimplemented`) for credentials,
/// with which it fetches any token. BuildKit shares tokens among sessions that are the same authority. The key here is
/// that of one session, so no other session gets its tokens.
#[derive(Clone)]
pub(super) struct AuthService {
    store: Arc<dyn CredentialStore>,
    /// The key that makes the session a token authority; `None` if the system has no random numbers.
    authority: Option<Arc<Ed25519KeyPair>>,
}

impl AuthService {
    /// Creates the service with a new key for one session.
    pub(super) fn new(store: Arc<dyn CredentialStore>) -> Self {
        let random = SystemRandom::new();
        let key = Ed25519KeyPair::generate_pkcs8(&random)
            .ok()
            .and_then(|document| Ed25519KeyPair::from_pkcs8(document.as_ref()).ok());
        Self {
            store,
            authority: key.map(Arc::new),
        }
    }

    /// Returns the key that makes the session a token authority; fails with `Unimplemented` if it has none, or the
    /// store does not fetch tokens for the registry `host`.
    async fn session_key_if_store_fetches_tokens(&self, host: &str) -> Result<&Ed25519KeyPair, Status> {
        match &self.authority {
            Some(key) if self.store.fetches_tokens(host).await => Ok(key),
            _ => Err(Status::unimplemented(TOKENS_UNSUPPORTED_MESSAGE)),
        }
    }
}

impl fmt::Debug for AuthService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthService")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

#[tonic::async_trait]
impl auth_server::Auth for AuthService {
    async fn credentials(
        &self,
        request: Request<CredentialsRequest>,
    ) -> Result<Response<CredentialsResponse>, Status> {
        let host = request.into_inner().host;
        let RegistryCredentials { username, secret } = self.store.credentials_or_empty(&host).await;
        tracing::debug!(host, known = !secret.is_empty(), "BuildKit asked for credentials");
        Ok(Response::new(CredentialsResponse { username, secret }))
    }

    async fn fetch_token(
        &self,
        request: Request<FetchTokenRequest>,
    ) -> Result<Response<FetchTokenResponse>, Status> {
        let FetchTokenRequest {
            host,
            realm,
            service,
            scopes,
            ..
        } = request.into_inner();
        let request = TokenRequest {
            host,
            realm,
            service,
            scopes,
        };
        match self.store.fetch_token_if_permitted(&request).await {
            Ok(Some(token)) => Ok(Response::new(FetchTokenResponse {
                token: token.token,
                expires_in: token.expires_in.unwrap_or(TOKEN_LIFETIME_DEFAULT_SECONDS),
                issued_at: 0,
            })),
            Ok(None) => Err(Status::permission_denied(format!(
                "this build may not do what a token of {} was requested for: {}",
                request.host,
                request.scopes.join(" ")
            ))),
            // The code becomes the solve's, and `unavailable` would mean that the daemon is lost.
            Err(error) => Err(Status::unknown(format!(
                "failed to fetch oauth token: {}",
                ErrorChain(&error)
            ))),
        }
    }

    async fn get_token_authority(
        &self,
        request: Request<GetTokenAuthorityRequest>,
    ) -> Result<Response<GetTokenAuthorityResponse>, Status> {
        let key = self
            .session_key_if_store_fetches_tokens(&request.into_inner().host)
            .await?;
        Ok(Response::new(GetTokenAuthorityResponse {
            public_key: key.public_key().as_ref().to_vec(),
        }))
    }

    async fn verify_token_authority(
        &self,
        request: Request<VerifyTokenAuthorityRequest>,
    ) -> Result<Response<VerifyTokenAuthorityResponse>, Status> {
        let request = request.into_inner();
        let key = self.session_key_if_store_fetches_tokens(&request.host).await?;
        // NaCl's form of a signed message: the signature before the message.
        let signed = [key.sign(&request.payload).as_ref(), &*request.payload].concat();
        Ok(Response::new(VerifyTokenAuthorityResponse { signed }))
    }
}
