//! Stores contexts in the operator's registry, for callers without credentials of their own, and deletes them.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use function_host::http::{Method, StatusCode};
use function_host::policy::Tenant;
use function_host::{BoxError, ErrorChain, OutgoingRequestBody};
use futures_util::stream;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use sha2::{Digest, Sha256};
use tokio::task::spawn_blocking;

use super::artifact::{self, ContextLayer};
use super::{ContextError, RemoteContexts};
use crate::context::Spool;
use crate::registry::{
    EMPTY_CONFIG, MANIFEST_MEDIA_TYPE, RESPONSE_TIMEOUT, bytes_body, empty_body, put_manifest, rejection,
    request_to, upload_blob_if_missing,
};
use crate::request::time::format_rfc3339;
use crate::request::{
    ContextArtifactReference, ContextTarReference, ReferencedContext, Sha256Digest, StorableTar,
};

/// The most bytes of a context that are read from its spool at once.
const PIECE_BYTES: usize = 256 << 10;

/// A context that was stored.
#[derive(Clone, Debug)]
pub(crate) struct StoredContext {
    /// The reference to the context, for a JSON request.
    pub(crate) reference: ContextArtifactReference,
    /// The length of the stored tar in bytes.
    pub(crate) bytes: u64,
}

impl RemoteContexts {
    /// Returns whether the builder stores contexts.
    pub(crate) fn stores_contexts(&self) -> bool {
        self.stored.repository.is_some()
    }

    /// Stores a tar as a context of `tenant`, and returns the reference to it.
    ///
    /// Dropping the future cancels the upload at the registry.
    ///
    /// # Errors
    /// Fails if the builder stores no contexts, or the registry does not accept it.
    pub(crate) async fn store(
        &self,
        tar: StorableTar,
        tenant: Option<&Arc<Tenant>>,
    ) -> Result<StoredContext, ContextError> {
        let owner = tenant.map(|tenant| tenant.name().as_str());
        let repository = self.stored.repository.as_ref();
        let image = repository.and_then(|repository| repository.of_tenant(owner));
        let image = image.ok_or(ContextError::NotStored)?;
        let StorableTar { body, media_type, .. } = tar;
        let permit = self.uploads.0.acquire().await;
        let _permit = permit.map_err(|_| ContextError::Interrupted)?;
        let hashed = body.clone();
        let hashing = spawn_blocking(move || hash_spool(&hashed)).await;
        let digest = hashing
            .map_err(|_| ContextError::Interrupted)?
            .map_err(|error| ContextError::Lost(error.into()))?;

        let layer = ContextLayer {
            digest,
            size: body.len(),
        };
        let repository = self.open_repository(&image, tenant).await?;
        let mut repository = repository.handle.with_token_actions("pull,push");
        let config = sha256_of(EMPTY_CONFIG);
        let (name, length) = (config.to_string(), EMPTY_CONFIG.len() as u64);
        upload_blob_if_missing(&mut repository, &name, length, || bytes_body(EMPTY_CONFIG.into())).await?;
        let (name, length) = (digest.to_string(), body.len());
        upload_blob_if_missing(&mut repository, &name, length, || spool_body(body.clone())).await?;

        let created = format_rfc3339(SystemTime::now());
        // Contexts that are stored at the same time get manifests of their own, too.
        let created = format!("{created} {}", uuid::Uuid::new_v4());
        let manifest = artifact::stored_context_manifest(layer, media_type, config, &created).to_string();
        let digest = sha256_of(manifest.as_bytes());
        put_manifest(
            &mut repository,
            &digest.to_string(),
            manifest,
            MANIFEST_MEDIA_TYPE,
        )
        .await?;
        Ok(StoredContext {
            reference: ContextArtifactReference { image, digest },
            bytes: body.len(),
        })
    }

