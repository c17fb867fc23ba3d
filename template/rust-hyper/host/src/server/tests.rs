//! The server in this process, so that a test and a handler can tell each other things over channels.

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
use crate::env::Parser;
use crate::shutdown::ShutdownTrigger;
use crate::trace::Traces;
use crate::{BodyError, Context, Error, Gateway, ResponseBody, Secrets, Shutdown, reply};

/// A served handler; all ends with it.
struct Served {
    address: SocketAddr,
    serving: Serving,
    ledger: Arc<Ledger>,
    _trigger: ShutdownTrigger,
}

async fn serve(settings: &[(&str, &str)], app: App<impl Handler>) -> Served {
    let settings: std::collections::HashMap<_, _> = settings.iter().copied().collect();
    let mut parser = Parser::new(&settings);
    let settings = Settings::read(&mut parser);
    parser.finish().unwrap();
    let secrets = Secrets::new("/nowhere");
    let (trigger, shutdown) = Shutdown::new();
    let gateway = Gateway::new("http://gateway:8080", secrets.clone()).unwrap();
    let platform = Arc::new(Platform {
        secrets,
        gateway,
        shutdown,
    });
    let server = Server::new(&settings, app, platform, Registry::new(), Traces::default()).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = server.serve(listener);
    Served {
        address,
        serving,
        ledger: server.ledger.clone(),
        _trigger: trigger,
    }
}

/// Sends a request as it stands.
async fn send(address: SocketAddr, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

const GET: &str = "GET / HTTP/1.1\r\nhost: test\r\n\r\n";

/// Reads until the answer has `text` in it.
async fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut seen = Vec::new();
    loop {
        let sofar = String::from_utf8_lossy(&seen).into_owned();
        if sofar.contains(text) {
            return sofar;
        }
        assert!(
            stream.read_buf(&mut seen).await.unwrap() > 0,
            "the connection ended after {sofar}"
        );
    }
}

/// Reads all there is until the connection is closed.
async fn read_all(stream: &mut TcpStream) -> String {
    let mut seen = Vec::new();
    // A reset is an end as well.
    let _ = stream.read_to_end(&mut seen).await;
    String::from_utf8_lossy(&seen).into_owned()
}

/// Tells when it is dropped.
struct Guard(Option<oneshot::Sender<()>>);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.take().map(|dropped| dropped.send(()));
    }
}

/// A handler that tells when it has begun and when it is dropped, and never answers.
fn endless() -> (App<impl Handler>, mpsc::Receiver<oneshot::Receiver<()>>) {
    let (begun, seen) = mpsc::channel(8);
    let handler = move |request: crate::Request, _context: Context| {
        let begun = begun.clone();
        async move {
            let (dropped, seen_dropped) = oneshot::channel();
            let _guard = Guard(Some(dropped));
            let _body = request.into_body().collect(1024).await?;
            begun.send(seen_dropped).await.unwrap();
            std::future::pending::<()>().await;
            Ok::<_, Error>(reply::text("never"))
        }
    };
    (App::new(handler), seen)
}

/// A stream of what is sent to it, which tells when it is dropped.
struct Channel {
    chunks: mpsc::Receiver<Result<Bytes, crate::BoxError>>,
    _guard: Guard,
}

impl Stream for Channel {
    type Item = Result<Bytes, crate::BoxError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        self.chunks.poll_recv(cx)
    }
}

type Chunks = mpsc::Sender<Result<Bytes, crate::BoxError>>;

