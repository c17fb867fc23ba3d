//! The request to a handler, whose body is read as it arrives.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use crate::connection_state::ActiveBodyGuard;
use crate::duration;
use crate::error_chain::BoxError;

/// The request that a handler is called with.
pub type Request = http::Request<Body>;

/// The body of a request to a handler.
///
/// It is read only as fast as the handler consumes it; until then, the client is held back. It implements
/// [`http_body::Body`] and [`Stream`]; [`Body::collect`] and [`Body::text`] read it whole, up to a limit. If the client
/// sends nothing for `read_timeout`, reading fails with [`BodyError::Stalled`].
pub struct Body {
    source: BodySource,
    /// The guard of the body that the connection expects; `None` without a connection or after the end.
    active: Option<ActiveBodyGuard>,
    read_timeout: Duration,
}

/// The source of a request body's bytes.
enum BodySource {
    Empty,
    Full(Bytes),
    Incoming(Incoming),
    Stream(Pin<Box<dyn Stream<Item = Result<Bytes, BoxError>> + Send>>),
}

/// An error of reading a request's body.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The request's body is larger than the limit of its reader.
    #[error("the body is larger than {limit} bytes")]
    TooLarge {
        /// The limit on the body, in bytes.
        limit: usize,
    },
    /// The client sent nothing of the body for longer than `read_timeout`.
    #[error("the client sent nothing of the body for {}", duration::format_duration(*limit))]
    Stalled {
        /// The timeout between two chunks of the body (`read_timeout`).
        limit: Duration,
    },
    /// The request's body should be text and is not UTF-8.
    #[error("the body is not UTF-8")]
    NotUtf8,
    /// The connection ended before the end of the request's body, or the client sent invalid HTTP.
    #[error("the body ended early")]
    Broken(#[source] BoxError),
}

impl Body {
    /// Creates an empty request body.
    pub fn empty() -> Self {
        Self::from_source(BodySource::Empty)
    }

    /// Creates a request body from a stream of chunks, for calling a handler without a connection (in a test).
    pub fn stream(chunks: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static) -> Self {
        Self::from_source(BodySource::Stream(Box::pin(chunks)))
    }

    /// Creates a request body that is received from a client. The connection enforces `read_timeout`, which is
    /// only reported here.
    pub(crate) fn incoming(
        incoming: Incoming,
        active: ActiveBodyGuard,
        reported_read_timeout: Duration,
    ) -> Self {
        Self {
            source: BodySource::Incoming(incoming),
            active: Some(active),
            read_timeout: reported_read_timeout,
        }
    }

    fn from_source(source: BodySource) -> Self {
        Self {
            source,
            active: None,
            read_timeout: Duration::ZERO,
        }
    }

    /// Reads the next chunk of the request's body; returns `None` at the end of the body.
    pub async fn chunk(&mut self) -> Option<Result<Bytes, BodyError>> {
        std::future::poll_fn(|cx| self.poll_chunk(cx)).await
    }

    /// Reads the whole request body. Fails as soon as it is known to have more than `limit` bytes, without
    /// reading further.
    pub fn collect(self, limit: usize) -> impl Future<Output = Result<Bytes, BodyError>> + Send {
        CollectBody {
            body: self,
            limit,
            first: Bytes::new(),
            all: BytesMut::new(),
        }
    }

    /// Reads the whole request body as UTF-8 text of at most `limit` bytes.
    pub fn text(self, limit: usize) -> impl Future<Output = Result<String, BodyError>> + Send {
        let mut collect = CollectBody {
            body: self,
            limit,
            first: Bytes::new(),
            all: BytesMut::new(),
        };
        std::future::poll_fn(move |cx| {
            let bytes = ready!(collect.poll_collected(cx))?;
            Poll::Ready(String::from_utf8(bytes.into()).map_err(|_| BodyError::NotUtf8))
        })
    }

    /// Returns bounds on the number of bytes of the request's body that are still to be read.
    pub fn remaining_bytes(&self) -> SizeHint {
        match &self.source {
            BodySource::Empty => SizeHint::with_exact(0),
            BodySource::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            BodySource::Incoming(incoming) => incoming.size_hint(),
            BodySource::Stream(_) => SizeHint::default(),
        }
    }

    /// Polls for the next chunk of the body, or its end; trailers are skipped.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        let polled = match &mut self.source {
            BodySource::Empty => Poll::Ready(None),
            BodySource::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.source = BodySource::Empty;
                return Poll::Ready(Some(Ok(bytes)));
            }
            BodySource::Stream(chunks) => chunks.as_mut().poll_next(cx).map_err(BodyError::Broken),
            BodySource::Incoming(incoming) => loop {
                break match ready!(Pin::new(&mut *incoming).poll_frame(cx)) {
                    // Trailers are skipped: no function needs them.
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => Poll::Ready(Some(Ok(data))),
                        Err(_) => continue,
                    },
                    Some(Err(error)) => Poll::Ready(Some(Err(classify_read_error(error, self.read_timeout)))),
                    None => Poll::Ready(None),
                };
            },
        };
        let at_end = match &polled {
            Poll::Ready(Some(Ok(_))) => self.is_end_stream(),
            Poll::Ready(_) => true,
            Poll::Pending => false,
        };
        if at_end {
            self.source = BodySource::Empty;
            if let Some(active) = self.active.take() {
                active.mark_body_fully_read();
            }
        }
        polled
    }
}

