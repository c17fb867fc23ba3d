//! A client that publishes messages in NATS Streaming as any program does that reaches it, without the gateway.
//!
//! The protocol: the text protocol of NATS, with the messages of `nats-io/stan.go` `pb/protocol.proto` in it.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail, ensure};
use prost::Message;

use crate::network_namespace::NetworkNamespace;

/// The channel from which the queue-worker takes calls.
pub const FUNCTION_CALLS_CHANNEL: &str = "faas-request";

/// The subject for the server's answers to this client.
const ANSWERS_SUBJECT: &str = "_INBOX.e2e.answers";
/// The subject for the server's question whether the client is alive, which is closed before it is asked.
const HEARTBEATS_SUBJECT: &str = "_INBOX.e2e.heartbeats";

/// The longest wait for an answer of the server.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone, PartialEq, Message)]
struct ConnectRequest {
    #[prost(string, tag = "1")]
    client_id: String,
    #[prost(string, tag = "2")]
    heartbeat_inbox: String,
}

#[derive(Clone, PartialEq, Message)]
struct ConnectResponse {
    #[prost(string, tag = "1")]
    pub_prefix: String,
    #[prost(string, tag = "4")]
    close_requests: String,
    #[prost(string, tag = "5")]
    error: String,
}

#[derive(Clone, PartialEq, Message)]
struct PubMsg {
    #[prost(string, tag = "1")]
    client_id: String,
    #[prost(string, tag = "2")]
    guid: String,
    #[prost(string, tag = "3")]
    subject: String,
    #[prost(bytes = "vec", tag = "5")]
    data: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct PubAck {
    #[prost(string, tag = "2")]
    error: String,
}

#[derive(Clone, PartialEq, Message)]
struct CloseRequest {
    #[prost(string, tag = "1")]
    client_id: String,
}

/// Publishes a message in a channel of the cluster whose server is at `address` within the namespace, and returns once
/// the server has stored it.
pub fn publish_message(
    namespace: &NetworkNamespace,
    address: SocketAddr,
    cluster: &str,
    channel: &str,
    message: &[u8],
) -> Result<()> {
    let stream = namespace.run_inside(|| Ok(TcpStream::connect(address)?))?;
    let mut client = NatsClient::greet_and_subscribe(stream)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    let client_id = format!("e2e-{now}");
    let request = ConnectRequest {
        client_id: client_id.clone(),
        heartbeat_inbox: HEARTBEATS_SUBJECT.to_owned(),
    };
    let answer = client.ask(&format!("_STAN.discover.{cluster}"), &request.encode_to_vec())?;
    let connected = ConnectResponse::decode(answer.as_slice())?;
    ensure!(connected.error.is_empty(), "NATS Streaming: {}", connected.error);
    let published = PubMsg {
        client_id: client_id.clone(),
        guid: client_id.clone(),
        subject: channel.to_owned(),
        data: message.to_vec(),
    };
    let subject = format!("{}.{channel}", connected.pub_prefix);
    let answer = client.ask(&subject, &published.encode_to_vec())?;
    let acknowledged = PubAck::decode(answer.as_slice())?;
    ensure!(
        acknowledged.error.is_empty(),
        "publishing in NATS Streaming: {}",
        acknowledged.error
    );
    client.ask(
        &connected.close_requests,
        &CloseRequest { client_id }.encode_to_vec(),
    )?;
    Ok(())
}

/// A connection to a NATS server that receives answers to its messages.
struct NatsClient {
    writer: TcpStream,
    reader: BufReader<TcpStream>,
}

impl NatsClient {
    fn greet_and_subscribe(stream: TcpStream) -> Result<Self> {
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        let mut client = Self {
            writer: stream.try_clone()?,
            reader: BufReader::new(stream),
        };
        let info = client.read_line()?;
        ensure!(info.starts_with("INFO "), "not a NATS server: {info}");
        let greeting = format!(
            "CONNECT {{\"verbose\":false}}\r\nSUB {ANSWERS_SUBJECT} 1\r\nSUB {HEARTBEATS_SUBJECT} 2\r\n"
        );
        client.writer.write_all(greeting.as_bytes())?;
        Ok(client)
    }

    /// Publishes a message for a subject, and returns the answer to it.
    fn ask(&mut self, subject: &str, message: &[u8]) -> Result<Vec<u8>> {
        let head = format!("PUB {subject} {ANSWERS_SUBJECT} {}\r\n", message.len());
        self.writer
            .write_all(&[head.as_bytes(), message, b"\r\n"].concat())?;
        loop {
            let line = self.read_line()?;
            let words: Vec<_> = line.split_whitespace().collect();
            match words.as_slice() {
                ["PING"] => self.writer.write_all(b"PONG\r\n")?,
                ["MSG", to, .., length] => {
                    let mut content =
                        vec![0; length.parse::<usize>().context("the length of a message")? + 2];
                    self.reader.read_exact(&mut content)?;
                    content.truncate(content.len() - 2);
                    if *to == ANSWERS_SUBJECT {
                        return Ok(content);
                    }
                }
                ["INFO", ..] | ["PONG"] | ["+OK"] => {}
                _ => bail!("{subject}: {line}"),
            }
        }
    }

    fn read_line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.reader.read_line(&mut line).context("reading from NATS")?;
        ensure!(!line.is_empty(), "NATS closed the connection");
        Ok(line.trim_end().to_owned())
    }
}
