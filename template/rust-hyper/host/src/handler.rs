//! What the host calls for each request.

use std::future::Future;

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
    async fn call(&self, request: Request, context: Context) -> Result<Response, Error> {
        self(request, context).await.map_err(Into::into)
    }
}
