//! A body whose signature has been verified: it is decompressed, indexed and parsed as a build request.

use std::sync::Arc;
use std::time::SystemTime;

use super::decompress::decompress;
use super::dockerfile;
use super::restorable_context::RestorableContext;
use super::rules;
use super::time::format_rfc3339;
use super::{
    BuildConfig, BuildRequest, RequestError, RequestHead, RequestLimits, SubmittedAt, VerifiedSignature,
};
use crate::context::{ArchiveReader, SourceContext, Spool, SpoolQuota, SpoolSettings};
use crate::slots::SlotOwner;

/// The number of ignored keys that warnings name.
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

    /// Returns the tenant that signed the body, as far as its build slot is concerned.
    pub(crate) fn slot_owner(&self) -> SlotOwner {
        let tenant = self.signature.as_ref().and_then(VerifiedSignature::tenant);
        tenant.map_or_else(SlotOwner::default, |tenant| SlotOwner::of_tenant(tenant))
    }

    /// Parses the build request in the body, which arrived with `head`: decompresses the body, and indexes the tar in it.
    ///
    /// # Errors
    /// Fails if the tar, its configuration or its Dockerfile is unusable or exceeds a limit, or the request has expired or
    /// is too old.
    pub async fn into_build_request(
        self,
        head: RequestHead,
        limits: &RequestLimits,
    ) -> Result<BuildRequest, RequestError> {
        let turns = limits.indexing.clone();
        let limits = limits.clone();
        turns.run(move || self.parse(&head, &limits)).await
    }

    fn parse(self, head: &RequestHead, limits: &RequestLimits) -> Result<BuildRequest, RequestError> {
        let Self {
            spool,
            quota,
            signature,
        } = self;
        let body_bytes = spool.len();
        let settings = SpoolSettings {
            quota,
            ..limits.spool.clone()
        };
        let spool = decompress(spool, &settings, limits.archive.body)?;
        let contents = ArchiveReader::new(limits.archive.clone()).read(&spool)?;
        let config = BuildConfig::parse(&contents.config.ok_or(RequestError::NoConfig)?)?;
        let tenant = signature
            .as_ref()
            .and_then(VerifiedSignature::tenant)
            .map(Arc::as_ref);
        let mut warnings = contents.warnings;
        let now = SystemTime::now();
        check_not_expired(config.not_after, now)?;
        let is_dated = limits.freshness.check_age(config.submitted_at, now)?;
        rules::check_config(&config, tenant, &limits.reserved)?;
        let submitted_at = SubmittedAt::determine(config.submitted_at, head, now, &mut warnings)?;
        let context = SourceContext::new(contents.entries, spool);
        dockerfile::check_dockerfile_exists(&context, config.dockerfile.as_deref())?;
        let frontend =
            dockerfile::choose_frontend(&context, config.dockerfile.as_deref(), &limits.frontends, tenant)?;

        warnings.extend(dockerfile::ignore_file_warnings(
            &context,
            config.dockerfile.as_deref(),
        )?);
        let respelled = config.respelled.iter().take(MAX_IGNORED_KEYS_SHOWN);
        warnings.extend(respelled.map(|respelled| {
            format!(
                "key {:?} in com.openfaas.docker.config is read as \"{}\"",
                respelled.given, respelled.key
            )
        }));
        let ignored = config.unknown.iter().take(MAX_IGNORED_KEYS_SHOWN);
        warnings.extend(ignored.map(|key| format!("key {key:?} in com.openfaas.docker.config is ignored")));
        Ok(BuildRequest {
            config,
            frontend,
            context: RestorableContext::new(context, limits.archive.clone(), limits.indexing.clone()),
            sealed_secrets: contents.secrets.map(Into::into),
            warnings,
            body_bytes,
            is_single_use: is_dated && signature.is_some(),
            signature,
            submitted_at,
        })
    }
}

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
