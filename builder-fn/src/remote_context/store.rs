//! Stores contexts in the operator's registry, for callers without credentials of their own, and deletes them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use function_host::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION};
use function_host::http::{Method, Request, StatusCode, Uri};
use function_host::policy::Tenant;
use function_host::registry::{RegistryError, Repository};
use function_host::{BoxError, ErrorChain, OutgoingRequestBody};
use futures_util::stream;
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use sha2::{Digest, Sha256};
use tokio::task::spawn_blocking;

use super::artifact::{self, ContextLayer, EMPTY_CONFIG, MANIFEST_MEDIA_TYPE};
use super::error::OCI_MEMBER;
use super::oci::{RESPONSE_TIMEOUT, empty_body};
use super::{ContextError, RemoteContexts};
use crate::context::Spool;
use crate::request::time::format_rfc3339;
use crate::request::{ContextReference, OciContext, ReferencedContext, Sha256Digest, StorableTar};

/// The most bytes of a context that are read from its spool at once.
const PIECE_BYTES: usize = 256 << 10;

/// The lowest rate at which a registry may take a context, in bytes per second.
const UPLOAD_RATE_MIN: u64 = 256 << 10;

/// A context that was stored.
#[derive(Clone, Debug)]
pub(crate) struct StoredContext {
    /// The reference to the context, for a JSON request.
    pub(crate) reference: OciContext,
    /// The length of the stored tar in bytes.
    pub(crate) bytes: u64,
}

/// An upload to a registry that has begun. Dropping it cancels the upload there, unless it was completed.
struct Upload {
    repository: Repository,
    address: Option<Uri>,
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
        let body = Arc::new(body);
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
        let mut repository = repository.handle.with_actions("pull,push");
        let config = digest_of(EMPTY_CONFIG);
        let empty_config = || {
            Full::from(EMPTY_CONFIG)
                .map_err(|never| match never {})
                .boxed_unsync()
        };
        upload_blob(&mut repository, config, EMPTY_CONFIG.len() as u64, empty_config).await?;
        upload_blob(&mut repository, digest, body.len(), || spool_body(body.clone())).await?;

        let created = format_rfc3339(SystemTime::now());
        // Contexts that are stored at the same time get manifests of their own, too.
        let created = format!("{created} {}", uuid::Uuid::new_v4());
        let manifest = artifact::stored_context_manifest(layer, media_type, config, &created).to_string();
        let digest = put_manifest(&mut repository, manifest).await?;
        Ok(StoredContext {
            reference: OciContext { image, digest },
            bytes: body.len(),
        })
    }

    /// Deletes a stored context that was built, if the settings say so. One that is not stored here is never deleted. A
    /// failure is logged, and leaves the context to the registry's garbage collection.
    pub(crate) async fn delete_built(&self, context: &ReferencedContext) {
        let ContextReference::Oci(oci) = &context.reference else {
            return;
        };
        let repository = self.stored.repository.as_ref();
        if !self.stored.deletes_built || !repository.is_some_and(|repository| repository.has(&oci.image)) {
            return;
        }
        match self.delete(oci, context.rules.tenant()).await {
            Ok(()) => tracing::info!(context = %oci, "deleted a stored context after its build"),
            Err(error) => tracing::warn!(
                context = %oci,
                error = %ErrorChain(&error),
                "could not delete a stored context after its build"
            ),
        }
    }

    /// Deletes the manifest of a stored context. A missing one counts as deleted.
    async fn delete(&self, oci: &OciContext, tenant: Option<&Arc<Tenant>>) -> Result<(), ContextError> {
        let repository = self.open_repository(&oci.image, tenant).await?;
        let mut repository = repository.handle.with_actions("delete,pull");
        let address = repository.uri_of_path(&format!("manifests/{}", oci.digest))?;
        let request = || request_to(Method::DELETE, &address, empty_body());
        let status = repository.send(request, RESPONSE_TIMEOUT).await?.status();
        match status.is_success() || status == StatusCode::NOT_FOUND {
            true => Ok(()),
            false => Err(rejection(&repository, status)),
        }
    }
}

