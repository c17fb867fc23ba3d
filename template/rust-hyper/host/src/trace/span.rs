//! One span: something that was done, from when to when, and how it ended.

use std::borrow::Cow;
use std::fmt;
use std::time::SystemTime;

use http::HeaderMap;
use opentelemetry::trace::{SpanBuilder, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_sdk::trace::SdkTracer;

use super::context::{InSpan, Scope};
use super::propagation;

/// As much is told of a text, in bytes: thousands of spans may wait, with texts from outside.
const TEXT_MAX: usize = 512;

/// Something that is being done. The span ends when this is dropped. Where nothing is traced, it is none, and nothing here
/// does anything.
#[derive(Debug, Default)]
pub struct Span(Option<Context>);

/// What opens spans, as part of the context of those who may.
struct Opener(SdkTracer);

/// Whether there is a span that others can be opened in.
pub(super) fn is_traced(context: &Context) -> bool {
    context.get::<Opener>().is_some()
}

/// Names the route by which a request is served, where the context's span is that of a request.
pub(super) fn name_route(context: &Context, route: &'static str) {
    if let Some(Method(method)) = context.get() {
        let span = context.span();
        span.update_name(format!("{method} {route}"));
        span.set_attribute(KeyValue::new("http.route", route));
    }
}

/// The method of the request that is being served.
struct Method(&'static str);

impl Span {
    /// No span.
    pub fn none() -> Self {
        Self(None)
    }

    /// The span of a request, in the trace of `caller`, where that is known.
    pub(super) fn of_request(
        tracer: &SdkTracer,
        caller: &Context,
        method: &'static str,
        attributes: Vec<KeyValue>,
    ) -> Self {
        let context = caller
            .with_value(Opener(tracer.clone()))
            .with_value(Method(method));
        let builder = SpanBuilder::from_name(method)
            .with_kind(SpanKind::Server)
            .with_attributes(attributes);
        Self::open(tracer, builder, &context)
    }

    /// A span within that of the context, where there is one.
    pub(super) fn within(context: &Context, name: Cow<'static, str>, kind: SpanKind) -> Self {
        let Some(Opener(tracer)) = context.get() else {
            return Self(None);
        };
        Self::open(tracer, SpanBuilder::from_name(name).with_kind(kind), context)
    }

    fn open(tracer: &SdkTracer, builder: SpanBuilder, context: &Context) -> Self {
        let span = tracer.build_with_context(builder, context);
        Self(Some(context.with_span(span)))
    }

    /// A span within this one, of something that began earlier.
    pub fn child_started_at(&self, name: impl Into<Cow<'static, str>>, at: SystemTime) -> Self {
        let opened = self.0.as_ref().and_then(|context| {
            let Opener(tracer) = context.get()?;
            let builder = SpanBuilder::from_name(name).with_start_time(at);
            Some(Self::open(tracer, builder, context))
        });
        opened.unwrap_or_default()
    }

    /// Whether anything will be told of it. Without, what is only there to be told need not be made.
    pub fn is_recording(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|context| context.span().is_recording())
    }

    /// Adds what there is to know about it. Names: <https://opentelemetry.io/docs/specs/semconv/>.
    /// A long text is cut.
    pub fn set(&self, key: &'static str, value: impl Into<Value>) {
        if let Some(context) = &self.0 {
            context.span().set_attribute(attribute(key, value));
        }
    }

    /// It failed, for this reason. That is told outside: no secret belongs in it.
    pub fn mark_failed(&self, reason: impl fmt::Display) {
        if let Some(context) = self.0.as_ref().filter(|context| context.span().is_recording()) {
            context
                .span()
                .set_status(Status::error(cut(&reason.to_string()).to_owned()));
        }
    }

    /// Runs `future` in it: spans that are opened there are within this one.
    pub fn run<F>(&self, future: F) -> InSpan<F> {
        self.scope().run(future)
    }

    /// Names it to whoever is sent these headers, as their caller.
    pub fn inject(&self, headers: &mut HeaderMap) {
        if let Some(context) = &self.0 {
            propagation::inject(context, headers);
        }
    }

    /// Ends it, at a time that is not now.
    pub fn end_at(self, at: SystemTime) {
        if let Some(context) = &self.0 {
            context.span().end_with_timestamp(at);
        }
    }

    pub(crate) fn scope(&self) -> Scope {
        Scope::of(self.0.clone())
    }

    /// What lines of the log are in. Where the request is traced, they have its trace's id.
    pub(crate) fn log_span(&self, call_id: &str) -> tracing::Span {
        let context = self
            .0
            .as_ref()
            .map(|context| context.span().span_context().clone());
        // Of the highest level, so that no filter takes the call id away.
        match context.filter(|context| context.is_sampled()) {
            Some(context) => {
                let trace_id = context.trace_id().to_string();
                tracing::error_span!("request", call_id, trace_id)
            }
            None => tracing::error_span!("request", call_id),
        }
    }

    /// What a request was answered with.
    pub(crate) fn answered(&self, status: u16) {
        self.set("http.response.status_code", i64::from(status));
        if status >= 500 {
            self.set("error.type", status.to_string());
            self.mark_failed("");
        }
    }

    /// Whoever asked has not waited for the end of the answer.
    pub(crate) fn abandoned(&self) {
        self.set("error.type", "abandoned");
        self.mark_failed("the caller went away");
    }
}

/// An attribute that takes no more than so much memory.
pub(super) fn attribute(key: &'static str, value: impl Into<Value>) -> KeyValue {
    let value = match value.into() {
        Value::String(text) if text.as_str().len() > TEXT_MAX => cut(text.as_str()).to_owned().into(),
        value => value,
    };
    KeyValue::new(key, value)
}

/// As much of a text as is told.
pub(super) fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_MAX)]
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(context) = &self.0 {
            context.span().end();
        }
    }
}
