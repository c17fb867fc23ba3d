//! The body of a response that is being sent. The request is recorded at its end; a failure aborts the
//! response.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tracing::Span;

use super::deadline::RequestDeadline;
use super::record::RequestRecord;
use crate::error_chain::{BoxError, ErrorChain};
use crate::response::ResponseBody;
use crate::trace::TraceContext;

/// A handler's response body while hyper sends it. Dropping it ends the request's record, however the sending ended.
pub(crate) struct OutgoingResponseBody {
    body: ResponseBody,
    _record: Option<RequestRecord>,
    /// The state of a streamed body; `None` for known content, which cannot exceed the deadline, fail or panic.
    stream: Option<Box<StreamedBodyState>>,
}

/// The deadline of a streamed body, and the spans that its stream runs in.
struct StreamedBodyState {
    deadline: Option<RequestDeadline>,
    log_span: Span,
    trace_context: TraceContext,
}

impl OutgoingResponseBody {
    /// Creates the body to send. A streamed one is limited by `deadline`, and runs in the spans.
    pub(crate) fn new(
        body: ResponseBody,
        record: Option<RequestRecord>,
        deadline: Option<RequestDeadline>,
        log_span: Span,
        trace_context: TraceContext,
    ) -> Self {
        let stream = StreamedBodyState {
            deadline,
            log_span,
            trace_context,
        };
        let stream = body.is_stream().then(|| Box::new(stream));
        Self {
            body,
            _record: record,
            stream,
        }
    }
}

impl Body for OutgoingResponseBody {
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
        let _entered = (stream.log_span.enter(), stream.trace_context.make_current());
        let exceeded = stream
            .deadline
            .as_mut()
            .is_some_and(|deadline| deadline.poll_expired(cx).is_ready());
        let polled = if exceeded {
            Poll::Ready(Some(Err("exec_timeout exceeded".into())))
        } else {
            // The panic hook logs the panic.
            catch_unwind(AssertUnwindSafe(|| body.poll_frame(cx)))
                .unwrap_or_else(|_| Poll::Ready(Some(Err("the stream of the response panicked".into()))))
        };
        // After an error, hyper closes the connection without the last chunk: the client sees that the body is
        // incomplete.
        if let Poll::Ready(Some(Err(error))) = &polled {
            tracing::error!(error = %ErrorChain(error.as_ref()), "response aborted");
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

impl Drop for OutgoingResponseBody {
    fn drop(&mut self) {
        // The stream is dropped within its spans, for the call id in its log lines.
        if let Some(stream) = &self.stream {
            let _entered = (stream.log_span.enter(), stream.trace_context.make_current());
            self.body = ResponseBody::empty();
        }
    }
}
