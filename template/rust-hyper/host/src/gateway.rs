//! A client for the OpenFaaS gateway.
//!
//! Names are resolved by the C library. The image has no files of its own for that: `/etc/resolv.conf` and `/etc/hosts` come
//! from the platform. A static musl reads both by itself. So does a static glibc from 2.34 on, which has the modules
//! `files` and `dns` built in; seen with 2.36 in an empty root, for a name in `/etc/hosts` and for one from the network.

pub(crate) mod connector;
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
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use zeroize::Zeroizing;

use crate::env::{Environment, Parser};
use crate::error::{BoxError, ErrorChain};
use crate::secret::{SecretError, Secrets};
use crate::trace;
use connector::Connector;

/// Where OpenFaaS on Kubernetes has its gateway.
pub const DEFAULT_URL: &str = "http://gateway.openfaas:8080";

/// The largest answer that is read, unless [`Gateway::with_body_limit`] says otherwise. In bytes.
pub const DEFAULT_BODY_LIMIT: usize = 4 * 1024 * 1024;

/// The secret with the certificates that the gateway is trusted by besides the system's, in PEM. Only with the feature
/// `tls`, and read once, at start.
pub const CA_SECRET: &str = "gateway-ca";

/// What a gateway's address looks like.
#[cfg(feature = "tls")]
const SHAPE: &str = "should be http://HOST[:PORT] or https://HOST[:PORT]";
/// What a gateway's address looks like.
#[cfg(not(feature = "tls"))]
const SHAPE: &str = "should be http://HOST[:PORT]: this function was built without https";

/// Sends requests to the gateway. Clones share connections. Redirects are answers, not followed.
#[derive(Clone)]
pub struct Gateway {
    base: Arc<str>,
    secrets: Secrets,
    client: Client<Connector, Full<Bytes>>,
    body_limit: usize,
}

