//! Which span something runs in.

use std::future::Future;
use std::pin::Pin;
use std::task::{self, Poll};

use opentelemetry::{Context, ContextGuard};

/// The span that something runs in, which may be none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scope(Option<Context>);

/// While this lives, the scope is the current one.
pub(crate) struct Entered(#[expect(dead_code, reason = "it is held, not used")] Option<ContextGuard>);

impl Scope {
    pub(super) fn of(context: Option<Context>) -> Self {
        Self(context)
    }

    /// That of whoever calls this.
    pub(super) fn current() -> Self {
        let context = Context::current();
        Self(super::span::is_traced(&context).then_some(context))
    }

    /// Makes it the current one.
    pub(crate) fn enter(&self) -> Entered {
        Entered(self.0.clone().map(Context::attach))
    }

    pub(super) fn run<F>(self, future: F) -> InSpan<F> {
        InSpan { future, scope: self }
    }
}

pin_project_lite::pin_project! {
    /// A future and the span that it runs in.
    #[derive(Debug)]
    pub struct InSpan<F> {
        #[pin]
        future: F,
        scope: Scope,
    }
}

impl<F: Future> Future for InSpan<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _entered = this.scope.enter();
        this.future.poll(cx)
    }
}
