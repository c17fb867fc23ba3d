//! Receives the body of an HTTP request, verifies its signature if one is required, and then parses it to a build
//! request.
//!
//! The body is read once, as a stream: it is hashed and stored as it was sent, within budgets that unverified bodies
//! share. Nothing in it is interpreted before the signature has been verified. After that it is decompressed, and one
//! pass over its tar makes the index of the context, whose files are read when BuildKit asks for them.

mod config;
mod decompress;
mod digest;
mod dockerfile;
mod error;
mod freshness;
mod frontend;
mod hashing_turns;
mod head;
mod image;
mod incoming;
mod prepared_context;
mod restorable_context;
mod rules;
mod signature;
mod submitted_at;
pub(crate) mod time;
mod verified_body;

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use function_host::BoxError;
use function_host::policy::{ReservedNames, Tenant};
use function_host::unverified::{UnverifiedBudget, UnverifiedLimits};

use crate::context::{ArchiveLimits, SourceContext, SpoolQuota, SpoolSettings};
pub(crate) use config::{BuildConfig, CommitStatusConfig, Forge, ProvenanceMinOrMax, is_full_commit_hash};
pub use config::{ContextArtifactReference, ContextTarReference, GitContext, UrlContext};
pub use digest::Sha256Digest;
pub use error::{RequestError, RequestErrorKind};
pub use freshness::FreshnessLimit;
pub(crate) use frontend::{AllowedFrontends, Frontend};
pub(crate) use head::START_TIME_HEADER;
pub use head::{RequestHead, SIGNATURE_HEADER, TENANT_HEADER};
pub(crate) use image::ImageRef;
pub use incoming::UnverifiedBodyResources;
pub use prepared_context::{
    BuildSource, ContextRules, PreparedContext, ReceivedContext, ReferencedContext, StorableTar,
};
pub use restorable_context::{IndexingTurns, RestorableContext};
pub(crate) use rules::check_deployment_of_existing_image;
use signature::BodyVerifier;
pub use signature::{SignatureKeys, VerifiedSignature};
pub(crate) use submitted_at::AHEAD_OF_CLOCK_MAX;
pub use submitted_at::{SubmissionTimeSource, SubmittedAt};
pub use verified_body::VerifiedBody;

/// A build request whose signature, if one is required, and configuration have been checked.
#[derive(Debug)]
pub struct BuildRequest {
    /// The build configuration, from `com.openfaas.docker.config`.
    pub config: BuildConfig,
    /// The source of the build: the tar's `context/`, or what the request refers to.
    pub source: BuildSource,
    /// The envelope of sealed secrets: `com.openfaas.secrets` of the tar, or `sealedSecrets` of a JSON request.
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
    /// The body as it was sent, if the call is asynchronous and the body has at most as many bytes as
    /// [`RequestLimits::copied_body`]. A build is resumed with it.
    pub body_copy: Option<Bytes>,
    /// The text of the configuration of an asynchronous call whose body, a tar, is too large for a copy.
    pub config_copy: Option<Bytes>,
}

impl BuildRequest {
    /// Returns the tenant that signed the request; `None` without a policy.
    pub fn tenant(&self) -> Option<&Arc<Tenant>> {
        self.signature.as_ref()?.tenant()
    }

