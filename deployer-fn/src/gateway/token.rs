//! OpenFaaS IAM: exchanges the service account's token, which Kubernetes issued, for a token of the gateway.
//!
//! Protocol: RFC 8693, as openfaas/go-sdk `exchange.go` uses it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use function_host::gateway::{Gateway, GatewayError};
use function_host::http::header::CONTENT_TYPE;
use function_host::http::{Request, StatusCode};
use function_host::{Secret, Secrets};
use http_body_util::Full;
use serde::Deserialize;
use tokio::time::Instant;
use tracing::warn;

use super::summarize_response;
use crate::percent;

/// The name of the file with the service account's token. Kubernetes replaces it before the token expires.
const SERVICE_ACCOUNT_TOKEN_FILE: &str = "openfaas-token";

/// The path of the gateway's token endpoint.
const TOKEN_URL_PATH: &str = "/oauth/token";
/// The grant type of a token exchange (RFC 8693).
const TOKEN_EXCHANGE_GRANT_TYPE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
/// The type of the service account's token, which is exchanged.
const SUBJECT_TOKEN_TYPE: &str = "urn:ietf:params:oauth:token-type:id_token";
/// The time before its expiry from which a token of the gateway is no longer used, because clocks differ.
const TOKEN_EXPIRY_MARGIN: Duration = Duration::from_secs(10);

/// An exchange of the service account's token for a token of the gateway, which it caches until shortly before that
/// expires. Clones share the cache.
#[derive(Clone, Debug)]
pub(crate) struct CachingTokenExchanger {
    /// The directory with the service account's token, [`SERVICE_ACCOUNT_TOKEN_FILE`], if the deployer has one.
    directory: Secrets,
    cached: Arc<Mutex<Option<CachedToken>>>,
}

/// A token of the gateway, with its expiry.
#[derive(Clone, Debug)]
struct CachedToken {
    token: Secret,
    /// The time at which the cached token expires; `None` if it does not.
    expires: Option<Instant>,
}

/// The gateway's response to a token exchange.
#[derive(Deserialize)]
struct TokenResponse {
    access_token: String,
    /// The lifetime of the gateway's token in seconds; 0 if the token does not expire.
    #[serde(default)]
    expires_in: u64,
}

impl CachingTokenExchanger {
    /// Makes a token exchange for the service account's token in `token_directory`, which need not exist.
    pub(crate) fn new(token_directory: Secrets) -> Self {
        Self {
            directory: token_directory,
            cached: Arc::default(),
        }
    }

    /// Returns the cached token of the gateway, or exchanges the service account's token for a new one; `None` if there
    /// is none to exchange, or the gateway rejects it or answers without a token.
    pub(crate) async fn cached_or_exchanged_token_if_granted(
        &self,
        gateway: &Gateway,
        limit: Duration,
    ) -> Result<Option<Secret>, GatewayError> {
        if !self.directory.exists(SERVICE_ACCOUNT_TOKEN_FILE) {
            return Ok(None);
        }
        let cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(cached) = cached
            && cached
                .expires
                .is_none_or(|expires| Instant::now() + TOKEN_EXPIRY_MARGIN < expires)
        {
            return Ok(Some(cached.token));
        }
        let subject = self.directory.read_secret(SERVICE_ACCOUNT_TOKEN_FILE)?;
        let subject = subject
            .expose_text()
            .map(percent::percent_encode)
            .unwrap_or_default();
        let form = format!(
            "grant_type={}&subject_token_type={}&subject_token={subject}",
            percent::percent_encode(TOKEN_EXCHANGE_GRANT_TYPE),
            percent::percent_encode(SUBJECT_TOKEN_TYPE)
        );
        let request = Request::post(gateway.uri_of_path(TOKEN_URL_PATH)?)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Full::from(form))
            .map_err(|_| GatewayError::Path {
                path: TOKEN_URL_PATH.to_owned(),
            })?;
        let sent = Instant::now();
        let response = gateway.send(request, limit).await?;
        match serde_json::from_slice::<TokenResponse>(response.body()) {
            Ok(body) if response.status() == StatusCode::OK && !body.access_token.is_empty() => {
                let token = Secret::new(body.access_token);
                let expires = (body.expires_in > 0).then(|| sent + Duration::from_secs(body.expires_in));
                self.store_token(Some(CachedToken {
                    token: token.clone(),
                    expires,
                }));
                Ok(Some(token))
            }
            // Only a response with status 200 can hold a token, so that this one may be logged.
            _ if response.status() != StatusCode::OK => {
                warn!(
                    response = summarize_response(&response),
                    "the gateway rejected the token exchange"
                );
                Ok(None)
            }
            _ => {
                warn!("the gateway's response to the token exchange has no access_token");
                Ok(None)
            }
        }
    }

    /// Drops the cached gateway token, because the gateway rejected it.
    pub(crate) fn forget_cached_token(&self) {
        self.store_token(None);
    }

    fn store_token(&self, token: Option<CachedToken>) {
        *self.cached.lock().unwrap_or_else(PoisonError::into_inner) = token;
    }
}
