//! A response's body on its way out: counted until its end, cut off where it fails.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tracing::Span;

use super::answer::Deadline;
use super::record::Record;
use crate::error::{BoxError, ErrorChain};
use crate::response::ResponseBody;
use crate::trace::Scope;

/// What goes to hyper. Its record is closed when it is dropped: sent, failed, or nobody there to take it.
pub(crate) struct Outgoing {
    body: ResponseBody,
    _record: Option<Record>,
    /// There is none where the content is known already: it cannot be late, fail or panic.
    stream: Option<Box<Stream>>,
}

struct Stream {
    deadline: Option<Deadline>,
    span: Span,
    scope: Scope,
}

impl Outgoing {
    pub(crate) fn new(
        body: ResponseBody,
        record: Option<Record>,
        deadline: Option<Deadline>,
        span: Span,
        scope: Scope,
    ) -> Self {
        let stream = Stream {
            deadline,
            span,
            scope,
        };
        let stream = body.is_stream().then(|| Box::new(stream));
        Self {
            body,
            _record: record,
            stream,
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
        let body = Pin::new(&mut this.body);
        let Some(stream) = &mut this.stream else {
            return body.poll_frame(cx);
        };
        let _entered = (stream.span.enter(), stream.scope.enter());
        let late = stream
            .deadline
            .as_mut()
            .is_some_and(|deadline| deadline.poll(cx).is_ready());
        let polled = if late {
            Poll::Ready(Some(Err("exec_timeout is over".into())))
        } else {
            // The hook logs the panic.
            catch_unwind(AssertUnwindSafe(|| body.poll_frame(cx)))
                .unwrap_or_else(|_| Poll::Ready(Some(Err("the response's stream panicked".into()))))
        };
        // An error makes hyper close the connection without the last chunk: the client sees that it is not whole.
        if let Poll::Ready(Some(Err(error))) = &polled {
            tracing::error!(error = %ErrorChain(error.as_ref()), "the response is cut off");
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

impl Drop for Outgoing {
    fn drop(&mut self) {
        // What the stream holds is dropped where its lines have the call id.
        if let Some(stream) = &self.stream {
            let _entered = (stream.span.enter(), stream.scope.enter());
            self.body = ResponseBody::empty();
        }
    }
}
