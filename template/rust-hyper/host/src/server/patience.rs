//! A connection that ends when its client keeps it waiting.
//!
//! The timers are lazy: one is set when there is something to wait for, and left alone when it turns out to be early. A
//! request that comes and goes in time touches none.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::stage::{Expecting, Stage};

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// For all of a request's head, and between two pieces of its body.
    pub(crate) read: Duration,
    /// To take a piece of the answer.
    pub(crate) write: Duration,
    /// Until it begins its next request.
    pub(crate) idle: Duration,
}

/// How long, after the answer, a client is read from that still sends a body which nobody wants.
const LINGER: Duration = Duration::from_secs(30);
/// How long between two pieces of it.
const LINGER_IDLE: Duration = Duration::from_secs(2);

/// A connection with [`Limits`].
pub(crate) struct Patient<C> {
    connection: C,
    limits: Limits,
    stage: Arc<Stage>,
    reading: Waiting,
    writing: Waiting,
    /// Whether this side has said that it sends nothing more.
    shut: bool,
    /// The request whose head has begun to come.
    head_begun: Option<u32>,
}

impl<C> Patient<C> {
    pub(crate) fn new(connection: C, limits: Limits, stage: Arc<Stage>) -> Self {
        Self {
            connection,
            limits,
            stage,
            reading: Waiting::default(),
            writing: Waiting::default(),
            shut: false,
            head_begun: None,
        }
    }

    /// Bytes came.
    fn read_some(&mut self) {
        let (expecting, request) = self.stage.now();
        match expecting {
            // The limit is for the whole head, so that it cannot be stretched byte by byte.
            Expecting::Head if self.head_begun == Some(request) => {}
            Expecting::Head => {
                self.head_begun = Some(request);
                self.reading.over();
            }
            Expecting::Body | Expecting::Nothing => self.reading.over(),
        }
    }

    /// No bytes came.
    fn wait_for_bytes(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let (expecting, request) = self.stage.now();
        let (wait, what) = match expecting {
            Expecting::Nothing => {
                self.reading.over();
                return Poll::Pending;
            }
            Expecting::Body => (
                Wait::Exactly(self.limits.read),
                "the client stalled in a request's body",
            ),
            Expecting::Head if self.head_begun == Some(request) => (
                Wait::Exactly(self.limits.read),
                "the client stalled in a request's head",
            ),
            Expecting::Head => (Wait::AtLeast(self.limits.idle), "the client wanted nothing more"),
        };
        self.reading
            .poll(cx, wait, (expecting, request))
            .map(|()| io::Error::new(io::ErrorKind::TimedOut, what))
    }

    /// The outcome of a write, with the limit on how long there may be none.
    fn written<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.writing.over();
            return polled;
        }
        let (_, request) = self.stage.now();
        ready!(self.writing.poll(
            cx,
            Wait::Exactly(self.limits.write),
            (Expecting::Nothing, request)
        ));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client does not take the answer",
        )))
    }
}

impl<C: AsyncRead + Unpin> Patient<C> {
    /// Reads what an answered client still sends, and drops it, until it stops.
    ///
    /// To close with bytes unread resets the connection, and a reset makes the client's system throw away the answer that
    /// it has not read yet: a client that sends all of its body before it looks would never see why it was refused.
    fn linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.stage.unread() {
            return Poll::Ready(());
        }
        let mut dropped = [0; 16 << 10];
        loop {
            let mut buffer = ReadBuf::new(&mut dropped);
            match Pin::new(&mut self.connection).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => self.reading.over(),
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        let what = (Expecting::Nothing, self.stage.now().1);
        if self.reading.poll(cx, Wait::Exactly(LINGER_IDLE), what).is_ready() {
            return Poll::Ready(());
        }
        self.writing.poll(cx, Wait::Exactly(LINGER), what)
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Patient<C> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match Pin::new(&mut this.connection).poll_read(cx, buffer) {
            Poll::Ready(read) => {
                this.read_some();
                Poll::Ready(read)
            }
            Poll::Pending => this.wait_for_bytes(cx).map(Err),
        }
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Patient<C> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.connection).poll_write(cx, bytes);
        this.written(cx, polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // A small answer is head and body: to send it as one piece costs less than to have two gathered.
        let mut small = [0; SMALL];
        let polled = match gather(slices, &mut small) {
            Some(bytes) => Pin::new(&mut this.connection).poll_write(cx, bytes),
            None => Pin::new(&mut this.connection).poll_write_vectored(cx, slices),
        };
        this.written(cx, polled)
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
            this.reading.over();
            this.writing.over();
        }
        this.linger(cx).map(Ok)
    }
}

