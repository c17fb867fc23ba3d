//! The function proxy: forwards `/function/NAME…` to the function's address and streams both bodies.
//!
//! It behaves as faas-provider's proxy: the path after the name, the query and the headers are kept;
//! `X-Forwarded-Host` and `X-Forwarded-For` are added unless they are present. A function without an endpoint
//! is answered with 503; a function that cannot be reached, or does not begin to answer in time, with 500;
//! both with `X-OpenFaaS-Internal: proxy`, unless the provider is older than that header. Unlike there, a truncated
//! response is truncated for the caller too and does not look complete. Connections are not upgraded (no web sockets).

use std::{
    fmt,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    extract::{ConnectInfo, Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri,
    header::{CONNECTION, CONTENT_TYPE, EXPECT, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE},
    uri::PathAndQuery,
};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use tokio::time::{Instant, Sleep, sleep_until, timeout, timeout_at};

use crate::backend::CallGuard;

/// The prefix of the paths that are forwarded to functions.
const FUNCTION_PATH_PREFIX: &str = "/function/";

/// The limit on reading the body of a call to a function without an endpoint, in bytes.
const DISCARDED_BODY_MAX_BYTES: usize = 256 << 10;
/// The timeout for reading the body of a call to a function without an endpoint.
const DISCARDED_BODY_TIMEOUT: Duration = Duration::from_secs(1);

/// The header that distinguishes the proxy's own answers from a function's.
const INTERNAL_HEADER: HeaderName = HeaderName::from_static("x-openfaas-internal");

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The headers that are not forwarded, because they concern one connection only.
const HOP_BY_HOP_HEADERS: [HeaderName; 8] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-authenticate"),
    HeaderName::from_static("proxy-connection"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// A source of the addresses of functions.
pub(crate) trait CallRouter: fmt::Debug + Send + Sync {
    /// Returns the route of a call of the function with this name in its path, `NAME` or `NAME.NAMESPACE`; `None` if
    /// the function has no endpoint.
    fn route_call_if_function_has_endpoint(&self, name: &str) -> Option<CallRoute>;
}

/// The route of one call of a function.
#[derive(Debug)]
pub(crate) struct CallRoute {
    /// The address of the function; `None` while its process does not run.
    pub(crate) address: Option<SocketAddr>,
    /// A guard that is held until the call ends, where calls in progress are counted.
    pub(crate) guard: Option<CallGuard>,
}

/// The proxy that forwards calls to functions.
#[derive(Clone, Debug)]
pub(crate) struct FunctionProxy {
    router: Arc<dyn CallRouter>,
    client: Client<HttpConnector, Body>,
    options: ProxyOptions,
}

/// The ways in which the proxies of providers differ.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProxyOptions {
    /// The time for a function's complete answer.
    pub(crate) answer_timeout: Duration,
    /// The time for connecting to a function.
    pub(crate) connect_timeout: Duration,
    /// The longest time for which an idle connection to a function is kept.
    pub(crate) idle_timeout: Duration,
    /// Whether a header distinguishes the proxy's own answers from a function's.
    pub(crate) marks_own_answers: bool,
}

impl FunctionProxy {
    pub(crate) fn new(router: Arc<dyn CallRouter>, options: ProxyOptions) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(options.connect_timeout));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(options.idle_timeout)
            .build(connector);
        Self {
            router,
            client,
            options,
        }
    }

    /// Creates an answer of the proxy's own.
    fn error_response(&self, status: StatusCode, text: String) -> Response {
        let mut response = (status, text + "\n").into_response();
        if self.options.marks_own_answers {
            let value = HeaderValue::from_static("proxy");
            response.headers_mut().insert(INTERNAL_HEADER, value);
        }
        response
    }
}

