//! A connection with timeouts for reading and writing.
//!
//! Its timers are lazy: a timer is set when a read or write has to wait, and is not reset when the wait ends. A
//! request that is received and answered in time touches no timer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::connection_state::{ConnectionState, ExpectedInput};

/// The timeouts of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionTimeouts {
    /// The time for the whole head of a request, and the time between two chunks of its body.
    pub(crate) read: Duration,
    /// The time in which the client must read a chunk of the response.
    pub(crate) write: Duration,
    /// The time within which the client must begin its next request.
    pub(crate) idle: Duration,
}

/// The time for which the rest of an unread request body is read and discarded after the response (see
/// [`TimedConnection::poll_discard_unread_body`]).
const UNREAD_BODY_DISCARD_TIMEOUT: Duration = Duration::from_secs(30);
/// The timeout between two chunks of an unread body that is being discarded.
const UNREAD_BODY_CHUNK_TIMEOUT: Duration = Duration::from_secs(2);

/// A client's connection with [`ConnectionTimeouts`] for reading and writing.
pub(crate) struct TimedConnection<C> {
    connection: C,
    timeouts: ConnectionTimeouts,
    state: Arc<ConnectionState>,
    read_timer: LazyTimer,
    write_timer: LazyTimer,
    /// Whether the sending side of the connection has been shut down.
    shut: bool,
    /// The number of the request whose head has begun to arrive.
    head_begun: Option<u32>,
}

impl<C> TimedConnection<C> {
    pub(crate) fn new(connection: C, timeouts: ConnectionTimeouts, state: Arc<ConnectionState>) -> Self {
        Self {
            connection,
            timeouts,
            state,
            read_timer: LazyTimer::default(),
            write_timer: LazyTimer::default(),
            shut: false,
            head_begun: None,
        }
    }

    /// Stops the read timer after bytes have arrived.
    fn stop_read_timer(&mut self) {
        let (expected, request) = self.state.expected_input_and_request_number();
        match expected {
            // The timeout is for the whole head, so a client cannot extend it by sending byte by byte.
            ExpectedInput::Head if self.head_begun == Some(request) => {}
            ExpectedInput::Head => {
                self.head_begun = Some(request);
                self.read_timer.stop();
            }
            ExpectedInput::Body | ExpectedInput::Nothing => self.read_timer.stop(),
        }
    }

    /// Returns `Ready` with an error once a read has waited for longer than its timeout.
    fn poll_read_timeout(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let (expected, request) = self.state.expected_input_and_request_number();
        let (timeout, message) = match expected {
            ExpectedInput::Nothing => {
                self.read_timer.stop();
                return Poll::Pending;
            }
            ExpectedInput::Body => (
                TimerWait::Exactly(self.timeouts.read),
                "read_timeout exceeded in the body of a request",
            ),
            ExpectedInput::Head if self.head_begun == Some(request) => (
                TimerWait::Exactly(self.timeouts.read),
                "read_timeout exceeded in the head of a request",
            ),
            ExpectedInput::Head => (
                TimerWait::AtLeast(self.timeouts.idle),
                "idle timeout exceeded between requests",
            ),
        };
        self.read_timer
            .poll_elapsed(cx, timeout, (expected, request))
            .map(|()| io::Error::new(io::ErrorKind::TimedOut, message))
    }

    /// Returns the result of a write, or an error if the write has waited for longer than its timeout.
    fn apply_write_timeout<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.write_timer.stop();
            return polled;
        }
        let (_, request) = self.state.expected_input_and_request_number();
        ready!(self.write_timer.poll_elapsed(
            cx,
            TimerWait::Exactly(self.timeouts.write),
            (ExpectedInput::Nothing, request)
        ));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "write_timeout exceeded: the client does not read the response",
        )))
    }
}

