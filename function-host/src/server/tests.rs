//! Tests of the server within the test process, so that tests and handlers can exchange messages over channels.

mod strangers;

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use futures_core::Stream;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::env::SettingsParser;
use crate::error_chain::BoxError;
use crate::{BodyError, Context, Error, Gateway, ResponseBody, Secrets, Shutdown, ShutdownTrigger, reply};

/// The time after which a test fails instead of waiting longer for an event. No event should take nearly as
/// long.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Waits for `event`; panics after [`TEST_TIMEOUT`].
async fn await_within_timeout<F: Future>(event: F) -> F::Output {
    tokio::time::timeout(TEST_TIMEOUT, event)
        .await
        .expect("the event does not happen")
}

/// A paused clock that only the test advances.
struct ManualClock {
    _release: std::sync::mpsc::Sender<()>,
}

impl ManualClock {
    /// Pauses the clock of the test's runtime.
    fn pause() -> Self {
        tokio::time::pause();
        let (release, released) = std::sync::mpsc::channel();
        // tokio advances a paused clock whenever the runtime is idle, even if it waits for a socket, but not while a
        // blocking task runs. The blocking task ends after a while, so that the timeouts of a failing test still
        // pass.
        tokio::task::spawn_blocking(move || released.recv_timeout(TEST_TIMEOUT));
        Self { _release: release }
    }

    /// Advances the paused clock, so that timers of at most `duration` fire.
    async fn advance(&self, duration: Duration) {
        // Timers are rounded up to the next millisecond.
        tokio::time::advance(duration + Duration::from_millis(1)).await;
    }
}

/// A function that is being served in the test's process. Dropping it drops the server.
struct ServedApp {
    address: SocketAddr,
    listener: ServedListener,
    counters: Arc<RequestCounters>,
    _trigger: ShutdownTrigger,
}

impl ServedApp {
    fn requests_in_flight(&self) -> usize {
        self.counters.inflight.in_flight_count()
    }
}

/// Serves `app` on a free loopback port, with the host's settings in `variables`.
async fn serve_app(variables: &[(&str, &str)], app: App) -> ServedApp {
    let variables: std::collections::HashMap<_, _> = variables.iter().copied().collect();
    let mut parser = SettingsParser::new(&variables);
    let settings = Settings::read(&mut parser);
    parser.fail_if_problems().unwrap();
    let secrets = Secrets::new("/nowhere");
    let (trigger, shutdown) = Shutdown::new();
    let gateway = Gateway::new("http://gateway:8080", secrets.clone()).unwrap();
    let shared = Arc::new(SharedContextParts {
        secrets,
        gateway,
        shutdown,
    });
    let server = Server::new(&settings, app, shared, Registry::new(), RequestTracer::default()).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    ServedApp {
        address,
        listener: server.serve_function(listener),
        counters: server.counters.clone(),
        _trigger: trigger,
    }
}