    /// Deletes a stored context that was built, if the settings say so. One that is not stored here is never deleted. A
    /// failure is logged, and leaves the context to the registry's garbage collection.
    pub(crate) async fn delete_built_if_configured(&self, context: &ReferencedContext) {
        let ContextTarReference::Oci(oci) = &context.reference else {
            return;
        };
        let repository = self.stored.repository.as_ref();
        if !self.stored.deletes_built
            || !repository.is_some_and(|repository| repository.is_or_contains(&oci.image))
        {
            return;
        }
        match self.delete_manifest_if_present(oci, context.rules.tenant()).await {
            Ok(()) => tracing::info!(context = %oci, "deleted a stored context after its build"),
            Err(error) => tracing::warn!(
                context = %oci,
                error = %ErrorChain(&error),
                "could not delete a stored context after its build"
            ),
        }
    }

    /// Deletes the manifest of a stored context. A missing one counts as deleted.
    async fn delete_manifest_if_present(
        &self,
        oci: &ContextArtifactReference,
        tenant: Option<&Arc<Tenant>>,
    ) -> Result<(), ContextError> {
        let repository = self.open_repository(&oci.image, tenant).await?;
        let mut repository = repository.handle.with_token_actions("delete,pull");
        let address = repository.uri_in_repository_api(&format!("manifests/{}", oci.digest))?;
        let request = || request_to(Method::DELETE, &address, empty_body());
        let status = repository.send(request, RESPONSE_TIMEOUT).await?.status();
        match status.is_success() || status == StatusCode::NOT_FOUND {
            true => Ok(()),
            false => Err(rejection(&repository, status).into()),
        }
    }
}

fn sha256_of(bytes: &[u8]) -> Sha256Digest {
    Sha256Digest::new(Sha256::digest(bytes).into())
}

/// Returns the digest of a spool's bytes. Blocks.
fn hash_spool(spool: &Spool) -> std::io::Result<Sha256Digest> {
    let mut hasher = Sha256::new();
    let mut offset = 0;
    loop {
        let piece = read_piece(spool, offset)?;
        if piece.is_empty() {
            return Ok(Sha256Digest::new(hasher.finalize().into()));
        }
        hasher.update(&piece);
        offset += piece.len() as u64;
    }
}

/// Reads the bytes of a spool from `offset` on, at most [`PIECE_BYTES`]; none at its end. Blocks.
fn read_piece(spool: &Spool, offset: u64) -> std::io::Result<Bytes> {
    let left = spool.len().saturating_sub(offset);
    let mut piece = vec![0; usize::try_from(left).unwrap_or(PIECE_BYTES).min(PIECE_BYTES)];
    let count = spool.read_at(&mut piece, offset)?;
    piece.truncate(count);
    Ok(piece.into())
}

/// Returns a body that is read from a spool while it is sent.
fn spool_body(spool: Arc<Spool>) -> OutgoingRequestBody {
    let pieces = stream::unfold((spool, 0u64), |(spool, offset)| async move {
        let source = spool.clone();
        let read = spawn_blocking(move || read_piece(&source, offset)).await;
        let piece = match read {
            Ok(Ok(piece)) if piece.is_empty() => return None,
            Ok(Ok(piece)) => Ok(piece),
            Ok(Err(error)) => Err(BoxError::from(error)),
            Err(error) => Err(BoxError::from(error)),
        };
        // An error ends the body before its declared length, so the registry does not take it for complete.
        let next = offset + piece.as_ref().map_or(0, |piece| piece.len() as u64);
        Some((piece.map(Frame::data), (spool, next)))
    });
    StreamBody::new(pieces).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_body_of_an_upload_is_the_content_of_the_spool() {
        let content: Vec<u8> = (0..700_000u32).map(|number| number as u8).collect();
        let spool = Arc::new(Spool::in_memory(content.clone()));
        assert_eq!(hash_spool(&spool).unwrap(), sha256_of(&content));
        let body = spool_body(spool).collect().await.unwrap().to_bytes();
        assert!(body == content);
    }
}
