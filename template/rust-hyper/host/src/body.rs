//! The body of a request, as it streams in.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use crate::error::BoxError;
use crate::server::BodyTurn;

/// A request's body. It is read as the handler asks for it, and holds the client back until then.
///
/// It is an [`http_body::Body`] and a [`Stream`] of chunks; [`Body::collect`] and [`Body::text`] read all of it, up to
/// a limit. A client that sends nothing for `read_timeout` ends it with [`BodyError::Stalled`].
pub struct Body {
    source: Source,
    /// Lets the connection know that more of the body is expected.
    turn: Option<BodyTurn>,
    read_timeout: Duration,
}

enum Source {
    Empty,
    Full(Bytes),
    Incoming(Incoming),
    Stream(Pin<Box<dyn Stream<Item = Result<Bytes, BoxError>> + Send>>),
}

/// Why a body could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The body is larger than its reader allows.
    #[error("the body is larger than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// The client sent nothing for too long.
    #[error("the body stalled for {}", crate::duration::format(*limit))]
    Stalled {
        /// How long it may send nothing.
        limit: Duration,
    },
    /// The body was to be text.
    #[error("the body is not UTF-8")]
    NotUtf8,
    /// The connection ended before the body did, or what came was not HTTP.
    #[error("the body ended early")]
    Broken(#[source] BoxError),
}

impl Body {
    /// A body without content.
    pub fn empty() -> Self {
        Self::of(Source::Empty)
    }

    /// A body made of chunks, for a handler that is called by other than the network.
    pub fn stream(chunks: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static) -> Self {
        Self::of(Source::Stream(Box::pin(chunks)))
    }

    /// What a client sends. The connection ends it when nothing comes for `read_timeout`.
    pub(crate) fn incoming(incoming: Incoming, turn: BodyTurn, read_timeout: Duration) -> Self {
        Self {
            source: Source::Incoming(incoming),
            turn: Some(turn),
            read_timeout,
        }
    }

    fn of(source: Source) -> Self {
        Self {
            source,
            turn: None,
            read_timeout: Duration::ZERO,
        }
    }

    /// The next chunk, or `None` at the end.
    pub async fn chunk(&mut self) -> Option<Result<Bytes, BodyError>> {
        std::future::poll_fn(|cx| self.poll_chunk(cx)).await
    }

    /// All of the body. Refuses as soon as there is more than `limit` bytes, without reading on.
    pub fn collect(self, limit: usize) -> impl Future<Output = Result<Bytes, BodyError>> + Send {
        Collect {
            body: self,
            limit,
            first: Bytes::new(),
            all: BytesMut::new(),
        }
    }

    /// All of the body as text, up to `limit` bytes.
    pub fn text(self, limit: usize) -> impl Future<Output = Result<String, BodyError>> + Send {
        let mut collect = Collect {
            body: self,
            limit,
            first: Bytes::new(),
            all: BytesMut::new(),
        };
        std::future::poll_fn(move |cx| {
            let bytes = ready!(collect.poll(cx))?;
            Poll::Ready(String::from_utf8(bytes.into()).map_err(|_| BodyError::NotUtf8))
        })
    }

    /// What is known of the size of what is left, in bytes.
    pub fn remaining(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Incoming(incoming) => incoming.size_hint(),
            Source::Stream(_) => SizeHint::default(),
        }
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        let polled = match &mut self.source {
            Source::Empty => Poll::Ready(None),
            Source::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.source = Source::Empty;
                return Poll::Ready(Some(Ok(bytes)));
            }
            Source::Stream(chunks) => chunks.as_mut().poll_next(cx).map_err(BodyError::Broken),
            Source::Incoming(incoming) => loop {
                break match ready!(Pin::new(&mut *incoming).poll_frame(cx)) {
                    // Trailers have nothing that a function needs.
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => Poll::Ready(Some(Ok(data))),
                        Err(_) => continue,
                    },
                    Some(Err(error)) => Poll::Ready(Some(Err(broken(error, self.read_timeout)))),
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
            self.source = Source::Empty;
            if let Some(turn) = self.turn.take() {
                turn.finish();
            }
        }
        polled
    }
}

/// What went wrong with the connection.
fn broken(error: hyper::Error, limit: Duration) -> BodyError {
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

/// Reads a body to its end. Not an async function: those would be three, one in the other, each with a body of its own.
struct Collect {
    body: Body,
    limit: usize,
    /// Most bodies are one chunk, which is not copied.
    first: Bytes,
    all: BytesMut,
}

impl Collect {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, BodyError>> {
        let too_large = BodyError::TooLarge { limit: self.limit };
        // A client that announces too much is refused before it has sent it.
        if self.body.remaining().lower() > (self.limit - self.len()) as u64 {
            return Poll::Ready(Err(too_large));
        }
        while let Some(chunk) = ready!(self.body.poll_chunk(cx)).transpose()? {
            if chunk.len() > self.limit - self.len() {
                return Poll::Ready(Err(too_large));
            }
            if self.len() == 0 {
                self.first = chunk;
                continue;
            }
            if self.all.is_empty() {
                // The size that was announced is a reason to take memory only up to here.
                let announced = self.body.remaining().lower().min(64 * 1024) as usize;
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

    fn len(&self) -> usize {
        self.first.len() + self.all.len()
    }
}

impl Future for Collect {
    type Output = Result<Bytes, BodyError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.get_mut().poll(cx)
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
            Source::Empty => true,
            Source::Full(_) | Source::Stream(_) => false,
            Source::Incoming(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.remaining()
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
        Self::of(Source::Full(bytes.into()))
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body")
            .field("size", &self.remaining())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;
    use std::collections::VecDeque;

    use super::*;

    struct Chunks(VecDeque<&'static str>);

    impl Stream for Chunks {
        type Item = Result<Bytes, BoxError>;

        fn poll_next(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            Poll::Ready(self.0.pop_front().map(|chunk| Ok(Bytes::from(chunk))))
        }
    }

    fn chunks(texts: &[&'static str]) -> Body {
        Body::stream(Chunks(texts.iter().copied().collect()))
    }

    #[tokio::test]
    async fn a_body_is_collected_up_to_its_limit() {
        assert_eq!(chunks(&["ab", "cd", "ef"]).collect(6).await.unwrap(), "abcdef");
        assert!(matches!(
            chunks(&["ab", "cd", "ef"]).collect(5).await,
            Err(BodyError::TooLarge { limit: 5 })
        ));
        assert!(matches!(
            chunks(&["abcdef"]).collect(5).await,
            Err(BodyError::TooLarge { .. })
        ));
        assert!(matches!(
            Body::from("abcdef").collect(5).await,
            Err(BodyError::TooLarge { .. })
        ));
        assert_eq!(Body::empty().collect(0).await.unwrap(), "");
    }

    #[tokio::test]
    async fn text_has_to_be_utf_8() {
        assert_eq!(Body::from("grüße").text(100).await.unwrap(), "grüße");
        assert!(matches!(
            Body::from(&b"\xff"[..]).text(100).await,
            Err(BodyError::NotUtf8)
        ));
    }

    #[tokio::test]
    async fn a_body_is_a_stream_and_an_http_body() {
        let mut body = StreamBody::new(chunks(&["ab", "cd"]));
        let first = std::future::poll_fn(|cx| Pin::new(&mut body).poll_next(cx)).await;
        assert_eq!(first.unwrap().unwrap(), "ab");
    }
}