/// Forwards a call to the function that its path names.
pub(crate) async fn proxy_call_with_faas_provider_statuses(
    State(proxy): State<FunctionProxy>,
    ConnectInfo(caller): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    if matches!(*request.method(), Method::CONNECT | Method::TRACE) || is_unsupported_method(request.method())
    {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    let Some((name, path)) = split_valid_name_and_maybe_invalid_path(request.uri()) else {
        return (StatusCode::NOT_FOUND, "404 page not found\n").into_response();
    };
    let name = name.to_owned();
    let Some(CallRoute { address, guard }) = proxy.router.route_call_if_function_has_endpoint(&name) else {
        // Closing the connection while the caller still sends its body would lose the answer.
        let rest = Limited::new(request.into_body(), DISCARDED_BODY_MAX_BYTES).collect();
        let _ = timeout(DISCARDED_BODY_TIMEOUT, rest).await;
        let text = format!("No endpoints available for: {name}.");
        return proxy.error_response(StatusCode::SERVICE_UNAVAILABLE, text);
    };
    let unreachable = || {
        proxy.error_response(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("Can't reach service for: {name}."),
        )
    };
    let (Some(address), Some(path)) = (address, path) else {
        return unreachable();
    };
    let request_type = request.headers().get(CONTENT_TYPE).cloned();
    let Some(upstream) = upstream_request(request, address, path, caller) else {
        return unreachable();
    };

    let deadline = Instant::now() + proxy.options.answer_timeout;
    match timeout_at(deadline, proxy.client.request(upstream)).await {
        Ok(Ok(response)) => {
            let (mut parts, body) = response.into_parts();
            remove_hop_by_hop_headers(&mut parts.headers);
            if !parts.headers.contains_key(CONTENT_TYPE) {
                let default = || HeaderValue::from_static("text/plain");
                parts
                    .headers
                    .insert(CONTENT_TYPE, request_type.unwrap_or_else(default));
            }
            let body = BodyGuardedUntilDropWithDeadline {
                body,
                _guard: guard,
                deadline: Box::pin(sleep_until(deadline)),
            };
            Response::from_parts(parts, Body::new(body))
        }
        Ok(Err(error)) => {
            tracing::warn!(
                function = name,
                error = &error as &dyn std::error::Error,
                "cannot reach a function"
            );
            unreachable()
        }
        Err(_) => {
            tracing::warn!(function = name, timeout = ?proxy.options.answer_timeout, "a function did not answer in time");
            unreachable()
        }
    }
}

/// Returns whether calls with this method are answered with 405.
fn is_unsupported_method(method: &Method) -> bool {
    let supported = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::OPTIONS,
    ];
    !supported.contains(method)
}

/// Splits the URI of a call into the function's name, and the path and query for the function, which are `None` if they
/// are invalid; returns `None` without a valid name.
fn split_valid_name_and_maybe_invalid_path(uri: &Uri) -> Option<(&str, Option<PathAndQuery>)> {
    let rest = uri.path().strip_prefix(FUNCTION_PATH_PREFIX)?;
    let (name, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let in_names = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || !name.chars().all(in_names) {
        return None;
    }
    let path = if path.is_empty() { "/" } else { path };
    let target = match uri.query() {
        Some(query) => format!("{path}?{query}").parse(),
        None => path.parse(),
    };
    Some((name, target.ok()))
}

/// Converts a caller's request to the request for the function at `address`.
fn upstream_request(
    request: Request,
    address: SocketAddr,
    path: PathAndQuery,
    caller: SocketAddr,
) -> Option<Request> {
    let (mut parts, body) = request.into_parts();
    let headers = &mut parts.headers;
    remove_hop_by_hop_headers(headers);
    // The server has already sent the `100 Continue`.
    headers.remove(EXPECT);
    if let Some(host) = headers.remove(HOST) {
        headers.entry(FORWARDED_HOST).or_insert(host);
    }
    if let Ok(caller) = caller.to_string().parse() {
        headers.entry(FORWARDED_FOR).or_insert(caller);
    }
    let uri = Uri::builder()
        .scheme("http")
        .authority(address.to_string())
        .path_and_query(path);
    let mut upstream = Request::new(body);
    *upstream.method_mut() = parts.method;
    *upstream.uri_mut() = uri.build().ok()?;
    *upstream.headers_mut() = parts.headers;
    Some(upstream)
}

/// Removes the headers of one connection, and those that the header `Connection` names.
fn remove_hop_by_hop_headers(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP_HEADERS) {
        headers.remove(name);
    }
}

