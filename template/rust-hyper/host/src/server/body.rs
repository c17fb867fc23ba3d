//! A response's body on its way out: counted until its end, cut off where it fails.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use tracing::Span;

use super::service::Record;
use crate::error::{BoxError, Chain};
use crate::response::ResponseBody;

/// What goes to hyper. Its record is written when it is dropped: sent, failed, or nobody there to take it.
pub(crate) struct Outgoing {
    body: ResponseBody,
    span: Span,
    deadline: Option<Pin<Box<Sleep>>>,
    _record: Option<Record>,
}

impl Outgoing {
    pub(crate) fn new(
        body: ResponseBody,
        span: Span,
        deadline: Option<Instant>,
        record: Option<Record>,
    ) -> Self {
        // Content that is there already is not late.
        let deadline = match body.size_hint().exact() {
            Some(_) => None,
            None => deadline.map(|deadline| Box::pin(sleep_until(deadline))),
        };
        Self {
            body,
            span,
            deadline,
            _record: record,
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if this.body.size_hint().exact().is_some() {
            return Pin::new(&mut this.body).poll_frame(cx);
        }
        let _entered = this.span.enter();
        if let Some(deadline) = &mut this.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            tracing::error!("exec_timeout is over, the response is cut off");
            this.body = ResponseBody::empty();
            return Poll::Ready(Some(Err("exec_timeout is over".into())));
        }
        let polled = catch_unwind(AssertUnwindSafe(|| Pin::new(&mut this.body).poll_frame(cx)));
        let polled = match polled {
            Ok(polled) => polled,
            // The hook has logged it. An error here makes hyper close the connection without the last chunk.
            Err(_) => Poll::Ready(Some(Err("the response's stream panicked".into()))),
        };
        if let Poll::Ready(Some(Err(error))) = &polled {
            tracing::error!(error = %Chain(error.as_ref()), "the response is cut off");
            this.body = ResponseBody::empty();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
