//! From a request's body to a build request that can be trusted.
//!
//! The body streams once. Each piece is hashed, spooled and indexed; no more than 1 MiB of pieces is in memory.
//! What the index says is looked at only when the signature has turned out to be right: until then, the most that
//! a sender without the key achieves is that a limit is applied to what it sends.

pub mod config;
pub mod frontend;
pub mod image;

mod error;
mod intake;
mod pump;
mod signature;
mod time;
mod unpack;

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use function_host::BoxError;
use http_body_util::BodyExt;

use crate::context::{ArchiveLimits, SourceContext, SpoolRoom, SpoolSettings};
pub use config::{BuildConfig, ConfigError};
pub use error::{RequestError, RequestErrorKind};
pub use frontend::{AllowedFrontends, Frontend, FrontendError};
pub use image::{ImageError, ImageRef};
use intake::Intake;
use pump::{Pump, blocking};
use signature::BodyVerifier;
pub use signature::Keys;

/// The header with the signature over the body.
pub const SIGNATURE_HEADER: &str = "x-build-signature";

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
    let mut pump = Pump::new(verifier, Intake::new(limits));
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

#[cfg(test)]
mod tests;
