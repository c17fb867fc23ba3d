//! Decompresses, spools and indexes a body piece by piece, then parses the build request in it. All functions
//! block.

use std::sync::Arc;
use std::time::SystemTime;

use function_host::policy::ReservedNames;

use super::decompress::BodyDecompressor;
use super::dockerfile;
use super::rules;
use super::time::format_rfc3339;
use super::{
    AllowedFrontends, BuildConfig, BuildRequest, FreshnessLimit, RequestError, RequestHead, RequestLimits,
    SubmittedAt, VerifiedSignature,
};
use crate::context::{ArchiveReader, SourceContext, Spool};

/// The number of ignored keys that warnings name.
const MAX_IGNORED_KEYS_SHOWN: usize = 20;

/// The part of a body that has been received, spooled and indexed.
pub(super) struct BodyIndexer {
    received: u64,
    /// The decompressor of the body; `None` while a piece is processed, and after an error.
    decompressor: Option<BodyDecompressor>,
    /// The error in the tar, to be reported once the signature has been verified.
    archive_error: Option<RequestError>,
    frontends: AllowedFrontends,
    freshness: FreshnessLimit,
    reserved: Arc<ReservedNames>,
}

impl BodyIndexer {
    pub(super) fn new(limits: &RequestLimits) -> Self {
        let decompressor = BodyDecompressor::new(
            Spool::new(limits.spool.clone()),
            ArchiveReader::new(limits.archive.clone()),
            limits.archive.body,
        );
        Self {
            received: 0,
            decompressor: Some(decompressor),
            archive_error: None,
            frontends: limits.frontends.clone(),
            freshness: limits.freshness,
            reserved: Arc::clone(&limits.reserved),
        }
    }

    /// Decompresses, spools and indexes the next piece of the body.
    ///
    /// # Errors
    /// Fails if the piece cannot be spooled. An error in the tar is only remembered, because the caller is not authenticated
    /// yet; the rest of such a body is discarded.
    pub(super) fn add_piece(&mut self, piece: &[u8]) -> Result<(), RequestError> {
        self.received += piece.len() as u64;
        let Some(decompressor) = self.decompressor.take() else {
            return Ok(());
        };
        match decompressor.decompress_piece(piece) {
            Ok(decompressor) => self.decompressor = Some(decompressor),
            Err(error @ RequestError::Archive(_)) => self.archive_error = Some(error),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Parses the build request in the body. Must be called only after the signature has been verified, or if
    /// none is required.
    ///
    /// # Errors
    /// Fails if the tar, its configuration or its Dockerfile is unusable, or the request has expired or is too old.
    pub(super) fn into_build_request(
        self,
        head: &RequestHead,
        signature: Option<VerifiedSignature>,
    ) -> Result<BuildRequest, RequestError> {
        let Self {
            received,
            decompressor,
            archive_error,
            frontends,
            freshness,
            reserved,
        } = self;
        let decompressor = match (decompressor, archive_error) {
            (_, Some(error)) => return Err(error),
            (Some(decompressor), None) => decompressor,
            (None, None) => return Err(RequestError::Interrupted),
        };
        let (spool, reader) = decompressor.finish()?;
        let contents = reader.finish()?;
        let config = BuildConfig::parse(&contents.config.ok_or(RequestError::NoConfig)?)?;
        let tenant = signature
            .as_ref()
            .and_then(|signature| signature.tenant())
            .cloned();
        let tenant = tenant.as_deref();
        let mut warnings = contents.warnings;
        let now = SystemTime::now();
        check_not_expired(config.not_after, now)?;
        let is_dated = freshness.check_age(config.submitted_at, now)?;
        rules::check(&config, tenant, &reserved)?;
        let submitted_at = SubmittedAt::determine(config.submitted_at, head, now, &mut warnings)?;
        let context = SourceContext::new(contents.entries, spool);
        dockerfile::check_dockerfile_exists(&context, config.dockerfile.as_deref())?;
        let frontend =
            dockerfile::choose_frontend(&context, config.dockerfile.as_deref(), &frontends, tenant)?;

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
            context: Arc::new(context),
            sealed_secrets: contents.secrets.map(Into::into),
            warnings,
            body_bytes: received,
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
