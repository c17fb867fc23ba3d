//! Connections: accepted, limited in time, drained.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::patience::{Limits, Patient};
use super::stage::Stage;
use crate::error::BoxError;

/// What answers the requests of connections.
pub(crate) trait Answers: Clone + Send + 'static {
    type Body: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static;
    type Answer: Future<Output = Result<http::Response<Self::Body>, Infallible>> + Send + 'static;

    /// Begins to answer a request of a connection.
    fn answer(&self, request: http::Request<Incoming>, connection: &Arc<Stage>) -> Self::Answer;
}

/// A listener that is being served. Dropping it ends all its connections.
pub(crate) struct Serving {
    state: watch::Sender<State>,
    accepting: JoinHandle<()>,
}

/// How far the end of a listener has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum State {
    Open,
    /// No connection is accepted; those there are end with their current request.
    Closed,
    /// All connections are dropped.
    Cut,
}

impl Serving {
    pub(crate) fn spawn(listener: TcpListener, limits: Limits, answers: impl Answers) -> Self {
        // What a client does not take may all be in the system's buffers (4 MiB of it), where nothing here waits for it.
        // Connections have this from their listener.
        if let Err(error) = SockRef::from(&listener).set_tcp_user_timeout(Some(limits.write)) {
            tracing::warn!(%error, "clients that take nothing are noticed late");
        }
        let (state, seen) = watch::channel(State::Open);
        Self {
            state,
            accepting: tokio::spawn(accept(listener, limits, answers, seen)),
        }
    }

    /// Closes the port; connections end with their current request.
    pub(crate) fn close(&self) {
        self.state.send_replace(State::Closed);
    }

    /// Drops all connections, with the handlers that work for them.
    pub(crate) fn cut(&self) {
        self.state.send_replace(State::Cut);
    }

    /// Waits until the last connection has ended.
    pub(crate) async fn ended(&mut self) {
        if let Err(error) = (&mut self.accepting).await {
            tracing::error!(%error, "serving ended badly");
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Waits until the end has come as far as `state`.
async fn reaches(seen: &mut watch::Receiver<State>, state: State) {
    // Where the sender is gone, all of this is being dropped.
    let _ = seen.wait_for(|seen| *seen >= state).await;
}

async fn accept(
    listener: TcpListener,
    limits: Limits,
    answers: impl Answers,
    mut seen: watch::Receiver<State>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = reaches(&mut seen, State::Closed) => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, limits, answers.clone(), seen.clone()));
                }
                Err(error) => {
                    // Out of file descriptors, most likely: what is open has to end first.
                    tracing::error!(%error, "could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(listener);
    loop {
        tokio::select! {
            joined = connections.join_next() => if joined.is_none() { return },
            () = reaches(&mut seen, State::Cut) => return connections.shutdown().await,
        }
    }
}

/// Serves one connection to its end.
async fn serve(stream: TcpStream, limits: Limits, answers: impl Answers, mut seen: watch::Receiver<State>) {
    let _ = stream.set_nodelay(true);
    let stage = Arc::<Stage>::default();
    let io = TokioIo::new(Patient::new(stream, limits, stage.clone()));
    let service = service_fn(move |request| answers.answer(request, &stage));
    let mut connection = pin!(http1::Builder::new().serve_connection(io, service));

    // The wait for the end is entered once: it stays registered with this task's waker. To poll it with every piece of
    // a request, as a select would, costs more than reading the request's head.
    let state = seen.clone();
    let mut closed = pin!(reaches(&mut seen, State::Closed));
    let mut entered = false;
    let mut draining = false;
    let served = poll_fn(|cx| {
        loop {
            if let Poll::Ready(served) = connection.as_mut().poll(cx) {
                return Poll::Ready(served);
            }
            let news = !entered || state.has_changed().unwrap_or(true);
            if draining || !news {
                return Poll::Pending;
            }
            entered = true;
            if closed.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            draining = true;
            connection.as_mut().graceful_shutdown();
        }
    })
    .await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection ended");
    }
}
