//! One trace span: an operation, with its start, its end and its outcome.

use std::borrow::Cow;
use std::fmt;
use std::time::SystemTime;

use http::HeaderMap;
use opentelemetry::trace::{SpanBuilder, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_sdk::trace::SdkTracer;

use super::context::{InSpanFuture, TraceContext, context_with_tracer, tracer_of_context};
use super::propagation;

/// The length of the longest text in a span's attribute, in bytes. Thousands of spans may be queued, with
/// texts that callers choose.
const MAX_ATTRIBUTE_TEXT_BYTES: usize = 512;

/// A trace span, which ends when it is dropped. Without a collector, and outside a traced request, it is empty, and its
/// methods do nothing.
#[derive(Debug, Default)]
pub struct Span(Option<Context>);

/// The HTTP method of the request that is being served, stored in its OpenTelemetry context.
struct CurrentRequestMethod(&'static str);

/// Sets the route in the trace span of the request that `context` belongs to.
pub(super) fn set_route(context: &Context, route: &'static str) {
    if let Some(CurrentRequestMethod(method)) = context.get() {
        let span = context.span();
        span.update_name(format!("{method} {route}"));
        span.set_attribute(KeyValue::new("http.route", route));
    }
}

impl Span {
    /// Creates an empty trace span, which is not exported.
    pub fn empty() -> Self {
        Self(None)
    }

    /// Opens the trace span of a request, as a child of the span in `caller`, or in a new trace if `caller`
    /// has none.
    pub(super) fn for_request(
        tracer: &SdkTracer,
        caller: &Context,
        method: &'static str,
        attributes: Vec<KeyValue>,
    ) -> Self {
        let context = context_with_tracer(caller, tracer.clone()).with_value(CurrentRequestMethod(method));
        let builder = SpanBuilder::from_name(method)
            .with_kind(SpanKind::Server)
            .with_attributes(attributes);
        Self::open_from_builder(tracer, builder, &context)
    }

    /// Opens a child of the trace span in `context`; returns an empty span if the context is not traced.
    pub(super) fn child_of(context: &Context, name: Cow<'static, str>, kind: SpanKind) -> Self {
        let Some(tracer) = tracer_of_context(context) else {
            return Self(None);
        };
        Self::open_from_builder(tracer, SpanBuilder::from_name(name).with_kind(kind), context)
    }

    fn open_from_builder(tracer: &SdkTracer, builder: SpanBuilder, context: &Context) -> Self {
        let span = tracer.build_with_context(builder, context);
        Self(Some(context.with_span(span)))
    }

    /// Opens a child of this trace span that started at the time `start`. The child is empty if this span is.
    pub fn child_started_at(&self, name: impl Into<Cow<'static, str>>, start: SystemTime) -> Self {
        let opened = self.0.as_ref().and_then(|context| {
            let builder = SpanBuilder::from_name(name).with_start_time(start);
            Some(Self::open_from_builder(
                tracer_of_context(context)?,
                builder,
                context,
            ))
        });
        opened.unwrap_or_default()
    }

    /// Returns whether the trace span is recorded, and will be exported. If not, its attributes need not be computed.
    pub fn is_recording(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|context| context.span().is_recording())
    }

    /// Sets an attribute of the trace span. Text is truncated to 512 bytes.
    ///
    /// Common names are listed at <https://opentelemetry.io/docs/specs/semconv/>.
    pub fn set_attribute(&self, key: &'static str, value: impl Into<Value>) {
        if let Some(context) = &self.0 {
            context.span().set_attribute(truncated_attribute(key, value));
        }
    }

    /// Marks the trace span as failed. The reason is exported, so it must not contain secrets.
    pub fn mark_failed(&self, reason: impl fmt::Display) {
        if let Some(context) = self.0.as_ref().filter(|context| context.span().is_recording()) {
            context.span().set_status(Status::error(
                truncate_attribute_text(&reason.to_string()).to_owned(),
            ));
        }
    }

    /// Wraps `future` so that it runs in this trace span: spans that it opens are children of this one. Nothing runs
    /// until the result is awaited.
    pub fn run<F>(&self, future: F) -> InSpanFuture<F> {
        self.context().wrap_in_context(future)
    }

    /// Sets the trace headers of a request, which name this span as the caller.
    pub fn inject_headers(&self, headers: &mut HeaderMap) {
        if let Some(context) = &self.0 {
            propagation::inject_context(context, headers);
        }
    }

    /// Ends the trace span at the given time instead of now.
    pub fn end_at(self, end: SystemTime) {
        if let Some(context) = &self.0 {
            context.span().end_with_timestamp(end);
        }
    }

    /// Returns the trace context in which this span is the current one.
    pub(crate) fn context(&self) -> TraceContext {
        TraceContext::new(self.0.clone())
    }

    /// Returns the `tracing` span of a request, whose fields are in all of its log lines.
    ///
    /// The fields are the call id, and the trace id if the trace is sampled.
    pub(crate) fn log_span(&self, call_id: &str) -> tracing::Span {
        let context = self
            .0
            .as_ref()
            .map(|context| context.span().span_context().clone());
        // At the highest level, so that no filter removes the call id.
        match context.filter(|context| context.is_sampled()) {
            Some(context) => {
                let trace_id = context.trace_id().to_string();
                tracing::error_span!("request", call_id, trace_id)
            }
            None => tracing::error_span!("request", call_id),
        }
    }

    /// Records the response's status code in the trace span; from 500 on, marks the span as failed.
    pub(crate) fn set_response_status(&self, status: u16) {
        self.set_attribute("http.response.status_code", i64::from(status));
        if status >= 500 {
            self.set_attribute("error.type", status.to_string());
            self.mark_failed("");
        }
    }

    /// Marks the trace span as failed because the client disconnected before there was a response.
    pub(crate) fn mark_disconnected_before_response(&self) {
        self.set_attribute("error.type", "abandoned");
        self.mark_failed("the client disconnected");
    }
}

/// Creates an attribute of a trace span, with text truncated to [`MAX_ATTRIBUTE_TEXT_BYTES`].
pub(super) fn truncated_attribute(key: &'static str, value: impl Into<Value>) -> KeyValue {
    let value = match value.into() {
        Value::String(text) if text.as_str().len() > MAX_ATTRIBUTE_TEXT_BYTES => {
            truncate_attribute_text(text.as_str()).to_owned().into()
        }
        value => value,
    };
    KeyValue::new(key, value)
}

/// Truncates `text` to at most [`MAX_ATTRIBUTE_TEXT_BYTES`] bytes, at the boundary of a character.
pub(super) fn truncate_attribute_text(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_ATTRIBUTE_TEXT_BYTES)]
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(context) = &self.0 {
            context.span().end();
        }
    }
}
