//! A stream of bytes in both directions, over the two message streams of a session.

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

/// The bytes that are buffered for one session message: the HTTP/2 server writes frame headers and frames of 16 KiB one
/// by one.
const WRITE_BUFFER_BYTES: usize = 64 << 10;

/// Returns a stream of bytes that reads from `incoming` and writes to `outgoing`, one message for each flush and each
/// full buffer.
pub(super) fn byte_stream_over_messages(
    outgoing: mpsc::Sender<Bytes>,
    incoming: Streaming<BytesMessage>,
) -> impl AsyncRead + AsyncWrite + Unpin + Send + 'static {
    let messages = incoming.map(|message| match message {
        Ok(message) => Ok(Bytes::from(message.data)),
        Err(status) => Err(io::Error::other(status)),
    });
    let sink = PollSender::new(outgoing).sink_map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe));
    let writer = BufWriter::with_capacity(WRITE_BUFFER_BYTES, SinkWriter::new(CopyToBytes::new(sink)));
    tokio::io::join(StreamReader::new(messages), writer)
}
