//! The record of a request, which is counted, traced and logged when the request ends.

use std::sync::Arc;

use http::{Method, StatusCode};
use tokio::time::Instant;

use super::metrics::RequestMetrics;
use crate::acceptance::Acceptance;
use crate::connection_state::ActiveRequestGuard;
use crate::inflight::{ConcurrencyLimitExceeded, InFlightLimiter};
use crate::trace::Span;

/// The counter of requests in flight, and the metrics of requests that ended.
pub(crate) struct RequestCounters {
    pub(crate) inflight: Arc<InFlightLimiter>,
    /// The counter of accepted requests, for a function that verifies requests. The limit is then on these.
    pub(crate) accepted: Option<Arc<InFlightLimiter>>,
    pub(crate) metrics: RequestMetrics,
}

impl RequestCounters {
    /// Returns whether `max_inflight` is reached: by accepted requests in a function that verifies them, otherwise by
    /// all requests in flight.
    pub(crate) fn is_at_limit(&self) -> bool {
        self.accepted.as_ref().unwrap_or(&self.inflight).is_at_limit()
    }
}

/// The record of one request, from its head to the end of its response. Dropping it counts the request, ends its trace
/// span and logs it (at the level debug).
pub(crate) struct RequestRecord {
    counters: Arc<RequestCounters>,
    start: Instant,
    method: Method,
    status: u16,
    admitted: bool,
    log_fields: Option<RequestLogFields>,
    trace: Span,
    acceptance: Option<Arc<Acceptance>>,
    _active: ActiveRequestGuard,
}

/// The fields of a request's line in the log.
struct RequestLogFields {
    path: String,
    call_id: Arc<str>,
}

/// The status of a request whose client disconnected before the response, as in nginx. It is counted and never sent.
const CLIENT_CLOSED_REQUEST_STATUS: u16 = 499;

impl RequestRecord {
    /// Opens the record of a request. The result has an error if the request is over `max_inflight`.
    pub(crate) fn begin_request_record(
        counters: &Arc<RequestCounters>,
        request: &http::Request<hyper::body::Incoming>,
        call_id: &Arc<str>,
        trace: Span,
        active: ActiveRequestGuard,
    ) -> (Self, Result<(), ConcurrencyLimitExceeded>) {
        let entered = counters.inflight.count_request_in();
        let log_fields = tracing::enabled!(tracing::Level::DEBUG).then(|| RequestLogFields {
            path: request.uri().path().to_owned(),
            call_id: call_id.clone(),
        });
        let record = Self {
            counters: counters.clone(),
            start: Instant::now(),
            method: request.method().clone(),
            status: CLIENT_CLOSED_REQUEST_STATUS,
            admitted: entered.is_ok(),
            log_fields,
            trace,
            acceptance: None,
            _active: active,
        };
        (record, entered)
    }

    /// Adds the acceptance of the request, which ends with the record.
    pub(crate) fn with_acceptance(mut self, acceptance: Option<Arc<Acceptance>>) -> Self {
        self.acceptance = acceptance;
        self
    }

    /// Returns whether the connection must not be used for further requests: the function verifies requests and has not
    /// accepted this one, or the connection has a large buffer.
    pub(crate) fn must_close_connection_afterwards(&self) -> bool {
        self.acceptance
            .as_ref()
            .is_some_and(|acceptance| acceptance.must_close_connection_afterwards())
    }

    /// Returns the time at which the request's head arrived.
    pub(crate) fn arrived_at(&self) -> Instant {
        self.start
    }

    /// Records the status of the response to the request.
    pub(crate) fn set_response_status(&mut self, status: StatusCode) {
        self.status = status.as_u16();
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        if self.admitted {
            self.counters.inflight.count_request_out();
        }
        if let Some(acceptance) = &self.acceptance {
            acceptance.record_end();
        }
        let duration = self.start.elapsed();
        self.counters
            .metrics
            .record_request(self.status, &self.method, duration);
        match self.status {
            CLIENT_CLOSED_REQUEST_STATUS => self.trace.mark_disconnected_before_response(),
            status => self.trace.set_response_status(status),
        }
        if let Some(RequestLogFields { path, call_id }) = &self.log_fields {
            let (method, seconds) = (self.method.as_str(), duration.as_secs_f64());
            tracing::debug!(
                call_id = &**call_id,
                method,
                path,
                status = self.status,
                seconds,
                "request"
            );
        }
    }
}
