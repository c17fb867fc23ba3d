//! A connection with timeouts for reading and writing, which ends when it is displaced.
//!
//! Its timers are lazy: a timer is set when a read or write has to wait, and is not reset when the wait ends. A
//! request that is received and answered in time touches no timer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection_budget::AdmittedConnection;
use super::lazy_timer::{ExactOrMinimumWait, LazyTimer};
use crate::connection_state::{ConnectionState, ExpectedInput, SMALLEST_BUFFER_BYTES};

/// The timeouts of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionTimeouts {
    /// The time for the whole head of a request. For the first one it begins with the connection.
    pub(crate) head: Duration,
    /// The time between two chunks of a request's body.
    pub(crate) read: Duration,
    /// The time in which the client must read a chunk of the response.
    pub(crate) write: Duration,
    /// The time within which the client must begin another request.
    pub(crate) idle: Duration,
}

/// The time for which the rest of an unread request body is read and discarded after the response (see
/// [`TimedConnection::poll_discard_unread_body`]).
const UNREAD_BODY_DISCARD_TIMEOUT: Duration = Duration::from_secs(30);
/// The timeout between two chunks of an unread body that is being discarded.
const UNREAD_BODY_CHUNK_TIMEOUT: Duration = Duration::from_secs(2);

/// The size of a read that does not make hyper enlarge its buffer: one byte less than hyper's smallest buffer.
const SMALL_READ_BYTES: usize = 8191;

/// The answer to a head that does not arrive in time.
const HEAD_TOO_SLOW_RESPONSE: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-type: text/plain\r\n\
    content-length: 44\r\n\r\nthe head of the request did not arrive soon\n";

/// The answer on a connection that is displaced before its request's head has arrived, or gets no place to be served.
pub(super) const TOO_MANY_CONNECTIONS_RESPONSE: &[u8] = b"HTTP/1.1 429 Too Many Requests\r\nconnection: close\r\nretry-after: 1\r\n\
    content-type: text/plain\r\ncontent-length: 53\r\n\r\ntoo many connections wait with an unfinished request\n";

/// A client's connection with [`ConnectionTimeouts`] for reading and writing. Once displaced, its reads and writes fail
/// instead of waiting.
pub(crate) struct TimedConnection<C> {
    connection: C,
    timeouts: ConnectionTimeouts,
    admitted: AdmittedConnection,
    read_timer: LazyTimer,
    write_timer: LazyTimer,
    /// Whether the sending side of the connection has been shut down.
    shut: bool,
    /// The time for which the connection had waited for its first byte, until a later request begins.
    waited: Duration,
    /// The number of the request whose head has begun to arrive. The first head begins with the connection.
    head_begun: Option<u32>,
    /// The number of bytes that have arrived of the current head, and of what followed it in the same reads.
    head_bytes: usize,
    /// The size of the largest buffer that hyper has used for reading.
    buffer: usize,
    /// Whether the latest write waits for the client to read.
    write_waits: bool,
}

/// Returns the error that ends a displaced connection.
fn displaced_error() -> io::Error {
    let message = "displaced: too many connections wait for a request";
    io::Error::new(io::ErrorKind::ConnectionAborted, message)
}

impl<C> TimedConnection<C> {
    /// Creates the connection when its first byte has arrived, after a wait of `waited`.
    pub(crate) fn new(
        connection: C,
        timeouts: ConnectionTimeouts,
        admitted: AdmittedConnection,
        waited: Duration,
    ) -> Self {
        admitted.set_buffer_capacity_and_enforce_limit(SMALLEST_BUFFER_BYTES);
        Self {
            connection,
            timeouts,
            head_begun: Some(admitted.state().expected_input_and_request_number().1),
            admitted,
            read_timer: LazyTimer::default(),
            write_timer: LazyTimer::default(),
            shut: false,
            head_bytes: 0,
            buffer: SMALLEST_BUFFER_BYTES,
            waited,
            write_waits: false,
        }
    }

