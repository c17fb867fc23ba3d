//! A stream of messages in both directions as one stream of bytes.

use std::io;

use bollard_buildkit_proto::moby::buildkit::v1::BytesMessage;
use bytes::Bytes;
use futures_util::SinkExt;
use tokio::io::{AsyncRead, AsyncWrite, BufWriter};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};
use tokio_util::sync::PollSender;
use tonic::Streaming;

/// The HTTP/2 server writes frame headers and frames of 16 KiB one by one; together they make fuller messages.
const WRITE_BUFFER: usize = 64 << 10;

/// What is written goes to `outgoing`, a message per flush or full buffer; what is read comes from `incoming`.
pub(super) fn pipe(
    outgoing: mpsc::Sender<Bytes>,
    incoming: Streaming<BytesMessage>,
) -> impl AsyncRead + AsyncWrite + Unpin + Send + 'static {
    let messages = incoming.map(|message| match message {
        Ok(message) => Ok(Bytes::from(message.data)),
        Err(status) => Err(io::Error::other(status)),
    });
    let sink = PollSender::new(outgoing).sink_map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe));
    let writer = BufWriter::with_capacity(WRITE_BUFFER, SinkWriter::new(CopyToBytes::new(sink)));
    tokio::io::join(StreamReader::new(messages), writer)
}
