//! Tests of what anybody may do who reaches the port.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// Returns a function that verifies requests: it accepts those whose body is `key`.
fn app_that_accepts_key_body() -> App {
    let handler = async |request: crate::Request, context: Context| {
        let body = request.into_body().text(1024).await?;
        if body != "key" {
            return Err(Error::status(StatusCode::UNAUTHORIZED, "no key"));
        }
        context.accept()?;
        Ok(reply::text("accepted\n"))
    };
    App::new(handler).handler_verifies_requests(8)
}

fn post_request_text(body: &str) -> String {
    let length = body.len();
    format!("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n\r\n{body}")
}

/// Opens a connection and waits for the answer to a health probe on it, so that the server has accepted it.
async fn connect_and_probe(served: &ServedApp) -> TcpStream {
    let mut stream = connect_and_send(served.address, "GET /_/health HTTP/1.1\r\nhost: test\r\n\r\n").await;
    read_until(&mut stream, "\r\n\r\nOK\n").await;
    stream
}

#[tokio::test]
async fn the_connection_that_has_waited_the_longest_gives_way_to_another() {
    for head in ["", "POST / HTTP/1.1\r\nhost: te"] {
        let served = serve_app(&[("max_connections", "2")], app_that_accepts_key_body()).await;
        let mut first = connect_and_send(served.address, head).await;
        let mut second = connect_and_send(served.address, "").await;
        let mut third = connect_and_send(served.address, "").await;

        let answer = read_until_closed(&mut first).await;

        assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
        for stream in [&mut second, &mut third] {
            stream
                .write_all(post_request_text("key").as_bytes())
                .await
                .unwrap();
            read_until(stream, "accepted").await;
        }
    }
}

#[tokio::test]
async fn idle_connections_over_the_limit_displace_no_request_in_progress() {
    let (app, mut calls) = app_that_answers_with_a_stream();
    let served = serve_app(&[("max_connections", "2")], app).await;
    let mut busy = connect_and_send(served.address, GET_REQUEST_TEXT).await;
    let (chunks, _dropped) = calls.wait_for_next_call().await;
    let mut idle = Vec::new();
    for _ in 0..20 {
        idle.push(connect_and_probe(&served).await);
    }
    chunks.send(Ok("first".into())).await.unwrap();
    drop(chunks);
    read_until(&mut busy, "0\r\n\r\n").await;
}

/// A number of connections, more than the host serves at a time before they have sent an authentic request.
const CROWD_CONNECTION_COUNT: usize = 400;

#[tokio::test]
async fn a_crowd_of_requests_that_are_not_accepted_lets_an_authentic_one_pass() {
    let served = serve_app(&[], app_that_accepts_key_body()).await;
    let mut strangers = Vec::new();
    for number in 0..CROWD_CONNECTION_COUNT {
        let request = match number % 2 {
            0 => post_request_text("wrong"),
            _ => "POST / HTTP/1.1\r\nhost: te".to_owned(),
        };
        strangers.push(connect_and_send(served.address, &request).await);
    }
    let mut authentic = connect_and_send(served.address, &post_request_text("key")).await;
    read_until(&mut authentic, "accepted").await;
}

#[tokio::test]
async fn accepted_requests_in_progress_leave_the_places_of_others_free() {
    let (calls, mut receiver) = mpsc::channel(8);
    let handler = move |_request, context: Context| {
        let calls = calls.clone();
        async move {
            context.accept()?;
            calls.send(()).await.unwrap();
            std::future::pending::<()>().await;
            Ok::<_, Error>(reply::text("never"))
        }
    };
    let served = serve_app(&[], App::new(handler).handler_verifies_requests(8)).await;
    let mut clients = Vec::new();
    for _ in 0..CROWD_CONNECTION_COUNT {
        clients.push(connect_and_send(served.address, &post_request_text("key")).await);
        await_within_timeout(receiver.recv()).await.unwrap();
    }
}

#[tokio::test]
async fn a_kept_connection_is_displaced_without_an_answer() {
    let served = serve_app(&[("max_connections", "1")], app_that_accepts_key_body()).await;
    let mut kept = connect_and_probe(&served).await;
    let _another = connect_and_probe(&served).await;
    assert_eq!(read_until_closed(&mut kept).await, "");
}

