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
use tokio::io::ReadBuf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet, unconstrained};
use tokio::time::{Instant, sleep};

use super::announced_body::{PEEKED_BYTES, is_whole_head_of_small_request};
use super::connection_budget::{AdmittedConnection, ConnectionBudget};
use super::timed_connection::{ConnectionTimeouts, TOO_MANY_CONNECTIONS_RESPONSE, TimedConnection};
use crate::connection_state::ConnectionState;
use crate::error_chain::BoxError;

/// A service that answers the requests of connections.
pub(crate) trait ConnectionService: Clone + Send + 'static {
    type ResponseBody: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static;
    type ResponseFuture: Future<Output = Result<http::Response<Self::ResponseBody>, Infallible>>
        + Send
        + 'static;

    /// Begins to answer a request of `connection`, and returns the future of the response.
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

/// The limits of a listener's connections and of their requests' heads.
#[derive(Clone, Debug)]
pub(crate) struct ListenerLimits {
    pub(crate) timeouts: ConnectionTimeouts,
    /// The highest number of headers of a request. A request with more is answered with 431.
    pub(crate) max_headers: usize,
    /// The largest size of a request's head in bytes. A larger one is answered with 431.
    pub(crate) max_header_bytes: usize,
    /// The budget of the connections that wait for a request.
    pub(crate) budget: Arc<ConnectionBudget>,
}

/// The size of the largest buffer for reading from a connection, unless heads may be larger, in bytes. A larger one makes
/// receiving a body no faster, and each connection may keep one.
const MAX_READ_BUFFER_BYTES: usize = 64 << 10;

impl ServedListener {
    /// Starts a task that accepts and serves the connections of `listener`.
    pub(crate) fn spawn_accept_loop(
        listener: TcpListener,
        limits: ListenerLimits,
        service: impl ConnectionService,
    ) -> Self {
        let timeouts = limits.timeouts;
        // The kernel buffers up to 4 MiB that the client does not read, and writes succeed meanwhile. So that the write
        // timeout holds then too, the kernel enforces it. Connections inherit the option from their listener.
        if let Err(error) = SockRef::from(&listener).set_tcp_user_timeout(Some(timeouts.write)) {
            tracing::warn!(%error, "could not set TCP_USER_TIMEOUT: clients that stop reading are noticed late");
        }
        let (phase, receiver) = watch::channel(ListenerPhase::Open);
        let mut http = http1::Builder::new();
        http.max_headers(limits.max_headers)
            .max_header_size(limits.max_header_bytes)
            .max_buf_size(limits.max_header_bytes.max(MAX_READ_BUFFER_BYTES));
        let settings = ConnectionSettings { http, timeouts };
        let accepting =
            accept_and_serve_until_all_ended(listener, limits.budget, settings, service, receiver);
        Self {
            phase,
            // Without a budget of steps: connections that wait to be accepted are delayed by everything else that runs.
            accepting: tokio::spawn(unconstrained(accepting)),
        }
    }

    /// Begins to close the listener's port, and each connection after its current request.
    pub(crate) fn start_draining(&self) {
        self.phase.send_replace(ListenerPhase::Draining);
    }

    /// Drops all connections of the listener, with their handlers.
    pub(crate) fn drop_all_connections(&self) {
        self.phase.send_replace(ListenerPhase::Aborted);
    }

