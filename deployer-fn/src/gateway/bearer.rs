//! The gateway with a bearer token in place of basic authentication, where the deployer has one.

use std::future::Future;
use std::time::Duration;

use function_host::gateway::{Gateway, GatewayError};
use function_host::http::header::{AUTHORIZATION, HeaderValue};
use function_host::http::{Request, Response};
use function_host::{Bytes, Secrets};
use http_body_util::Full;

use super::Transport;

/// The secret with the token. It is read anew when its file changes.
pub const TOKEN_SECRET: &str = "gateway-token";

/// Sends with the token of the secret [`TOKEN_SECRET`], where there is such a secret. Calls of functions do not carry it.
#[derive(Debug)]
pub struct Bearer<'a> {
    gateway: &'a Gateway,
    secrets: &'a Secrets,
}

impl<'a> Bearer<'a> {
    /// The gateway, and where the token may be.
    #[must_use]
    pub fn new(gateway: &'a Gateway, secrets: &'a Secrets) -> Self {
        Self { gateway, secrets }
    }

    fn authorize(&self, request: &mut Request<Bytes>) -> Result<(), GatewayError> {
        if !request.uri().path().starts_with("/system/") || !self.secrets.exists(TOKEN_SECRET) {
            return Ok(());
        }
        let token = self.secrets.read(TOKEN_SECRET)?;
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
    fn send(
        &self,
        mut request: Request<Bytes>,
        limit: Duration,
    ) -> impl Future<Output = Result<Response<Bytes>, GatewayError>> + Send {
        let authorized = self.authorize(&mut request);
        async move {
            authorized?;
            self.gateway.send(request.map(Full::new), limit).await
        }
    }
}