/// Converts an error of reading from the connection: a timeout becomes [`BodyError::Stalled`], everything else
/// [`BodyError::Broken`].
fn classify_read_error(error: hyper::Error, limit: Duration) -> BodyError {
    let mut next = std::error::Error::source(&error);
    while let Some(cause) = next {
        let io = cause.downcast_ref::<std::io::Error>();
        if io.is_some_and(|io| io.kind() == std::io::ErrorKind::TimedOut) {
            return BodyError::Stalled { limit };
        }
        next = cause.source();
    }
    BodyError::Broken(error.into())
}

/// A future that reads a whole request body.
///
/// It is written by hand because async functions would be three nested futures, each with a copy of the body.
struct CollectBody {
    body: Body,
    limit: usize,
    /// The first chunk of the body, while there is no second one. Most bodies are a single chunk, which is
    /// returned without a copy.
    first: Bytes,
    /// All chunks of the body so far, once there are two.
    all: BytesMut,
}

impl CollectBody {
    /// Polls the body until its end, and returns it whole.
    fn poll_collected(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, BodyError>> {
        let too_large = BodyError::TooLarge { limit: self.limit };
        // A client that announces a body that is too large is rejected before it sends the body.
        if self.body.remaining_bytes().lower() > (self.limit - self.collected_len()) as u64 {
            return Poll::Ready(Err(too_large));
        }
        while let Some(chunk) = ready!(self.body.poll_chunk(cx)).transpose()? {
            if chunk.len() > self.limit - self.collected_len() {
                return Poll::Ready(Err(too_large));
            }
            if self.collected_len() == 0 {
                self.first = chunk;
                continue;
            }
            if self.all.is_empty() {
                // Reserves at most 64 KiB on the client's announcement alone.
                let announced = self.body.remaining_bytes().lower().min(64 * 1024) as usize;
                self.all.reserve(self.first.len() + chunk.len() + announced);
                self.all.extend_from_slice(&std::mem::take(&mut self.first));
            }
            self.all.extend_from_slice(&chunk);
        }
        Poll::Ready(Ok(match self.all.is_empty() {
            true => std::mem::take(&mut self.first),
            false => std::mem::take(&mut self.all).freeze(),
        }))
    }

    fn collected_len(&self) -> usize {
        self.first.len() + self.all.len()
    }
}

impl Future for CollectBody {
    type Output = Result<Bytes, BodyError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.get_mut().poll_collected(cx)
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.get_mut().poll_chunk(cx).map_ok(Frame::data)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            BodySource::Empty => true,
            BodySource::Full(_) | BodySource::Stream(_) => false,
            BodySource::Incoming(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.remaining_bytes()
    }
}

impl Stream for Body {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_chunk(cx)
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(bytes: T) -> Self {
        Self::from_source(BodySource::Full(bytes.into()))
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body")
            .field("size", &self.remaining_bytes())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use http_body_util::BodyExt;

    use super::*;

    struct ChunkStream(VecDeque<&'static str>);

    impl Stream for ChunkStream {
        type Item = Result<Bytes, BoxError>;

        fn poll_next(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            Poll::Ready(self.0.pop_front().map(|chunk| Ok(Bytes::from(chunk))))
        }
    }

    fn body_of_chunks(texts: &[&'static str]) -> Body {
        Body::stream(ChunkStream(texts.iter().copied().collect()))
    }

    #[tokio::test]
    async fn a_body_is_collected_up_to_the_limit_and_rejected_above_it() {
        assert_eq!(
            body_of_chunks(&["ab", "cd", "ef"]).collect(6).await.unwrap(),
            "abcdef"
        );
        assert!(matches!(
            body_of_chunks(&["ab", "cd", "ef"]).collect(5).await,
            Err(BodyError::TooLarge { limit: 5 })
        ));
        assert!(matches!(
            body_of_chunks(&["abcdef"]).collect(5).await,
            Err(BodyError::TooLarge { .. })
        ));
        assert!(matches!(
            Body::from("abcdef").collect(5).await,
            Err(BodyError::TooLarge { .. })
        ));
        assert_eq!(Body::empty().collect(0).await.unwrap(), "");
    }

    #[tokio::test]
    async fn a_body_that_is_not_utf_8_is_rejected_as_text() {
        assert_eq!(Body::from("grüße").text(100).await.unwrap(), "grüße");
        assert!(matches!(
            Body::from(&b"\xff"[..]).text(100).await,
            Err(BodyError::NotUtf8)
        ));
    }

    #[tokio::test]
    async fn a_body_is_a_stream_and_an_http_body() {
        let mut body = body_of_chunks(&["ab", "cd"]);
        let first = std::future::poll_fn(|cx| Pin::new(&mut body).poll_next(cx)).await;
        assert_eq!(first.unwrap().unwrap(), "ab");
        assert_eq!(BodyExt::collect(body).await.unwrap().to_bytes(), "cd");
    }
}
