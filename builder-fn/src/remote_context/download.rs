//! Receives the body of a response into a spool, and verifies its digest while it arrives.

use std::time::Duration;

use bytes::Bytes;
use function_host::BoxError;
use http_body_util::BodyExt;
use sha2::{Digest, Sha256};
use tokio::task::spawn_blocking;

use super::ContextError;
use crate::context::{Spool, SpoolSettings};
use crate::request::Sha256Digest;

/// The number of received bytes from which they are hashed and spooled: enough to be worth a switch of threads.
const BATCH_BYTES: usize = 256 << 10;

/// The longest wait for the next piece of a body.
const MAX_PAUSE_BETWEEN_PIECES: Duration = Duration::from_secs(30);

/// The spool that a body is received into, with the hash of what has arrived.
struct HashingSpool {
    spool: Spool,
    hasher: Sha256,
}

impl HashingSpool {
    /// Hashes and spools the next pieces of the body. Blocks.
    fn append(&mut self, pieces: Vec<Bytes>) -> Result<(), ContextError> {
        for piece in pieces {
            self.hasher.update(&piece);
            self.spool.append(&piece)?;
        }
        Ok(())
    }
}

/// Receives `body`, which is called `body_name` in texts, and returns it if it has the digest `expected`.
///
/// Dropping the future discards what has arrived.
///
/// # Errors
/// Fails as soon as the body exceeds `limit` bytes, stalls or breaks off, or cannot be spooled, and at its end if its
/// digest is another one.
pub(super) async fn receive_verified<B>(
    mut body: B,
    body_name: &str,
    expected: Sha256Digest,
    limit: u64,
    settings: &SpoolSettings,
) -> Result<Spool, ContextError>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    if body.size_hint().lower() > limit {
        return Err(ContextError::TooLarge { limit });
    }
    let mut receiver = Box::new(HashingSpool {
        spool: Spool::new(settings.clone()).with_block_hashes(),
        hasher: Sha256::new(),
    });
    let (mut received, mut pending, mut pending_bytes) = (0u64, Vec::new(), 0);
    loop {
        let frame = tokio::time::timeout(MAX_PAUSE_BETWEEN_PIECES, body.frame()).await;
        let frame = frame.map_err(|_| ContextError::Stalled {
            limit: MAX_PAUSE_BETWEEN_PIECES,
        })?;
        let frame = frame
            .transpose()
            .map_err(|error| ContextError::Lost(error.into()))?;
        let is_end = frame.is_none();
        if let Some(piece) = frame.and_then(|frame| frame.into_data().ok()) {
            received = received.saturating_add(piece.len() as u64);
            if received > limit {
                return Err(ContextError::TooLarge { limit });
            }
            pending_bytes += piece.len();
            pending.push(piece);
        }
        if is_end || pending_bytes >= BATCH_BYTES {
            let batch = std::mem::take(&mut pending);
            pending_bytes = 0;
            let storing = spawn_blocking(move || receiver.append(batch).map(|()| receiver));
            receiver = storing.await.map_err(|_| ContextError::Interrupted)??;
        }
        if is_end {
            break;
        }
    }
    let found = Sha256Digest::new(receiver.hasher.finalize().into());
    match found == expected {
        true => Ok(receiver.spool),
        false => Err(ContextError::WrongDigest {
            what: body_name.to_owned(),
            found,
            expected,
        }),
    }
}

#[cfg(test)]
mod tests {
    use function_host::prometheus::IntGauge;
    use http_body_util::{Full, StreamBody};

    use super::*;
    use crate::context::SpoolQuota;

    fn settings() -> (SpoolSettings, IntGauge) {
        let used = IntGauge::new("used", "used").unwrap();
        let settings = SpoolSettings {
            folder: std::env::temp_dir(),
            memory: 1 << 10,
            quota: SpoolQuota::new(1 << 20, used.clone()),
        };
        (settings, used)
    }

    fn digest_of(bytes: &[u8]) -> Sha256Digest {
        Sha256Digest::new(Sha256::digest(bytes).into())
    }

    #[tokio::test]
    async fn a_body_is_spooled_if_its_digest_is_the_expected_one() {
        let (settings, used) = settings();
        let content = vec![7; 700 << 10];
        let body = || Full::new(Bytes::from(content.clone()));
        let expected = digest_of(&content);
        let spool = receive_verified(body(), "it", expected, 1 << 20, &settings)
            .await
            .unwrap();
        let mut read = vec![0; content.len()];
        let mut filled = 0;
        while filled < read.len() {
            filled += spool.read_at(&mut read[filled..], filled as u64).unwrap();
        }
        assert_eq!(read, content);
        assert_eq!(used.get(), content.len() as i64);
        drop(spool);

        let other = digest_of(b"other");
        let error = receive_verified(body(), "it", other, 1 << 20, &settings)
            .await
            .unwrap_err();
        assert!(matches!(error, ContextError::WrongDigest { .. }), "{error}");
        assert_eq!(used.get(), 0, "what has another digest is discarded");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_too_large_stalls_or_breaks_off_is_discarded() {
        let (settings, used) = settings();
        let piece = || Ok::<_, BoxError>(http_body::Frame::data(Bytes::from_static(&[0; 1000])));
        let receive = async |pieces: Vec<Result<_, BoxError>>, stalls: bool| {
            use futures_util::StreamExt;
            let pieces = futures_util::stream::iter(pieces);
            let body = match stalls {
                true => pieces.chain(futures_util::stream::pending()).boxed(),
                false => pieces.boxed(),
            };
            receive_verified(StreamBody::new(body), "it", digest_of(b""), 1500, &settings)
                .await
                .unwrap_err()
        };
        let too_large = receive(vec![piece(), piece()], true).await;
        assert!(
            matches!(too_large, ContextError::TooLarge { limit: 1500 }),
            "{too_large}"
        );
        let stalled = receive(vec![piece()], true).await;
        assert!(matches!(stalled, ContextError::Stalled { .. }), "{stalled}");
        let lost = receive(vec![piece(), Err("reset".into())], false).await;
        assert!(matches!(lost, ContextError::Lost(_)), "{lost}");
        assert_eq!(used.get(), 0);

        let declared = Full::new(Bytes::from_static(&[0; 2000]));
        let error = receive_verified(declared, "it", digest_of(b""), 1500, &settings)
            .await
            .unwrap_err();
        assert!(
            matches!(error, ContextError::TooLarge { .. }),
            "before anything is read: {error}"
        );
    }
}
