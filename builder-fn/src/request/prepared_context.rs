//! A context that a build can begin with: its files, and the frontend that reads its Dockerfile.
//!
//! Every tar becomes one in the same way, whether it is the body of a request or was fetched for it.

use std::sync::Arc;

use function_host::policy::Tenant;

use super::decompress::{
    BodyCompression, CompressionFormat, decompress_if_compressed, detect_body_compression,
};
use super::restorable_context::RestorableContext;
use super::{AllowedFrontends, Frontend, RequestError, RequestLimits, dockerfile};
use crate::context::{
    ArchiveContents, ArchiveReader, Index, SourceContext, Spool, SpoolQuota, SpoolSettings,
};
use crate::request::config::{ContextTarReference, GitContext};

/// A context with the frontend that reads its Dockerfile.
#[derive(Clone, Debug)]
pub struct PreparedContext {
    /// The files of the context.
    pub files: Arc<SourceContext>,
    /// The frontend with which BuildKit reads the Dockerfile.
    pub frontend: Frontend,
}

/// The rules by which a tar becomes the context of one build.
#[derive(Clone, Debug)]
pub struct ContextRules {
    /// The limits on the tar, and where it is spooled: the quota is that of the tenant.
    pub(super) limits: RequestLimits,
    /// The Dockerfile that the configuration names.
    pub(super) dockerfile: Option<String>,
    /// The tenant whose build it is, if the builder has a policy.
    pub(super) tenant: Option<Arc<Tenant>>,
}

/// The context that came with a request, whose index may be dropped while the build waits.
#[derive(Debug)]
pub struct ReceivedContext {
    /// The files of the context.
    pub files: RestorableContext,
    /// The frontend with which BuildKit reads the Dockerfile.
    pub frontend: Frontend,
}

/// A context that a request refers to, and that is fetched when its build begins.
#[derive(Clone, Debug)]
pub struct ReferencedContext {
    /// The reference to the context.
    pub reference: ContextTarReference,
    /// The rules by which the fetched tar becomes the context.
    pub rules: ContextRules,
}

/// The source of a build.
#[derive(Debug)]
pub enum BuildSource {
    /// The context that came with the request.
    Received(ReceivedContext),
    /// A tar in a registry or on a web server, which the builder fetches. It is boxed, because the rules are large.
    Referenced(Box<ReferencedContext>),
    /// A git repository, which the daemon reads.
    Git(Box<GitContext>),
}

impl ReceivedContext {
    /// Returns the context as a build begins with it.
    ///
    /// # Errors
    /// Fails while the index is dropped.
    pub(crate) fn prepared_unless_index_dropped(&self) -> Result<PreparedContext, RequestError> {
        Ok(PreparedContext {
            files: self.files.context_unless_index_dropped()?,
            frontend: self.frontend.clone(),
        })
    }
}

impl BuildSource {
    /// Drops the index of a context that came with the request, unless it is small or in use.
    pub(crate) fn drop_large_index(&self) {
        match self {
            Self::Received(context) => context.files.drop_large_index(),
            // It has no index until it is fetched.
            Self::Referenced(_) | Self::Git(_) => {}
        }
    }

    /// Makes the index of a context that came with the request again, if it was dropped.
    ///
    /// # Errors
    /// Fails if the tar cannot be read back, or the runtime is shutting down.
    pub(crate) async fn restore_index(&self) -> Result<(), RequestError> {
        match self {
            Self::Received(context) => context.files.restore_index().await.map(drop),
            Self::Referenced(_) | Self::Git(_) => Ok(()),
        }
    }
}

/// Returns the limits with `quota` for what is spooled.
pub(super) fn limits_with_quota(limits: &RequestLimits, quota: SpoolQuota) -> RequestLimits {
    let mut limits = limits.clone();
    limits.spool.quota = quota;
    limits
}

/// Decompresses the tar in `body`, and indexes it by one pass over its headers. Blocks.
///
/// # Errors
/// Fails if the tar is unusable or exceeds a limit.
pub(super) fn decompress_and_index_tar(
    body: Spool,
    limits: &RequestLimits,
) -> Result<(ArchiveContents, Spool), RequestError> {
    let spool = decompress_if_compressed(&body, &limits.spool, limits.archive.body)?.unwrap_or(body);
    let contents = ArchiveReader::new(limits.archive.clone()).read(&spool)?;
    Ok((contents, spool))
}

impl ContextRules {
    /// Returns the settings of the spool for the tar.
    pub(crate) fn spool_settings(&self) -> &SpoolSettings {
        &self.limits.spool
    }

    /// Returns the limit on the size of the tar as it is fetched, in bytes.
    pub(crate) fn fetched_tar_max_bytes(&self) -> u64 {
        self.limits.archive.body
    }

    /// Returns the tenant whose build it is.
    pub(crate) fn tenant(&self) -> Option<&Arc<Tenant>> {
        self.tenant.as_ref()
    }

