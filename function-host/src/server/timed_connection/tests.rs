//! Tests of the timeouts, of displacement, and of the buffers that count.

use prometheus::IntCounter;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::Instant;

use super::*;
use crate::server::connection_budget::{ConnectionBudget, ConnectionLimits};

/// The time for which each connection had waited for its first byte.
const WAITED_FOR_FIRST_BYTE: Duration = Duration::from_secs(1);

/// The size of a large buffer, and the limit on the buffers of all connections together, in bytes.
const LARGE_BUFFER_BYTES: usize = 64 << 10;

/// The timeouts of each connection.
const TEST_TIMEOUTS: ConnectionTimeouts = ConnectionTimeouts {
    head: Duration::from_secs(5),
    read: Duration::from_secs(10),
    write: Duration::from_secs(20),
    idle: Duration::from_secs(120),
};

/// Returns the server's end of a connection in memory, the client's end, and the state of the server's. Each direction
/// holds `buffer_bytes` bytes.
fn connected_pair(
    buffer_bytes: usize,
) -> (TimedConnection<DuplexStream>, DuplexStream, Arc<ConnectionState>) {
    let (server, client) = duplex(buffer_bytes);
    let limits = ConnectionLimits {
        waiting: 1,
        buffers: Some(LARGE_BUFFER_BYTES),
        places: None,
    };
    let displaced = IntCounter::new("displaced", "displaced").unwrap();
    let admitted = ConnectionBudget::new(limits, displaced).admit();
    let state = admitted.state().clone();
    (
        TimedConnection::new(server, TEST_TIMEOUTS, admitted, WAITED_FOR_FIRST_BYTE),
        client,
        state,
    )
}

/// Reads from a connection until an error; returns the time that it took, and the kind of error.
async fn time_and_kind_of_failed_read(
    server: &mut TimedConnection<DuplexStream>,
) -> (Duration, io::ErrorKind) {
    let begun = Instant::now();
    let kind = server.read_u8().await.unwrap_err().kind();
    (begun.elapsed(), kind)
}

