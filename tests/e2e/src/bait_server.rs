//! An HTTP server that attackers want to reach, or that is theirs: it records all requests, and redirects.

use std::{
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use axum::{
    Router,
    extract::State,
    http::{
        HeaderMap, StatusCode, Uri,
        header::{AUTHORIZATION, LOCATION, WWW_AUTHENTICATE},
    },
    response::{IntoResponse as _, Response},
};
use tokio::task::JoinHandle;

use crate::network_namespace::NetworkNamespace;

/// The text of every page of a [`BaitServer`].
pub const BAIT_TEXT: &str = "the-bait-was-taken";

/// An HTTP server that answers every request with [`BAIT_TEXT`], except that `/redirect/URL` redirects to `http://URL`,
/// that `/unavailable` gets 503, and that a request of a registry's API, below `/v2/`, gets 401 without a header
/// `Authorization`, whose value does not matter. It stops on drop.
#[derive(Debug)]
pub struct BaitServer {
    address: SocketAddr,
    requests: RecordedRequests,
    serving: JoinHandle<()>,
}

/// All received requests, in order.
type RecordedRequests = Arc<Mutex<Vec<RecordedRequest>>>;

/// What a server keeps of a received request.
#[derive(Debug)]
struct RecordedRequest {
    path: String,
    /// The value of the header `Authorization`.
    credentials: Option<String>,
    /// The number in the header `X-Function-Status`, which the queue-worker adds to the answer that it delivers.
    function_status: Option<u16>,
}

impl BaitServer {
    /// Starts a server on this address of this machine; port 0 selects a free one.
    pub fn start(address: impl Into<SocketAddr>) -> Result<Self> {
        Self::spawn_server_task(TcpListener::bind(address.into())?)
    }

    /// Starts a server on this address of a namespace.
    pub fn start_in_namespace(namespace: &NetworkNamespace, address: impl Into<SocketAddr>) -> Result<Self> {
        let address = address.into();
        Self::spawn_server_task(namespace.run_inside(|| Ok(TcpListener::bind(address)?))?)
    }

    /// Returns the server's address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the paths of all requests so far.
    pub fn request_paths(&self) -> Vec<String> {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.iter().map(|request| request.path.clone()).collect()
    }

    /// Returns the value of the header `Authorization` of each request that has one.
    pub fn received_credentials(&self) -> Vec<String> {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests
            .iter()
            .filter_map(|request| request.credentials.clone())
            .collect()
    }

    /// Returns the statuses of the functions whose answers the queue delivered here as callbacks.
    pub fn delivered_function_statuses(&self) -> Vec<u16> {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests
            .iter()
            .filter_map(|request| request.function_status)
            .collect()
    }

    fn spawn_server_task(listener: TcpListener) -> Result<Self> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let requests = RecordedRequests::default();
        let app = Router::new()
            .fallback(record_and_answer_request)
            .with_state(Arc::clone(&requests));
        let serving = tokio::spawn(async move {
            axum::serve(listener, app).await.ok();
        });
        Ok(Self {
            address,
            requests,
            serving,
        })
    }
}

impl Drop for BaitServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn record_and_answer_request(
    State(requests): State<RecordedRequests>,
    headers: HeaderMap,
    uri: Uri,
) -> Response {
    let path = uri.path();
    let credentials = headers
        .get(AUTHORIZATION)
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let is_known = credentials.is_some();
    let function_status = headers
        .get("X-Function-Status")
        .and_then(|value| value.to_str().ok()?.parse().ok());
    requests
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(RecordedRequest {
            path: path.to_owned(),
            credentials,
            function_status,
        });
    if path.starts_with("/v2/") && !is_known {
        return (
            StatusCode::UNAUTHORIZED,
            [(WWW_AUTHENTICATE, "Basic realm=\"registry\"")],
        )
            .into_response();
    }
    if path == "/unavailable" {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    match path.strip_prefix("/redirect/") {
        Some(target) => (StatusCode::FOUND, [(LOCATION, format!("http://{target}"))]).into_response(),
        None => BAIT_TEXT.into_response(),
    }
}
