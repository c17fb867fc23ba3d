//! Turns the body of an HTTP request into a build request, and checks its signature.
//!
//! The body is read once, as a stream. Each piece is hashed, spooled and indexed on the way; at most 1 MiB of pieces is
//! in memory. Nothing in the tar is interpreted before the signature has been verified: until then, a caller without the
//! key can only run into a limit.

mod config;
mod decompress;
mod dockerfile;
mod error;
mod freshness;
mod frontend;
mod head;
mod image;
mod indexer;
mod pipeline;
mod rules;
mod signature;
mod submitted_at;
pub(crate) mod time;

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use function_host::BoxError;
use function_host::policy::{ReservedNames, Tenant};
use http_body_util::BodyExt;

use crate::context::{ArchiveLimits, SourceContext, SpoolQuota, SpoolSettings};
pub(crate) use config::{BuildConfig, CacheToItem, ProvenanceMode};
pub use error::{RequestError, RequestErrorKind};
pub use freshness::FreshnessLimit;
pub(crate) use frontend::{AllowedFrontends, Frontend};
pub use head::{RequestHead, SIGNATURE_HEADER, TENANT_HEADER};
pub(crate) use image::ImageRef;
use indexer::BodyIndexer;
use pipeline::{BodyPipeline, spawn_on_blocking_thread};
use signature::BodyVerifier;
pub use signature::{SignatureKeys, VerifiedSignature};
pub(crate) use submitted_at::AHEAD_OF_CLOCK_MAX;
pub use submitted_at::{SubmissionTimeSource, SubmittedAt};

/// A build request whose signature and configuration have been checked.
#[derive(Debug)]
pub struct BuildRequest {
    /// The build configuration, from `com.openfaas.docker.config`.
    pub config: BuildConfig,
    /// The frontend with which BuildKit reads the Dockerfile.
    pub frontend: Frontend,
    /// The source context, from the tar's `context/`.
    pub context: Arc<SourceContext>,
    /// The sealed secrets, from `com.openfaas.secrets`.
    pub sealed_secrets: Option<Bytes>,
    /// Warnings about the request, for the build's log.
    pub warnings: Vec<String>,
    /// The length of the request's body in bytes, as it was sent.
    pub body_bytes: u64,
    /// The signature that was verified; `None` if signatures are disabled.
    pub signature: Option<VerifiedSignature>,
    /// The time at which the source of the build was submitted.
    pub submitted_at: SubmittedAt,
    /// Whether the signature may be used for only one build: the age of requests is limited, and the config
    /// says how old this one is.
    pub is_single_use: bool,
}

impl BuildRequest {
    /// Returns the tenant that signed the request; `None` without a policy.
    pub fn tenant(&self) -> Option<&Arc<Tenant>> {
        self.signature.as_ref()?.tenant()
    }
}

/// The check of a request's signature: whether one is needed, and the keys that make one valid.
#[derive(Clone, Debug)]
pub enum SignatureCheck {
    /// The request must be signed with one of these keys.
    Required(SignatureKeys),
    /// Signatures are not checked: something in front of the builder authenticates callers.
    Disabled,
}

/// Limits on a build request, and where its body is spooled.
#[derive(Clone, Debug)]
pub struct RequestLimits {
    /// Limits on the request's tar, among them its size.
    pub archive: ArchiveLimits,
    /// Settings for where the request's tar is spooled.
    pub spool: SpoolSettings,
    /// The frontends that a Dockerfile may name.
    pub frontends: AllowedFrontends,
    /// The limit on the age of a request.
    pub freshness: FreshnessLimit,
    /// The names that no deployment may use.
    pub reserved: Arc<ReservedNames>,
}

impl RequestLimits {
    /// Returns request limits for bodies of up to `body` bytes; bodies above 256 KiB are spooled to unnamed
    /// files in `spool_dir`.
    pub fn new(body: u64, spool_dir: impl Into<PathBuf>, quota: SpoolQuota) -> Self {
        let archive = ArchiveLimits {
            body,
            ..ArchiveLimits::default()
        };
        Self {
            archive,
            spool: SpoolSettings {
                folder: spool_dir.into(),
                memory: 256 << 10,
                quota,
            },
            frontends: AllowedFrontends::default(),
            freshness: FreshnessLimit::default(),
            reserved: Arc::default(),
        }
    }
}

/// Reads a request's body to its end, verifies its signature and parses it, with the request's head, as a build
/// request.
///
/// Dropping the future discards what has been received.
///
/// # Errors
/// Before the body is read: a required signature is missing or malformed, or the declared length exceeds the limit.
/// While it is read: the limit or the spool's quota is exceeded, or the body breaks off. Errors in the tar and its
/// configuration are reported only after the signature has been verified.
pub async fn receive_build_request<B>(
    body: B,
    head: RequestHead,
    check: &SignatureCheck,
    limits: &RequestLimits,
) -> Result<BuildRequest, RequestError>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let verifier = match (check, head.signature.as_deref()) {
        (SignatureCheck::Disabled, _) => None,
        (SignatureCheck::Required(_), None) => return Err(RequestError::NotSigned),
        (SignatureCheck::Required(keys), Some(header)) => {
            Some(BodyVerifier::new(keys, header).map_err(|_| RequestError::MalformedSignature)?)
        }
    };
    let limit = limits.archive.body;
    if body.size_hint().lower() > limit {
        return Err(RequestError::TooLarge { limit });
    }

    let mut body = pin!(body);
    let mut pipeline = BodyPipeline::new(verifier, BodyIndexer::new(limits));
    let mut received = 0u64;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| RequestError::from_body_error(error.into()))?;
        // Trailers carry nothing that is used here.
        let Ok(piece) = frame.into_data() else { continue };
        received = received.saturating_add(piece.len() as u64);
        if received > limit {
            return Err(RequestError::TooLarge { limit });
        }
        pipeline.push(piece).await?;
    }
    let (indexer, signature) = pipeline.finish().await?;
    spawn_on_blocking_thread(move || indexer.into_build_request(&head, signature)).await?
}

#[cfg(test)]
mod tests;
