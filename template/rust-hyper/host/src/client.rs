//! An HTTP client with limits on the time and the size of a response. It follows no redirects.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::connector::Connector;
use crate::error_chain::BoxError;

/// An HTTP client for any server. It follows no redirects. Clones share connections.
#[derive(Clone)]
pub(crate) struct HttpClient {
    client: Client<Connector, Full<Bytes>>,
    /// The limit on the body of a response, in bytes.
    body_limit: usize,
}

/// An error of an HTTP exchange: the reason why there is no complete response.
#[derive(Debug)]
pub(crate) enum ExchangeError {
    /// No connection to the server could be established: the server has not received the request.
    Connect(BoxError),
    /// The connection to the server was lost before the response was complete.
    Lost(BoxError),
    /// The server's response was not complete within this time.
    Timeout(Duration),
    /// The response's body is larger than this limit, in bytes.
    TooLarge(usize),
}

impl HttpClient {
    pub(crate) fn new(connector: Connector, body_limit: usize) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(connector);
        Self { client, body_limit }
    }

    pub(crate) fn with_body_limit(self, body_limit: usize) -> Self {
        Self { body_limit, ..self }
    }

    /// Sends an HTTP request and reads the whole response, both within `timeout`.
    pub(crate) async fn send_and_receive(
        &self,
        request: Request<Full<Bytes>>,
        timeout: Duration,
    ) -> Result<Response<Bytes>, ExchangeError> {
        let exchange = async {
            let response = self
                .client
                .request(request)
                .await
                .map_err(|error| match error.is_connect() {
                    true => ExchangeError::Connect(error.into()),
                    false => ExchangeError::Lost(error.into()),
                })?;
            let (head, body) = response.into_parts();
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
}
