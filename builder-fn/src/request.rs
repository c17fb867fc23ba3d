//! From a request's body to a build request that can be trusted.
//!
//! The body streams once. Each piece is hashed, spooled and indexed; no more than two batches of pieces are in memory.
//! What the index says is looked at only when the signature has turned out to be right: until then, the most that
//! a sender without the key achieves is that a limit is applied to what it sends.

pub mod config;
pub mod frontend;
pub mod image;

mod error;
mod intake;
mod signature;
mod time;
mod unpack;

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use function_host::BoxError;
use http_body_util::BodyExt;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::context::{ArchiveLimits, SourceContext, SpoolRoom, SpoolSettings};
pub use config::{BuildConfig, ConfigError};
pub use error::{RequestError, RequestErrorKind};
pub use frontend::{AllowedFrontends, Frontend, FrontendError};
pub use image::{ImageError, ImageRef};
use intake::Intake;
use signature::BodyVerifier;
pub use signature::Keys;

/// The header with the signature over the body.
pub const SIGNATURE_HEADER: &str = "x-build-signature";

/// Bytes that are worth a turn on a thread that may block.
const BATCH_BYTES: usize = 256 << 10;
/// As many pieces are a batch too, however small they are.
const BATCH_PIECES: usize = 512;

/// What is to be built, from what.
#[derive(Debug)]
pub struct BuildRequest {
    /// The file `com.openfaas.docker.config`.
    pub config: BuildConfig,
    /// What reads the Dockerfile.
    pub frontend: Frontend,
    /// The folder `context/`.
    pub context: Arc<SourceContext>,
    /// The file `com.openfaas.secrets`, still sealed.
    pub sealed_secrets: Option<Bytes>,
    /// What is odd about the request and no reason to refuse it.
    pub warnings: Vec<String>,
    /// Bytes of the body.
    pub received: u64,
}

/// Whose requests are good.
#[derive(Clone, Debug)]
pub enum Trust {
    /// Those signed with one of these keys.
    Signed(Keys),
    /// Everybody's: something in front of the builder decides.
    Anyone,
}

/// What a request may bring along, and where it waits.
#[derive(Clone, Debug)]
pub struct Limits {
    /// What its tar may be like; its size among that.
    pub archive: ArchiveLimits,
    /// Where the tar is kept.
    pub spool: SpoolSettings,
    /// Which frontends its Dockerfile may name.
    pub frontends: AllowedFrontends,
}

impl Limits {
    /// Bodies of up to `body` bytes, of which those above 256 KiB go to files without a name in `spool_dir`.
    pub fn new(body: u64, spool_dir: impl Into<PathBuf>, room: SpoolRoom) -> Self {
        let archive = ArchiveLimits {
            body,
            ..ArchiveLimits::default()
        };
        Self {
            archive,
            spool: SpoolSettings {
                dir: spool_dir.into(),
                memory: 256 << 10,
                room,
            },
            frontends: AllowedFrontends::default(),
        }
    }
}

/// Reads a body to its end and makes a build request of it. `signature` is what the header says.
///
/// Dropping the future drops what was received.
///
/// # Errors
/// Without a signature where one is needed, and with a declared size above the limit, before anything is read. At
/// the limit, and when the spool is full, at once. About the tar and its configuration only once the signature holds.
pub async fn receive<B>(
    body: B,
    signature: Option<&str>,
    trust: &Trust,
    limits: &Limits,
) -> Result<BuildRequest, RequestError>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let verifier = match (trust, signature) {
        (Trust::Anyone, _) => None,
        (Trust::Signed(_), None) => return Err(RequestError::NotSigned),
        (Trust::Signed(keys), Some(header)) => {
            Some(BodyVerifier::new(keys, header).map_err(|_| RequestError::MalformedSignature)?)
        }
    };
    let limit = limits.archive.body;
    if body.size_hint().lower() > limit {
        return Err(RequestError::TooLarge { limit });
    }

    let mut body = pin!(body);
    let mut pump = Pump::new(Intake::new(verifier, limits));
    let mut received = 0u64;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| RequestError::of_body(error.into()))?;
        // Trailers mean nothing here.
        let Ok(piece) = frame.into_data() else { continue };
        received = received.saturating_add(piece.len() as u64);
        if received > limit {
            return Err(RequestError::TooLarge { limit });
        }
        pump.push(piece).await?;
    }
    let intake = pump.finish().await?;
    blocking(move || intake.finish()).await?
}

/// Hands pieces over to threads that may block, one batch at a time, and collects the next batch meanwhile.
///
/// No thread waits for the network: a sender that trickles holds a batch, not a thread.
struct Pump {
    state: PumpState,
    batch: Vec<Bytes>,
    bytes: usize,
}

enum PumpState {
    /// Between two batches.
    Idle(Box<Intake>),
    /// A batch is being taken in.
    Busy(JoinHandle<Result<Box<Intake>, RequestError>>),
    /// An error has been returned.
    Failed,
}

impl Pump {
    fn new(intake: Intake) -> Self {
        Self {
            state: PumpState::Idle(Box::new(intake)),
            batch: Vec::new(),
            bytes: 0,
        }
    }

    async fn push(&mut self, piece: Bytes) -> Result<(), RequestError> {
        self.bytes += piece.len();
        self.batch.push(piece);
        if self.bytes >= BATCH_BYTES || self.batch.len() >= BATCH_PIECES {
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), RequestError> {
        let mut intake = self.idle().await?;
        let batch = std::mem::take(&mut self.batch);
        self.bytes = 0;
        self.state = PumpState::Busy(spawn_blocking(move || {
            batch.iter().try_for_each(|piece| intake.take(piece))?;
            Ok(intake)
        }));
        Ok(())
    }

    async fn finish(mut self) -> Result<Intake, RequestError> {
        if !self.batch.is_empty() {
            self.flush().await?;
        }
        Ok(*self.idle().await?)
    }

    async fn idle(&mut self) -> Result<Box<Intake>, RequestError> {
        match std::mem::replace(&mut self.state, PumpState::Failed) {
            PumpState::Idle(intake) => Ok(intake),
            PumpState::Busy(work) => joined(work).await?,
            PumpState::Failed => Err(RequestError::Interrupted),
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, RequestError> {
    joined(spawn_blocking(work)).await
}

/// Passes a panic on to whoever serves the request; a runtime that shuts down is an interruption.
async fn joined<T>(work: JoinHandle<T>) -> Result<T, RequestError> {
    work.await.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => RequestError::Interrupted,
    })
}

#[cfg(test)]
mod tests;
