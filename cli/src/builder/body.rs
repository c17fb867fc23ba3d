//! Bodies of requests: bytes in memory, or a packed context in a file. A file is read in pieces, so that memory does
//! not depend on its size.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use function_host::signature::{BodySigner, HmacKeys};
use function_host::{BoxError, OutgoingRequestBody};
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;

use crate::failure::Failure;

/// The size of the pieces in which a body is read and sent, in bytes.
const PIECE_BYTES: usize = 64 << 10;

/// A body: the first bytes of a file, if it has one, and bytes after them. Clones share both.
#[derive(Clone, Debug)]
pub(crate) struct RequestBody {
    file: Option<Arc<File>>,
    file_bytes: u64,
    rest: Bytes,
}

/// A body with its signature.
#[derive(Clone, Debug)]
pub(crate) struct SignedBody {
    /// The body.
    pub(crate) body: RequestBody,
    /// The signature, as the value of a header.
    pub(crate) signature: String,
}

impl RequestBody {
    /// Returns a body of the first `bytes_of_file` bytes of `file`, and `rest` after them.
    pub(crate) fn with_start_of_file(file: Arc<File>, bytes_of_file: u64, rest: impl Into<Bytes>) -> Self {
        Self {
            file: Some(file),
            file_bytes: bytes_of_file,
            rest: rest.into(),
        }
    }

    /// Returns a body in memory.
    pub(crate) fn in_memory(bytes: impl Into<Bytes>) -> Self {
        Self {
            file: None,
            file_bytes: 0,
            rest: bytes.into(),
        }
    }

    /// Returns the number of bytes.
    pub(crate) fn len(&self) -> u64 {
        self.file_bytes + self.rest.len() as u64
    }

    /// Reads the next bytes from `offset` on; none at the end. Blocks.
    fn read_piece(&self, offset: u64) -> io::Result<Bytes> {
        if let Some(file) = self.file.as_ref().filter(|_| offset < self.file_bytes) {
            let left = usize::try_from(self.file_bytes - offset).unwrap_or(PIECE_BYTES);
            let mut piece = vec![0; left.min(PIECE_BYTES)];
            file.read_exact_at(&mut piece, offset)?;
            return Ok(piece.into());
        }
        let start = usize::try_from(offset - self.file_bytes).unwrap_or(usize::MAX);
        let start = start.min(self.rest.len());
        Ok(self.rest.slice(start..(start + PIECE_BYTES).min(self.rest.len())))
    }

    /// Returns the body as it is sent, with its length. `on_total_bytes_sent` gets the number of bytes that were
    /// taken to be sent.
    pub(crate) fn into_upload(
        self,
        on_total_bytes_sent: impl FnMut(u64) + Send + 'static,
    ) -> OutgoingRequestBody {
        let left = self.len();
        let pieces = stream::unfold(
            (self, 0, on_total_bytes_sent),
            |(body, offset, mut on_total_bytes_sent)| async move {
                let source = body.clone();
                let read = tokio::task::spawn_blocking(move || source.read_piece(offset)).await;
                let piece = match read {
                    Ok(Ok(piece)) if piece.is_empty() => return None,
                    Ok(Ok(piece)) => Ok(piece),
                    Ok(Err(error)) => Err(BoxError::from(error)),
                    Err(error) => Err(BoxError::from(error)),
                };
                let end = offset + piece.as_ref().map_or(0, |piece| piece.len() as u64);
                on_total_bytes_sent(end);
                Some((piece.map(Frame::data), (body, end, on_total_bytes_sent)))
            },
        );
        SizedBody {
            body: StreamBody::new(Box::pin(pieces)),
            left,
        }
        .boxed_unsync()
    }
}

impl SignedBody {
    /// Signs a body, which is read for it. Blocks.
    ///
    /// # Errors
    /// Fails if the file with the body cannot be read.
    pub(crate) fn sign(body: RequestBody, keys: &HmacKeys) -> Result<Self, Failure> {
        let mut signer = BodySigner::new(keys);
        let mut offset = 0;
        loop {
            let piece = body.read_piece(offset).map_err(|error| {
                Failure::platform(
                    format!("could not read the packed context back from its temporary file: {error}"),
                    format!(
                        "see whether {} has errors, or name another folder in TMPDIR",
                        std::env::temp_dir().display()
                    ),
                )
            })?;
            if piece.is_empty() {
                let signature = signer.finish();
                return Ok(Self { body, signature });
            }
            signer.hash_piece(&piece);
            offset += piece.len() as u64;
        }
    }

    /// Returns the number of bytes of the body.
    pub(crate) fn len(&self) -> u64 {
        self.body.len()
    }
}

/// A body whose length is known, so that it is sent with `Content-Length`: the gateway and the queue need to know it.
struct SizedBody<B> {
    body: B,
    left: u64,
}

impl<B> hyper::body::Body for SizedBody<B>
where
    B: hyper::body::Body<Data = Bytes, Error = BoxError> + Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = std::pin::Pin::new(&mut self.body).poll_frame(context);
        if let std::task::Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.left = self.left.saturating_sub(data.len() as u64);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        hyper::body::SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::Mutex;

    use function_host::Secret;
    use function_host::signature::sign_body;

    use super::*;

    #[tokio::test]
    async fn a_body_of_a_file_and_bytes_is_signed_and_sent_whole_with_its_length_and_its_progress() {
        let content: Vec<u8> = (0..PIECE_BYTES * 2 + 5).map(|number| number as u8).collect();
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&content).expect("it is written");
        let in_file = PIECE_BYTES + 3;
        let rest = Bytes::copy_from_slice(&content[in_file..]);
        let keys = HmacKeys::new(&Secret::new("a key of sixteen bytes")).expect("a key");
        for (body, sent_at) in [
            (
                RequestBody::with_start_of_file(Arc::new(file), in_file as u64, rest),
                [PIECE_BYTES, in_file, in_file + PIECE_BYTES, content.len()].as_slice(),
            ),
            (
                RequestBody::in_memory(content.clone()),
                [PIECE_BYTES, PIECE_BYTES * 2, content.len()].as_slice(),
            ),
        ] {
            let signed = SignedBody::sign(body, &keys).expect("a signature");
            assert_eq!(signed.signature, sign_body(&keys, &content));
            let sent = Arc::new(Mutex::new(Vec::new()));
            let log = sent.clone();
            let upload = signed
                .body
                .into_upload(move |count| log.lock().expect("the lock").push(count as usize));
            let size = hyper::body::Body::size_hint(&upload).exact();
            assert_eq!(size, Some(content.len() as u64));
            let read = upload.collect().await.expect("a body").to_bytes();
            assert!(read == content);
            assert_eq!(*sent.lock().expect("the lock"), sent_at);
        }
    }
}
