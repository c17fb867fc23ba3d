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

/// Posts a signed tar to `/build` of the builder at `builder_url`, which has no trailing slash, and returns the whole
/// answer, head and body.
///
/// # Errors
/// Fails if the answer's status is not 200.
pub fn post_signed_tar_and_read_whole_answer(
    builder_url: &str,
    signature: &str,
    tar: &[u8],
) -> Result<String> {
    let (host, path) = host_and_path(builder_url)?;
    let head = format!(
        "POST {path}/build HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/octet-stream\r\n\
         Content-Length: {}\r\nX-Build-Signature: {signature}\r\n\r\n",
        tar.len()
    );
    let mut stream = TcpStream::connect(host).with_context(|| format!("connecting to {host}"))?;
    stream.write_all(head.as_bytes())?;
    stream.write_all(tar)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    Ok(answer)
}

/// Gets the page `/` below `url`, which has no trailing slash, and returns the body.
///
/// # Errors
/// Fails if the answer's status is not 200.
pub fn get_root_page(url: &str) -> Result<String> {
    let (host, path) = host_and_path(url)?;
    let mut stream = TcpStream::connect(host).with_context(|| format!("connecting to {host}"))?;
    get_with_http_1_0(&mut stream, host, &format!("{path}/"))
}

/// Gets a JSON document of the server at `address`. Fails if the answer's status is not 200.
pub fn get_json(address: SocketAddr, path: &str) -> Result<Value> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
    let body = get_with_http_1_0(&mut stream, &address.to_string(), path)?;
    Ok(serde_json::from_str(&body)?)
}

/// Gets a path over a new connection, and returns the body. With HTTP/1.0, the body is what follows the head, in one
/// piece.
fn get_with_http_1_0(stream: &mut TcpStream, host: &str, path: &str) -> Result<String> {
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.0 200 "), "{answer}");
    let (_, body) = answer
        .split_once("\r\n\r\n")
        .context("an answer without a body")?;
    Ok(body.to_owned())
}

/// Splits a URL without TLS into host with port, and path, which is empty or begins with a slash.
fn host_and_path(url: &str) -> Result<(&str, &str)> {
    let rest = url.strip_prefix("http://").context("not an http:// URL")?;
    Ok(rest.split_at(rest.find('/').unwrap_or(rest.len())))
}
