//! The replacement of the module `trace` in a function without the feature `traces`. It does nothing, at no
//! cost.

use std::time::Duration;

use crate::env::SettingsParser;
use crate::error_chain::BoxError;
use crate::secret::Secrets;

/// The settings of traces, of which there are none without the feature `traces`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings(());

impl Settings {
    pub(crate) fn read(_parser: &mut SettingsParser<'_>, _secrets: &Secrets) -> Self {
        Self(())
    }

    pub(crate) fn flush_timeout(&self) -> Duration {
        Duration::ZERO
    }

    pub(crate) fn start_export_if_enabled(
        self,
        _default_service_name: Option<&'static str>,
    ) -> Result<RequestTracer, BoxError> {
        Ok(RequestTracer(()))
    }
}

/// A tracer that traces nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct RequestTracer(());

impl RequestTracer {
    pub(crate) fn open_span<B>(&self, _request: &http::Request<B>, _call_id: &str) -> Span {
        Span(())
    }

    pub(crate) async fn flush_and_stop_export(&self) {}
}

/// A trace span that is not recorded.
#[derive(Debug, Default)]
pub(crate) struct Span(());

impl Span {
    /// Returns the `tracing` span of a request, with the call id.
    pub(crate) fn log_span(&self, call_id: &str) -> tracing::Span {
        // At the highest level, so that no filter removes the call id.
        tracing::error_span!("request", call_id)
    }

    pub(crate) fn context(&self) -> TraceContext {
        TraceContext(())
    }

    pub(crate) fn set_response_status(&self, _status: u16) {}

    pub(crate) fn mark_disconnected_before_response(&self) {}

    pub(crate) fn mark_failed(&self, _reason: impl std::fmt::Display) {}
}

/// Returns a span that is not recorded, and leaves the request unchanged.
pub(crate) fn open_outgoing_span_and_inject_headers<B>(_request: &mut http::Request<B>) -> Span {
    Span(())
}

/// The trace context of a span that is not recorded.
#[derive(Clone, Debug, Default)]
pub(crate) struct TraceContext(());

/// A guard that keeps a [`TraceContext`] current on this thread until it is dropped.
pub(crate) struct EnteredContext;

impl TraceContext {
    pub(crate) fn make_current(&self) -> EnteredContext {
        EnteredContext
    }
}
