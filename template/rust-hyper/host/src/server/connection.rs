//! Connections of clients: accepting, serving, draining and aborting them.

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

use super::timed_connection::{ConnectionTimeouts, TimedConnection};
use crate::connection_state::ConnectionState;
use crate::error_chain::BoxError;

/// A service that answers the requests of connections.
pub(crate) trait ConnectionService: Clone + Send + 'static {
    type ResponseBody: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static;
    type ResponseFuture: Future<Output = Result<http::Response<Self::ResponseBody>, Infallible>>
        + Send
        + 'static;

    /// Returns the future of the response to a request of `connection`.
    fn respond(
        &self,
        request: http::Request<Incoming>,
        connection: &Arc<ConnectionState>,
    ) -> Self::ResponseFuture;
}

/// A listener whose connections are being served. Dropping it drops all of its connections.
pub(crate) struct ServedListener {
    phase: watch::Sender<ListenerPhase>,
    accepting: JoinHandle<()>,
}

/// The phases of a served listener, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum ListenerPhase {
    Open,
    /// The listener accepts no connection; existing ones end after their current request.
    Draining,
    /// The listener has dropped all of its connections.
    Aborted,
}

impl ServedListener {
    /// Serves `listener`. Requests with more than `max_headers` headers are answered with 431.
    pub(crate) fn spawn_accept_loop(
        listener: TcpListener,
        timeouts: ConnectionTimeouts,
        max_headers: usize,
        service: impl ConnectionService,
    ) -> Self {
        // The kernel buffers up to 4 MiB that the client does not read, and writes succeed meanwhile. So that the write
        // timeout holds then too, the kernel enforces it. Connections inherit the option from their listener.
        if let Err(error) = SockRef::from(&listener).set_tcp_user_timeout(Some(timeouts.write)) {
            tracing::warn!(%error, "could not set TCP_USER_TIMEOUT: clients that stop reading are noticed late");
        }
        let (phase, receiver) = watch::channel(ListenerPhase::Open);
        let mut http = http1::Builder::new();
        http.max_headers(max_headers);
        Self {
            phase,
            accepting: tokio::spawn(accept_connections(listener, timeouts, http, service, receiver)),
        }
    }

    /// Closes the listener's port, and each connection after its current request.
    pub(crate) fn start_draining(&self) {
        self.phase.send_replace(ListenerPhase::Draining);
    }

    /// Drops all connections of the listener, with their handlers.
    pub(crate) fn drop_all_connections(&self) {
        self.phase.send_replace(ListenerPhase::Aborted);
    }

    /// Waits until the listener's last connection has ended.
    pub(crate) async fn wait_until_connections_ended(&mut self) {
        if let Err(error) = (&mut self.accepting).await {
            tracing::error!(%error, "the accept loop panicked");
        }
    }
}

impl Drop for ServedListener {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Waits until the listener has reached `phase`.
async fn wait_for_phase(receiver: &mut watch::Receiver<ListenerPhase>, phase: ListenerPhase) {
    // Fails if the sender was dropped, in which case this task is aborted.
    let _ = receiver.wait_for(|current| *current >= phase).await;
}

/// Accepts connections until the listener drains, and waits until all connections have ended.
async fn accept_connections(
    listener: TcpListener,
    timeouts: ConnectionTimeouts,
    http: http1::Builder,
    service: impl ConnectionService,
    mut phase: watch::Receiver<ListenerPhase>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = wait_for_phase(&mut phase, ListenerPhase::Draining) => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve_connection(stream, timeouts, http.clone(), service.clone(), phase.clone()));
                }
                Err(error) => {
                    // Probably out of file descriptors, until open connections end.
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
            () = wait_for_phase(&mut phase, ListenerPhase::Aborted) => return connections.shutdown().await,
        }
    }
}

/// Serves the requests of one connection until it ends.
async fn serve_connection(
    stream: TcpStream,
    timeouts: ConnectionTimeouts,
    http: http1::Builder,
    service: impl ConnectionService,
    mut phase: watch::Receiver<ListenerPhase>,
) {
    let _ = stream.set_nodelay(true);
    let state = Arc::<ConnectionState>::default();
    let io = TokioIo::new(TimedConnection::new(stream, timeouts, state.clone()));
    let service = service_fn(move |request| service.respond(request, &state));
    let mut connection = pin!(http.serve_connection(io, service));

    // The wait for the drain is polled only once and after changes: it stays registered with this task's waker.
    // Polling it with every part of a request, as a select would, costs more than reading the request's head.
    let changes = phase.clone();
    let mut draining = pin!(wait_for_phase(&mut phase, ListenerPhase::Draining));
    let mut registered = false;
    let mut drained = false;
    let served = poll_fn(|cx| {
        loop {
            if let Poll::Ready(served) = connection.as_mut().poll(cx) {
                return Poll::Ready(served);
            }
            let changed = !registered || changes.has_changed().unwrap_or(true);
            if drained || !changed {
                return Poll::Pending;
            }
            registered = true;
            if draining.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            drained = true;
            connection.as_mut().graceful_shutdown();
        }
    })
    .await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection ended");
    }
}
