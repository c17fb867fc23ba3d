//! A client for the OpenFaaS gateway.
//!
//! The C library resolves host names. The function's image has no files for that; the platform provides
//! `/etc/resolv.conf` and `/etc/hosts`. A statically linked musl reads both. So does a statically linked glibc since
//! 2.34, which includes the modules `files` and `dns`; verified with 2.36 in an empty root directory, for a name in
//! `/etc/hosts` and a name in DNS.

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::header::{AUTHORIZATION, HeaderValue};
use http::{Method, Request, Response, Uri};
use http_body_util::Full;
use zeroize::Zeroizing;

use crate::client::{ExchangeError, HttpClient};
use crate::connector::{self, Connector};
use crate::duration;
use crate::env::{Environment, SettingsParser};
use crate::error_chain::{BoxError, ErrorChain};
#[cfg(feature = "tls")]
use crate::secret::Secret;
use crate::secret::{SecretError, Secrets};
use crate::trace;

/// The address of the gateway of OpenFaaS on Kubernetes.
pub const DEFAULT_GATEWAY_URL: &str = "http://gateway.openfaas:8080";

/// The default limit on the body of a gateway's response, in bytes ([`Gateway::with_body_limit`]).
pub const DEFAULT_RESPONSE_BODY_LIMIT_BYTES: usize = 4 * 1024 * 1024;

/// The name of the secret with certificates (PEM) that authenticate the gateway, in addition to the system's.
///
/// Used with the feature `tls` only, and read once, when a client is created.
pub const CA_SECRET_NAME: &str = "gateway-ca";

/// The description of a valid gateway address, for error messages.
#[cfg(feature = "tls")]
const VALID_URL_DESCRIPTION: &str = "should be http://HOST[:PORT] or https://HOST[:PORT]";
/// The description of a valid gateway address, for error messages.
#[cfg(not(feature = "tls"))]
const VALID_URL_DESCRIPTION: &str = "should be http://HOST[:PORT]: this function was built without https";

/// A client of the OpenFaaS gateway. It does not follow redirects. Clones share connections.
#[derive(Clone)]
pub struct Gateway {
    base: Arc<str>,
    secrets: Secrets,
    client: HttpClient,
}

/// An error of a request to the gateway.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The gateway's address is invalid. The error does not contain the address, which may include a password.
    #[error("gateway_url {VALID_URL_DESCRIPTION}")]
    Url,
    /// The certificates in the secret [`CA_SECRET_NAME`], or those of the system, cannot be used.
    #[error("could not load the certificates that authenticate the gateway")]
    Authority(#[source] BoxError),
    /// The path of a request to the gateway is not valid in a URL, or does not begin with `/`.
    #[error(
        "{path:?} is not a path on the gateway: it should begin with / and have no characters that URLs exclude"
    )]
    Path {
        /// The path that was rejected.
        path: String,
    },
    /// The function has credentials for the gateway, but they cannot be read.
    #[error("could not read the gateway's credentials")]
    Credentials(#[from] SecretError),
    /// No connection to the gateway could be established: the gateway has not received the request.
    #[error("could not reach the gateway for {method} {path}")]
    Connect {
        /// The method of the request to the gateway.
        method: Method,
        /// The path of the request to the gateway, without its query.
        path: String,
        /// The HTTP client's error for the request to the gateway.
        #[source]
        source: BoxError,
    },
    /// The connection to the gateway was lost before the response was complete. The gateway may have received
    /// the request.
    #[error("lost the connection to the gateway during {method} {path}")]
    Lost {
        /// The method of the request to the gateway.
        method: Method,
        /// The path of the request to the gateway, without its query.
        path: String,
        /// The HTTP client's error for the request to the gateway.
        #[source]
        source: BoxError,
    },
    /// The gateway's response was not complete within the timeout. The gateway may have received the request.
    #[error("the gateway did not answer {method} {path} within {}", duration::format_duration(*limit))]
    Timeout {
        /// The method of the request to the gateway.
        method: Method,
        /// The path of the request to the gateway, without its query.
        path: String,
        /// The timeout of the request to the gateway.
        limit: Duration,
    },
    /// The gateway's response is larger than the limit on its body.
    #[error("the gateway's response to {method} {path} is larger than {limit} bytes")]
    TooLarge {
        /// The method of the request to the gateway.
        method: Method,
        /// The path of the request to the gateway, without its query.
        path: String,
        /// The limit on the response's body, in bytes.
        limit: usize,
    },
}