    fn state(&self) -> &Arc<ConnectionState> {
        self.admitted.state()
    }

    /// Records that `bytes` have arrived in a buffer that had room for `room`.
    fn record_read(&mut self, bytes: usize, room: usize) {
        let (expected, request) = self.state().expected_input_and_request_number();
        let mut used = room;
        match expected {
            // The timeout is for the whole head, so a client cannot extend it by sending byte by byte.
            ExpectedInput::Head if self.head_begun == Some(request) => {
                used += self.head_bytes;
                self.head_bytes += bytes;
            }
            ExpectedInput::Head => {
                self.head_begun = Some(request);
                self.head_bytes = bytes;
                self.waited = Duration::ZERO;
                self.read_timer.stop();
            }
            ExpectedInput::Body | ExpectedInput::Nothing => self.read_timer.stop(),
        }
        if used > self.buffer {
            self.buffer = used;
            match expected {
                ExpectedInput::Head => self.admitted.set_buffer_capacity_and_enforce_limit(used),
                // Counts when the connection waits again.
                ExpectedInput::Body | ExpectedInput::Nothing => self.state().set_buffer_capacity_bytes(used),
            }
        }
    }

    /// Returns the result of a write, or an error if the write has waited for longer than its timeout or the connection
    /// is displaced.
    fn apply_write_timeout<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.write_timer.stop();
            if self.write_waits {
                self.write_waits = false;
                self.state().set_unread_answers(false);
            }
            return polled;
        }
        if !self.write_waits {
            self.write_waits = true;
            self.state().set_unread_answers(true);
        }
        if self.state().is_displaced_and_still_waiting() {
            return Poll::Ready(Err(displaced_error()));
        }
        let (_, request) = self.state().expected_input_and_request_number();
        ready!(self.write_timer.poll_elapsed(
            cx,
            ExactOrMinimumWait::Exactly(self.timeouts.write),
            (ExpectedInput::Nothing, request)
        ));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "write_timeout exceeded: the client does not read the response",
        )))
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> TimedConnection<C> {
    /// Returns `Ready` with an error once a read has waited for longer than its timeout, or the connection is displaced.
    fn poll_read_timeout_or_displacement(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let (expected, request) = self.state().expected_input_and_request_number();
        let (timeout, message) = match expected {
            ExpectedInput::Nothing => {
                self.read_timer.stop();
                return Poll::Pending;
            }
            ExpectedInput::Body => (
                ExactOrMinimumWait::Exactly(self.timeouts.read),
                "read_timeout exceeded in the body of a request",
            ),
            ExpectedInput::Head => {
                let begun = self.head_begun == Some(request);
                if self.state().is_displaced_and_still_waiting() {
                    if begun {
                        self.try_send_early_answer(TOO_MANY_CONNECTIONS_RESPONSE, cx);
                    }
                    return Poll::Ready(displaced_error());
                }
                if begun {
                    (
                        ExactOrMinimumWait::Exactly(self.timeouts.head.saturating_sub(self.waited)),
                        "timeout exceeded in the head of a request",
                    )
                } else {
                    (
                        ExactOrMinimumWait::AtLeast(self.timeouts.idle),
                        "idle timeout exceeded between requests",
                    )
                }
            }
        };
        ready!(self.read_timer.poll_elapsed(cx, timeout, (expected, request)));
        if expected == ExpectedInput::Head && self.head_begun == Some(request) && self.head_bytes > 0 {
            self.try_send_early_answer(HEAD_TOO_SLOW_RESPONSE, cx);
        }
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, message))
    }

    /// Reads fewer bytes than fill hyper's smallest buffer, so that hyper does not enlarge it.
    fn poll_small_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut bytes = [0; SMALL_READ_BYTES];
        let mut whole = ReadBuf::new(&mut bytes);
        let mut read = whole.take(buffer.remaining());
        ready!(Pin::new(&mut self.connection).poll_read(cx, &mut read))?;
        buffer.put_slice(read.filled());
        Poll::Ready(Ok(()))
    }

    /// Sends an answer to a head that has not arrived, if the client takes it at once.
    fn try_send_early_answer(&mut self, answer: &[u8], cx: &mut Context<'_>) {
        // After unread answers, hyper may have sent a part of one.
        if !self.write_waits {
            let _ = Pin::new(&mut self.connection).poll_write(cx, answer);
        }
    }

    /// Reads and discards the rest of an unread body before the connection is closed (a lingering close).
    ///
    /// Closing a socket with unread bytes resets the connection, and the client's kernel then discards the response
    /// if the client has not read it yet. A client that reads the response only after sending the whole body would
    /// never see it.
    fn poll_discard_unread_body(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.state().has_unread_body() || self.state().is_displaced_and_still_waiting() {
            return Poll::Ready(());
        }
        let mut discarded = [0; 16 << 10];
        loop {
            let mut buffer = ReadBuf::new(&mut discarded);
            match Pin::new(&mut self.connection).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => self.read_timer.stop(),
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        let purpose = (
            ExpectedInput::Nothing,
            self.state().expected_input_and_request_number().1,
        );
        let idle = self.read_timer.poll_elapsed(
            cx,
            ExactOrMinimumWait::Exactly(UNREAD_BODY_CHUNK_TIMEOUT),
            purpose,
        );
        if idle.is_ready() {
            return Poll::Ready(());
        }
        self.write_timer.poll_elapsed(
            cx,
            ExactOrMinimumWait::Exactly(UNREAD_BODY_DISCARD_TIMEOUT),
            purpose,
        )
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> AsyncRead for TimedConnection<C> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let room = buffer.remaining();
        let polled = match this.admitted.should_keep_buffers_small() {
            true => this.poll_small_read(cx, buffer),
            false => Pin::new(&mut this.connection).poll_read(cx, buffer),
        };
        match polled {
            Poll::Ready(read) => {
                this.record_read(room - buffer.remaining(), room);
                Poll::Ready(read)
            }
            Poll::Pending => this.poll_read_timeout_or_displacement(cx).map(Err),
        }
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TimedConnection<C> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.connection).poll_write(cx, bytes);
        this.apply_write_timeout(cx, polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // Copying a small response (head and body) into one buffer costs less than a vectored write of two.
        let mut buffer = [0; MAX_GATHERED_WRITE_BYTES];
        let polled = match copy_slices_if_they_fit(slices, &mut buffer) {
            Some(bytes) => Pin::new(&mut this.connection).poll_write(cx, bytes),
            None => Pin::new(&mut this.connection).poll_write_vectored(cx, slices),
        };
        this.apply_write_timeout(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().connection).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.shut {
            ready!(Pin::new(&mut this.connection).poll_shutdown(cx))?;
            this.shut = true;
            this.read_timer.stop();
            this.write_timer.stop();
            // While the rest of a body is discarded, another connection is served.
            this.state().set_or_free_place(None);
            // It may take long until the buffer is freed.
            if this.state().has_unread_body() {
                this.admitted.set_buffer_capacity_and_enforce_limit(this.buffer);
            }
        }
        this.poll_discard_unread_body(cx).map(Ok)
    }
}

/// The largest vectored write that is copied into one buffer, in bytes.
const MAX_GATHERED_WRITE_BYTES: usize = 1024;

/// Copies all of `slices` into `buffer`; returns `None` if they do not fit.
fn copy_slices_if_they_fit<'a>(slices: &[io::IoSlice<'_>], buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    let mut filled = 0;
    for slice in slices {
        buffer
            .get_mut(filled..filled + slice.len())?
            .copy_from_slice(slice);
        filled += slice.len();
    }
    Some(&buffer[..filled])
}

#[cfg(test)]
mod tests;