/// Opens a connection to the function and sends the text of `request` unchanged.
async fn connect_and_send(address: SocketAddr, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// Sends a request over a new connection, and returns the status line of the response.
async fn send_and_read_status_line(address: SocketAddr, request: &str) -> String {
    let response = read_until(&mut connect_and_send(address, request).await, "\r\n\r\n").await;
    response.lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_request_has_at_most_one_host_and_one_of_http_1_1_has_exactly_one() {
    let served = serve_app(&[], App::new(async |_, _| Ok::<_, Error>(reply::text("OK\n")))).await;
    for (head, status) in [
        ("GET / HTTP/1.1\r\nhost: a\r\n", "HTTP/1.1 200 OK"),
        ("GET / HTTP/1.1\r\nhost:\r\n", "HTTP/1.1 200 OK"),
        ("GET / HTTP/1.1\r\n", "HTTP/1.1 400 Bad Request"),
        ("GET http://a/ HTTP/1.1\r\n", "HTTP/1.1 400 Bad Request"),
        ("GET /_/health HTTP/1.1\r\n", "HTTP/1.1 400 Bad Request"),
        (
            "GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n",
            "HTTP/1.1 400 Bad Request",
        ),
        ("GET / HTTP/1.1\r\nhost: a b\r\n", "HTTP/1.1 400 Bad Request"),
        ("GET / HTTP/1.0\r\n", "HTTP/1.0 200 OK"),
        (
            "GET / HTTP/1.0\r\nhost: a\r\nhost: b\r\n",
            "HTTP/1.0 400 Bad Request",
        ),
    ] {
        let found = send_and_read_status_line(served.address, &format!("{head}\r\n")).await;
        assert_eq!(found, status, "{head:?}");
    }
    let mut stream = connect_and_send(served.address, "GET / HTTP/1.1\r\n\r\n").await;
    let mut response = String::new();
    await_within_timeout(stream.read_to_string(&mut response))
        .await
        .unwrap();
    assert!(
        response.ends_with("the request has no Host header\n"),
        "{response}"
    );
}

#[tokio::test]
async fn a_request_may_have_as_many_headers_as_the_setting_allows_and_no_more() {
    for (variables, limit) in [
        (&[][..], 256),
        (&[("max_headers", "300")], 300),
        (&[("max_headers", "2")], 2),
    ] {
        let served = serve_app(
            variables,
            App::new(async |_, _| Ok::<_, Error>(reply::text("OK\n"))),
        )
        .await;
        for (count, status) in [
            (limit, "HTTP/1.1 200 OK"),
            (limit + 1, "HTTP/1.1 431 Request Header Fields Too Large"),
        ] {
            let headers: String = (1..count).map(|number| format!("x-{number}: 1\r\n")).collect();
            let request = format!("GET / HTTP/1.1\r\nhost: a\r\n{headers}\r\n");
            assert_eq!(
                send_and_read_status_line(served.address, &request).await,
                status,
                "{count} of {limit}"
            );
        }
    }
}

const GET_REQUEST_TEXT: &str = "GET / HTTP/1.1\r\nhost: test\r\n\r\n";

/// Reads from a connection until the response contains `text`, and returns what was received.
async fn read_until(stream: &mut TcpStream, text: &str) -> String {
    await_within_timeout(async {
        let mut received = Vec::new();
        loop {
            let so_far = String::from_utf8_lossy(&received).into_owned();
            if so_far.contains(text) {
                return so_far;
            }
            assert!(
                stream.read_buf(&mut received).await.unwrap() > 0,
                "the connection ended after {so_far}"
            );
        }
    })
    .await
}

/// Reads from a connection until the function closes it, and returns what was received.
async fn read_until_closed(stream: &mut TcpStream) -> String {
    let mut received = Vec::new();
    // A reset ends the connection as well.
    let _ = await_within_timeout(stream.read_to_end(&mut received)).await;
    String::from_utf8_lossy(&received).into_owned()
}

/// A guard that sends a message when it is dropped.
struct DropNotifier(Option<oneshot::Sender<()>>);

impl DropNotifier {
    fn new() -> (Self, oneshot::Receiver<()>) {
        let (sender, dropped) = oneshot::channel();
        (Self(Some(sender)), dropped)
    }
}

impl Drop for DropNotifier {
    fn drop(&mut self) {
        let _ = self.0.take().map(|sender| sender.send(()));
    }
}

/// The test's receiver of a message from each call of its handler.
struct HandlerCallReceiver<T>(mpsc::Receiver<T>);

impl<T> HandlerCallReceiver<T> {
    /// Waits for the next call of the handler and returns its message.
    async fn wait_for_next_call(&mut self) -> T {
        await_within_timeout(self.0.recv()).await.unwrap()
    }
}

/// Returns a function that reads the request's body and never answers. Each call sends a receiver of the
/// handler's drop.
fn app_that_never_answers() -> (App, HandlerCallReceiver<oneshot::Receiver<()>>) {
    let (calls, receiver) = mpsc::channel(8);
    let handler = move |request: crate::Request, _context: Context| {
        let calls = calls.clone();
        async move {
            let (_guard, dropped) = DropNotifier::new();
            let _body = request.into_body().collect(1024).await?;
            calls.send(dropped).await.unwrap();
            std::future::pending::<()>().await;
            Ok::<_, Error>(reply::text("never"))
        }
    };
    (App::new(handler), HandlerCallReceiver(receiver))
}

type ChunkSender = mpsc::Sender<Result<Bytes, BoxError>>;

/// A response stream that yields the chunks that the test sends to a channel.
struct ChannelResponseStream {
    chunks: mpsc::Receiver<Result<Bytes, BoxError>>,
    _guard: DropNotifier,
}

impl Stream for ChannelResponseStream {
    type Item = Result<Bytes, BoxError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        self.chunks.poll_recv(cx)
    }
}

/// Returns a function that answers with a stream. Each call sends the sender of chunks, and a receiver of the
/// stream's drop.
fn app_that_answers_with_a_stream() -> (App, HandlerCallReceiver<(ChunkSender, oneshot::Receiver<()>)>) {
    let (calls, receiver) = mpsc::channel(8);
    let handler = move |_request, _context| {
        let calls = calls.clone();
        async move {
            let (sender, chunks) = mpsc::channel(1);
            let (guard, dropped) = DropNotifier::new();
            calls.send((sender, dropped)).await.unwrap();
            let body = ResponseBody::stream(ChannelResponseStream {
                chunks,
                _guard: guard,
            });
            Ok::<_, Error>(Response::new(body))
        }
    };
    (App::new(handler), HandlerCallReceiver(receiver))
}

#[tokio::test]
async fn a_client_that_disconnects_ends_the_handler() {
    let (app, mut calls) = app_that_never_answers();
    let served = serve_app(&[], app).await;
    let client = connect_and_send(served.address, GET_REQUEST_TEXT).await;
    let dropped = calls.wait_for_next_call().await;
    assert_eq!(served.requests_in_flight(), 1);

    drop(client);

    await_within_timeout(dropped).await.unwrap();
}

#[tokio::test]
async fn a_client_that_disconnects_after_its_body_ends_the_handler() {
    let (app, mut calls) = app_that_never_answers();
    let served = serve_app(&[], app).await;
    let post = "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 4\r\n\r\nbody";
    let client = connect_and_send(served.address, post).await;
    let dropped = calls.wait_for_next_call().await;

    drop(client);

    await_within_timeout(dropped).await.unwrap();
}

#[tokio::test]
async fn a_client_that_disconnects_ends_its_response_stream() {
    let (app, mut calls) = app_that_answers_with_a_stream();
    let served = serve_app(&[], app).await;
    let mut client = connect_and_send(served.address, GET_REQUEST_TEXT).await;
    let (chunks, dropped) = calls.wait_for_next_call().await;
    chunks.send(Ok("first".into())).await.unwrap();
    read_until(&mut client, "first").await;

    drop(client);

    await_within_timeout(dropped).await.unwrap();
    await_within_timeout(chunks.closed()).await;
}

// In real time, because the kernel enforces this timeout.
#[tokio::test]
async fn a_client_that_stops_reading_is_disconnected_even_if_the_kernel_buffers_the_response() {
    let (app, mut calls) = app_that_answers_with_a_stream();
    let served = serve_app(&[("write_timeout", "100ms"), ("max_inflight", "1")], app).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = socket.connect(served.address).await.unwrap();
    client.write_all(GET_REQUEST_TEXT.as_bytes()).await.unwrap();
    let (chunks, dropped) = calls.wait_for_next_call().await;
    // More than the client's socket buffers, and far less than the server's.
    chunks.send(Ok(vec![b'x'; 200_000].into())).await.unwrap();

    await_within_timeout(dropped).await.unwrap();

    // The request ends right after its stream is dropped.
    await_within_timeout(async {
        while served.requests_in_flight() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(client);
}

// In real time, because a test cannot observe that the server has read half of a head.
#[tokio::test]
async fn a_client_that_stalls_in_the_head_is_disconnected() {
    let (app, _calls) = app_that_never_answers();
    let served = serve_app(&[("read_timeout", "50ms")], app).await;
    let mut client = connect_and_send(served.address, "GET / HTTP/1.1\r\nho").await;
    let response = read_until_closed(&mut client).await;
    assert!(!response.contains(" 200 "), "{response}");
}

#[tokio::test]
async fn each_chunk_is_sent_as_soon_as_it_is_ready() {
    let (app, mut calls) = app_that_answers_with_a_stream();
    let served = serve_app(&[], app).await;
    let mut client = connect_and_send(served.address, GET_REQUEST_TEXT).await;
    let (chunks, _dropped) = calls.wait_for_next_call().await;
    for chunk in ["first", "second", "third"] {
        chunks.send(Ok(chunk.into())).await.unwrap();
        // The next chunk is not produced before this one has arrived.
        read_until(&mut client, chunk).await;
    }
    drop(chunks);
    read_until(&mut client, "0\r\n\r\n").await;
}

#[tokio::test]
async fn a_failing_stream_aborts_the_response() {
    let (app, mut calls) = app_that_answers_with_a_stream();
    let served = serve_app(&[], app).await;
    let mut client = connect_and_send(served.address, GET_REQUEST_TEXT).await;
    let (chunks, _dropped) = calls.wait_for_next_call().await;
    chunks.send(Ok("first".into())).await.unwrap();
    read_until(&mut client, "first").await;
    chunks.send(Err("lost".into())).await.unwrap();
    assert!(!read_until_closed(&mut client).await.contains("0\r\n\r\n"));
}

#[tokio::test]
async fn exec_timeout_drops_the_handler_and_answers_504() {
    let clock = ManualClock::pause();
    let (app, mut calls) = app_that_never_answers();
    let served = serve_app(&[("exec_timeout", "10s")], app).await;
    let mut client = connect_and_send(served.address, GET_REQUEST_TEXT).await;
    let mut dropped = calls.wait_for_next_call().await;
    clock.advance(Duration::from_secs(9)).await;
    assert!(dropped.try_recv().is_err(), "the handler was dropped early");

    clock.advance(Duration::from_secs(1)).await;

    let response = read_until(&mut client, "exceeded its exec_timeout").await;
    assert!(response.starts_with("HTTP/1.1 504 "), "{response}");
    await_within_timeout(dropped).await.unwrap();
}

#[tokio::test]
async fn exec_timeout_aborts_a_response_stream() {
    let clock = ManualClock::pause();
    let (app, mut calls) = app_that_answers_with_a_stream();
    let served = serve_app(&[("exec_timeout", "10s")], app).await;
    let mut client = connect_and_send(served.address, GET_REQUEST_TEXT).await;
    let (chunks, dropped) = calls.wait_for_next_call().await;
    chunks.send(Ok("first".into())).await.unwrap();
    read_until(&mut client, "first").await;

    clock.advance(Duration::from_secs(10)).await;

    let rest = read_until_closed(&mut client).await;
    assert!(!rest.contains("0\r\n\r\n"), "{rest}");
    await_within_timeout(dropped).await.unwrap();
}

#[tokio::test]
async fn a_request_is_in_flight_until_its_stream_has_ended() {
    let (app, mut calls) = app_that_answers_with_a_stream();
    let served = serve_app(&[("max_inflight", "1")], app).await;
    let mut first = connect_and_send(served.address, GET_REQUEST_TEXT).await;
    let (chunks, _dropped) = calls.wait_for_next_call().await;
    chunks.send(Ok("first".into())).await.unwrap();
    read_until(&mut first, "first").await;

    let mut second = connect_and_send(served.address, GET_REQUEST_TEXT).await;
    let rejected = read_until(&mut second, "requests: 1\n").await;
    assert!(rejected.starts_with("HTTP/1.1 429 "), "{rejected}");

    drop(chunks);
    read_until(&mut first, "0\r\n\r\n").await;
    // On the connection whose request was rejected.
    second.write_all(GET_REQUEST_TEXT.as_bytes()).await.unwrap();
    calls.wait_for_next_call().await;
}

#[tokio::test]
async fn a_function_that_limits_itself_is_called_for_every_request() {
    let (app, mut calls) = app_that_answers_with_a_stream();
    let served = serve_app(&[("max_inflight", "1")], app.leave_inflight_limit_to_handler()).await;
    let _first = connect_and_send(served.address, GET_REQUEST_TEXT).await;
    let _first_chunks = calls.wait_for_next_call().await;
    let _second = connect_and_send(served.address, GET_REQUEST_TEXT).await;
    calls.wait_for_next_call().await;
    let mut probe = connect_and_send(served.address, "GET /_/ready HTTP/1.1\r\nhost: test\r\n\r\n").await;
    let response = read_until(&mut probe, "OK").await;
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
}

#[tokio::test]
async fn a_connection_serves_one_request_after_another() {
    let handler = async |request: crate::Request, _context: Context| {
        let text = request.into_body().text(100).await?;
        Ok::<_, Error>(reply::text(format!("<{text}>")))
    };
    let served = serve_app(&[], App::new(handler)).await;
    let mut client = connect_and_send(served.address, "").await;
    for text in ["one", "two", ""] {
        let request = format!(
            "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{text}",
            text.len()
        );
        client.write_all(request.as_bytes()).await.unwrap();
        read_until(&mut client, &format!("<{text}>")).await;
    }
    assert_eq!(served.requests_in_flight(), 0);
}

// In real time, because a test cannot observe that the connection waits for the rest of the body.
#[tokio::test]
async fn a_body_that_stalls_is_answered_with_408() {
    let handler = async |request: crate::Request, _context: Context| {
        let error = request.into_body().collect(100).await.unwrap_err();
        assert!(matches!(error, BodyError::Stalled { .. }), "{error:?}");
        Err::<crate::Response, _>(error)
    };
    let served = serve_app(&[("read_timeout", "50ms")], App::new(handler)).await;
    let request = "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 9\r\n\r\nhalf";
    let mut client = connect_and_send(served.address, request).await;
    let response = read_until_closed(&mut client).await;
    assert!(response.starts_with("HTTP/1.1 408 "), "{response}");
}

#[tokio::test]
async fn a_body_announced_over_the_limit_is_rejected_before_it_is_sent() {
    let handler = async |request: crate::Request, _context: Context| {
        request.into_body().collect(10).await.map(|_| reply::text(""))
    };
    let served = serve_app(&[], App::new(handler)).await;
    let request = "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 999999\r\n\r\n";
    let mut client = connect_and_send(served.address, request).await;
    let response = read_until_closed(&mut client).await;
    assert!(response.starts_with("HTTP/1.1 413 "), "{response}");
    assert!(
        response.ends_with("the body is larger than 10 bytes\n"),
        "{response}"
    );
}

#[tokio::test]
async fn a_client_that_reads_only_after_sending_its_whole_body_gets_the_rejection() {
    let reject = |_request, _context| async {
        Err::<crate::Response, _>(Error::status(StatusCode::UNAUTHORIZED, "no signature"))
    };
    let served = serve_app(&[], App::new(reject)).await;
    // Far more than the socket buffers of both sides.
    let body = vec![0; 64 << 20];
    let head = format!(
        "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = connect_and_send(served.address, &head).await;
    await_within_timeout(stream.write_all(&body)).await.unwrap();
    let mut response = String::new();
    await_within_timeout(stream.read_to_string(&mut response))
        .await
        .unwrap();
    assert!(response.starts_with("HTTP/1.1 401"), "{response}");
    assert!(response.contains("no signature"), "{response}");
}

#[tokio::test]
async fn draining_closes_idle_connections_and_finishes_running_requests() {
    let (app, mut calls) = app_that_answers_with_a_stream();
    let mut served = serve_app(&[], app).await;
    let mut idle = connect_and_send(served.address, "").await;
    let mut busy = connect_and_send(served.address, GET_REQUEST_TEXT).await;
    let (chunks, _dropped) = calls.wait_for_next_call().await;

    served.listener.start_draining();

    assert_eq!(read_until_closed(&mut idle).await, "");
    chunks.send(Ok("last".into())).await.unwrap();
    drop(chunks);
    assert!(read_until_closed(&mut busy).await.contains("last"));
    await_within_timeout(served.listener.wait_until_drained_or_dropped()).await;
    assert!(TcpStream::connect(served.address).await.is_err());
}

#[tokio::test]
async fn drop_all_connections_drops_running_handlers_before_the_listener_counts_as_ended() {
    let (app, mut calls) = app_that_never_answers();
    let mut served = serve_app(&[], app).await;
    let _client = connect_and_send(served.address, GET_REQUEST_TEXT).await;
    let mut dropped = calls.wait_for_next_call().await;
    served.listener.start_draining();
    assert!(dropped.try_recv().is_err());
    served.listener.drop_all_connections();
    await_within_timeout(served.listener.wait_until_drained_or_dropped()).await;
    assert_eq!(dropped.try_recv(), Ok(()));
}

#[tokio::test]
async fn the_call_id_is_the_callers_if_valid_and_else_a_new_one() {
    let handler = async |_request, context: Context| Ok::<_, Error>(reply::text(context.call_id()));
    let served = serve_app(&[], App::new(handler)).await;
    let stream = TcpStream::connect(served.address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);

    let too_long = "x".repeat(200);
    for (given, accepted) in [
        (Some("abc-1"), true),
        (Some(""), false),
        (Some(&*too_long), false),
        (None, false),
    ] {
        let mut request = Request::get("/").header("host", "test");
        if let Some(given) = given {
            request = request.header("x-call-id", given);
        }
        let request = request.body(Full::<Bytes>::default()).unwrap();
        let response = await_within_timeout(sender.send_request(request)).await.unwrap();
        let header = response.headers()["x-call-id"].to_str().unwrap().to_owned();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, header.as_bytes());
        assert_eq!(Some(&*header) == given, accepted, "{given:?} became {header}");
        assert!(accepted || uuid::Uuid::parse_str(&header).is_ok(), "{header}");
    }
}