#[tokio::test]
async fn a_head_has_at_most_as_many_bytes_as_the_setting_allows() {
    for (variables, limit) in [(&[][..], 65536), (&[("max_header_bytes", "8192")], 8192)] {
        let served = serve_app(variables, app_that_accepts_key_body()).await;
        for (bytes, status) in [
            (limit, "HTTP/1.1 401 Unauthorized"),
            (limit + 1, "HTTP/1.1 431 Request Header Fields Too Large"),
        ] {
            let frame = "GET / HTTP/1.1\r\nhost: a\r\nx: \r\n\r\n";
            let value = "x".repeat(bytes - frame.len());
            let head = frame.replace("x: ", &format!("x: {value}"));
            assert_eq!(
                send_and_read_status_line(served.address, &head).await,
                status,
                "{bytes} of {limit}"
            );
        }
    }
}

#[tokio::test]
async fn only_accepted_requests_count_against_max_inflight() {
    let (calls, mut receiver) = mpsc::channel::<oneshot::Sender<()>>(8);
    let handler = move |request: crate::Request, context: Context| {
        let calls = calls.clone();
        async move {
            let body = request.into_body().text(1024).await?;
            if body == "key" {
                context.accept()?;
            }
            let (finish, finished) = oneshot::channel();
            calls.send(finish).await.unwrap();
            let _ = finished.await;
            Ok::<_, Error>(reply::text("finished\n"))
        }
    };
    let served = serve_app(
        &[("max_inflight", "1")],
        App::new(handler).handler_verifies_requests(8),
    )
    .await;
    let half = "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 9\r\n\r\nhalf";
    let mut strangers = Vec::new();
    for request in [half, half, &post_request_text("wrong")] {
        strangers.push(connect_and_send(served.address, request).await);
    }
    let _stranger = await_within_timeout(receiver.recv()).await.unwrap();
    let ready = "GET /_/ready HTTP/1.1\r\nhost: test\r\n\r\n";
    assert_eq!(
        send_and_read_status_line(served.address, ready).await,
        "HTTP/1.1 200 OK"
    );

    let mut first = connect_and_send(served.address, &post_request_text("key")).await;
    let finish = await_within_timeout(receiver.recv()).await.unwrap();

    let unavailable = "HTTP/1.1 503 Service Unavailable";
    assert_eq!(
        send_and_read_status_line(served.address, ready).await,
        unavailable
    );
    let second = send_and_read_status_line(served.address, &post_request_text("key")).await;
    assert_eq!(second, "HTTP/1.1 429 Too Many Requests");
    finish.send(()).unwrap();
    read_until(&mut first, "finished").await;
    let mut third = connect_and_send(served.address, &post_request_text("key")).await;
    drop(await_within_timeout(receiver.recv()).await.unwrap());
    read_until(&mut third, "finished").await;
}

#[tokio::test]
async fn only_an_accepted_request_keeps_its_connection() {
    let served = serve_app(&[], app_that_accepts_key_body()).await;
    let mut client = connect_and_send(served.address, &post_request_text("key")).await;
    let accepted = read_until(&mut client, "accepted").await;
    assert!(!accepted.contains("connection: close"), "{accepted}");
    client
        .write_all(post_request_text("wrong").as_bytes())
        .await
        .unwrap();
    let rejected = read_until_closed(&mut client).await;
    assert!(
        rejected.starts_with("HTTP/1.1 401 ") && rejected.contains("connection: close"),
        "{rejected}"
    );
}

// In real time, because a test cannot observe that the server has stopped reading.
#[tokio::test]
async fn the_server_stops_reading_from_a_client_that_reads_no_answers() {
    const HEAD_REQUEST: &[u8] = b"HEAD / HTTP/1.1\r\nhost:\r\n\r\n";
    let calls = Arc::new(AtomicUsize::new(0));
    let handler = {
        let calls = calls.clone();
        move |_request, _context| {
            calls.fetch_add(1, Ordering::Relaxed);
            async { Ok::<_, Error>(reply::text("OK\n")) }
        }
    };
    let served = serve_app(&[], App::new(handler)).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(served.address).await.unwrap();
    // More than the buffers of both kernels hold.
    let requests = HEAD_REQUEST.repeat(1 << 20);
    let mut writing = tokio::spawn(async move { stream.write_all(&requests).await });
    let mut before = 0;
    while before == 0 || calls.load(Ordering::Relaxed) > before {
        before = calls.load(Ordering::Relaxed);
        let finished = tokio::time::timeout(Duration::from_millis(100), &mut writing).await;
        assert!(finished.is_err(), "the server has read all requests");
    }
}
