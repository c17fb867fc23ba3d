//! A fake web server on loopback, which records the requests that it receives.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use function_host::BoxError;
use function_host::http::header::LOCATION;
use function_host::http::request::Parts;
use function_host::http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::complete_or_panic;

/// A web server with pages by path. Clones share it.
#[derive(Clone)]
pub(crate) struct FakeWebServer {
    /// The server's host and port.
    pub(crate) host: String,
    state: Arc<Mutex<ServerState>>,
    /// The number of requests so far.
    count: watch::Sender<usize>,
}

#[derive(Default)]
struct ServerState {
    /// The pages of a path, of which the last one is repeated.
    pages: HashMap<String, VecDeque<PageResponse>>,
    requests: Vec<ReceivedRequest>,
}

/// A request that the server received.
#[derive(Clone, Debug)]
pub(crate) struct ReceivedRequest {
    /// The head of the request.
    pub(crate) head: Parts,
    /// The body of the request.
    pub(crate) body: Bytes,
}

/// An answer of the fake web server: content, a status or a redirect.
#[derive(Clone, Debug)]
pub(crate) enum PageResponse {
    /// The content, whose length is announced.
    Content(Bytes),
    /// The content, whose length is not announced.
    Chunked(Bytes),
    /// The content, after which the connection breaks off.
    BreakingOff(Bytes),
    /// A status without content.
    Status(u16),
    /// A redirect with this status and location.
    Redirect(u16, String),
}

impl FakeWebServer {
    /// Starts a server that answers 404 until it has pages.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let server = Self {
            host: listener.local_addr().expect("address").to_string(),
            state: Arc::default(),
            count: watch::Sender::new(0),
        };
        let shared = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = shared.clone();
                let service = service_fn(move |request| {
                    let server = server.clone();
                    async move { Ok::<_, Infallible>(server.answer(request).await) }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        server
    }

    fn state(&self) -> MutexGuard<'_, ServerState> {
        self.state.lock().expect("no panic")
    }

    /// Returns the URL of a path, which may have a query.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.host)
    }

    /// Sets what requests of a path are answered with, whatever their query is.
    pub(crate) fn set_page(&self, path: &str, page: PageResponse) {
        self.set_pages(path, [page]);
    }

    /// Sets what requests of a path are answered with, one after the other; the last page is repeated.
    pub(crate) fn set_pages(&self, path: &str, pages: impl IntoIterator<Item = PageResponse>) {
        let pages = pages.into_iter().collect();
        self.state().pages.insert(path.to_owned(), pages);
    }

    /// Waits until the server has received `count` requests, and returns all.
    pub(crate) async fn wait_for_requests(&self, count: usize) -> Vec<ReceivedRequest> {
        let mut received = self.count.subscribe();
        let waiting = received.wait_for(|received| *received >= count);
        complete_or_panic(waiting).await.expect("the server runs");
        self.requests()
    }

    /// Returns all requests so far.
    pub(crate) fn requests(&self) -> Vec<ReceivedRequest> {
        self.state().requests.clone()
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<UnsyncBoxBody<Bytes, BoxError>> {
        let (head, body) = request.into_parts();
        let body = body
            .collect()
            .await
            .map(|body| body.to_bytes())
            .unwrap_or_default();
        let page = {
            let mut state = self.state();
            let page = match state.pages.get_mut(head.uri.path()) {
                Some(pages) if pages.len() > 1 => pages.pop_front(),
                pages => pages.and_then(|pages| pages.front().cloned()),
            };
            state.requests.push(ReceivedRequest { head, body });
            page.unwrap_or(PageResponse::Status(404))
        };
        self.count.send_modify(|count| *count += 1);
        let full = |content: Bytes| Full::new(content).map_err(|never| match never {}).boxed_unsync();
        let stream = |pieces: Vec<Result<Frame<Bytes>, BoxError>>| {
            StreamBody::new(futures_util::stream::iter(pieces)).boxed_unsync()
        };
        let (status, body) = match &page {
            PageResponse::Content(content) => (200, full(content.clone())),
            PageResponse::Chunked(content) => (200, stream(vec![Ok(Frame::data(content.clone()))])),
            PageResponse::BreakingOff(content) => (
                200,
                stream(vec![Ok(Frame::data(content.clone())), Err("reset".into())]),
            ),
            PageResponse::Status(status) | PageResponse::Redirect(status, _) => (*status, full(Bytes::new())),
        };
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::from_u16(status).expect("status");
        if let PageResponse::Redirect(_, location) = &page {
            let location = location.parse().expect("header");
            response.headers_mut().insert(LOCATION, location);
        }
        response
    }
}
