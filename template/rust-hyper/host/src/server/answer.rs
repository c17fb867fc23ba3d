//! One answer in the making: the handler runs, within its time, and may panic.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::Entry;
use http::{HeaderName, HeaderValue, StatusCode};
use tokio::time::{Instant, Sleep, sleep_until};
use tracing::Span;
use tracing::instrument::Instrumented;

use super::outgoing::Outgoing;
use super::record::Record;
use crate::error::Error;
use crate::reply;

pub(crate) const CALL_ID: HeaderName = HeaderName::from_static("x-call-id");

/// What a handler does.
pub(crate) type Handling = Pin<Box<dyn Future<Output = Result<crate::Response, Error>> + Send>>;

/// The future of an answer. Dropping it drops the handler's.
///
/// It is written by hand and keeps the handler's future in a box, because hyper moves it: an async function that holds
/// all of this is some thousand bytes.
pub(crate) enum Answer {
    /// Known without the handler.
    Ready(Option<http::Response<Outgoing>>),
    Running(Running),
}

pub(crate) struct Running {
    handling: Instrumented<Handling>,
    deadline: Option<Deadline>,
    call_id: Arc<str>,
    record: Option<Record>,
}

pub(crate) struct Deadline {
    at: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    pub(crate) fn new(at: Instant) -> Self {
        Self { at, timer: None }
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.timer
            .get_or_insert_with(|| Box::pin(sleep_until(self.at)))
            .as_mut()
            .poll(cx)
    }
}

impl Answer {
    pub(crate) fn ready(response: crate::Response, call_id: &str, record: Option<Record>) -> Self {
        Self::Ready(Some(finish(response, call_id, record, None, Span::none())))
    }

    pub(crate) fn running(
        handling: Instrumented<Handling>,
        deadline: Option<Instant>,
        call_id: Arc<str>,
        record: Record,
    ) -> Self {
        let deadline = deadline.map(Deadline::new);
        Self::Running(Running {
            handling,
            deadline,
            call_id,
            record: Some(record),
        })
    }
}

impl Future for Answer {
    type Output = Result<http::Response<Outgoing>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Running(running) => running.poll(cx).map(Ok),
            Self::Ready(response) => match response.take() {
                Some(response) => Poll::Ready(Ok(response)),
                None => Poll::Pending,
            },
        }
    }
}

impl Running {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<http::Response<Outgoing>> {
        let polled = catch_unwind(AssertUnwindSafe(|| Pin::new(&mut self.handling).poll(cx)));
        let response = match polled {
            Ok(Poll::Ready(Ok(response))) => response,
            Ok(Poll::Ready(Err(error))) => self.in_span(|call_id| error.into_response(call_id)),
            Ok(Poll::Pending) => {
                if self
                    .deadline
                    .as_mut()
                    .is_none_or(|deadline| deadline.poll(cx).is_pending())
                {
                    return Poll::Pending;
                }
                // What it waits for is let go of now, not when the answer has been sent.
                *self.handling.inner_mut() = Box::pin(std::future::pending());
                self.in_span(|_| {
                    tracing::error!("exec_timeout is over, the handler is ended");
                    reply::message(StatusCode::GATEWAY_TIMEOUT, "the function took too long\n")
                })
            }
            // The hook has logged the panic.
            Err(_) => {
                let message = format!("internal error, call id {}\n", self.call_id);
                reply::message(StatusCode::INTERNAL_SERVER_ERROR, message)
            }
        };
        let span = self.handling.span().clone();
        Poll::Ready(finish(
            response,
            &self.call_id,
            self.record.take(),
            self.deadline.take(),
            span,
        ))
    }

    fn in_span<T>(&self, what: impl FnOnce(&str) -> T) -> T {
        self.handling.span().in_scope(|| what(&self.call_id))
    }
}

/// The response with what the host adds.
fn finish(
    mut response: crate::Response,
    call_id: &str,
    mut record: Option<Record>,
    deadline: Option<Deadline>,
    span: Span,
) -> http::Response<Outgoing> {
    if let Some(record) = &mut record {
        record.answered(response.status());
    }
    if let Entry::Vacant(entry) = response.headers_mut().entry(CALL_ID)
        && let Ok(call_id) = HeaderValue::from_str(call_id)
    {
        entry.insert(call_id);
    }
    response.map(|body| Outgoing::new(body, record, deadline, span))
}
