//! The response of a handler, whose body is empty, bytes, or a stream that is sent as it is produced.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_core::Stream;
use http_body::{Body, Frame, SizeHint};

use crate::error_chain::BoxError;

/// The response that a handler returns.
pub type Response = http::Response<ResponseBody>;

/// The body of a handler's response.
///
/// Each chunk of a stream is sent as soon as it is ready. If the stream fails or panics, the host closes the
/// connection, so that the client can tell that the body is incomplete. If the client disconnects, the stream is
/// dropped.
pub struct ResponseBody(BodyKind);

/// The kinds of response bodies.
enum BodyKind {
    Empty,
    Full(Bytes),
    Stream(Pin<Box<dyn Stream<Item = Result<Bytes, BoxError>> + Send>>),
}

impl ResponseBody {
    /// Creates an empty response body.
    pub fn empty() -> Self {
        Self(BodyKind::Empty)
    }

    /// Creates a response body with known content.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() {
            Self::empty()
        } else {
            Self(BodyKind::Full(bytes))
        }
    }

    /// Creates a response body that is sent chunk by chunk, as `chunks` yields them.
    pub fn stream(chunks: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static) -> Self {
        Self(BodyKind::Stream(Box::pin(chunks)))
    }

    /// Returns whether the response's body is a stream.
    pub(crate) fn is_stream(&self) -> bool {
        matches!(self.0, BodyKind::Stream(_))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.0 {
            BodyKind::Empty => Poll::Ready(None),
            BodyKind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.0 = BodyKind::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            BodyKind::Stream(chunks) => chunks.as_mut().poll_next(cx).map_ok(Frame::data),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.0, BodyKind::Empty)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            BodyKind::Empty => SizeHint::with_exact(0),
            BodyKind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            BodyKind::Stream(_) => SizeHint::default(),
        }
    }
}

impl Default for ResponseBody {
    fn default() -> Self {
        Self::empty()
    }
}

impl<T: Into<Bytes>> From<T> for ResponseBody {
    fn from(bytes: T) -> Self {
        Self::full(bytes)
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody")
            .field("size", &self.size_hint())
            .finish()
    }
}
