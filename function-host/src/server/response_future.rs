//! The future of a response: it runs the handler, with its deadline, and catches its panics.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use http::header::{CONNECTION, Entry};
use http::{HeaderName, HeaderValue, StatusCode};
use tracing::Span;

use super::call_id::CALL_ID_HEADER;
use super::deadline::RequestDeadline;
use super::outgoing_body::OutgoingResponseBody;
use super::record::RequestRecord;
use crate::handler::HandlerFuture;
use crate::reply;
use crate::response::Response;
use crate::trace::TraceContext;

/// The name of the response header with the version of the function.
pub(crate) const VERSION_HEADER: HeaderName = HeaderName::from_static("x-slipway-version");

/// The headers that the host adds to a response of the function: the call id, unless the handler has set one, and the
/// version, if it is known.
pub(crate) struct CallIdAndVersionHeaders {
    /// The request's call id, for the header [`CALL_ID_HEADER`].
    pub(crate) call_id: HeaderValue,
    /// The version of the function, for the header [`VERSION_HEADER`], if it is set.
    pub(crate) version: Option<HeaderValue>,
}

impl CallIdAndVersionHeaders {
    /// Returns headers without values, to take the place of those that were taken.
    fn without_values() -> Self {
        Self {
            call_id: HeaderValue::from_static(""),
            version: None,
        }
    }

    /// Returns the request's call id as text.
    fn call_id_text(&self) -> &str {
        self.call_id.to_str().unwrap_or_default()
    }
}

/// The future of a response to hyper. Dropping it drops the handler.
///
/// It is written by hand and keeps the handler's future in a box, because hyper moves it: an async function with the
/// same state takes some thousand bytes.
pub(crate) enum ResponseFuture {
    /// The host answers the request without the handler.
    Ready(Option<http::Response<OutgoingResponseBody>>),
    /// The handler runs, and its response is sent.
    Running(HandlerRun),
}

/// A run of the handler for one request, with the request's deadline.
pub(crate) struct HandlerRun {
    pub(crate) future: Option<HandlerFuture>,
    pub(crate) log_span: Span,
    pub(crate) trace_context: TraceContext,
    pub(crate) headers: CallIdAndVersionHeaders,
    pub(crate) deadline: Option<RequestDeadline>,
    pub(crate) record: Option<RequestRecord>,
}

impl ResponseFuture {
    /// Returns the future of a response that does not need the handler.
    pub(crate) fn from_response(
        response: Response,
        headers: CallIdAndVersionHeaders,
        record: Option<RequestRecord>,
    ) -> Self {
        Self::Ready(Some(add_headers_and_record_status(
            response,
            headers,
            record,
            None,
            Span::none(),
            TraceContext::default(),
        )))
    }
}

impl Future for ResponseFuture {
    type Output = Result<http::Response<OutgoingResponseBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Running(run) => run.poll(cx).map(Ok),
            Self::Ready(response) => match response.take() {
                Some(response) => Poll::Ready(Ok(response)),
                None => Poll::Pending,
            },
        }
    }
}

impl HandlerRun {
    /// Polls the handler, and returns the response to its result, its panic or its exceeded deadline.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<http::Response<OutgoingResponseBody>> {
        let Some(future) = &mut self.future else {
            return Poll::Pending;
        };
        let entered = (self.log_span.enter(), self.trace_context.make_current());
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
        let response = match polled {
            Ok(Poll::Ready(Ok(response))) => response,
            Ok(Poll::Ready(Err(error))) => error.log_and_into_response(self.headers.call_id_text()),
            Ok(Poll::Pending) => {
                if self
                    .deadline
                    .as_mut()
                    .is_none_or(|deadline| deadline.poll_expired(cx).is_pending())
                {
                    return Poll::Pending;
                }
                tracing::error!("exec_timeout exceeded, handler dropped");
                reply::message(
                    StatusCode::GATEWAY_TIMEOUT,
                    "the function exceeded its exec_timeout\n",
                )
            }
            // The panic hook has logged it.
            Err(_) => reply::internal_error(self.headers.call_id_text()),
        };
        // The handler's state is dropped before the response is sent, and within the spans, for the call id in its
        // log lines.
        self.future = None;
        drop(entered);
        let headers = std::mem::replace(&mut self.headers, CallIdAndVersionHeaders::without_values());
        let log_span = std::mem::replace(&mut self.log_span, Span::none());
        let trace_context = std::mem::take(&mut self.trace_context);
        Poll::Ready(add_headers_and_record_status(
            response,
            headers,
            self.record.take(),
            self.deadline.take(),
            log_span,
            trace_context,
        ))
    }
}

impl Drop for HandlerRun {
    fn drop(&mut self) {
        if self.future.is_some() {
            let _entered = (self.log_span.enter(), self.trace_context.make_current());
            tracing::debug!("client disconnected, handler dropped");
            self.future = None;
        }
    }
}

/// Adds the host's headers to a response, and records the response's status.
fn add_headers_and_record_status(
    mut response: Response,
    headers: CallIdAndVersionHeaders,
    mut record: Option<RequestRecord>,
    deadline: Option<RequestDeadline>,
    log_span: Span,
    trace_context: TraceContext,
) -> http::Response<OutgoingResponseBody> {
    if let Some(record) = &mut record {
        record.set_response_status(response.status());
        if record.must_close_connection_afterwards() {
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }
    if let Entry::Vacant(entry) = response.headers_mut().entry(CALL_ID_HEADER) {
        entry.insert(headers.call_id);
    }
    if let Some(version) = headers.version {
        response.headers_mut().insert(VERSION_HEADER, version);
    }
    response.map(|body| OutgoingResponseBody::new(body, record, deadline, log_span, trace_context))
}