impl<C: AsyncRead + Unpin> TimedConnection<C> {
    /// Reads and discards the rest of an unread body before the connection is closed (a lingering close).
    ///
    /// Closing a socket with unread bytes resets the connection, and the client's kernel then discards the response
    /// if the client has not read it yet. A client that reads the response only after sending the whole body would
    /// never see it.
    fn poll_discard_unread_body(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.state.has_unread_body() {
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
            self.state.expected_input_and_request_number().1,
        );
        let idle = self
            .read_timer
            .poll_elapsed(cx, TimerWait::Exactly(UNREAD_BODY_CHUNK_TIMEOUT), purpose);
        if idle.is_ready() {
            return Poll::Ready(());
        }
        self.write_timer
            .poll_elapsed(cx, TimerWait::Exactly(UNREAD_BODY_DISCARD_TIMEOUT), purpose)
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for TimedConnection<C> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match Pin::new(&mut this.connection).poll_read(cx, buffer) {
            Poll::Ready(read) => {
                this.stop_read_timer();
                Poll::Ready(read)
            }
            Poll::Pending => this.poll_read_timeout(cx).map(Err),
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

/// A timer that is created and reset as late as possible.
#[derive(Default)]
struct LazyTimer {
    /// The purpose of the wait, and its end once that is known; `None` if the timer is stopped.
    waiting: Option<(TimerPurpose, Option<Instant>)>,
    sleep: Option<Pin<Box<Sleep>>>,
    /// Whether the timer's `sleep` will wake the connection's task, which is always the same one.
    registered: bool,
}

/// The purpose of a timer: the bytes that it waits for, and the number of the request.
type TimerPurpose = (ExpectedInput, u32);

/// The length of a timer's wait.
#[derive(Clone, Copy)]
enum TimerWait {
    Exactly(Duration),
    /// The timer waits for up to twice this time. It need not read the clock, so it is used after every
    /// request.
    AtLeast(Duration),
}

impl LazyTimer {
    fn stop(&mut self) {
        self.waiting = None;
    }

    /// Returns `Ready` at the end of `timeout`. The wait continues if `purpose` is unchanged, and else starts
    /// anew.
    fn poll_elapsed(&mut self, cx: &mut Context<'_>, timeout: TimerWait, purpose: TimerPurpose) -> Poll<()> {
        let (TimerWait::Exactly(duration) | TimerWait::AtLeast(duration)) = timeout;
        let mut due = match self.waiting {
            Some((before, due)) if before == purpose => due,
            _ => None,
        };
        if due.is_none() && (matches!(timeout, TimerWait::Exactly(_)) || self.sleep.is_none()) {
            due = Some(Instant::now() + duration);
        }
        self.waiting = Some((purpose, due));
        loop {
            let sleep = match (&mut self.sleep, due) {
                (Some(sleep), None) => sleep,
                (Some(sleep), Some(due)) => {
                    if sleep.deadline() > due {
                        sleep.as_mut().reset(due);
                        self.registered = false;
                    }
                    sleep
                }
                (None, due) => {
                    self.registered = false;
                    self.sleep
                        .insert(Box::pin(sleep_until(due.unwrap_or_else(Instant::now))))
                }
            };
            if self.registered && !sleep.is_elapsed() {
                return Poll::Pending;
            }
            self.registered = sleep.as_mut().poll(cx).is_pending();
            if self.registered {
                return Poll::Pending;
            }
            // The timer may have been set for an earlier wait that ended in time, and then starts again.
            if due.is_some_and(|due| sleep.deadline() >= due) {
                return Poll::Ready(());
            }
            let later = due.unwrap_or_else(|| Instant::now() + duration);
            due = Some(later);
            self.waiting = Some((purpose, due));
            sleep.as_mut().reset(later);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const TEST_TIMEOUTS: ConnectionTimeouts = ConnectionTimeouts {
        read: Duration::from_secs(10),
        write: Duration::from_secs(20),
        idle: Duration::from_secs(120),
    };

    fn connected_pair(buffer: usize) -> (TimedConnection<DuplexStream>, DuplexStream, Arc<ConnectionState>) {
        let (server, client) = duplex(buffer);
        let state = Arc::new(ConnectionState::default());
        (
            TimedConnection::new(server, TEST_TIMEOUTS, state.clone()),
            client,
            state,
        )
    }

    /// Reads from a connection until an error; returns the time that it took, and the kind of error.
    async fn read_until_error(server: &mut TimedConnection<DuplexStream>) -> (Duration, io::ErrorKind) {
        let begun = Instant::now();
        let kind = server.read_u8().await.unwrap_err().kind();
        (begun.elapsed(), kind)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_requests_ends_after_the_idle_timeout() {
        let (mut server, _client, _) = connected_pair(64);
        assert_eq!(
            read_until_error(&mut server).await,
            (TEST_TIMEOUTS.idle, io::ErrorKind::TimedOut)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn sending_a_head_byte_by_byte_does_not_extend_its_timeout() {
        let (mut server, mut client, _) = connected_pair(64);
        let begun = Instant::now();
        let trickle = tokio::spawn(async move {
            while client.write_u8(b'x').await.is_ok() {
                tokio::time::sleep(Duration::from_secs(3)).await;
            }
        });
        while server.read_u8().await.is_ok() {}
        assert_eq!(begun.elapsed(), TEST_TIMEOUTS.read);
        drop(server);
        trickle.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_timeout_of_a_body_starts_anew_with_each_chunk() {
        let (mut server, mut client, state) = connected_pair(64);
        let _request = state.begin_request(true);
        let _body = state.begin_body();
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
            read_until_error(&mut server).await,
            (TEST_TIMEOUTS.read, io::ErrorKind::TimedOut)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn no_read_timeout_applies_while_the_handler_works() {
        let (mut server, mut client, state) = connected_pair(64);
        let request = state.begin_request(false);
        let waiting = tokio::time::timeout(Duration::from_secs(3600), server.read_u8()).await;
        assert!(waiting.is_err());
        drop(request);
        client.write_u8(b'x').await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), b'x');
    }

    #[tokio::test(start_paused = true)]
    async fn the_idle_timeout_starts_anew_with_each_request() {
        let (mut server, mut client, state) = connected_pair(64);
        for _ in 0..3 {
            assert!(
                tokio::time::timeout(TEST_TIMEOUTS.idle / 2, server.read_u8())
                    .await
                    .is_err()
            );
            client.write_u8(b'x').await.unwrap();
            server.read_u8().await.unwrap();
            drop(state.begin_request(false));
        }
        let (waited, kind) = read_until_error(&mut server).await;
        assert_eq!(kind, io::ErrorKind::TimedOut);
        assert!(
            (TEST_TIMEOUTS.idle..=2 * TEST_TIMEOUTS.idle).contains(&waited),
            "{waited:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_unread_body_is_discarded_for_a_limited_time_before_the_close() {
        let (mut server, mut client, state) = connected_pair(64);
        drop(state.begin_request(true));
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
        drop(state.begin_request(true));
        let begun = Instant::now();
        client.write_all(&[0; 64]).await.unwrap();
        server.shutdown().await.unwrap();
        assert_eq!(
            begun.elapsed(),
            UNREAD_BODY_CHUNK_TIMEOUT,
            "a client that stops sending and does not close"
        );

        let (mut server, client, state) = connected_pair(64);
        drop(state.begin_request(true));
        drop(client);
        let begun = Instant::now();
        server.shutdown().await.unwrap();
        assert_eq!(begun.elapsed(), Duration::ZERO, "a client that closed");

        let (mut server, _client, state) = connected_pair(64);
        drop(state.begin_request(false));
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
}
