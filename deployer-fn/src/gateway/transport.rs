//! The connection to the gateway in production: the host's client, with a bearer token if the deployer has one.

use std::time::Duration;

use function_host::gateway::{Gateway, GatewayError};
use function_host::http::header::{AUTHORIZATION, HeaderValue};
use function_host::http::{Request, Response, StatusCode};
use function_host::{Bytes, Secrets};
use http_body_util::Full;

use super::{CachingTokenExchanger, GatewayRequestSender};

/// The name of the secret with the gateway's bearer token. The token is read again when its file changes.
const BEARER_TOKEN_SECRET: &str = "gateway-token";

/// A sender of requests to the gateway, by the host's client and with the deployer's credentials.
///
/// Requests to `/system/` carry a bearer token: that of the secret [`BEARER_TOKEN_SECRET`] if it exists, or else that
/// of the token exchange. Without either, the host's client adds basic authentication. Calls of functions carry no
/// credentials.
#[derive(Debug)]
pub(crate) struct HttpGatewaySender<'a> {
    gateway: &'a Gateway,
    secrets: &'a Secrets,
    exchange: &'a CachingTokenExchanger,
}

impl<'a> HttpGatewaySender<'a> {
    /// Creates a sender of requests to `gateway`, which takes its bearer token from `secrets` or else from `exchange`.
    pub(crate) fn new(
        gateway: &'a Gateway,
        secrets: &'a Secrets,
        exchange: &'a CachingTokenExchanger,
    ) -> Self {
        Self {
            gateway,
            secrets,
            exchange,
        }
    }

    /// Adds a bearer token to a request to `/system/`, if the deployer has one.
    async fn add_secret_or_exchanged_bearer_token_to_system_request(
        &self,
        request: &mut Request<Bytes>,
        limit: Duration,
    ) -> Result<(), GatewayError> {
        if !request.uri().path().starts_with("/system/") {
            return Ok(());
        }
        let token = match self.secrets.exists(BEARER_TOKEN_SECRET) {
            true => Some(self.secrets.read_secret(BEARER_TOKEN_SECRET)?),
            false => {
                self.exchange
                    .cached_or_exchanged_token_if_granted(self.gateway, limit)
                    .await?
            }
        };
        let Some(token) = token else { return Ok(()) };
        let text = [b"Bearer ", token.expose()].concat();
        // A token that is not a valid header value is not sent; the gateway then answers 401.
        if let Ok(mut value) = HeaderValue::from_maybe_shared(Bytes::from(text)) {
            value.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        Ok(())
    }
}

impl GatewayRequestSender for HttpGatewaySender<'_> {
    async fn send(
        &self,
        mut request: Request<Bytes>,
        limit: Duration,
    ) -> Result<Response<Bytes>, GatewayError> {
        self.add_secret_or_exchanged_bearer_token_to_system_request(&mut request, limit)
            .await?;
        let response = self.gateway.send(request.map(Full::new), limit).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            self.exchange.forget_cached_token();
        }
        Ok(response)
    }
}
