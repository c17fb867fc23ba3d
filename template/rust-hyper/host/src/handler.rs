//! What the host calls for each request.

use std::future::Future;
use std::pin::Pin;
use std::task::{self, Poll};

use crate::{Context, Error, Request, Response};

/// Answers requests. Every async function of a request and a context is one.
///
/// The future is dropped when the client goes away, and when `exec_timeout` has passed: what it holds is released then,
/// and what it awaits is not awaited further. A panic is answered with 500 and does not end the process.
///
/// A client's going away is seen while the host waits for nothing else from it: that is, once the handler has read the
/// body or is reading it.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request.
    fn call(
        &self,
        request: Request,
        context: Context,
    ) -> impl Future<Output = Result<Response, Error>> + Send;
}

impl<F, Answer, E> Handler for F
where
    F: Fn(Request, Context) -> Answer + Send + Sync + 'static,
    Answer: Future<Output = Result<Response, E>> + Send,
    E: Into<Error>,
{
    fn call(
        &self,
        request: Request,
        context: Context,
    ) -> impl Future<Output = Result<Response, Error>> + Send {
        Answered {
            answer: self(request, context),
        }
    }
}

pin_project_lite::pin_project! {
    /// The function's own future and nothing else: an async block around it would hold request and context once more.
    struct Answered<Answer> {
        #[pin]
        answer: Answer,
    }
}

impl<Answer, E> Future for Answered<Answer>
where
    Answer: Future<Output = Result<Response, E>>,
    E: Into<Error>,
{
    type Output = Result<Response, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        self.project().answer.poll(cx).map_err(Into::into)
    }
}
