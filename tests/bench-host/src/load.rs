//! The load on a measured server: persistent connections, each with one request after another.
//!
//! It writes prepared bytes and parses as little of HTTP as possible, so that it takes less time than the servers.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// The bytes of each request: a call with the body `world`.
const REQUEST_BYTES: &[u8] =
    b"POST / HTTP/1.1\r\nhost: bench\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\
    x-call-id: 6f2f1c2e-3f5e-4c0c-9c57-0f7a4f4d8a11\r\nuser-agent: bench\r\n\r\nworld";

/// The expected body of the server's response.
const EXPECTED_RESPONSE_BODY: &[u8] = b"Hello, world!\n";

/// The size of the read buffer in bytes, which is more than a response.
const READ_BUFFER_BYTES: usize = 4096;

/// The result of a run of load: the number of answered requests on all connections, and the time of the run.
pub(crate) struct LoadResult {
    pub(crate) requests: u64,
    pub(crate) duration: Duration,
}

/// Sends requests to the server on several connections for `duration`.
pub(crate) async fn run_load(
    address: SocketAddr,
    connections: usize,
    duration: Duration,
) -> anyhow::Result<LoadResult> {
    let start = Instant::now();
    let end = start + duration;
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        tasks.spawn(send_on_connection(address, end));
    }
    let mut requests = 0;
    while let Some(joined) = tasks.join_next().await {
        requests += joined?.context("a connection failed")?;
    }
    Ok(LoadResult {
        requests,
        duration: start.elapsed(),
    })
}

/// Sends requests on one connection until `end`; returns how many were answered.
async fn send_on_connection(address: SocketAddr, end: Instant) -> anyhow::Result<u64> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut buffer = [0; READ_BUFFER_BYTES];
    let mut requests = 0;
    while Instant::now() < end {
        stream.write_all(REQUEST_BYTES).await?;
        let mut filled = 0;
        while !is_complete_response(&buffer[..filled])? {
            let read = stream.read(&mut buffer[filled..]).await?;
            ensure!(read > 0, "the server closed the connection");
            filled += read;
        }
        requests += 1;
    }
    Ok(requests)
}

/// Returns whether `bytes` is the complete expected response. Fails if its head is complete and it
/// cannot become that response.
fn is_complete_response(bytes: &[u8]) -> anyhow::Result<bool> {
    let Some(head) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(false);
    };
    let (head, body) = bytes.split_at(head + 4);
    if !head.starts_with(b"HTTP/1.1 200 ") || !EXPECTED_RESPONSE_BODY.starts_with(body) {
        bail!("unexpected response: {}", String::from_utf8_lossy(bytes));
    }
    Ok(body.len() == EXPECTED_RESPONSE_BODY.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_complete_with_its_last_byte() {
        let response = b"HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\nHello, world!\n";
        for end in 0..response.len() {
            assert!(!is_complete_response(&response[..end]).unwrap(), "{end}");
        }
        assert!(is_complete_response(response).unwrap());
    }

    #[test]
    fn an_unexpected_response_fails_the_run() {
        assert!(is_complete_response(b"HTTP/1.1 500 Internal Server Error\r\n\r\n").is_err());
        assert!(is_complete_response(b"HTTP/1.1 200 OK\r\n\r\nHello, you!\n").is_err());
    }
}
