//! The body of a request, as it streams in.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Sleep, sleep};

use crate::error::BoxError;

/// A request's body. It is read as the handler asks for it, and holds the client back until then.
///
/// It is an [`http_body::Body`] and a [`Stream`] of chunks; [`Body::collect`] and [`Body::text`] read all of it, up to
/// a limit. A client that sends nothing for `read_timeout` ends it with [`BodyError::Stalled`].
pub struct Body {
    source: Source,
    idle: Option<Idle>,
}

enum Source {
    Empty,
    Full(Bytes),
    Incoming(Incoming),
    Stream(Pin<Box<dyn Stream<Item = Result<Bytes, BoxError>> + Send>>),
}

/// How long the client may send nothing. The timer exists only once there is something to wait for.
struct Idle {
    limit: Duration,
    timer: Option<Pin<Box<Sleep>>>,
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
    NotText,
    /// The connection ended before the body did, or what came was not HTTP.
    #[error("the body ended early")]
    Broken(#[source] BoxError),
}

impl Body {
    /// A body without content.
    pub fn empty() -> Self {
        Self {
            source: Source::Empty,
            idle: None,
        }
    }

    /// A body made of chunks, for a handler that is called by other than the network.
    pub fn stream(chunks: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static) -> Self {
        Self {
            source: Source::Stream(Box::pin(chunks)),
            idle: None,
        }
    }

    /// What a client sends; `idle` is how long it may send nothing.
    pub(crate) fn incoming(incoming: Incoming, idle: Option<Duration>) -> Self {
        if incoming.is_end_stream() {
            return Self::empty();
        }
        let idle = idle.map(|limit| Idle { limit, timer: None });
        Self {
            source: Source::Incoming(incoming),
            idle,
        }
    }

    /// The next chunk, or `None` at the end.
    pub async fn chunk(&mut self) -> Option<Result<Bytes, BodyError>> {
        std::future::poll_fn(|cx| self.poll_chunk(cx)).await
    }

    /// All of the body. Refuses as soon as there is more than `limit` bytes, without reading on.
    pub async fn collect(mut self, limit: usize) -> Result<Bytes, BodyError> {
        let too_large = BodyError::TooLarge { limit };
        if self.expected().lower() > limit as u64 {
            return Err(too_large);
        }
        let Some(first) = self.chunk().await.transpose()? else {
            return Ok(Bytes::new());
        };
        if first.len() > limit {
            return Err(too_large);
        }
        let Some(mut next) = self.chunk().await.transpose()? else {
            return Ok(first);
        };
        // What the client announced is a hint for the size, not a reason to take memory ahead of its bytes.
        let announced = self.expected().lower().min(64 * 1024) as usize;
        let mut all = BytesMut::with_capacity(first.len() + next.len() + announced);
        all.extend_from_slice(&first);
        loop {
            if all.len() + next.len() > limit {
                return Err(too_large);
            }
            all.extend_from_slice(&next);
            match self.chunk().await.transpose()? {
                Some(chunk) => next = chunk,
                None => return Ok(all.freeze()),
            }
        }
    }

    /// All of the body as text, up to `limit` bytes.
    pub async fn text(self, limit: usize) -> Result<String, BodyError> {
        let bytes = self.collect(limit).await?;
        String::from_utf8(bytes.into()).map_err(|_| BodyError::NotText)
    }

    /// What is known of the size of what is left, in bytes.
    pub fn expected(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Incoming(incoming) => incoming.size_hint(),
            Source::Stream(_) => SizeHint::default(),
        }
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        loop {
            let polled = match &mut self.source {
                Source::Empty => return Poll::Ready(None),
                Source::Full(bytes) => {
                    let bytes = std::mem::take(bytes);
                    self.source = Source::Empty;
                    return Poll::Ready(Some(Ok(bytes)));
                }
                Source::Stream(chunks) => chunks.as_mut().poll_next(cx).map_err(BodyError::Broken),
                Source::Incoming(incoming) => match Pin::new(incoming).poll_frame(cx) {
                    // Trailers have nothing that a function needs.
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) => Poll::Ready(Some(Ok(data))),
                        Err(_) => continue,
                    },
                    Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(BodyError::Broken(error.into())))),
                    Poll::Ready(None) => Poll::Ready(None),
                    Poll::Pending => Poll::Pending,
                },
            };
            let Some(idle) = &mut self.idle else { return polled };
            if polled.is_ready() {
                idle.timer = None;
                return polled;
            }
            let limit = idle.limit;
            ready!(
                idle.timer
                    .get_or_insert_with(|| Box::pin(sleep(limit)))
                    .as_mut()
                    .poll(cx)
            );
            self.source = Source::Empty;
            return Poll::Ready(Some(Err(BodyError::Stalled { limit })));
        }
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
        self.expected()
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
        Self {
            source: Source::Full(bytes.into()),
            idle: None,
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body")
            .field("size", &self.expected())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;
    use std::collections::VecDeque;

    use super::*;

    struct Chunks(VecDeque<&'static str>, usize);

    impl Stream for Chunks {
        type Item = Result<Bytes, BoxError>;

        fn poll_next(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            self.1 += 1;
            Poll::Ready(self.0.pop_front().map(|chunk| Ok(Bytes::from(chunk))))
        }
    }

    fn chunks(texts: &[&'static str]) -> Body {
        Body::stream(Chunks(texts.iter().copied().collect(), 0))
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
            Err(BodyError::NotText)
        ));
    }

    #[tokio::test]
    async fn a_body_is_a_stream_and_an_http_body() {
        let mut body = StreamBody::new(chunks(&["ab", "cd"]));
        let first = std::future::poll_fn(|cx| Pin::new(&mut body).poll_next(cx)).await;
        assert_eq!(first.unwrap().unwrap(), "ab");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_nothing_ends_its_body() {
        let source = Body::stream(Never);
        let mut body = Body {
            idle: Some(Idle {
                limit: Duration::from_secs(10),
                timer: None,
            }),
            source: source.source,
        };
        let begun = tokio::time::Instant::now();
        assert!(matches!(body.chunk().await, Some(Err(BodyError::Stalled { .. }))));
        assert_eq!(begun.elapsed(), Duration::from_secs(10));
        assert!(body.chunk().await.is_none());
    }

    struct Never;

    impl Stream for Never {
        type Item = Result<Bytes, BoxError>;

        fn poll_next(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            Poll::Pending
        }
    }
}
