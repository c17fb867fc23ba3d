//! The service that answers each request: it gives it a call id, rejects a wrong `Host`, answers probes
//! itself, opens trace span and record, applies the concurrency limit, and runs the handler.

use std::sync::Arc;
use std::time::Duration;

use http::header::CONNECTION;
use http::{HeaderValue, StatusCode};
use hyper::body::{Body as _, Incoming};

use super::call_id::CallIdGenerator;
use super::deadline::RequestDeadline;
use super::host_header;
use super::record::{RequestCounters, RequestRecord};
use super::response_future::{CallIdAndVersionHeaders, HandlerRun, ResponseFuture};
use crate::acceptance::Acceptance;
use crate::app::{App, ReadyCheck, ReadyDetail};
use crate::connection_state::ConnectionState;
use crate::context::{Context, SharedContextParts};
use crate::handler::ErasedHandler;
use crate::reply;
use crate::request::Body;
use crate::response::Response;
use crate::settings::Settings;
use crate::trace::RequestTracer;

/// The handler and the probes of a function, with everything that is shared between requests.
pub(crate) struct FunctionService {
    handler: Arc<dyn ErasedHandler>,
    ready: Vec<ReadyCheck>,
    ready_detail: Option<ReadyDetail>,
    health_paths: Vec<String>,
    ready_paths: Vec<String>,
    version: Option<HeaderValue>,
    shared: Arc<SharedContextParts>,
    counters: Arc<RequestCounters>,
    call_ids: CallIdGenerator,
    tracer: RequestTracer,
    read_timeout: Duration,
    exec_timeout: Option<Duration>,
}

impl FunctionService {
    /// Creates the service of the function `app`.
    pub(crate) fn new(
        settings: &Settings,
        app: App,
        shared: Arc<SharedContextParts>,
        counters: Arc<RequestCounters>,
        tracer: RequestTracer,
    ) -> Self {
        Self {
            handler: app.handler,
            ready: app.ready,
            ready_detail: app.ready_detail,
            health_paths: app.health_paths,
            ready_paths: app.ready_paths,
            version: settings.version.clone(),
            shared,
            counters,
            call_ids: CallIdGenerator::default(),
            tracer,
            read_timeout: settings.read_timeout,
            exec_timeout: settings.exec_timeout,
        }
    }

    /// Starts to answer a request; returns the future of the response.
    pub(crate) fn respond(
        self: &Arc<Self>,
        request: http::Request<Incoming>,
        connection: &Arc<ConnectionState>,
    ) -> ResponseFuture {
        let call_id = self.call_ids.callers_id_or_new(request.headers());
        let call_id_text: Arc<str> = call_id.to_str().unwrap_or_default().into();
        let headers = CallIdAndVersionHeaders {
            call_id,
            version: self.version.clone(),
        };
        if let Some(fault) = host_header::wrong_host_header_reason(request.version(), request.headers()) {
            connection.expect_next_request();
            let mut response = reply::message(StatusCode::BAD_REQUEST, fault);
            // Whoever forwarded such a request may take its end for elsewhere.
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
            return ResponseFuture::from_response(response, headers, None);
        }
        if let Some(response) = self.probe_response(request.uri().path()) {
            connection.expect_next_request();
            return ResponseFuture::from_response(response, headers, None);
        }
        let has_body = !request.body().is_end_stream();
        let accepted = self.counters.accepted.as_ref();
        let active = connection.begin_request(has_body, accepted.is_none());
        let acceptance =
            accepted.map(|accepted| Arc::new(Acceptance::new(accepted.clone(), connection.clone())));
        let trace = self.tracer.open_span(&request, &call_id_text);
        let (log_span, trace_context) = (trace.log_span(&call_id_text), trace.context());
        let (record, entered) =
            RequestRecord::begin_request_record(&self.counters, &request, &call_id_text, trace, active);
        let record = record.with_acceptance(acceptance.clone());
        if let Err(exceeded) = entered {
            let response = reply::concurrency_limit_exceeded(exceeded.limit);
            return ResponseFuture::from_response(response, headers, Some(record));
        }
        let request = request.map(|body| match body.is_end_stream() {
            true => Body::empty(),
            false => Body::incoming(body, connection.guard_current_body(), self.read_timeout),
        });
        let deadline = self.exec_timeout.map(|timeout| record.arrived_at() + timeout);
        let context = Context::for_request(call_id_text, deadline, acceptance, self.shared.clone());
        ResponseFuture::Running(HandlerRun {
            future: Some(self.handler.clone().call_boxed(request, context)),
            log_span,
            trace_context,
            headers,
            deadline: deadline.map(RequestDeadline::new),
            record: Some(record),
        })
    }

    /// Returns the response to a health or readiness probe; `None` if `path` is not a probe's path.
    fn probe_response(&self, path: &str) -> Option<Response> {
        if path == "/_/health" || self.health_paths.iter().any(|health| health == path) {
            return Some(reply::text("OK\n"));
        }
        if path != "/_/ready" && self.ready_paths.iter().all(|ready| ready != path) {
            return None;
        }
        let (status, reason) = if self.shared.shutdown.has_begun() {
            (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n")
        } else if self.counters.is_at_limit() {
            (StatusCode::SERVICE_UNAVAILABLE, "max_inflight reached\n")
        } else if !self.ready.iter().all(|check| check()) {
            (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
        } else {
            (StatusCode::OK, "OK\n")
        };
        let detail = self.ready_detail.as_ref().map(|detail| detail());
        let text = format!("{reason}{}", detail.unwrap_or_default());
        Some(reply::message(status, text))
    }
}
