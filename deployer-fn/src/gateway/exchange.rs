//! OpenFaaS IAM: the gateway gives a token of its own for one that somebody else vouches for, here Kubernetes for the
//! deployer's service account (RFC 8693, as openfaas/go-sdk `exchange.go` has it).

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

use super::said;
use crate::registry::escaped;

/// The file with the token to be exchanged. Whoever mounts it writes it anew before it ends.
pub const TOKEN_FILE: &str = "openfaas-token";

const GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const TOKEN_TYPE: &str = "urn:ietf:params:oauth:token-type:id_token";
/// So long before its end a token is not used any more: clocks differ.
const BEFORE_ITS_END: Duration = Duration::from_secs(10);

/// Exchanges tokens, and keeps what it got while that is good. Clones share it.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// Where [`TOKEN_FILE`] may be.
    mounted: Secrets,
    held: Arc<Mutex<Option<Held>>>,
}

#[derive(Clone, Debug)]
struct Held {
    token: Secret,
    /// `None` for ever.
    until: Option<Instant>,
}

#[derive(Deserialize)]
struct Answer {
    access_token: String,
    #[serde(default)]
    expires_in: u64,
}

impl Exchange {
    /// An exchange of the token in this folder, if there is one.
    #[must_use]
    pub fn new(mounted: Secrets) -> Self {
        Self {
            mounted,
            held: Arc::default(),
        }
    }

    /// The gateway's token; `None` where there is nothing to exchange, or the gateway would not.
    ///
    /// # Errors
    /// When the file cannot be read, or the gateway gives no answer.
    pub async fn token(&self, gateway: &Gateway, limit: Duration) -> Result<Option<Secret>, GatewayError> {
        if !self.mounted.exists(TOKEN_FILE) {
            return Ok(None);
        }
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(held) = held
            && held
                .until
                .is_none_or(|until| Instant::now() + BEFORE_ITS_END < until)
        {
            return Ok(Some(held.token));
        }
        let subject = self.mounted.read(TOKEN_FILE)?;
        let subject = subject.expose_text().map(escaped).unwrap_or_default();
        let form = format!(
            "grant_type={}&subject_token_type={}&subject_token={subject}",
            escaped(GRANT),
            escaped(TOKEN_TYPE)
        );
        let path = "/oauth/token";
        let request = Request::post(gateway.uri(path)?)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Full::from(form))
            .map_err(|_| GatewayError::Path {
                path: path.to_owned(),
            })?;
        let asked = Instant::now();
        let answer = gateway.send(request, limit).await?;
        match serde_json::from_slice::<Answer>(answer.body()) {
            Ok(given) if answer.status() == StatusCode::OK && !given.access_token.is_empty() => {
                let token = Secret::new(given.access_token);
                let until = (given.expires_in > 0).then(|| asked + Duration::from_secs(given.expires_in));
                self.keep(Some(Held {
                    token: token.clone(),
                    until,
                }));
                Ok(Some(token))
            }
            // A token would not be repeated here: what is not 200 has none.
            _ if answer.status() != StatusCode::OK => {
                warn!(answer = said(&answer), "the gateway does not exchange the token");
                Ok(None)
            }
            _ => {
                warn!("the gateway's answer to the exchange has no token");
                Ok(None)
            }
        }
    }

    /// The gateway would not take the token: the next is exchanged anew.
    pub fn forget(&self) {
        self.keep(None);
    }

    fn keep(&self, held: Option<Held>) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }
}