/// Uploads a blob of `length` bytes, unless the repository has it.
async fn upload_blob(
    repository: &mut Repository,
    digest: Sha256Digest,
    length: u64,
    body: impl Fn() -> OutgoingRequestBody,
) -> Result<(), ContextError> {
    let address = repository.uri_of_path(&format!("blobs/{digest}"))?;
    let known = repository
        .send(
            || request_to(Method::HEAD, &address, empty_body()),
            RESPONSE_TIMEOUT,
        )
        .await?;
    if known.status() == StatusCode::OK {
        return Ok(());
    }
    let address = repository.uri_of_path("blobs/uploads/")?;
    let begin = || {
        let mut request = request_to(Method::POST, &address, empty_body());
        request.headers_mut().insert(CONTENT_LENGTH, 0.into());
        request
    };
    let begun = repository.send(begin, RESPONSE_TIMEOUT).await?;
    if begun.status() != StatusCode::ACCEPTED {
        return Err(rejection(repository, begun.status()));
    }
    let location = begun
        .headers()
        .get(LOCATION)
        .and_then(|value| value.to_str().ok());
    let location = location.and_then(|location| address_of_upload(&address, location));
    let location = location.ok_or_else(|| ContextError::Redirect {
        member: OCI_MEMBER,
        host: repository.registry_host().to_owned(),
        problem: "begins an upload at another host".to_owned(),
    })?;
    let mut upload = Upload {
        repository: repository.clone(),
        address: Some(location.clone()),
    };
    let separator = if location.query().is_some() { '&' } else { '?' };
    let target = format!("{location}{separator}digest={digest}").parse();
    let target: Uri = target.map_err(|_| rejection(repository, begun.status()))?;
    let put = || {
        let mut request = request_to(Method::PUT, &target, body());
        request.headers_mut().insert(CONTENT_LENGTH, length.into());
        let binary = HeaderValue::from_static("application/octet-stream");
        request.headers_mut().insert(CONTENT_TYPE, binary);
        request
    };
    let timeout = RESPONSE_TIMEOUT + Duration::from_secs(length / UPLOAD_RATE_MIN);
    let status = repository.send(put, timeout).await?.status();
    if status != StatusCode::CREATED {
        return Err(rejection(repository, status));
    }
    upload.address = None;
    Ok(())
}

/// Returns the address of an upload at the registry that `begun_at` belongs to; `None` if it is elsewhere. A registry behind a
/// proxy may name another scheme.
fn address_of_upload(begun_at: &Uri, location: &str) -> Option<Uri> {
    let location: Uri = location.parse().ok()?;
    if location
        .authority()
        .is_some_and(|authority| Some(authority) != begun_at.authority())
    {
        return None;
    }
    let mut parts = begun_at.clone().into_parts();
    parts.path_and_query = location.into_parts().path_and_query;
    Uri::from_parts(parts).ok()
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(address) = self.address.take() else {
            return;
        };
        let mut repository = self.repository.clone();
        // The registry purges what is not cancelled, but later.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let cancel = || request_to(Method::DELETE, &address, empty_body());
                if let Err(error) = repository.send(cancel, RESPONSE_TIMEOUT).await {
                    tracing::warn!(error = %ErrorChain(&error), "could not cancel the upload of a context");
                }
            });
        }
    }
}

/// Stores the manifest under its digest, which is returned.
async fn put_manifest(repository: &mut Repository, manifest: String) -> Result<Sha256Digest, ContextError> {
    let digest = digest_of(manifest.as_bytes());
    let address = repository.uri_of_path(&format!("manifests/{digest}"))?;
    let manifest = Bytes::from(manifest);
    let put = || {
        let body = Full::new(manifest.clone()).map_err(|never| match never {});
        let mut request = request_to(Method::PUT, &address, body.boxed_unsync());
        let media_type = HeaderValue::from_static(MANIFEST_MEDIA_TYPE);
        request.headers_mut().insert(CONTENT_TYPE, media_type);
        request
    };
    let status = repository.send(put, RESPONSE_TIMEOUT).await?.status();
    match status {
        StatusCode::CREATED => Ok(digest),
        status => Err(rejection(repository, status)),
    }
}

/// Returns the error of a registry that does not store a context. The operator chose the registry, and the credentials for it.
fn rejection(repository: &Repository, status: StatusCode) -> ContextError {
    ContextError::Registry(RegistryError::Status {
        registry: repository.registry_host().to_owned(),
        status,
    })
}

fn request_to(method: Method, address: &Uri, body: OutgoingRequestBody) -> Request<OutgoingRequestBody> {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = address.clone();
    request
}

fn digest_of(bytes: &[u8]) -> Sha256Digest {
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

    #[test]
    fn an_upload_continues_at_the_registry_only() {
        let begun_at: Uri = "https://r.example:5000/v2/a/blobs/uploads/".parse().unwrap();
        for (location, expected) in [
            (
                "/v2/a/blobs/uploads/7?s=x",
                Some("https://r.example:5000/v2/a/blobs/uploads/7?s=x"),
            ),
            (
                "http://r.example:5000/v2/a/blobs/uploads/7",
                Some("https://r.example:5000/v2/a/blobs/uploads/7"),
            ),
            ("https://evil.example/v2/a/blobs/uploads/7", None),
            ("https://r.example/v2/a/blobs/uploads/7", None),
            ("", None),
        ] {
            let address = address_of_upload(&begun_at, location).map(|address| address.to_string());
            assert_eq!(address.as_deref(), expected, "{location}");
        }
    }

    #[tokio::test]
    async fn the_body_of_an_upload_is_the_content_of_the_spool() {
        let content: Vec<u8> = (0..700_000u32).map(|number| number as u8).collect();
        let spool = Arc::new(Spool::in_memory(content.clone()));
        assert_eq!(hash_spool(&spool).unwrap(), digest_of(&content));
        let body = spool_body(spool).collect().await.unwrap().to_bytes();
        assert!(body == content);
    }
}
