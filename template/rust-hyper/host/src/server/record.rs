//! What is counted of a request, once all of it is over.

use std::sync::Arc;

use http::{Method, StatusCode};
use tokio::time::Instant;

use super::inflight::InFlight;
use super::metrics::Metrics;
use super::stage::Turn;
use crate::trace::Span;

/// What requests are counted in.
pub(crate) struct Ledger {
    pub(crate) inflight: InFlight,
    pub(crate) metrics: Metrics,
}

/// One request from its head to the end of its answer. Dropping it counts it, however it ended.
pub(crate) struct Record {
    ledger: Arc<Ledger>,
    begun: Instant,
    method: Method,
    status: u16,
    counted_in: bool,
    told: Option<Told>,
    trace: Span,
    _turn: Turn,
}

/// What the log is told, where it listens.
struct Told {
    path: String,
    call_id: Arc<str>,
}

/// The status of a request whose client went away before the answer, as nginx counts it. Nobody is sent it.
const CLIENT_GONE: u16 = 499;

impl Record {
    /// Opens the record of a request; the error is the limit that is reached, and the record that of a refusal.
    pub(crate) fn open(
        ledger: &Arc<Ledger>,
        request: &http::Request<hyper::body::Incoming>,
        call_id: &Arc<str>,
        trace: Span,
        turn: Turn,
    ) -> (Self, Result<(), usize>) {
        let entered = ledger.inflight.enter();
        let told = tracing::enabled!(tracing::Level::DEBUG).then(|| Told {
            path: request.uri().path().to_owned(),
            call_id: call_id.clone(),
        });
        let record = Self {
            ledger: ledger.clone(),
            begun: Instant::now(),
            method: request.method().clone(),
            status: CLIENT_GONE,
            counted_in: entered.is_ok(),
            told,
            trace,
            _turn: turn,
        };
        (record, entered)
    }

    /// When the request began.
    pub(crate) fn begun(&self) -> Instant {
        self.begun
    }

    /// What it is answered with.
    pub(crate) fn answered(&mut self, status: StatusCode) {
        self.status = status.as_u16();
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.counted_in {
            self.ledger.inflight.leave();
        }
        let took = self.begun.elapsed();
        self.ledger.metrics.observe(self.status, &self.method, took);
        match self.status {
            CLIENT_GONE => self.trace.abandoned(),
            status => self.trace.answered(status),
        }
        if let Some(Told { path, call_id }) = &self.told {
            let (method, seconds) = (self.method.as_str(), took.as_secs_f64());
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