/// A handler that answers with a stream; gives what feeds it, and what tells of its end.
fn streaming() -> (App<impl Handler>, mpsc::Receiver<(Chunks, oneshot::Receiver<()>)>) {
    let (begun, seen) = mpsc::channel(8);
    let handler = move |_request, _context| {
        let begun = begun.clone();
        async move {
            let (feed, chunks) = mpsc::channel(1);
            let (dropped, seen_dropped) = oneshot::channel();
            begun.send((feed, seen_dropped)).await.unwrap();
            let body = ResponseBody::stream(Channel {
                chunks,
                _guard: Guard(Some(dropped)),
            });
            Ok::<_, Error>(Response::new(body))
        }
    };
    (App::new(handler), seen)
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_handler() {
    let (app, mut begun) = endless();
    let served = serve(&[], app).await;
    let client = send(served.address, GET).await;
    let dropped = begun.recv().await.unwrap();
    assert_eq!(served.ledger.inflight.running(), 1);

    drop(client);

    dropped.await.unwrap();
}

#[tokio::test]
async fn a_client_that_goes_away_after_its_body_ends_the_handler() {
    let (app, mut begun) = endless();
    let served = serve(&[], app).await;
    let post = "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 4\r\n\r\nbody";
    let client = send(served.address, post).await;
    let dropped = begun.recv().await.unwrap();
    drop(client);
    dropped.await.unwrap();
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_stream_it_was_sent() {
    let (app, mut begun) = streaming();
    let served = serve(&[], app).await;
    let mut client = send(served.address, GET).await;
    let (feed, dropped) = begun.recv().await.unwrap();
    feed.send(Ok("first".into())).await.unwrap();
    read_until(&mut client, "first").await;

    drop(client);

    dropped.await.unwrap();
    feed.closed().await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_a_stream_is_let_go_even_where_the_system_holds_all_of_it() {
    let (app, mut begun) = streaming();
    let served = serve(&[("write_timeout", "100ms"), ("max_inflight", "1")], app).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = socket.connect(served.address).await.unwrap();
    client.write_all(GET.as_bytes()).await.unwrap();
    let (feed, dropped) = begun.recv().await.unwrap();
    // More than the client's side holds, and far less than this one does.
    feed.send(Ok(vec![b'x'; 200_000].into())).await.unwrap();

    dropped.await.unwrap();

    while served.ledger.inflight.running() > 0 {
        tokio::task::yield_now().await;
    }
    drop(client);
}

#[tokio::test]
async fn a_head_that_stalls_is_let_go() {
    let (app, _begun) = endless();
    let served = serve(&[("read_timeout", "50ms")], app).await;
    let mut client = send(served.address, "GET / HTTP/1.1\r\nho").await;
    let answer = read_all(&mut client).await;
    assert!(!answer.contains(" 200 "), "{answer}");
}

#[tokio::test]
async fn each_chunk_is_sent_when_it_is_there() {
    let (app, mut begun) = streaming();
    let served = serve(&[], app).await;
    let mut client = send(served.address, GET).await;
    let (feed, _dropped) = begun.recv().await.unwrap();
    for chunk in ["first", "second", "third"] {
        feed.send(Ok(chunk.into())).await.unwrap();
        // Nothing further is sent until this has come.
        read_until(&mut client, chunk).await;
    }
    drop(feed);
    read_until(&mut client, "0\r\n\r\n").await;
}

#[tokio::test]
async fn a_stream_that_fails_is_cut_off_and_not_ended() {
    let (app, mut begun) = streaming();
    let served = serve(&[], app).await;
    let mut client = send(served.address, GET).await;
    let (feed, _dropped) = begun.recv().await.unwrap();
    feed.send(Ok("first".into())).await.unwrap();
    read_until(&mut client, "first").await;
    feed.send(Err("lost".into())).await.unwrap();
    assert!(!read_all(&mut client).await.contains("0\r\n\r\n"));
}

#[tokio::test]
async fn exec_timeout_ends_the_handler_and_then_answers() {
    let (app, mut begun) = endless();
    let served = serve(&[("exec_timeout", "50ms")], app).await;
    let mut client = send(served.address, GET).await;
    let dropped = begun.recv().await.unwrap();
    let answer = read_until(&mut client, "took too long").await;
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
    dropped.await.unwrap();
}

#[tokio::test]
async fn exec_timeout_cuts_a_stream_off() {
    let (app, mut begun) = streaming();
    let served = serve(&[("exec_timeout", "50ms")], app).await;
    let mut client = send(served.address, GET).await;
    let (feed, dropped) = begun.recv().await.unwrap();
    feed.send(Ok("first".into())).await.unwrap();
    let answer = read_all(&mut client).await;
    assert!(
        answer.contains("first") && !answer.contains("0\r\n\r\n"),
        "{answer}"
    );
    dropped.await.unwrap();
}

#[tokio::test]
async fn a_place_is_taken_until_the_stream_has_ended() {
    let (app, mut begun) = streaming();
    let served = serve(&[("max_inflight", "1")], app).await;
    let mut first = send(served.address, GET).await;
    let (feed, _dropped) = begun.recv().await.unwrap();
    feed.send(Ok("first".into())).await.unwrap();
    read_until(&mut first, "first").await;

    let mut second = send(served.address, GET).await;
    let refused = read_until(&mut second, "requests: 1\n").await;
    assert!(refused.starts_with("HTTP/1.1 429 "), "{refused}");

    drop(feed);
    read_until(&mut first, "0\r\n\r\n").await;
    // The same connection, which has been refused before.
    second.write_all(GET.as_bytes()).await.unwrap();
    begun.recv().await.unwrap();
}

#[tokio::test]
async fn a_function_that_limits_itself_is_called_for_every_request() {
    let (app, mut begun) = streaming();
    let served = serve(&[("max_inflight", "1")], app.limits_itself()).await;
    let _first = send(served.address, GET).await;
    let _feed = begun.recv().await.unwrap();
    let _second = send(served.address, GET).await;
    begun.recv().await.unwrap();
    let mut probe = send(served.address, "GET /_/ready HTTP/1.1\r\nhost: test\r\n\r\n").await;
    let answer = read_until(&mut probe, "OK").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn a_connection_is_kept_for_the_next_request() {
    let handler = async |request: crate::Request, _context: Context| {
        let text = request.into_body().text(100).await?;
        Ok::<_, Error>(reply::text(format!("<{text}>")))
    };
    let served = serve(&[], App::new(handler)).await;
    let mut client = send(served.address, "").await;
    for text in ["one", "two", ""] {
        let request = format!(
            "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{text}",
            text.len()
        );
        client.write_all(request.as_bytes()).await.unwrap();
        read_until(&mut client, &format!("<{text}>")).await;
    }
    assert_eq!(served.ledger.inflight.running(), 0);
}

#[tokio::test]
async fn a_body_that_stalls_is_the_callers_timeout() {
    let (tell, told) = oneshot::channel();
    let tell = std::sync::Mutex::new(Some(tell));
    let handler = move |request: crate::Request, _context: Context| {
        let tell = tell.lock().unwrap().take();
        async move {
            let error = request.into_body().collect(100).await.unwrap_err();
            tell.unwrap()
                .send(matches!(error, BodyError::Stalled { .. }))
                .unwrap();
            Err::<crate::Response, _>(error)
        }
    };
    let served = serve(&[("read_timeout", "50ms")], App::new(handler)).await;
    let mut client = send(
        served.address,
        "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 9\r\n\r\nhalf",
    )
    .await;
    assert!(told.await.unwrap());
    let answer = read_all(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_before_it_is_sent() {
    let handler = async |request: crate::Request, _context: Context| {
        request.into_body().collect(10).await.map(|_| reply::text(""))
    };
    let served = serve(&[], App::new(handler)).await;
    let mut client = send(
        served.address,
        "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 999999\r\n\r\n",
    )
    .await;
    let answer = read_all(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.ends_with("the body is larger than 10 bytes\n"), "{answer}");
}

#[tokio::test]
async fn a_client_that_looks_only_after_it_has_sent_everything_sees_why_it_was_refused() {
    let refuse = |_request, _context| async {
        Err::<crate::Response, _>(Error::status(StatusCode::UNAUTHORIZED, "who?\n"))
    };
    let served = serve(&[], App::new(refuse)).await;
    // Far more than the buffers of both sides hold.
    let body = vec![0; 64 << 20];
    let head = format!(
        "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = send(served.address, &head).await;
    stream.write_all(&body).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    assert!(answer.contains("who?"), "{answer}");
}

#[tokio::test]
async fn when_the_port_is_closed_idle_connections_end_and_busy_ones_finish() {
    let (app, mut begun) = streaming();
    let mut served = serve(&[], app).await;
    let mut idle = send(served.address, "").await;
    let mut busy = send(served.address, GET).await;
    let (feed, _dropped) = begun.recv().await.unwrap();

    served.serving.close();

    assert_eq!(read_all(&mut idle).await, "");
    feed.send(Ok("last".into())).await.unwrap();
    drop(feed);
    assert!(read_all(&mut busy).await.contains("last"));
    served.serving.ended().await;
    assert!(TcpStream::connect(served.address).await.is_err());
}

#[tokio::test]
async fn what_is_cut_off_is_dropped_before_serving_has_ended() {
    let (app, mut begun) = endless();
    let mut served = serve(&[], app).await;
    let _client = send(served.address, GET).await;
    let mut dropped = begun.recv().await.unwrap();
    served.serving.close();
    assert!(dropped.try_recv().is_err());
    served.serving.cut();
    served.serving.ended().await;
    assert_eq!(dropped.try_recv(), Ok(()));
}

#[tokio::test]
async fn the_call_id_is_the_callers_or_a_new_one() {
    let handler = async |_request, context: Context| Ok::<_, Error>(reply::text(context.call_id()));
    let served = serve(&[], App::new(handler)).await;
    let stream = TcpStream::connect(served.address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);

    let too_long = "x".repeat(200);
    for (given, taken) in [
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
        let response = sender.send_request(request).await.unwrap();
        let header = response.headers()["x-call-id"].to_str().unwrap().to_owned();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, header.as_bytes());
        assert_eq!(Some(&*header) == given, taken, "{given:?} became {header}");
        assert!(taken || uuid::Uuid::parse_str(&header).is_ok(), "{header}");
    }
}