/// Creates the client of the gateway at the setting `gateway_url`, by default [`DEFAULT_GATEWAY_URL`]. If the setting is
/// wrong, adds a problem to `parser`, and returns the client of the default, so that further settings can be read.
pub(crate) fn gateway_from_setting_or_default(
    parser: &mut SettingsParser<'_>,
    secrets: &Secrets,
) -> Result<Gateway, GatewayError> {
    let url = parser
        .optional_text("gateway_url")
        .unwrap_or_else(|| DEFAULT_GATEWAY_URL.to_owned());
    Gateway::new(&url, secrets.clone()).or_else(|error| {
        match &error {
            GatewayError::Url => parser.add_problem("gateway_url", VALID_URL_DESCRIPTION),
            other => parser.add_problem("gateway_url", format!("cannot be used: {}", ErrorChain(other))),
        }
        Gateway::new(DEFAULT_GATEWAY_URL, secrets.clone())
    })
}

impl Gateway {
    /// Creates a client of the OpenFaaS gateway at `url`, which uses the credentials in `secrets`, if there
    /// are any.
    pub fn new(url: &str, secrets: Secrets) -> Result<Self, GatewayError> {
        let url = url.trim();
        let uri: Uri = url.parse().map_err(|_| GatewayError::Url)?;
        // The address is logged, so it must not contain credentials.
        let without_user = uri
            .authority()
            .is_some_and(|authority| !authority.as_str().contains('@'));
        if !without_user || uri.host().is_none_or(str::is_empty) || uri.query().is_some() {
            return Err(GatewayError::Url);
        }
        let connector = match uri.scheme_str() {
            Some("http") => connector::plain_connector(),
            #[cfg(feature = "tls")]
            Some("https") => connector_trusting_system_and_gateway_ca(&secrets),
            _ => return Err(GatewayError::Url),
        };
        let connector = connector.map_err(GatewayError::Authority)?;
        Ok(Self::with_connector(url, secrets, connector))
    }

    fn with_connector(url: &str, secrets: Secrets, connector: Connector) -> Self {
        Self {
            base: url.trim_end_matches('/').into(),
            secrets,
            client: HttpClient::new(connector, DEFAULT_RESPONSE_BODY_LIMIT_BYTES),
        }
    }

    /// Creates a client of the OpenFaaS gateway at the URL in `gateway_url`, or at [`DEFAULT_GATEWAY_URL`].
    pub fn from_env(environment: &dyn Environment, secrets: Secrets) -> Result<Self, GatewayError> {
        let url = environment
            .get("gateway_url")
            .filter(|url| !url.trim().is_empty());
        Self::new(url.as_deref().unwrap_or(DEFAULT_GATEWAY_URL), secrets)
    }

    /// Sets the limit on the body of the gateway's responses, in bytes.
    #[must_use]
    pub fn with_body_limit(mut self, bytes: usize) -> Self {
        self.client = self.client.with_body_limit(bytes);
        self
    }

    /// Returns the gateway's address, without a trailing slash.
    pub fn url(&self) -> &str {
        &self.base
    }

    /// Returns the gateway's URI with `path`, which must begin with `/`.
    pub fn uri_of_path(&self, path: &str) -> Result<Uri, GatewayError> {
        let invalid = || GatewayError::Path {
            path: path.to_owned(),
        };
        if !path.starts_with('/') {
            return Err(invalid());
        }
        format!("{}{path}", self.base).parse().map_err(|_| invalid())
    }

