//! The paths of gRPC methods, from the generated clients: generated servers have no list of their methods.

use std::convert::Infallible;
use std::future::{Pending, pending};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_util::FutureExt;
use http::{Request, Response};
use tonic::body::Body;
use tonic::codegen::Service;

/// A client transport that connects to nothing: it records the path of the last request, and never answers.
#[derive(Clone, Debug, Default)]
pub(super) struct PathRecordingTransport(Arc<Mutex<Option<String>>>);

/// Runs `call` with a client transport that only records, and returns the path of the gRPC method that it
/// called, such as `/moby.filesync.v1.FileSync/DiffCopy`.
///
/// `call` makes one call with a generated client over the transport. Returns `None` if it makes none.
pub(super) fn record_method_path<F: Future>(
    call: impl FnOnce(PathRecordingTransport) -> F,
) -> Option<String> {
    let transport = PathRecordingTransport::default();
    // The transport is always ready, so the first poll of the call sends its request.
    let _ = call(transport.clone()).now_or_never();
    transport.0.lock().unwrap_or_else(PoisonError::into_inner).take()
}

impl Service<Request<Body>> for PathRecordingTransport {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pending<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(request.uri().path().to_owned());
        pending()
    }
}