/// The body of a function's response. The call is in progress until the body ends; at the deadline the body
/// fails.
struct BodyGuardedUntilDropWithDeadline<B> {
    body: B,
    _guard: Option<CallGuard>,
    deadline: Pin<Box<Sleep>>,
}

impl<B> http_body::Body for BodyGuardedUntilDropWithDeadline<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Into<axum::BoxError>,
{
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        match self.deadline.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Some(Err("the function's response exceeded the timeout".into()))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::backend::DrainableBackend;

    fn name_and_path_of_call(path: &str) -> Option<(String, String)> {
        let uri: Uri = path.parse().unwrap();
        split_valid_name_and_maybe_invalid_path(&uri)
            .map(|(name, path)| (name.to_owned(), path.unwrap().to_string()))
    }

    #[test]
    fn the_function_gets_the_path_after_its_name() {
        let expect = |path: &str, name: &str, rest: &str| {
            assert_eq!(
                name_and_path_of_call(path),
                Some((name.to_owned(), rest.to_owned())),
                "{path}"
            );
        };
        expect("/function/hello", "hello", "/");
        expect("/function/hello/", "hello", "/");
        expect("/function/hello.dev/a/b?x=1&y=%2F", "hello.dev", "/a/b?x=1&y=%2F");
        expect("/function/hello?x", "hello", "/?x");
        expect("/function/hello/a%20b//c", "hello", "/a%20b//c");
        assert_eq!(name_and_path_of_call("/function/"), None);
        assert_eq!(name_and_path_of_call("/function/a%2Fb"), None);
    }

    #[test]
    fn headers_are_forwarded_except_those_of_the_connection() {
        let request = Request::builder()
            .method("PUT")
            .uri("/function/hello/x")
            .header("host", "gateway:8080")
            .header("x-call-id", "7")
            .header("connection", "close, x-private")
            .header("x-private", "1")
            .header("expect", "100-continue")
            .header("transfer-encoding", "chunked")
            .body(Body::empty())
            .unwrap();
        let address = "10.62.0.5:8080".parse().unwrap();
        let caller = "10.63.1.1:4711".parse().unwrap();
        let upstream = upstream_request(request, address, "/x".parse().unwrap(), caller).unwrap();
        assert_eq!(upstream.uri(), "http://10.62.0.5:8080/x");
        assert_eq!(upstream.method(), "PUT");
        let mut headers: Vec<_> = upstream
            .headers()
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        headers.sort();
        assert_eq!(
            headers,
            [
                "x-call-id: 7",
                "x-forwarded-for: 10.63.1.1:4711",
                "x-forwarded-host: gateway:8080"
            ]
        );
    }

    #[test]
    fn forwarded_headers_of_the_gateway_are_kept() {
        let request = Request::builder()
            .header("host", "provider:8081")
            .header("x-forwarded-host", "gateway")
            .header("x-forwarded-for", "1.2.3.4")
            .body(Body::empty())
            .unwrap();
        let address = "10.62.0.5:8080".parse().unwrap();
        let upstream = upstream_request(request, address, "/".parse().unwrap(), address).unwrap();
        assert_eq!(upstream.headers()["x-forwarded-host"], "gateway");
        assert_eq!(upstream.headers()["x-forwarded-for"], "1.2.3.4");
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_body_fails_at_the_deadline_and_its_call_ends_with_the_drop() {
        let backend = Arc::new(DrainableBackend::default());
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let body = Body::from_stream(stream);
        let deadline = Box::pin(sleep_until(Instant::now() + Duration::from_secs(60)));
        let mut body = BodyGuardedUntilDropWithDeadline {
            body,
            _guard: Some(backend.begin_call()),
            deadline,
        };
        sender.send(Ok::<_, std::io::Error>("first")).await.unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
        // The clock is paused: a body without a deadline would end at this limit instead of hanging.
        let second = timeout(Duration::from_secs(120), body.frame()).await.unwrap();
        assert!(second.unwrap().is_err());
        drop(body);
        assert!(backend.wait_until_idle().now_or_never().is_some());
    }
}