    /// Makes the context of the entries of a tar, and checks its Dockerfile. Returns it with warnings. Blocks.
    ///
    /// # Errors
    /// Fails if there is no Dockerfile, or it names a frontend that is not allowed.
    pub(super) fn prepare_entries(
        &self,
        entries: Index,
        spool: Spool,
    ) -> Result<(PreparedContext, Vec<String>), RequestError> {
        let (dockerfile, tenant) = (self.dockerfile.as_deref(), self.tenant.as_deref());
        let frontends: &AllowedFrontends = &self.limits.frontends;
        let files = SourceContext::new(entries, spool);
        dockerfile::check_dockerfile_exists(&files, dockerfile)?;
        let frontend = dockerfile::choose_frontend(&files, dockerfile, frontends, tenant)?;
        let warnings = dockerfile::ignore_file_warnings(&files, dockerfile)?;
        let files = Arc::new(files);
        Ok((PreparedContext { files, frontend }, warnings))
    }

    /// Makes the context of a fetched tar, which is compressed as a body may be, once it is its turn. Returns it with
    /// warnings.
    ///
    /// # Errors
    /// Fails as a request with the tar as its body would.
    pub(crate) async fn prepare_fetched(
        &self,
        body: Spool,
    ) -> Result<(PreparedContext, Vec<String>), RequestError> {
        let rules = self.clone();
        let turns = rules.limits.indexing.clone();
        let prepare = move || {
            let (contents, spool) = decompress_and_index_tar(body, &rules.limits)?;
            let mut warnings = contents.warnings;
            for (name, is_there, instead) in [
                (
                    "com.openfaas.docker.config",
                    contents.config.is_some(),
                    "the JSON request is the configuration",
                ),
                (
                    "com.openfaas.secrets",
                    contents.secrets.is_some(),
                    "\"sealedSecrets\" of the JSON request has the secrets",
                ),
            ] {
                if is_there {
                    warnings.push(format!("{name} in the fetched context is ignored: {instead}"));
                }
            }
            let (prepared, more) = rules.prepare_entries(contents.entries, spool)?;
            warnings.extend(more);
            Ok((prepared, warnings))
        };
        turns.run(prepare).await
    }
}

/// The media type of a tar as a layer of an artifact.
const PLAIN_TAR_MEDIA_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// A tar that has been checked and may be stored, as it was sent.
#[derive(Debug)]
pub struct StorableTar {
    /// The tar, which may be compressed.
    pub(crate) body: Arc<Spool>,
    /// The media type of the tar as a layer.
    pub(crate) media_type: &'static str,
    /// The warnings about the tar.
    pub(crate) warnings: Vec<String>,
}

impl ReceivedContext {
    /// Returns the tar of the context, decompressed, for storing it.
    pub(crate) fn to_decompressed_storable_tar(&self) -> StorableTar {
        StorableTar {
            body: self.files.decompressed_tar(),
            media_type: PLAIN_TAR_MEDIA_TYPE,
            warnings: Vec::new(),
        }
    }
}

/// Checks that `body` is a tar with a context, so that its sender learns now if it is not. Blocks.
///
/// # Errors
/// Fails if the tar is unusable or exceeds a limit.
pub(super) fn check_and_make_storable(
    body: Spool,
    limits: &RequestLimits,
) -> Result<StorableTar, RequestError> {
    let decompressed = decompress_if_compressed(&body, &limits.spool, limits.archive.body)?;
    let contents = ArchiveReader::new(limits.archive.clone()).read(decompressed.as_ref().unwrap_or(&body))?;
    let media_type = match detect_body_compression(&body)? {
        BodyCompression::Plain => PLAIN_TAR_MEDIA_TYPE,
        BodyCompression::Compressed(CompressionFormat::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
        BodyCompression::Compressed(CompressionFormat::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
    };
    Ok(StorableTar {
        body: body.into(),
        media_type,
        warnings: contents.warnings,
    })
}

#[cfg(test)]
mod tests {
    use super::super::IndexingTurns;
    use super::*;
    use crate::context::ArchiveLimits;

    #[tokio::test]
    async fn a_received_context_is_prepared_again_after_its_index_was_dropped() {
        let mut tar = tar::Builder::new(Vec::new());
        for number in 0..20_000 {
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            header.set_mode(0o644);
            let path = format!("context/file-{number}");
            tar.append_data(&mut header, path, &[][..]).unwrap();
        }
        let files = Arc::new(SourceContext::from_tar(&tar.into_inner().unwrap()).unwrap());
        let source = BuildSource::Received(ReceivedContext {
            files: RestorableContext::new(files, ArchiveLimits::default(), IndexingTurns::default()),
            frontend: Frontend::Named,
        });
        let BuildSource::Received(received) = &source else {
            panic!("{source:?}");
        };

        source.drop_large_index();
        assert!(
            received.prepared_unless_index_dropped().is_err(),
            "the index was kept"
        );

        source.restore_index().await.unwrap();
        let prepared = received.prepared_unless_index_dropped().unwrap();
        assert_eq!(prepared.files.index().len(), 20_000);
        assert_eq!(prepared.frontend, Frontend::Named);
    }
}
