//! The gateway with a bearer token in place of basic authentication, where the deployer has one.

use std::time::Duration;

use function_host::gateway::{Gateway, GatewayError};
use function_host::http::header::{AUTHORIZATION, HeaderValue};
use function_host::http::{Request, Response, StatusCode};
use function_host::{Bytes, Secrets};
use http_body_util::Full;

use super::{Exchange, Transport};

/// The secret with the token. It is read anew when its file changes.
pub const TOKEN_SECRET: &str = "gateway-token";

/// Sends with the token of the secret [`TOKEN_SECRET`], where there is such a secret, or else with the one that the gateway
/// exchanges for another. Calls of functions do not carry it.
#[derive(Debug)]
pub struct Bearer<'a> {
    gateway: &'a Gateway,
    secrets: &'a Secrets,
    exchange: &'a Exchange,
}

impl<'a> Bearer<'a> {
    /// The gateway, and where the token may be.
    #[must_use]
    pub fn new(gateway: &'a Gateway, secrets: &'a Secrets, exchange: &'a Exchange) -> Self {
        Self {
            gateway,
            secrets,
            exchange,
        }
    }

    async fn authorize(&self, request: &mut Request<Bytes>, limit: Duration) -> Result<(), GatewayError> {
        if !request.uri().path().starts_with("/system/") {
            return Ok(());
        }
        let token = match self.secrets.exists(TOKEN_SECRET) {
            true => Some(self.secrets.read(TOKEN_SECRET)?),
            false => self.exchange.token(self.gateway, limit).await?,
        };
        let Some(token) = token else { return Ok(()) };
        let text = [b"Bearer ", token.expose()].concat();
        // What is no header value is not sent; the gateway then says that it does not know us.
        if let Ok(mut value) = HeaderValue::from_maybe_shared(Bytes::from(text)) {
            value.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        Ok(())
    }
}

impl Transport for Bearer<'_> {
    async fn send(
        &self,
        mut request: Request<Bytes>,
        limit: Duration,
    ) -> Result<Response<Bytes>, GatewayError> {
        self.authorize(&mut request, limit).await?;
        let answer = self.gateway.send(request.map(Full::new), limit).await?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            self.exchange.forget();
        }
        Ok(answer)
    }
}
