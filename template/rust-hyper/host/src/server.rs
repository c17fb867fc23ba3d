//! The HTTP server: connections, requests, responses, and the page of metrics.

mod call_id;
mod connection;
mod deadline;
mod host_header;
mod inflight;
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
use crate::context::Platform;
use crate::handler::Handler;
use crate::settings::Settings;
use crate::trace::RequestTracer;
use connection::{ConnectionService, ServedListener};
use inflight::InFlightLimiter;
use metrics::{InFlightGauge, RequestMetrics};
use outgoing_body::OutgoingBody;
use record::RequestCounters;
use response_future::ResponseFuture;
use service::FunctionService;
use timed_connection::ConnectionTimeouts;

/// A function that can be served, with its metrics.
pub(crate) struct Server<H> {
    timeouts: ConnectionTimeouts,
    max_headers: usize,
    counters: Arc<RequestCounters>,
    service: Arc<FunctionService<H>>,
    registry: Registry,
}

impl<H: Handler> Server<H> {
    /// Creates the HTTP server of the function `app`, and registers its metrics in `registry`.
    pub(crate) fn new(
        settings: &Settings,
        app: App<H>,
        platform: Arc<Platform>,
        registry: Registry,
        tracer: RequestTracer,
    ) -> Result<Self, prometheus::Error> {
        let limit = settings.max_inflight.filter(|_| !app.limits_itself);
        let inflight = Arc::new(InFlightLimiter::new(limit));
        registry.register(Box::new(InFlightGauge::new(inflight.clone())?))?;
        let counters = Arc::new(RequestCounters {
            inflight,
            metrics: RequestMetrics::new(&registry)?,
        });
        let service = Arc::new(FunctionService::new(
            settings,
            app,
            platform,
            counters.clone(),
            tracer,
        ));
        Ok(Self {
            timeouts: connection_timeouts(settings),
            max_headers: settings.max_headers,
            counters,
            service,
            registry,
        })
    }

    /// Starts to serve the function on a listener.
    pub(crate) fn serve_function(&self, listener: TcpListener) -> ServedListener {
        ServedListener::spawn_accept_loop(listener, self.timeouts, self.max_headers, self.service.clone())
    }

    /// Starts to serve the page of metrics on a listener.
    pub(crate) fn serve_metrics(&self, listener: TcpListener) -> ServedListener {
        let page = MetricsPageService(self.registry.clone());
        ServedListener::spawn_accept_loop(listener, self.timeouts, self.max_headers, page)
    }

    /// Returns the number of requests to the function that are in flight.
    pub(crate) fn requests_in_flight(&self) -> usize {
        self.counters.inflight.in_flight_count()
    }
}

/// The idle timeout of a connection, unless `read_timeout` is longer.
///
/// Clients keep connections for a while. If the server closes a connection just as the client reuses it, the client
/// gets an error that it may not retry.
const MIN_IDLE_TIMEOUT: Duration = Duration::from_secs(120);

fn connection_timeouts(settings: &Settings) -> ConnectionTimeouts {
    let (read, write) = (settings.read_timeout, settings.write_timeout);
    ConnectionTimeouts {
        read,
        write,
        idle: MIN_IDLE_TIMEOUT.max(read),
    }
}

impl<H: Handler> ConnectionService for Arc<FunctionService<H>> {
    type ResponseBody = OutgoingBody;
    type ResponseFuture = ResponseFuture;

    fn respond(&self, request: Request<Incoming>, connection: &Arc<ConnectionState>) -> ResponseFuture {
        FunctionService::respond(self, request, connection)
    }
}

/// The service that answers requests for the page of metrics, `/metrics`.
#[derive(Clone)]
struct MetricsPageService(Registry);

impl MetricsPageService {
    fn metrics_response(&self, path: &str) -> Response<Full<Bytes>> {
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

    fn respond(
        &self,
        request: Request<Incoming>,
        _connection: &Arc<ConnectionState>,
    ) -> Self::ResponseFuture {
        let response = match host_header::fault(request.version(), request.headers()) {
            Some(_) => {
                let mut response = Response::new(Full::default());
                *response.status_mut() = StatusCode::BAD_REQUEST;
                response
            }
            None => self.metrics_response(request.uri().path()),
        };
        ready(Ok(response))
    }
}