/// Why the gateway gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The gateway's address is none. It is not repeated here: there may be a password in it.
    #[error("gateway_url {SHAPE}")]
    Url,
    /// The secret [`CA_SECRET`], or the system's certificates, cannot be used.
    #[error("could not read the certificates to trust the gateway by")]
    Authority(#[source] BoxError),
    /// A path that makes no address.
    #[error("{path:?} cannot be asked of the gateway")]
    Path {
        /// The path.
        path: String,
    },
    /// The credentials are there and cannot be used.
    #[error("could not read the gateway's credentials")]
    Credentials(#[from] SecretError),
    /// No connection: the gateway has not seen the request.
    #[error("could not reach the gateway for {method} {path}")]
    Connect {
        /// The request's method.
        method: Method,
        /// The request's path.
        path: String,
        /// What went wrong.
        #[source]
        source: BoxError,
    },
    /// The connection was lost before the answer was whole.
    #[error("lost the gateway during {method} {path}")]
    Lost {
        /// The request's method.
        method: Method,
        /// The request's path.
        path: String,
        /// What went wrong.
        #[source]
        source: BoxError,
    },
    /// No whole answer in time.
    #[error("the gateway did not answer {method} {path} within {}", crate::duration::format(*limit))]
    Timeout {
        /// The request's method.
        method: Method,
        /// The request's path.
        path: String,
        /// How long it had.
        limit: Duration,
    },
    /// The answer is larger than what is read.
    #[error("the gateway's answer to {method} {path} is larger than {limit} bytes")]
    TooLarge {
        /// The request's method.
        method: Method,
        /// The request's path.
        path: String,
        /// The limit in bytes.
        limit: usize,
    },
}

/// The gateway of the settings. Where they are wrong the parser knows, and it is the default's.
pub(crate) fn read(parser: &mut Parser<'_>, secrets: &Secrets) -> Result<Gateway, GatewayError> {
    let url = parser
        .text("gateway_url")
        .unwrap_or_else(|| DEFAULT_URL.to_owned());
    Gateway::new(&url, secrets.clone()).or_else(|error| {
        match &error {
            GatewayError::Url => parser.problem("gateway_url", SHAPE),
            other => parser.problem("gateway_url", format!("cannot be used: {}", ErrorChain(other))),
        }
        Gateway::new(DEFAULT_URL, secrets.clone())
    })
}

impl Gateway {
    /// The gateway at `url`, with the credentials that `secrets` has, if it has any.
    pub fn new(url: &str, secrets: Secrets) -> Result<Self, GatewayError> {
        let url = url.trim();
        let uri: Uri = url.parse().map_err(|_| GatewayError::Url)?;
        let https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") if cfg!(feature = "tls") => true,
            _ => return Err(GatewayError::Url),
        };
        // A user in the address would be one more place for credentials, and one that is logged.
        let bare = uri
            .authority()
            .is_some_and(|authority| !authority.as_str().contains('@'));
        if !bare || uri.host().is_none_or(str::is_empty) || uri.query().is_some() {
            return Err(GatewayError::Url);
        }
        let connector = if https {
            connector::trusting(&secrets)?
        } else {
            connector::plain()?
        };
        Ok(Self::with_connector(url, secrets, connector))
    }

    fn with_connector(url: &str, secrets: Secrets, connector: Connector) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(connector);
        Self {
            base: url.trim_end_matches('/').into(),
            secrets,
            client,
            body_limit: DEFAULT_BODY_LIMIT,
        }
    }

    /// The gateway named by `gateway_url`, or [`DEFAULT_URL`].
    pub fn from_env(strings: &dyn Environment, secrets: Secrets) -> Result<Self, GatewayError> {
        let url = strings.get("gateway_url").filter(|url| !url.trim().is_empty());
        Self::new(url.as_deref().unwrap_or(DEFAULT_URL), secrets)
    }

    /// Reads answers up to `bytes`.
    #[must_use]
    pub fn with_body_limit(mut self, bytes: usize) -> Self {
        self.body_limit = bytes;
        self
    }

    /// The gateway's address, without a slash at its end.
    pub fn url(&self) -> &str {
        &self.base
    }

    /// The address of `path` (which begins with `/`) on this gateway.
    pub fn uri(&self, path: &str) -> Result<Uri, GatewayError> {
        let refused = || GatewayError::Path {
            path: path.to_owned(),
        };
        if !path.starts_with('/') {
            return Err(refused());
        }
        format!("{}{path}", self.base).parse().map_err(|_| refused())
    }

    /// Where a function is called.
    pub fn function_url(&self, name: &str, namespace: Option<&str>) -> String {
        match namespace {
            Some(namespace) if !namespace.is_empty() => format!("{}/function/{name}.{namespace}", self.base),
            _ => format!("{}/function/{name}", self.base),
        }
    }

    /// Sends `request` and reads the whole answer, both within `timeout`. An address without a host is one of this
    /// gateway.
    ///
    /// Requests to `/system/` of this gateway carry basic authentication, where the function has the secrets
    /// `basic-auth-user` and `basic-auth-password` and the request has no `Authorization` yet. Other requests do not:
    /// the gateway passes headers on to functions.
    pub async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
        timeout: Duration,
    ) -> Result<Response<Bytes>, GatewayError> {
        if request.uri().host().is_none() {
            *request.uri_mut() = self.uri(&request.uri().to_string())?;
        }
        self.authorize(&mut request)?;
        let span = trace::outgoing(&mut request);
        let answer = self.exchange(request, timeout).await;
        match &answer {
            Ok(answer) => span.answered(answer.status().as_u16()),
            Err(error) => span.mark_failed(ErrorChain(error)),
        }
        answer
    }

    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        timeout: Duration,
    ) -> Result<Response<Bytes>, GatewayError> {
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let exchange = async {
            let response = self.client.request(request).await.map_err(|error| {
                let (method, path) = (method.clone(), path.clone());
                match error.is_connect() {
                    true => GatewayError::Connect {
                        method,
                        path,
                        source: error.into(),
                    },
                    false => GatewayError::Lost {
                        method,
                        path,
                        source: error.into(),
                    },
                }
            })?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, self.body_limit)
                .collect()
                .await
                .map_err(|source| {
                    let (method, path) = (method.clone(), path.clone());
                    match source.is::<LengthLimitError>() {
                        true => GatewayError::TooLarge {
                            method,
                            path,
                            limit: self.body_limit,
                        },
                        false => GatewayError::Lost { method, path, source },
                    }
                })?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        match tokio::time::timeout(timeout, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(GatewayError::Timeout {
                method,
                path,
                limit: timeout,
            }),
        }
    }

    fn authorize(&self, request: &mut Request<Full<Bytes>>) -> Result<(), GatewayError> {
        let uri = request.uri().to_string();
        let ours = uri
            .strip_prefix(&*self.base)
            .is_some_and(|path| path.starts_with("/system/"));
        if !ours || request.headers().contains_key(AUTHORIZATION) || !self.secrets.exists("basic-auth-user") {
            return Ok(());
        }
        let user = self.secrets.read("basic-auth-user")?;
        let password = self.secrets.read("basic-auth-password")?;
        let pair = Zeroizing::new([user.expose(), b":", password.expose()].concat());
        let text = Zeroizing::new(format!("Basic {}", BASE64.encode(&pair)));
        if let Ok(mut value) = HeaderValue::from_str(&text) {
            value.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        Ok(())
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway")
            .field("url", &self.base)
            .finish_non_exhaustive()
    }
}