    /// Waits until the listener's last connection has ended, which is only after draining has started.
    pub(crate) async fn wait_until_drained_or_dropped(&mut self) {
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

/// Waits until the listener has reached `phase` or a later one.
async fn wait_for_phase(receiver: &mut watch::Receiver<ListenerPhase>, phase: ListenerPhase) {
    // Fails if the sender was dropped, in which case this task is aborted.
    let _ = receiver.wait_for(|current| *current >= phase).await;
}

/// The pause after a connection could not be accepted.
const PAUSE_AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(20);

/// The settings of each connection of a listener.
#[derive(Clone)]
struct ConnectionSettings {
    http: http1::Builder,
    timeouts: ConnectionTimeouts,
}

/// Accepts connections until the listener drains, and waits until all have ended; drops them once it is aborted.
async fn accept_and_serve_until_all_ended(
    listener: TcpListener,
    budget: Arc<ConnectionBudget>,
    settings: ConnectionSettings,
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
                    let (admitted, settings) = (budget.admit(), settings.clone());
                    connections.spawn(serve_connection(stream, admitted, settings, service.clone(), phase.clone()));
                }
                Err(error) => {
                    // Probably out of file descriptors, until open connections end.
                    tracing::error!(%error, "could not accept a connection");
                    budget.displace_half_of_waiting();
                    sleep(PAUSE_AFTER_FAILED_ACCEPT).await;
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

/// Waits for the first byte of a connection and for a place to be served, and serves its requests until it ends.
/// Without a place in time, answers 429.
async fn serve_connection(
    stream: TcpStream,
    admitted: AdmittedConnection,
    settings: ConnectionSettings,
    service: impl ConnectionService,
    mut phase: watch::Receiver<ListenerPhase>,
) {
    let _ = stream.set_nodelay(true);
    poll_fn(|cx| {
        admitted.state().set_waker(cx.waker());
        Poll::Ready(())
    })
    .await;
    let accepted = Instant::now();
    let head_timeout = settings.timeouts.head;
    if !first_byte_arrives_before_timeout_or_drain(&stream, admitted.state(), head_timeout, &mut phase).await
    {
        return;
    }
    let displaced = poll_fn(|_| match admitted.state().is_displaced_and_still_waiting() {
        true => Poll::Ready(()),
        false => Poll::Pending,
    });
    let has_place = tokio::select! {
        () = wait_for_place(&stream, &admitted) => true,
        () = displaced => false,
        () = sleep(head_timeout.saturating_sub(accepted.elapsed())) => false,
    };
    if !has_place {
        let _ = stream.try_write(TOO_MANY_CONNECTIONS_RESPONSE);
        return;
    }
    let state = admitted.state().clone();
    let waited = accepted.elapsed();
    let connection = TimedConnection::new(stream, settings.timeouts, admitted, waited);
    // In a box, so that a connection that has sent nothing takes little memory.
    Box::pin(serve_requests(connection, state, &settings.http, service, phase)).await;
}

/// Waits for a place to be served. A connection with a small request may have one of those that are kept for these.
async fn wait_for_place(stream: &TcpStream, admitted: &AdmittedConnection) {
    if admitted.take_free_place() {
        return;
    }
    let is_small = poll_fn(|cx| {
        let mut start = [0; PEEKED_BYTES];
        let mut buffer = ReadBuf::new(&mut start);
        // The first byte is there, so this does not wait.
        let peeked = stream.poll_peek(cx, &mut buffer);
        Poll::Ready(matches!(peeked, Poll::Ready(Ok(_))) && is_whole_head_of_small_request(buffer.filled()))
    })
    .await;
    admitted.wait_for_place(is_small).await;
}

/// Waits for the first byte of a connection. Returns `false` if before it the connection ends or is displaced, the
/// timeout passes, or the listener drains.
async fn first_byte_arrives_before_timeout_or_drain(
    stream: &TcpStream,
    state: &ConnectionState,
    timeout: Duration,
    phase: &mut watch::Receiver<ListenerPhase>,
) -> bool {
    // By hand, so that a connection whose request has arrived costs no timer.
    let mut timer = None;
    let mut draining = pin!(wait_for_phase(phase, ListenerPhase::Draining));
    poll_fn(|cx| {
        // A socket may be reported as readable and have no bytes; the connection would then count as one with half a
        // head.
        let mut first = [0; 1];
        if let Poll::Ready(peeked) = stream.poll_peek(cx, &mut ReadBuf::new(&mut first)) {
            return Poll::Ready(peeked.is_ok_and(|bytes| bytes > 0));
        }
        if state.is_displaced_and_still_waiting() {
            let _ = stream.try_write(TOO_MANY_CONNECTIONS_RESPONSE);
            return Poll::Ready(false);
        }
        let timer = timer.get_or_insert_with(|| Box::pin(sleep(timeout)));
        let ends = timer.as_mut().poll(cx).is_ready() || draining.as_mut().poll(cx).is_ready();
        if ends { Poll::Ready(false) } else { Poll::Pending }
    })
    .await
}

/// Serves the requests of one connection until it ends.
async fn serve_requests(
    connection: TimedConnection<TcpStream>,
    state: Arc<ConnectionState>,
    http: &http1::Builder,
    service: impl ConnectionService,
    mut phase: watch::Receiver<ListenerPhase>,
) {
    let service = service_fn(move |request| service.respond(request, &state));
    let mut connection = pin!(http.serve_connection(TokioIo::new(connection), service));

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
