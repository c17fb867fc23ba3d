//! Uploads of blobs and manifests to a repository of a registry.
//!
//! Protocol: <https://github.com/opencontainers/distribution-spec/blob/main/spec.md#push>.

use std::time::Duration;

use bytes::Bytes;
use function_host::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION};
use function_host::http::{Method, Request, StatusCode, Uri};
use function_host::registry::{RegistryError, RepositoryClient};
use function_host::{ErrorChain, OutgoingRequestBody};
use http_body_util::{BodyExt, Empty, Full};

/// The time within which a registry, or a server that contexts are fetched from, has to begin a response.
pub(crate) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// The media type of an OCI image manifest.
pub(crate) const MANIFEST_MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// The content of a stored artifact's configuration: an empty JSON object. A manifest must refer to a configuration.
pub(crate) const EMPTY_CONFIG: &[u8] = b"{}";

/// The lowest rate at which a registry may take a blob, in bytes per second.
const UPLOAD_RATE_MIN_BYTES_PER_SECOND: u64 = 256 << 10;

/// The error of an upload to a registry.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    /// The registry cannot be reached, or rejects the upload.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The registry names no valid address for the upload, or one at another host, which is sent nothing.
    #[error("{registry} begins an upload at another host")]
    Elsewhere {
        /// The host of the registry.
        registry: String,
    },
}

/// An upload to a registry that has begun. Dropping it cancels the upload there, unless it was completed.
struct UploadCancelledOnDrop {
    repository: RepositoryClient,
    address: Option<Uri>,
}

/// Uploads a blob of `length` bytes, unless the repository has it.
pub(crate) async fn upload_blob_if_missing(
    repository: &mut RepositoryClient,
    digest: &str,
    length: u64,
    body: impl Fn() -> OutgoingRequestBody,
) -> Result<(), UploadError> {
    let address = repository.uri_in_repository_api(&format!("blobs/{digest}"))?;
    let known = repository
        .send(
            || request_to(Method::HEAD, &address, empty_body()),
            RESPONSE_TIMEOUT,
        )
        .await?;
    if known.status() == StatusCode::OK {
        return Ok(());
    }
    let address = repository.uri_in_repository_api("blobs/uploads/")?;
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
    let location = location.and_then(|location| upload_address_at_same_registry(&address, location));
    let location = location.ok_or_else(|| UploadError::Elsewhere {
        registry: repository.registry_host().to_owned(),
    })?;
    let mut upload = UploadCancelledOnDrop {
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
    let timeout = RESPONSE_TIMEOUT + Duration::from_secs(length / UPLOAD_RATE_MIN_BYTES_PER_SECOND);
    let status = repository.send(put, timeout).await?.status();
    if status != StatusCode::CREATED {
        return Err(rejection(repository, status));
    }
    upload.address = None;
    Ok(())
}

/// Returns the address of an upload at the registry that `begun_at` belongs to; `None` if it is elsewhere or malformed.
/// A registry behind a proxy may name another scheme.
fn upload_address_at_same_registry(begun_at: &Uri, location: &str) -> Option<Uri> {
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

impl Drop for UploadCancelledOnDrop {
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
                    tracing::warn!(error = %ErrorChain(&error), "could not cancel the upload of a blob");
                }
            });
        }
    }
}

/// Stores a manifest of this media type under `reference`, its digest or a tag.
pub(crate) async fn put_manifest(
    repository: &mut RepositoryClient,
    reference: &str,
    manifest: String,
    media_type: &'static str,
) -> Result<(), UploadError> {
    let address = repository.uri_in_repository_api(&format!("manifests/{reference}"))?;
    let manifest = Bytes::from(manifest);
    let put = || {
        let mut request = request_to(Method::PUT, &address, bytes_body(manifest.clone()));
        let media_type = HeaderValue::from_static(media_type);
        request.headers_mut().insert(CONTENT_TYPE, media_type);
        request
    };
    let status = repository.send(put, RESPONSE_TIMEOUT).await?.status();
    match status {
        StatusCode::CREATED => Ok(()),
        status => Err(rejection(repository, status)),
    }
}

/// Returns the error of a registry that does not store or delete what it is sent.
pub(crate) fn rejection(repository: &RepositoryClient, status: StatusCode) -> UploadError {
    UploadError::Registry(RegistryError::Status {
        registry: repository.registry_host().to_owned(),
        status,
    })
}

/// Returns a request with this body.
pub(crate) fn request_to(
    method: Method,
    address: &Uri,
    body: OutgoingRequestBody,
) -> Request<OutgoingRequestBody> {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = address.clone();
    request
}

/// Returns the body of a request with these bytes.
pub(crate) fn bytes_body(bytes: Bytes) -> OutgoingRequestBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// Returns an empty body for a request.
pub(crate) fn empty_body() -> OutgoingRequestBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_continues_at_the_registrys_host_and_scheme_whatever_scheme_is_named() {
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
            let address =
                upload_address_at_same_registry(&begun_at, location).map(|address| address.to_string());
            assert_eq!(address.as_deref(), expected, "{location}");
        }
    }
}