/// Up to how many bytes several pieces are sent as one.
const SMALL: usize = 1024;

/// All of `slices` in one piece, if there is room for them.
fn gather<'a>(slices: &[io::IoSlice<'_>], room: &'a mut [u8]) -> Option<&'a [u8]> {
    let mut filled = 0;
    for slice in slices {
        room.get_mut(filled..filled + slice.len())?.copy_from_slice(slice);
        filled += slice.len();
    }
    Some(&room[..filled])
}

/// A wait that may become too long.
#[derive(Default)]
struct Waiting {
    /// What is waited for, and when that is too long, once it is known.
    since: Option<(What, Option<Instant>)>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Whether the timer will wake this task: it always is the same one.
    set: bool,
}

/// The stage and the number of the request.
type What = (Expecting, u32);

/// How long to wait.
#[derive(Clone, Copy)]
enum Wait {
    Exactly(Duration),
    /// May be up to twice as long. This is for the wait that every request ends in: it does without looking at the clock.
    AtLeast(Duration),
}

impl Waiting {
    fn over(&mut self) {
        self.since = None;
    }

    /// Goes on waiting, or begins to where it is for something else than before.
    fn poll(&mut self, cx: &mut Context<'_>, wait: Wait, what: What) -> Poll<()> {
        let (Wait::Exactly(limit) | Wait::AtLeast(limit)) = wait;
        let mut due = match self.since {
            Some((before, due)) if before == what => due,
            _ => None,
        };
        if due.is_none() && (matches!(wait, Wait::Exactly(_)) || self.timer.is_none()) {
            due = Some(Instant::now() + limit);
        }
        self.since = Some((what, due));
        loop {
            let timer = match (&mut self.timer, due) {
                (Some(timer), None) => timer,
                (Some(timer), Some(due)) => {
                    if timer.deadline() > due {
                        timer.as_mut().reset(due);
                        self.set = false;
                    }
                    timer
                }
                (None, due) => {
                    self.set = false;
                    self.timer
                        .insert(Box::pin(sleep_until(due.unwrap_or_else(Instant::now))))
                }
            };
            if self.set && !timer.is_elapsed() {
                return Poll::Pending;
            }
            self.set = timer.as_mut().poll(cx).is_pending();
            if self.set {
                return Poll::Pending;
            }
            // It may have been set for an earlier wait, which came to its end in time.
            if due.is_some_and(|due| timer.deadline() >= due) {
                return Poll::Ready(());
            }
            let later = due.unwrap_or_else(|| Instant::now() + limit);
            due = Some(later);
            self.since = Some((what, due));
            timer.as_mut().reset(later);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const LIMITS: Limits = Limits {
        read: Duration::from_secs(10),
        write: Duration::from_secs(20),
        idle: Duration::from_secs(120),
    };

    fn connection(room: usize) -> (Patient<DuplexStream>, DuplexStream, Arc<Stage>) {
        let (server, client) = duplex(room);
        let stage = Arc::new(Stage::default());
        (Patient::new(server, LIMITS, stage.clone()), client, stage)
    }

    /// How long a read waits until it is given up.
    async fn waited(server: &mut Patient<DuplexStream>) -> (Duration, io::ErrorKind) {
        let begun = Instant::now();
        let kind = server.read_u8().await.unwrap_err().kind();
        (begun.elapsed(), kind)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_wants_nothing_is_let_go_after_the_idle_limit() {
        let (mut server, _client, _) = connection(64);
        assert_eq!(waited(&mut server).await, (LIMITS.idle, io::ErrorKind::TimedOut));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_cannot_be_stretched_byte_by_byte() {
        let (mut server, mut client, _) = connection(64);
        let begun = Instant::now();
        let trickle = tokio::spawn(async move {
            while client.write_u8(b'x').await.is_ok() {
                tokio::time::sleep(Duration::from_secs(3)).await;
            }
        });
        while server.read_u8().await.is_ok() {}
        assert_eq!(begun.elapsed(), LIMITS.read);
        drop(server);
        trickle.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_may_take_its_time_as_long_as_it_goes_on() {
        let (mut server, mut client, stage) = connection(64);
        let _turn = stage.begin(true);
        let _body = stage.body();
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
        assert_eq!(waited(&mut server).await, (LIMITS.read, io::ErrorKind::TimedOut));
    }

    #[tokio::test(start_paused = true)]
    async fn a_handler_is_not_hurried() {
        let (mut server, mut client, stage) = connection(64);
        let turn = stage.begin(false);
        let waiting = tokio::time::timeout(Duration::from_secs(3600), server.read_u8()).await;
        assert!(waiting.is_err());
        drop(turn);
        client.write_u8(b'x').await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), b'x');
    }

    #[tokio::test(start_paused = true)]
    async fn the_idle_limit_begins_anew_with_each_request() {
        let (mut server, mut client, stage) = connection(64);
        for _ in 0..3 {
            assert!(
                tokio::time::timeout(LIMITS.idle / 2, server.read_u8())
                    .await
                    .is_err()
            );
            client.write_u8(b'x').await.unwrap();
            server.read_u8().await.unwrap();
            drop(stage.begin(false));
        }
        let (waited, kind) = waited(&mut server).await;
        assert_eq!(kind, io::ErrorKind::TimedOut);
        assert!((LIMITS.idle..=2 * LIMITS.idle).contains(&waited), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_reads_is_taken_from_the_client_for_a_while() {
        let (mut server, mut client, stage) = connection(64);
        drop(stage.begin(true));
        let begun = Instant::now();
        let sending = tokio::spawn(async move {
            while client.write_all(&[0; 64]).await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        server.shutdown().await.unwrap();
        assert_eq!(begun.elapsed(), LINGER, "a client that goes on and on");
        drop(server);
        sending.await.unwrap();

        let (mut server, mut client, stage) = connection(64);
        drop(stage.begin(true));
        let begun = Instant::now();
        client.write_all(&[0; 64]).await.unwrap();
        server.shutdown().await.unwrap();
        assert_eq!(
            begun.elapsed(),
            LINGER_IDLE,
            "a client that stopped and did not close"
        );

        let (mut server, client, stage) = connection(64);
        drop(stage.begin(true));
        drop(client);
        let begun = Instant::now();
        server.shutdown().await.unwrap();
        assert_eq!(begun.elapsed(), Duration::ZERO, "a client that has closed");

        let (mut server, _client, stage) = connection(64);
        drop(stage.begin(false));
        let begun = Instant::now();
        server.shutdown().await.unwrap();
        assert_eq!(
            begun.elapsed(),
            Duration::ZERO,
            "a client that had nothing to send"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_let_go() {
        let (mut server, mut client, _) = connection(4);
        let begun = Instant::now();
        server.write_all(b"1234").await.unwrap();
        assert!(
            tokio::time::timeout(LIMITS.write / 2, server.write_u8(b'5'))
                .await
                .is_err()
        );
        client.read_u8().await.unwrap();
        server.write_u8(b'5').await.unwrap();
        let error = server.write_u8(b'6').await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed(), LIMITS.write / 2 + LIMITS.write);
    }
}
