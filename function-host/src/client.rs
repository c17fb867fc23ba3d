//! An HTTP client with a timeout for each request, and a limit on the size of the responses that it reads as a whole.
//! It follows no redirects.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::address_check::{self, AddressCheck, AddressDenied};
use crate::connector::Connector;
use crate::duration;
use crate::error_chain::BoxError;

/// The size of the largest response that is read as a whole, in bytes: registries limit manifests to this.
#[cfg(feature = "tls")]
pub(crate) const RESPONSE_MAX_BYTES: usize = 4 * 1024 * 1024;

/// The body of a request that an [`HttpClient`] sends, which may be a stream.
pub type OutgoingRequestBody = UnsyncBoxBody<Bytes, BoxError>;

/// An HTTP client for any server. It follows no redirects. Clones share connections.
#[derive(Clone)]
pub struct HttpClient {
    client: Client<Connector, OutgoingRequestBody>,
    /// The check of the addresses that the client connects to; the connector has it too.
    check: Option<AddressCheck>,
    /// The limit on the body of a response that is read as a whole, in bytes.
    body_limit: usize,
}

/// An error of an HTTP exchange: the reason why there is no complete response.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The client may not connect to an address of the server: the server has not received the request.
    #[error(transparent)]
    Denied(AddressDenied),
    /// No connection to the server could be established: the server has not received the request.
    #[error("no connection could be established")]
    Connect(#[source] BoxError),
    /// The connection to the server was lost before the response was complete.
    #[error("the connection was lost before the response was complete")]
    Lost(#[source] BoxError),
    /// The server's response, or its head if only that was awaited, was not complete within this time.
    #[error("there was no complete response within {}", duration::format_duration(*.0))]
    Timeout(Duration),
    /// The response's body is larger than this limit, in bytes.
    #[error("the response is larger than {0} bytes")]
    TooLarge(usize),
}

#[cfg(feature = "tls")]
impl HttpClient {
    /// Creates an HTTP client that trusts the system's certificates, and those in the secret `gateway-ca` if it exists.
    /// It connects only to addresses that pass `check`, if there is one.
    ///
    /// # Errors
    /// Fails if the secret `gateway-ca` cannot be read or has an invalid certificate, or if there is no certificate at
    /// all.
    pub fn trusting_system_and_gateway_certificates(
        secrets: &crate::secret::Secrets,
        check: Option<AddressCheck>,
    ) -> Result<Self, BoxError> {
        use crate::gateway::CA_SECRET_NAME;
        let more = match secrets.exists(CA_SECRET_NAME) {
            true => Some(secrets.read_secret(CA_SECRET_NAME)?),
            false => None,
        };
        let connector = crate::connector::connector_trusting_system_certificates(
            more.as_ref().map(crate::secret::Secret::expose),
            check.clone(),
        )?;
        Ok(Self {
            check,
            ..Self::new(connector, RESPONSE_MAX_BYTES)
        })
    }
}

#[cfg(feature = "tls")]
impl HttpClient {
    /// Creates an HTTP client that trusts only the certificates in `authorities_pem` (PEM), and not those of the
    /// system.
    ///
    /// # Errors
    /// Fails if `authorities_pem` has an invalid certificate, or none.
    pub fn trusting_only(authorities_pem: &[u8]) -> Result<Self, BoxError> {
        let connector = crate::connector::connector_trusting_only(authorities_pem)?;
        Ok(Self::new(connector, RESPONSE_MAX_BYTES))
    }

    /// Creates an HTTP client that trusts no certificate, for servers without TLS. It connects only to addresses that
    /// pass `check`, if there is one.
    ///
    /// # Errors
    /// Fails if TLS cannot be configured.
    pub fn trusting_no_certificate(check: Option<AddressCheck>) -> Result<Self, BoxError> {
        let connector = crate::connector::plain_checked_connector(check.clone())?;
        Ok(Self {
            check,
            ..Self::new(connector, RESPONSE_MAX_BYTES)
        })
    }
}

impl HttpClient {
    /// Creates an HTTP client without a check of addresses. A response that it reads as a whole may have `body_limit`
    /// bytes.
    pub(crate) fn new(connector: Connector, body_limit: usize) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(connector);
        Self {
            client,
            check: None,
            body_limit,
        }
    }

    /// Sets the limit on the body of a response that is read as a whole, in bytes.
    pub(crate) fn with_body_limit(self, body_limit: usize) -> Self {
        Self { body_limit, ..self }
    }

    /// Sends an HTTP request and reads the whole response, both within `timeout`.
    ///
    /// # Errors
    /// Fails if there is no complete response within `timeout`, or if its body is too large: a client from one of the
    /// public constructors reads at most 4 MiB.
    pub async fn send_and_receive(
        &self,
        request: Request<Full<Bytes>>,
        timeout: Duration,
    ) -> Result<Response<Bytes>, ExchangeError> {
        let request = request.map(|body| body.map_err(|never| match never {}).boxed_unsync());
        let exchange = async {
            let (head, body) = self
                .send_without_timeout_and_receive_head(request)
                .await?
                .into_parts();
            let body = Limited::new(body, self.body_limit)
                .collect()
                .await
                .map_err(|error| match error.is::<LengthLimitError>() {
                    true => ExchangeError::TooLarge(self.body_limit),
                    false => ExchangeError::Lost(error),
                })?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        tokio::time::timeout(timeout, exchange)
            .await
            .unwrap_or(Err(ExchangeError::Timeout(timeout)))
    }

    /// Sends an HTTP request, and returns the response as soon as its head has arrived, which has to be within `timeout`.
    /// The time and the size of the body are not limited.
    #[cfg(feature = "tls")]
    pub async fn send(
        &self,
        request: Request<OutgoingRequestBody>,
        timeout: Duration,
    ) -> Result<Response<Incoming>, ExchangeError> {
        tokio::time::timeout(timeout, self.send_without_timeout_and_receive_head(request))
            .await
            .unwrap_or(Err(ExchangeError::Timeout(timeout)))
    }

    /// Sends an HTTP request without a timeout, and returns the response as soon as its head has arrived.
    async fn send_without_timeout_and_receive_head(
        &self,
        request: Request<OutgoingRequestBody>,
    ) -> Result<Response<Incoming>, ExchangeError> {
        if let Some(check) = &self.check {
            // The connector does not resolve an address.
            address_check::check_literal_address(check, request.uri()).map_err(ExchangeError::Denied)?;
        }
        self.client.request(request).await.map_err(|error| {
            if let Some(denied) = AddressDenied::find_in(&error) {
                return ExchangeError::Denied(denied.clone());
            }
            match error.is_connect() {
                true => ExchangeError::Connect(error.into()),
                false => ExchangeError::Lost(error.into()),
            }
        })
    }
}