    /// Returns the gateway's URL for calling a function.
    pub fn function_url(&self, name: &str, namespace: Option<&str>) -> String {
        match namespace {
            Some(namespace) if !namespace.is_empty() => format!("{}/function/{name}.{namespace}", self.base),
            _ => format!("{}/function/{name}", self.base),
        }
    }

    /// Sends a request to the gateway and reads the whole response, both within `timeout`.
    ///
    /// A URI without a host is one of this gateway.
    ///
    /// Adds basic authentication to requests to `/system/` of this gateway, if the function has the secrets
    /// `basic-auth-user` and `basic-auth-password` and the request has no `Authorization` header. Other requests get
    /// none, because the gateway forwards headers to functions.
    pub async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
        timeout: Duration,
    ) -> Result<Response<Bytes>, GatewayError> {
        if request.uri().host().is_none() {
            *request.uri_mut() = self.uri_of_path(&request.uri().to_string())?;
        }
        self.add_credentials_to_system_request(&mut request)?;
        let span = trace::open_outgoing_span_and_inject_headers(&mut request);
        let response = self.send_and_receive(request, timeout).await;
        match &response {
            Ok(response) => span.set_response_status(response.status().as_u16()),
            Err(error) => span.mark_failed(ErrorChain(error)),
        }
        response
    }

    /// Sends a request as it is and reads the whole response; converts the client's error to one that names the
    /// request.
    async fn send_and_receive(
        &self,
        request: Request<Full<Bytes>>,
        timeout: Duration,
    ) -> Result<Response<Bytes>, GatewayError> {
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        self.client
            .send_and_receive(request, timeout)
            .await
            .map_err(|error| match error {
                // The gateway's client checks no addresses.
                ExchangeError::Denied(denied) => GatewayError::Connect {
                    method,
                    path,
                    source: denied.into(),
                },
                ExchangeError::Connect(source) => GatewayError::Connect { method, path, source },
                ExchangeError::Lost(source) => GatewayError::Lost { method, path, source },
                ExchangeError::Timeout(limit) => GatewayError::Timeout { method, path, limit },
                ExchangeError::TooLarge(limit) => GatewayError::TooLarge { method, path, limit },
            })
    }

    /// Adds basic authentication to a request to `/system/` of this gateway, if the function has the secrets for it and
    /// the request has no `Authorization` header.
    fn add_credentials_to_system_request(
        &self,
        request: &mut Request<Full<Bytes>>,
    ) -> Result<(), GatewayError> {
        let uri = request.uri().to_string();
        let is_system_api = uri
            .strip_prefix(&*self.base)
            .is_some_and(|path| path.starts_with("/system/"));
        if !is_system_api
            || request.headers().contains_key(AUTHORIZATION)
            || !self.secrets.exists("basic-auth-user")
        {
            return Ok(());
        }
        let user = self.secrets.read_secret("basic-auth-user")?;
        let password = self.secrets.read_secret("basic-auth-password")?;
        let pair = Zeroizing::new([user.expose(), b":", password.expose()].concat());
        let text = Zeroizing::new(format!("Basic {}", BASE64.encode(&pair)));
        if let Ok(mut value) = HeaderValue::from_str(&text) {
            value.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        Ok(())
    }
}

/// Returns an HTTPS connector that trusts the system's certificates, and those in the secret [`CA_SECRET_NAME`] if it
/// exists.
#[cfg(feature = "tls")]
fn connector_trusting_system_and_gateway_ca(secrets: &Secrets) -> Result<Connector, BoxError> {
    let secret = match secrets.exists(CA_SECRET_NAME) {
        true => Some(secrets.read_secret(CA_SECRET_NAME)?),
        false => None,
    };
    connector::connector_trusting_system_certificates(secret.as_ref().map(Secret::expose), None)
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway")
            .field("url", &self.base)
            .finish_non_exhaustive()
    }
}
