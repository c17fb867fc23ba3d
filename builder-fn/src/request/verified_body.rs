//! A body whose signature, if one is required, has been verified: it becomes a build request, or a tar to be stored.

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use function_host::policy::Tenant;

use super::config::{JsonRequest, NamedContext};
use super::prepared_context::{
    BuildSource, ContextRules, PreparedContext, ReceivedContext, ReferencedContext, StorableTar,
    check_and_make_storable, decompress_and_index_tar, limits_with_quota,
};
use super::restorable_context::RestorableContext;
use super::rules;
use super::time::format_rfc3339;
use super::{
    BuildConfig, BuildRequest, RequestError, RequestHead, RequestLimits, SubmittedAt, VerifiedSignature,
};
use crate::context::{Index, Spool, SpoolQuota};
use crate::slots::SlotOwner;

/// The most ignored keys, and the most keys in another spelling, for which there are warnings.
const MAX_IGNORED_KEYS_SHOWN: usize = 20;

/// A body that was received whole, and whose signature is right if one is required.
#[derive(Debug)]
pub struct VerifiedBody {
    /// The body as it was sent, counted against the quota of verified bodies.
    pub(super) spool: Spool,
    /// The quota of the tenant's bodies, which the decompressed body counts against too.
    pub(super) quota: SpoolQuota,
    /// The signature of the body; `None` if signatures are disabled.
    pub(super) signature: Option<VerifiedSignature>,
}

impl VerifiedBody {
    /// Returns the name of the tenant that signed the body; `None` without a policy.
    pub(crate) fn tenant_name(&self) -> Option<String> {
        let tenant = self.signature.as_ref().and_then(VerifiedSignature::tenant);
        tenant.map(|tenant| tenant.name().to_string())
    }

    /// Returns whether the body has a signature that was verified.
    pub(crate) fn is_signed(&self) -> bool {
        self.signature.is_some()
    }

    /// Returns the owner of the build's slot: the tenant that signed the body, or nobody without a policy.
    pub(crate) fn slot_owner(&self) -> SlotOwner {
        self.tenant()
            .map_or_else(SlotOwner::default, |tenant| SlotOwner::of_tenant(tenant))
    }

    /// Parses the build request in the body, which arrived with `head`: a tar, which is decompressed and indexed, or
    /// JSON that refers to its context.
    ///
    /// # Errors
    /// Fails if the tar, its configuration or its Dockerfile is unusable or exceeds a limit, if the request has expired
    /// or is too old, or if it violates the rules of its tenant.
    pub async fn into_build_request(
        self,
        head: RequestHead,
        limits: &RequestLimits,
    ) -> Result<BuildRequest, RequestError> {
        let turns = limits.indexing.clone();
        let limits = limits.clone();
        turns.run(move || self.parse(&head, &limits)).await
    }

    /// Returns the tenant that signed the body; `None` without a policy.
    pub(crate) fn tenant(&self) -> Option<&Arc<Tenant>> {
        self.signature.as_ref().and_then(VerifiedSignature::tenant)
    }

    /// Checks that the body is a tar with a context, and returns it as it was sent.
    ///
    /// # Errors
    /// Fails if the tar is unusable or exceeds a limit.
    pub(crate) async fn into_storable_tar(self, limits: &RequestLimits) -> Result<StorableTar, RequestError> {
        let limits = limits_with_quota(limits, self.quota);
        let turns = limits.indexing.clone();
        turns
            .run(move || check_and_make_storable(self.spool, &limits))
            .await
    }

    /// Parses the build request in the body, and checks it against the limits and the rules of its tenant. Blocks.
    fn parse(self, head: &RequestHead, limits: &RequestLimits) -> Result<BuildRequest, RequestError> {
        let Self {
            spool,
            quota,
            signature,
        } = self;
        let body_bytes = spool.len();
        let body_copy = match head.is_asynchronous && !head.is_resumed && body_bytes <= limits.copied_body {
            true => Some(read_whole(&spool)?.into()),
            false => None,
        };
        let limits = limits_with_quota(limits, quota);
        let content = match head.is_json {
            true => RequestContent::read_json(&spool, &limits)?,
            false => RequestContent::read_tar_decompressing_if_needed(spool, &limits)?,
        };
        let RequestContent {
            config,
            config_text,
            place,
            source,
            sealed_secrets,
            mut warnings,
        } = content;
        let tenant = signature.as_ref().and_then(VerifiedSignature::tenant);
        // A request that was accepted in time does not expire while it waits to be resumed.
        let now = match head.is_resumed {
            true => head.arrived,
            false => SystemTime::now(),
        };
        check_not_expired(config.not_after, now)?;
        let is_dated = limits
            .freshness
            .check_age_returning_if_dated_and_limited(config.submitted_at, now)?;
        rules::check_config(&config, tenant.map(Arc::as_ref), &limits.reserved)?;
        let submitted_at = SubmittedAt::determine_from_config_gateway_or_arrival(
            config.submitted_at,
            head,
            now,
            &mut warnings,
        )?;
        let rules = ContextRules {
            limits,
            dockerfile: config.dockerfile.clone(),
            tenant: tenant.cloned(),
        };
        let source = match source {
            RequestedSource::Tar { entries, spool } => {
                let (PreparedContext { files, frontend }, more) = rules.prepare_entries(entries, spool)?;
                warnings.extend(more);
                let files = RestorableContext::new(files, rules.limits.archive, rules.limits.indexing);
                BuildSource::Received(ReceivedContext { files, frontend })
            }
            RequestedSource::Named(NamedContext::Git(git)) => BuildSource::Git(Box::new(git)),
            RequestedSource::Named(NamedContext::Tar(reference)) => {
                BuildSource::Referenced(Box::new(ReferencedContext { reference, rules }))
            }
        };
        warnings.extend(key_warnings(&config, place));
        Ok(BuildRequest {
            config,
            source,
            sealed_secrets,
            warnings,
            body_bytes,
            is_single_use: is_dated && signature.is_some(),
            signature,
            submitted_at,
            config_copy: config_text
                .filter(|_| head.is_asynchronous && !head.is_resumed && body_copy.is_none()),
            body_copy,
        })
    }
}