/// Reads until the connection is closed, and returns what the client received.
async fn text_received_until_close(mut client: DuplexStream) -> String {
    let mut received = String::new();
    client.read_to_string(&mut received).await.unwrap();
    received
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_sends_nothing_ends_after_the_time_for_a_head() {
    let (mut server, client, _) = connected_pair(1024);
    assert_eq!(
        time_and_kind_of_failed_read(&mut server).await,
        (
            TEST_TIMEOUTS.head - WAITED_FOR_FIRST_BYTE,
            io::ErrorKind::TimedOut
        )
    );
    drop(server);
    assert_eq!(text_received_until_close(client).await, "");
}

#[tokio::test(start_paused = true)]
async fn sending_a_head_byte_by_byte_does_not_extend_its_timeout() {
    for pause in [1, 3] {
        let (mut server, mut client, _) = connected_pair(1024);
        let begun = Instant::now();
        let (reader, mut writer) = tokio::io::split(client);
        let trickle = tokio::spawn(async move {
            while writer.write_u8(b'x').await.is_ok() {
                tokio::time::sleep(Duration::from_secs(pause)).await;
            }
            writer
        });
        while server.read_u8().await.is_ok() {}
        assert_eq!(begun.elapsed(), TEST_TIMEOUTS.head - WAITED_FOR_FIRST_BYTE);
        drop(server);
        client = reader.unsplit(trickle.await.unwrap());
        let answer = text_received_until_close(client).await;
        assert!(answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_head_of_a_later_request_has_as_much_time_from_its_first_byte() {
    let (mut server, mut client, state) = connected_pair(1024);
    client.write_u8(b'x').await.unwrap();
    server.read_u8().await.unwrap();
    drop(state.begin_request(false, true));
    assert!(
        tokio::time::timeout(TEST_TIMEOUTS.idle / 2, server.read_u8())
            .await
            .is_err()
    );
    client.write_u8(b'x').await.unwrap();
    server.read_u8().await.unwrap();
    assert_eq!(
        time_and_kind_of_failed_read(&mut server).await,
        (TEST_TIMEOUTS.head, io::ErrorKind::TimedOut)
    );
}

#[tokio::test(start_paused = true)]
async fn a_displaced_connection_ends_at_once_with_429_unless_it_only_idles() {
    for (begins, status) in [(false, "HTTP/1.1 429 Too Many Requests\r\n"), (true, "")] {
        let (mut server, client, state) = connected_pair(1024);
        if begins {
            drop(state.begin_request(false, true));
        }
        let reading = tokio::spawn(async move { time_and_kind_of_failed_read(&mut server).await });
        tokio::task::yield_now().await;
        state.displace_unless_head_arrives();
        let ended = tokio::time::timeout(TEST_TIMEOUTS.idle * 3, reading).await;
        let (_, kind) = ended.unwrap().unwrap();
        assert_eq!(kind, io::ErrorKind::ConnectionAborted);
        let answer = text_received_until_close(client).await;
        assert!(
            answer.starts_with(status) && answer.is_empty() == status.is_empty(),
            "{answer}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn early_408_and_429_responses_have_their_content_length() {
    for answer in [HEAD_TOO_SLOW_RESPONSE, TOO_MANY_CONNECTIONS_RESPONSE] {
        let text = std::str::from_utf8(answer).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("content-length: {}", body.len())),
            "{text}"
        );
        assert!(body.ends_with('\n') && body.len() > 10, "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_largest_buffer_of_a_connection_counts() {
    let (mut server, mut client, state) = connected_pair(LARGE_BUFFER_BYTES);
    assert_eq!(state.buffer_capacity_bytes(), SMALLEST_BUFFER_BYTES);
    for size in [LARGE_BUFFER_BYTES, 64] {
        let mut buffer = Vec::with_capacity(size);
        client.write_u8(b'x').await.unwrap();
        server.read_buf(&mut buffer).await.unwrap();
        assert_eq!(state.buffer_capacity_bytes(), LARGE_BUFFER_BYTES);
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_larger_than_all_buffers_may_be_is_displaced() {
    let (mut server, mut client, state) = connected_pair(1024);
    let sending = tokio::spawn(async move { while client.write_all(&[b'x'; 1024]).await.is_ok() {} });
    let mut buffer = Vec::with_capacity(2 * LARGE_BUFFER_BYTES);
    while server.read_buf(&mut buffer).await.is_ok() {}
    assert!(state.is_displaced_and_still_waiting());
    assert!(buffer.len() <= 2 * LARGE_BUFFER_BYTES);
    drop(server);
    sending.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_timeout_of_a_body_starts_anew_with_each_chunk() {
    let (mut server, mut client, state) = connected_pair(64);
    let _request = state.begin_request(true, true);
    let _body = state.guard_current_body();
    tokio::spawn(async move {
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_secs(9)).await;
            client.write_u8(b'x').await.unwrap();
        }
        std::future::pending::<()>().await;
    });
    for _ in 0..10 {
        server.read_u8().await.unwrap();
    }
    assert_eq!(
        time_and_kind_of_failed_read(&mut server).await,
        (TEST_TIMEOUTS.read, io::ErrorKind::TimedOut)
    );
}

#[tokio::test(start_paused = true)]
async fn no_timeout_applies_while_the_handler_works() {
    let (mut server, mut client, state) = connected_pair(64);
    let request = state.begin_request(false, true);
    let waiting = tokio::time::timeout(Duration::from_secs(3600), server.read_u8()).await;
    assert!(waiting.is_err());
    drop(request);
    client.write_u8(b'x').await.unwrap();
    assert_eq!(server.read_u8().await.unwrap(), b'x');
}

#[tokio::test(start_paused = true)]
async fn the_idle_timeout_starts_anew_with_each_request() {
    let (mut server, mut client, state) = connected_pair(64);
    drop(state.begin_request(false, true));
    for _ in 0..3 {
        assert!(
            tokio::time::timeout(TEST_TIMEOUTS.idle / 2, server.read_u8())
                .await
                .is_err()
        );
        client.write_u8(b'x').await.unwrap();
        server.read_u8().await.unwrap();
        drop(state.begin_request(false, true));
    }
    let (waited, kind) = time_and_kind_of_failed_read(&mut server).await;
    assert_eq!(kind, io::ErrorKind::TimedOut);
    assert!(
        (TEST_TIMEOUTS.idle..=2 * TEST_TIMEOUTS.idle).contains(&waited),
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_unread_body_is_discarded_for_a_limited_time_before_the_close() {
    let (mut server, mut client, state) = connected_pair(64);
    drop(state.begin_request(true, true));
    let begun = Instant::now();
    let sending = tokio::spawn(async move {
        while client.write_all(&[0; 64]).await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    server.shutdown().await.unwrap();
    assert_eq!(
        begun.elapsed(),
        UNREAD_BODY_DISCARD_TIMEOUT,
        "a client that never stops sending"
    );
    drop(server);
    sending.await.unwrap();

    let (mut server, mut client, state) = connected_pair(64);
    drop(state.begin_request(true, true));
    let begun = Instant::now();
    client.write_all(&[0; 64]).await.unwrap();
    server.shutdown().await.unwrap();
    assert_eq!(
        begun.elapsed(),
        UNREAD_BODY_CHUNK_TIMEOUT,
        "a client that stops sending and does not close"
    );

    let (mut server, client, state) = connected_pair(64);
    drop(state.begin_request(true, true));
    drop(client);
    let begun = Instant::now();
    server.shutdown().await.unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO, "a client that closed");

    let (mut server, _client, state) = connected_pair(64);
    drop(state.begin_request(false, true));
    let begun = Instant::now();
    server.shutdown().await.unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO, "a client without a body to send");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_ends_the_connection_after_the_write_timeout() {
    let (mut server, mut client, _) = connected_pair(4);
    let begun = Instant::now();
    server.write_all(b"1234").await.unwrap();
    assert!(
        tokio::time::timeout(TEST_TIMEOUTS.write / 2, server.write_u8(b'5'))
            .await
            .is_err()
    );
    client.read_u8().await.unwrap();
    server.write_u8(b'5').await.unwrap();
    let error = server.write_u8(b'6').await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert_eq!(begun.elapsed(), TEST_TIMEOUTS.write / 2 + TEST_TIMEOUTS.write);
}

#[tokio::test(start_paused = true)]
async fn a_displaced_connection_ends_although_the_client_reads_no_answer() {
    let (mut server, _client, state) = connected_pair(4);
    let writing = tokio::spawn(async move { server.write_all(b"12345").await.unwrap_err().kind() });
    tokio::task::yield_now().await;
    state.displace_unless_head_arrives();
    assert_eq!(writing.await.unwrap(), io::ErrorKind::ConnectionAborted);
}