    /// Returns the files of the context that came with the request; `None` for a request that refers to its context,
    /// and while the index is dropped.
    pub fn received_files(&self) -> Option<Arc<SourceContext>> {
        match &self.source {
            BuildSource::Received(context) => context.files.context_unless_index_dropped().ok(),
            BuildSource::Referenced(_) | BuildSource::Git(_) => None,
        }
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
    /// The resources that bodies share until their signatures are verified.
    pub unverified: UnverifiedBodyResources,
    /// The turns at reading the tars of verified bodies, and those that are fetched for builds.
    pub indexing: IndexingTurns,
    /// The frontends that a Dockerfile may name.
    pub frontends: AllowedFrontends,
    /// The age beyond which an authentic request is rejected, if there is a limit.
    pub freshness: FreshnessLimit,
    /// The names that no deployment may use.
    pub reserved: Arc<ReservedNames>,
    /// The length of the longest body of an asynchronous call that is copied, in bytes; 0 if none is.
    pub copied_body: u64,
}

impl RequestLimits {
    /// Returns request limits for bodies of up to `max_body_bytes`; bodies above 256 KiB are spooled to unnamed
    /// files in `spool_dir`.
    pub fn new(max_body_bytes: u64, spool_dir: impl Into<PathBuf>, quota: SpoolQuota) -> Self {
        let archive = ArchiveLimits {
            body: max_body_bytes,
            ..ArchiveLimits::default()
        };
        Self {
            archive,
            spool: SpoolSettings {
                folder: spool_dir.into(),
                memory: 256 << 10,
                quota,
            },
            unverified: UnverifiedBodyResources::new(UnverifiedBudget::new(default_unverified_limits(
                max_body_bytes,
            ))),
            indexing: IndexingTurns::default(),
            frontends: AllowedFrontends::default(),
            freshness: FreshnessLimit::default(),
            reserved: Arc::default(),
            copied_body: 0,
        }
    }
}

/// Returns the default limits on unverified bodies, each of which has up to `max_body_bytes`.
pub(crate) fn default_unverified_limits(max_body_bytes: u64) -> UnverifiedLimits {
    UnverifiedLimits {
        senders: 128,
        memory: 16 << 20,
        disk: max_body_bytes.max(1 << 30),
        rate: 64 << 10,
        grace: Duration::from_secs(10),
    }
}

/// Receives a request's body to its end, and verifies its signature.
///
/// Dropping the future discards what has been received.
///
/// # Errors
/// Before the body is received: a required signature is missing or malformed, or the declared length exceeds the limit.
/// While it is received: the limit or the budget of unverified bodies is exceeded, or the body is too slow or breaks
/// off. After that: the signature is wrong, or the spool's quota is exceeded.
pub async fn receive_body<B>(
    body: B,
    head: &RequestHead,
    check: &SignatureCheck,
    limits: &RequestLimits,
) -> Result<VerifiedBody, RequestError>
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
    incoming::receive_body(pin!(body), verifier, &limits.unverified, &limits.spool, limit).await
}

/// Returns a text for each violation, in a build's configuration, of the tenant's rules and of those that hold under
/// every policy.
///
/// # Errors
/// Fails if the content is not a valid configuration.
pub fn violations_in_config(
    config_json: &[u8],
    tenant: &Tenant,
    reserved: &ReservedNames,
) -> Result<Vec<String>, RequestError> {
    let config = BuildConfig::parse(config_json)?;
    Ok(match rules::check_config(&config, Some(tenant), reserved) {
        Ok(()) => Vec::new(),
        Err(violations) => violations.iter().map(ToString::to_string).collect(),
    })
}

/// Returns the violation, as text, if a tenant's Dockerfile names a frontend that the tenant's rules do not allow.
pub fn frontend_violation_in_dockerfile(dockerfile_text: &[u8], tenant: &Tenant) -> Option<String> {
    let chosen = AllowedFrontends::default().choose_for_dockerfile(dockerfile_text, Some(tenant));
    chosen.err().map(|error| error.to_string())
}

/// Returns the path of the Dockerfile in the context: the one that a build's configuration names, or else `Dockerfile`.
///
/// # Errors
/// Fails if the content is not a valid configuration.
pub fn dockerfile_path_in_config(config_json: &[u8]) -> Result<String, RequestError> {
    let named = BuildConfig::parse(config_json)?.dockerfile;
    Ok(named.unwrap_or_else(|| dockerfile::DEFAULT_DOCKERFILE.to_owned()))
}

#[cfg(test)]
mod tests;
