//! The trait of handlers, which answer requests.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};

use crate::context::Context;
use crate::error::Error;
use crate::request::Request;
use crate::response::Response;

/// A handler, which answers requests. Every async function of a [`Request`] and a [`Context`] implements it.
///
/// The host drops the future when the client disconnects and when `exec_timeout` has passed: everything it holds is
/// released, and nothing that it awaits continues on its behalf. A panic is answered with status 500 and does not end
/// the process.
///
/// The host notices that the client has disconnected while the handler reads the body, and after it has read the body
/// to its end; not while part of the body is waiting to be read.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request. The context has its call id and its deadline, and the secrets, the gateway and the shutdown
    /// of the function.
    fn call(
        &self,
        request: Request,
        context: Context,
    ) -> impl Future<Output = Result<Response, Error>> + Send;
}

impl<F, Fut, E> Handler for F
where
    F: Fn(Request, Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Response, E>> + Send,
    E: Into<Error>,
{
    fn call(
        &self,
        request: Request,
        context: Context,
    ) -> impl Future<Output = Result<Response, Error>> + Send {
        ConvertErrorFuture {
            future: self(request, context),
        }
    }
}

/// The boxed future of a handler's result.
pub(crate) type HandlerFuture = Pin<Box<dyn Future<Output = Result<Response, Error>> + Send>>;

/// A handler without its type.
///
/// The host uses handlers in this form only: none of its code, nor of hyper's, is generic over a handler, and so all of
/// it is compiled with the dependencies of a function, not again for each change of the function's handler.
pub(crate) trait ErasedHandler: Send + Sync {
    /// Returns the future of the answer to one request, which keeps the handler alive.
    fn call_boxed(self: Arc<Self>, request: Request, context: Context) -> HandlerFuture;
}

impl<H: Handler> ErasedHandler for H {
    fn call_boxed(self: Arc<Self>, request: Request, context: Context) -> HandlerFuture {
        Box::pin(async move { H::call(&self, request, context).await })
    }
}

pin_project_lite::pin_project! {
    /// The future of a handler function, with its error converted to [`Error`].
    ///
    /// An async block would hold the request and context once more.
    struct ConvertErrorFuture<F> {
        #[pin]
        future: F,
    }
}

impl<F, E> Future for ConvertErrorFuture<F>
where
    F: Future<Output = Result<Response, E>>,
    E: Into<Error>,
{
    type Output = Result<Response, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        self.project().future.poll(cx).map_err(Into::into)
    }
}
