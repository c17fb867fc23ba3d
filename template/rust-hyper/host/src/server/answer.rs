//! One answer in the making: the handler runs, within its time, and may panic.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use http::header::Entry;
use http::{HeaderName, HeaderValue, StatusCode};
use tokio::time::{Instant, Sleep, sleep_until};
use tracing::Span;

use super::call_id::CALL_ID;
use super::outgoing::Outgoing;
use super::record::Record;
use crate::error::Error;
use crate::reply;
use crate::trace::Scope;

/// Which version of the function answers.
pub(crate) const VERSION: HeaderName = HeaderName::from_static("x-slipway-version");

/// What the host adds to every answer.
pub(crate) struct Marks {
    /// The call's id, for [`CALL_ID`].
    pub(crate) call_id: HeaderValue,
    /// The function's version, for [`VERSION`], where it was told.
    pub(crate) version: Option<HeaderValue>,
}

impl Marks {
    fn none() -> Self {
        Self {
            call_id: HeaderValue::from_static(""),
            version: None,
        }
    }

    /// The call's id, for texts.
    fn call(&self) -> &str {
        self.call_id.to_str().unwrap_or_default()
    }
}

/// What a handler does.
pub(crate) type Handling = Pin<Box<dyn Future<Output = Result<crate::Response, Error>> + Send>>;

/// The future of an answer. Dropping it drops the handler's.
///
/// It is written by hand and keeps the handler's future in a box, because hyper moves it: an async function that holds
/// all of this is some thousand bytes.
pub(crate) enum Answer {
    /// Known without the handler.
    Ready(Option<http::Response<Outgoing>>),
    /// The handler's.
    Running(Running),
}

pub(crate) struct Running {
    pub(crate) handling: Option<Handling>,
    pub(crate) span: Span,
    pub(crate) scope: Scope,
    pub(crate) marks: Marks,
    pub(crate) deadline: Option<Deadline>,
    pub(crate) record: Option<Record>,
}

/// The end of the handler's time.
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
    pub(crate) fn ready(response: crate::Response, marks: Marks, record: Option<Record>) -> Self {
        Self::Ready(Some(finish(
            response,
            marks,
            record,
            None,
            Span::none(),
            Scope::default(),
        )))
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
        let Some(handling) = &mut self.handling else {
            return Poll::Pending;
        };
        let entered = (self.span.enter(), self.scope.enter());
        let polled = catch_unwind(AssertUnwindSafe(|| handling.as_mut().poll(cx)));
        let response = match polled {
            Ok(Poll::Ready(Ok(response))) => response,
            Ok(Poll::Ready(Err(error))) => error.into_response(self.marks.call()),
            Ok(Poll::Pending) => {
                if self
                    .deadline
                    .as_mut()
                    .is_none_or(|deadline| deadline.poll(cx).is_pending())
                {
                    return Poll::Pending;
                }
                tracing::error!("exec_timeout is over, the handler is ended");
                reply::message(StatusCode::GATEWAY_TIMEOUT, "the function took too long\n")
            }
            // The hook has logged it.
            Err(_) => reply::internal_error(self.marks.call()),
        };
        // What the handler held is let go of before the answer is sent, and where its lines have the call id.
        self.handling = None;
        drop(entered);
        let marks = std::mem::replace(&mut self.marks, Marks::none());
        let span = std::mem::replace(&mut self.span, Span::none());
        let scope = std::mem::take(&mut self.scope);
        Poll::Ready(finish(
            response,
            marks,
            self.record.take(),
            self.deadline.take(),
            span,
            scope,
        ))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.handling.is_some() {
            let _entered = (self.span.enter(), self.scope.enter());
            tracing::debug!("the client went away, the handler is ended");
            self.handling = None;
        }
    }
}

/// The response with what the host adds.
fn finish(
    mut response: crate::Response,
    marks: Marks,
    mut record: Option<Record>,
    deadline: Option<Deadline>,
    span: Span,
    scope: Scope,
) -> http::Response<Outgoing> {
    if let Some(record) = &mut record {
        record.answered(response.status());
    }
    if let Entry::Vacant(entry) = response.headers_mut().entry(CALL_ID) {
        entry.insert(marks.call_id);
    }
    if let Some(version) = marks.version {
        response.headers_mut().insert(VERSION, version);
    }
    response.map(|body| Outgoing::new(body, record, deadline, span, scope))
}