/// The parsed content of a body, of which the rules have not been checked.
struct RequestContent {
    config: BuildConfig,
    /// The text of the configuration in a tar.
    config_text: Option<Bytes>,
    /// The place of the configuration, as warnings name it.
    place: &'static str,
    source: RequestedSource,
    sealed_secrets: Option<Bytes>,
    warnings: Vec<String>,
}

/// The source that a body has or names.
enum RequestedSource {
    Tar { entries: Index, spool: Spool },
    Named(NamedContext),
}

impl RequestContent {
    /// Reads the content of a tar, which is decompressed and indexed.
    fn read_tar_decompressing_if_needed(body: Spool, limits: &RequestLimits) -> Result<Self, RequestError> {
        let (contents, spool) = decompress_and_index_tar(body, limits)?;
        let config_text = contents.config.ok_or(RequestError::NoConfig)?;
        Ok(Self {
            config: BuildConfig::parse(&config_text)?,
            config_text: Some(config_text.into()),
            place: "com.openfaas.docker.config",
            source: RequestedSource::Tar {
                entries: contents.entries,
                spool,
            },
            sealed_secrets: contents.secrets.map(Into::into),
            warnings: contents.warnings,
        })
    }

    /// Reads the content of a JSON request, whose context is not fetched yet.
    fn read_json(body: &Spool, limits: &RequestLimits) -> Result<Self, RequestError> {
        // Room for a configuration and an envelope of secrets, each as large as in a tar.
        let limit = (limits.archive.small_file as u64).saturating_mul(2);
        if body.len() > limit {
            return Err(RequestError::JsonTooLarge { limit });
        }
        let request = JsonRequest::parse(&read_whole(body)?)?;
        Ok(Self {
            config: request.config,
            config_text: None,
            place: "the JSON request",
            source: RequestedSource::Named(request.context),
            sealed_secrets: request.sealed_secrets.map(Into::into),
            warnings: Vec::new(),
        })
    }
}

/// Reads a body that is small enough for memory. Blocks.
fn read_whole(body: &Spool) -> Result<Vec<u8>, RequestError> {
    let mut content = vec![0; usize::try_from(body.len()).unwrap_or_default()];
    let mut filled = 0;
    while filled < content.len() {
        match body.read_at(&mut content[filled..], filled as u64) {
            Ok(0) => return Err(RequestError::ReadSpool(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => filled += count,
            Err(error) => return Err(RequestError::ReadSpool(error)),
        }
    }
    Ok(content)
}

/// Returns warnings about keys that are ignored, or read in another spelling.
fn key_warnings<'a>(config: &'a BuildConfig, place: &'a str) -> impl Iterator<Item = String> + 'a {
    let respelled = config.respelled.iter().take(MAX_IGNORED_KEYS_SHOWN);
    let respelled = respelled.map(move |respelled| {
        format!(
            "key {:?} in {place} is read as \"{}\"",
            respelled.given, respelled.key
        )
    });
    let ignored = config.unknown.iter().take(MAX_IGNORED_KEYS_SHOWN);
    respelled.chain(ignored.map(move |key| format!("key {key:?} in {place} is ignored")))
}

/// Fails if `not_after`, the time at which a request expires, is before `now`.
fn check_not_expired(not_after: Option<SystemTime>, now: SystemTime) -> Result<(), RequestError> {
    match not_after {
        Some(end) if end < now => Err(RequestError::Expired {
            not_after: format_rfc3339(end),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_request_is_rejected_after_the_not_after_time_of_its_config() {
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        assert!(check_not_expired(None, end).is_ok());
        assert!(check_not_expired(Some(end), end).is_ok());
        let error = check_not_expired(Some(end), end + Duration::from_secs(1)).unwrap_err();
        assert!(error.to_string().contains("2001-09-09T01:46:40Z"), "{error}");
    }
}
