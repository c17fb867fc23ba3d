//! The load: connections that are kept, each with one request after the other.
//!
//! It writes bytes made beforehand and reads only as much of HTTP as it must, so that it costs less than what it
//! measures.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const REQUEST: &[u8] = b"POST / HTTP/1.1\r\nhost: bench\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\
    x-call-id: 6f2f1c2e-3f5e-4c0c-9c57-0f7a4f4d8a11\r\nuser-agent: bench\r\n\r\nworld";

const ANSWER: &[u8] = b"Hello, world!\n";

/// More than any answer here.
const BUFFER: usize = 4096;

/// What was answered.
pub(crate) struct Answered {
    pub(crate) requests: u64,
    pub(crate) took: Duration,
}

/// Sends requests for `time`.
pub(crate) async fn run(address: SocketAddr, connections: usize, time: Duration) -> anyhow::Result<Answered> {
    let begun = Instant::now();
    let end = begun + time;
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        tasks.spawn(connection(address, end));
    }
    let mut requests = 0;
    while let Some(joined) = tasks.join_next().await {
        requests += joined?.context("a connection failed")?;
    }
    Ok(Answered {
        requests,
        took: begun.elapsed(),
    })
}

async fn connection(address: SocketAddr, end: Instant) -> anyhow::Result<u64> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut buffer = [0; BUFFER];
    let mut requests = 0;
    while Instant::now() < end {
        stream.write_all(REQUEST).await?;
        let mut filled = 0;
        while !whole(&buffer[..filled])? {
            let read = stream.read(&mut buffer[filled..]).await?;
            ensure!(read > 0, "the server closed the connection");
            filled += read;
        }
        requests += 1;
    }
    Ok(requests)
}

/// Whether this is all of the one answer that is right.
fn whole(bytes: &[u8]) -> anyhow::Result<bool> {
    let Some(head) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(false);
    };
    let (head, body) = bytes.split_at(head + 4);
    if !head.starts_with(b"HTTP/1.1 200 ") || !ANSWER.starts_with(body) {
        bail!(
            "not the answer that was expected: {}",
            String::from_utf8_lossy(bytes)
        );
    }
    Ok(body.len() == ANSWER.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_with_its_last_byte() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\nHello, world!\n";
        for end in 0..answer.len() {
            assert!(!whole(&answer[..end]).unwrap(), "{end}");
        }
        assert!(whole(answer).unwrap());
    }

    #[test]
    fn a_wrong_answer_fails_the_run() {
        assert!(whole(b"HTTP/1.1 500 Internal Server Error\r\n\r\n").is_err());
        assert!(whole(b"HTTP/1.1 200 OK\r\n\r\nHello, you!\n").is_err());
    }
}
