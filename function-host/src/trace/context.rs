//! The OpenTelemetry context that code runs in: the current span, and the tracer that opens spans within it.

use std::future::Future;
use std::pin::Pin;
use std::task::{self, Poll};

use opentelemetry::{Context, ContextGuard};
use opentelemetry_sdk::trace::SdkTracer;

/// The tracer of an OpenTelemetry context. Only a context with a tracer is traced.
struct ContextTracer(SdkTracer);

/// Returns an OpenTelemetry context with a tracer, so that spans can be opened within it.
pub(super) fn context_with_tracer(context: &Context, tracer: SdkTracer) -> Context {
    context.with_value(ContextTracer(tracer))
}

/// Returns the tracer of an OpenTelemetry context, if the context is traced.
pub(super) fn tracer_of_context(context: &Context) -> Option<&SdkTracer> {
    context.get::<ContextTracer>().map(|ContextTracer(tracer)| tracer)
}

/// The OpenTelemetry context of a span; empty if the request is not traced.
#[derive(Clone, Debug, Default)]
pub(crate) struct TraceContext(Option<Context>);

/// A guard that keeps a [`TraceContext`] current on this thread until it is dropped.
pub(crate) struct EnteredContext(
    #[expect(dead_code, reason = "dropping it restores the previous context")] Option<ContextGuard>,
);

impl TraceContext {
    pub(super) fn new(context: Option<Context>) -> Self {
        Self(context)
    }

    /// Returns the current trace context of this thread.
    pub(super) fn current() -> Self {
        let context = Context::current();
        Self(tracer_of_context(&context).is_some().then_some(context))
    }

    /// Makes this trace context the current one of this thread, until the guard is dropped.
    pub(crate) fn make_current(&self) -> EnteredContext {
        EnteredContext(self.0.clone().map(Context::attach))
    }

    /// Wraps `future` so that this trace context is the current one whenever it is polled.
    pub(super) fn wrap_in_context<F>(self, future: F) -> InSpanFuture<F> {
        InSpanFuture {
            future,
            context: self,
        }
    }
}

pin_project_lite::pin_project! {
    /// A future that runs in a trace span: spans that it opens are children of that span.
    #[derive(Debug)]
    pub struct InSpanFuture<F> {
        #[pin]
        future: F,
        context: TraceContext,
    }
}

impl<F: Future> Future for InSpanFuture<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _entered = this.context.make_current();
        this.future.poll(cx)
    }
}
