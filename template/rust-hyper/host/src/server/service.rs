//! One request: probes, the limit, the handler, its record.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};
use tracing::{Instrument, Span};

use super::body::Outgoing;
use super::inflight::{InFlight, Place};
use super::metrics::Metrics;
use crate::body::Body;
use crate::boot::{App, ReadyCheck};
use crate::context::{Context, Platform};
use crate::error::Error;
use crate::handler::Handler;
use crate::reply;
use crate::response::ResponseBody;
use crate::settings::Settings;

const CALL_ID: HeaderName = HeaderName::from_static("x-call-id");

/// A call id of the caller's is taken up to this length; every line of the log carries it.
const MAX_CALL_ID: usize = 128;

/// The status of a request whose client went away before the answer, as nginx counts it. Nobody is sent it.
const CLIENT_GONE: u16 = 499;

/// What answers requests.
pub(crate) struct Service<H> {
    handler: H,
    ready: Vec<ReadyCheck>,
    health_paths: Vec<String>,
    ready_paths: Vec<String>,
    platform: Arc<Platform>,
    inflight: Arc<InFlight>,
    metrics: Arc<Metrics>,
    read_timeout: Duration,
    exec_timeout: Option<Duration>,
}

impl<H: Handler> Service<H> {
    pub(crate) fn new(
        settings: &Settings,
        app: App<H>,
        platform: Arc<Platform>,
        inflight: Arc<InFlight>,
        metrics: Metrics,
    ) -> Self {
        Self {
            handler: app.handler,
            ready: app.ready,
            health_paths: app.health_paths,
            ready_paths: app.ready_paths,
            platform,
            inflight,
            metrics: Arc::new(metrics),
            read_timeout: settings.read_timeout,
            exec_timeout: settings.exec_timeout,
        }
    }

    pub(crate) async fn answer(&self, request: http::Request<Incoming>) -> http::Response<Outgoing> {
        if let Some(response) = self.probe(request.uri().path()) {
            return response.map(|body| Outgoing::new(body, Span::none(), None, None));
        }
        let begun = Instant::now();
        let (id, id_header) = call_id(&request);
        // Of the highest level, so that no filter takes the call id away.
        let span = tracing::error_span!("request", call_id = &*id);
        let mut record = Record {
            status: StatusCode::from_u16(CLIENT_GONE).unwrap_or(StatusCode::BAD_REQUEST),
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            begun,
            span: span.clone(),
            metrics: self.metrics.clone(),
            place: None,
        };
        let deadline = self.exec_timeout.map(|limit| begun + limit);
        let mut response = match self.inflight.enter() {
            Err(limit) => reply::busy(limit),
            Ok(place) => {
                record.place = Some(place);
                let request = request.map(|body| Body::incoming(body, Some(self.read_timeout)));
                let context = Context::of_request(id, deadline, self.platform.clone());
                self.handle(request, context).instrument(span.clone()).await
            }
        };
        record.status = response.status();
        response.headers_mut().entry(CALL_ID).or_insert(id_header);
        response.map(|body| Outgoing::new(body, span, deadline, Some(record)))
    }

    async fn handle(&self, request: crate::Request, context: Context) -> crate::Response {
        let call_id = context.call_id.clone();
        let deadline = context.deadline();
        let caught = catch_panic(async { self.handler.call(request, context).await });
        let outcome = match deadline {
            None => caught.await,
            Some(deadline) => match timeout_at(deadline, caught).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    tracing::error!("exec_timeout is over, the handler is ended");
                    return reply::message(StatusCode::GATEWAY_TIMEOUT, "the function took too long\n");
                }
            },
        };
        match outcome {
            Some(Ok(response)) => response,
            Some(Err(error)) => error.into_response(&call_id),
            // The hook has logged the panic.
            None => Error::status(StatusCode::INTERNAL_SERVER_ERROR, "").into_response(&call_id),
        }
    }

    fn probe(&self, path: &str) -> Option<http::Response<ResponseBody>> {
        if path == "/_/health" || self.health_paths.iter().any(|health| health == path) {
            return Some(reply::text("OK\n"));
        }
        if path != "/_/ready" && self.ready_paths.iter().all(|ready| ready != path) {
            return None;
        }
        let hindrance = if self.platform.shutdown.begun() {
            "ending\n"
        } else if self.inflight.full() {
            "as many requests as max_inflight allows\n"
        } else if !self.ready.iter().all(|check| check()) {
            "not ready\n"
        } else {
            return Some(reply::text("OK\n"));
        };
        Some(reply::message(StatusCode::SERVICE_UNAVAILABLE, hindrance))
    }
}

/// The caller's id where it has one that can be logged, else a new one.
fn call_id(request: &http::Request<Incoming>) -> (Arc<str>, HeaderValue) {
    let given = request.headers().get(CALL_ID);
    if let Some(given) = given
        && let Ok(text) = given.to_str()
        && !text.is_empty()
        && text.len() <= MAX_CALL_ID
    {
        return (text.into(), given.clone());
    }
    let mut buffer = uuid::Uuid::encode_buffer();
    let text = &*uuid::Uuid::new_v4().hyphenated().encode_lower(&mut buffer);
    let header = HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("none"));
    (text.into(), header)
}

/// What becomes of `future`, or `None` where it panics.
async fn catch_panic<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    std::future::poll_fn(
        |cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(Poll::Ready(output)) => Poll::Ready(Some(output)),
            Ok(Poll::Pending) => Poll::Pending,
            Err(_) => Poll::Ready(None),
        },
    )
    .await
}

/// What is counted and logged of a request when all of it is over.
pub(crate) struct Record {
    status: StatusCode,
    method: Method,
    path: String,
    begun: Instant,
    span: Span,
    metrics: Arc<Metrics>,
    place: Option<Place>,
}

impl Drop for Record {
    fn drop(&mut self) {
        let took = self.begun.elapsed();
        self.metrics.observe(self.status, &self.method, took);
        drop(self.place.take());
        tracing::debug!(
            parent: &self.span,
            method = %self.method,
            path = self.path,
            status = self.status.as_u16(),
            seconds = took.as_secs_f64(),
            "request"
        );
    }
}
