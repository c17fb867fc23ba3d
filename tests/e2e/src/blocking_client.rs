//! A blocking HTTP client that uses little processor time, for benchmarks.
//!
//! It connects, writes the whole request and reads the whole answer. Client and builder share the machine's
//! processors. An asynchronous client is woken each time the socket has room, and took a third of the time of a
//! large body away from the builder. Clients with blocking writes cost less. One call, as here and in Python's
//! `http.client`, and pieces of 32 KiB make little difference.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// Posts a signed tar to `/build` of the builder at `url`, which has no trailing slash.
///
/// # Errors
/// Fails if the answer's status is not 200.
pub fn post_signed_tar(url: &str, signature: &str, tar: &[u8]) -> Result<()> {
    let host = url.strip_prefix("http://").context("not an http:// URL")?;
    let head = format!(
        "POST /build HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/octet-stream\r\n\
         Content-Length: {}\r\nX-Build-Signature: {signature}\r\n\r\n",
        tar.len()
    );
    let mut stream = TcpStream::connect(host).with_context(|| format!("connecting to {host}"))?;
    stream.write_all(head.as_bytes())?;
    stream.write_all(tar)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    Ok(())
}

/// Gets a JSON document of the server at `address`. Fails if the answer's status is not 200.
pub fn get_json(address: SocketAddr, path: &str) -> Result<Value> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
    // With HTTP/1.0, the body is what follows the head, in one piece.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.0 200 "), "{answer}");
    let (_, body) = answer
        .split_once("\r\n\r\n")
        .context("an answer without a body")?;
    Ok(serde_json::from_str(body)?)
}
