//! The HTTP server: connections, requests, responses, and the page of metrics.

mod announced_body;
mod call_id;
mod connection;
mod connection_budget;
mod deadline;
mod host_header;
mod lazy_timer;
mod metrics;
mod outgoing_body;
mod record;
mod response_future;
mod service;
#[cfg(test)]
mod tests;
mod timed_connection;

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use prometheus::{Registry, TEXT_FORMAT, TextEncoder};
use tokio::net::TcpListener;

use crate::app::App;
use crate::connection_state::ConnectionState;
use crate::context::SharedContextParts;
use crate::inflight::InFlightLimiter;
use crate::settings::Settings;
use crate::trace::RequestTracer;
use connection::{ConnectionService, ListenerLimits, ServedListener};
use connection_budget::{ConnectionBudget, ConnectionLimits};
use metrics::{InFlightCollector, RequestMetrics};
use outgoing_body::OutgoingResponseBody;
use record::RequestCounters;
use response_future::ResponseFuture;
use service::FunctionService;
use timed_connection::ConnectionTimeouts;

/// The HTTP server of a function and of its page of metrics.
pub(crate) struct Server {
    limits: ListenerLimits,
    metrics_limits: ListenerLimits,
    counters: Arc<RequestCounters>,
    service: Arc<FunctionService>,
    registry: Registry,
}

impl Server {
    /// Creates the HTTP server of the function `app`, and registers its metrics in `registry`.
    pub(crate) fn new(
        settings: &Settings,
        app: App,
        shared: Arc<SharedContextParts>,
        registry: Registry,
        tracer: RequestTracer,
    ) -> Result<Self, prometheus::Error> {
        let limit = settings
            .max_inflight
            .filter(|_| !app.leave_inflight_limit_to_handler);
        let limit_of_all = limit.filter(|_| app.unverified_senders.is_none());
        let inflight = Arc::new(InFlightLimiter::new(limit_of_all));
        registry.register(Box::new(InFlightCollector::new(inflight.clone())?))?;
        let counters = Arc::new(RequestCounters {
            inflight,
            accepted: app
                .unverified_senders
                .map(|_| Arc::new(InFlightLimiter::new(limit))),
            metrics: RequestMetrics::new(&registry)?,
        });
        let displaced = metrics::register_displaced_connection_counter(&registry)?;
        let limits = |connections: ConnectionLimits| ListenerLimits {
            timeouts: connection_timeouts(settings),
            max_headers: settings.max_headers,
            max_header_bytes: settings.max_header_bytes,
            budget: ConnectionBudget::new(connections, displaced.clone()),
        };
        let connections = ConnectionLimits {
            waiting: settings.max_connections,
            buffers: app.unverified_senders.map(|_| STRANGERS_BUFFERS_MAX_BYTES),
            places: app
                .unverified_senders
                .map(|senders| senders.saturating_add(EXTRA_UNAUTHENTICATED_CONNECTIONS)),
        };
        let (limits, metrics_limits) = (limits(connections), limits(METRICS_CONNECTION_LIMITS));
        let service = Arc::new(FunctionService::new(
            settings,
            app,
            shared,
            counters.clone(),
            tracer,
        ));
        Ok(Self {
            limits,
            metrics_limits,
            counters,
            service,
            registry,
        })
    }

    /// Starts to serve the function on a listener.
    pub(crate) fn serve_function(&self, listener: TcpListener) -> ServedListener {
        ServedListener::spawn_accept_loop(listener, self.limits.clone(), self.service.clone())
    }

    /// Starts to serve the page of metrics on a listener.
    pub(crate) fn serve_metrics(&self, listener: TcpListener) -> ServedListener {
        let page = MetricsPageService(self.registry.clone());
        ServedListener::spawn_accept_loop(listener, self.metrics_limits.clone(), page)
    }

    /// Returns the number of requests to the function that are in flight.
    pub(crate) fn requests_in_flight(&self) -> usize {
        self.counters.inflight.in_flight_count()
    }
}

/// The limit, in bytes, on the read buffers of all connections that wait for a request, in a function that verifies
/// requests and so expects strangers. Ordinary heads are complete when they arrive.
const STRANGERS_BUFFERS_MAX_BYTES: usize = 2 << 20;

/// The number of connections that are served before they have sent an authentic request, besides those whose bodies the
/// handler receives. It is larger than the number of those that may wait for a request with a buffer, so that some are
/// always about to end.
const EXTRA_UNAUTHENTICATED_CONNECTIONS: usize = 192;

/// The limits on connections to the port of the metrics page.
const METRICS_CONNECTION_LIMITS: ConnectionLimits = ConnectionLimits {
    waiting: 64,
    buffers: Some(512 << 10),
    places: None,
};

/// The highest timeout for the head of a request; a shorter `read_timeout` takes its place. Functions often have a
/// `read_timeout` that is as long as their longest request, because other hosts use it as a limit for a whole request.
const MAX_HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// The time for which a connection may idle after a request.
///
/// Clients keep connections for a while, the gateway for 90 s. If the server closes a connection just as the client
/// reuses it, the client gets an error that it may not retry.
const IDLE_TIMEOUT: Duration = Duration::from_secs(95);

/// Returns the timeouts of connections, from `read_timeout` and `write_timeout`.
fn connection_timeouts(settings: &Settings) -> ConnectionTimeouts {
    let (read, write) = (settings.read_timeout, settings.write_timeout);
    ConnectionTimeouts {
        head: read.min(MAX_HEAD_TIMEOUT),
        read,
        write,
        idle: IDLE_TIMEOUT,
    }
}

impl ConnectionService for Arc<FunctionService> {
    type ResponseBody = OutgoingResponseBody;
    type ResponseFuture = ResponseFuture;

    fn respond(&self, request: Request<Incoming>, connection: &Arc<ConnectionState>) -> ResponseFuture {
        FunctionService::respond(self, request, connection)
    }
}

/// The service that answers requests for the page of metrics, `/metrics`.
#[derive(Clone)]
struct MetricsPageService(Registry);

impl MetricsPageService {
    /// Returns the page of metrics for the path `/metrics`, and status 404 for another path.
    fn metrics_or_404_response(&self, path: &str) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::default());
        if path != "/metrics" {
            *response.status_mut() = StatusCode::NOT_FOUND;
            return response;
        }
        match TextEncoder::new().encode_to_string(&self.0.gather()) {
            Ok(text) => {
                response
                    .headers_mut()
                    .insert(CONTENT_TYPE, HeaderValue::from_static(TEXT_FORMAT));
                *response.body_mut() = Full::from(text);
            }
            Err(error) => {
                tracing::error!(%error, "could not encode the metrics");
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            }
        }
        response
    }
}

impl ConnectionService for MetricsPageService {
    type ResponseBody = Full<Bytes>;
    type ResponseFuture = Ready<Result<Response<Full<Bytes>>, Infallible>>;

    fn respond(&self, request: Request<Incoming>, connection: &Arc<ConnectionState>) -> Self::ResponseFuture {
        connection.expect_next_request();
        let response = match host_header::wrong_host_header_reason(request.version(), request.headers()) {
            Some(_) => {
                let mut response = Response::new(Full::default());
                *response.status_mut() = StatusCode::BAD_REQUEST;
                response
            }
            None => self.metrics_or_404_response(request.uri().path()),
        };
        ready(Ok(response))
    }
}
