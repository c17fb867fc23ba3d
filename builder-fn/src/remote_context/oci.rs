//! Fetches a context that is an artifact in a registry.

use function_host::OutgoingRequestBody;
use function_host::http::header::LOCATION;
use function_host::http::{Method, Request, Response, StatusCode, Uri};
use function_host::registry::RepositoryClient;
use hyper::body::Incoming;
use sha2::{Digest, Sha256};

use super::artifact::{self, ContextLayer};
use super::download::receive_verified;
use super::error::OCI_MEMBER;
use super::{ContextError, OpenRepository, RemoteContexts};
use crate::context::Spool;
use crate::registry::{RESPONSE_TIMEOUT, empty_body};
use crate::request::{ContextArtifactReference, ContextRules, Sha256Digest};

/// The largest number of redirects, such as those of a registry to its storage.
pub(super) const MAX_REDIRECTS: usize = 4;

impl RemoteContexts {
    /// Fetches the tar of an artifact, and verifies the digests of the manifest and of its only layer.
    pub(super) async fn fetch_oci(
        &self,
        oci: &ContextArtifactReference,
        rules: &ContextRules,
    ) -> Result<Spool, ContextError> {
        let mut repository = self.open_repository(&oci.image, rules.tenant()).await?;
        let layer = fetch_layer_descriptor_from_manifest(&mut repository.handle, oci).await?;
        let limit = rules.fetched_tar_max_bytes();
        if layer.size > limit {
            return Err(ContextError::TooLarge { limit });
        }
        let response = self
            .request_blob_following_redirects(&mut repository, oci, layer.digest)
            .await?;
        let what = format!("the layer of {oci}");
        // No more than the manifest says, so that a registry that sends more is noticed early.
        let limit = layer.size;
        match receive_verified(
            response.into_body(),
            &what,
            layer.digest,
            limit,
            rules.spool_settings(),
        )
        .await
        {
            Err(ContextError::TooLarge { .. }) => Err(ContextError::NotAContext {
                problem: format!("the layer is larger than the {limit} bytes that the manifest says"),
            }),
            received => received,
        }
    }

    /// Requests a blob, and follows the registry's redirects to its storage. Returns the response, whose body is not
    /// read yet.
    async fn request_blob_following_redirects(
        &self,
        repository: &mut OpenRepository,
        oci: &ContextArtifactReference,
        digest: Sha256Digest,
    ) -> Result<Response<Incoming>, ContextError> {
        let OpenRepository {
            handle: repository,
            rule: own_rule,
        } = repository;
        let address = repository.uri_in_repository_api(&format!("blobs/{digest}"))?;
        let sent = repository
            .send(|| get_request(address.clone()), RESPONSE_TIMEOUT)
            .await;
        let mut response = sent.map_err(|error| access_error(error, oci))?;
        let mut host = repository.registry_host().to_owned();
        for _ in 0..=MAX_REDIRECTS {
            match response.status() {
                StatusCode::OK => return Ok(response),
                StatusCode::NOT_FOUND => return Err(not_found(&format!("the layer of {oci}"))),
                status if status.is_redirection() => {}
                status => return Err(blob_status_error(status, &host, oci)),
            }
            let location = absolute_redirect_target(&response, &host)?;
            // What the registry redirects to gets no credentials.
            let rule = self.redirect_rule(&location, repository.registry_host(), *own_rule)?;
            if location.scheme_str() != Some("https") && !self.insecure {
                return Err(redirect_error(&host, "redirects to an address without TLS"));
            }
            let next_host = location.host().unwrap_or_default().to_owned();
            let sent = self
                .http_client(rule)?
                .send(get_request(location), RESPONSE_TIMEOUT)
                .await;
            response = sent.map_err(|error| ContextError::from_exchange(error, OCI_MEMBER, &next_host))?;
            host = next_host;
        }
        Err(redirect_error(&host, "redirects too often"))
    }
}

/// Fetches the manifest of an artifact, verifies its digest, and returns its layer.
async fn fetch_layer_descriptor_from_manifest(
    repository: &mut RepositoryClient,
    oci: &ContextArtifactReference,
) -> Result<ContextLayer, ContextError> {
    let fetched = repository
        .fetch_unverified_manifest(&oci.digest.to_string())
        .await;
    let manifest = fetched
        .map_err(|error| access_error(error, oci))?
        .ok_or_else(|| not_found(&oci.to_string()))?;
    let found = Sha256Digest::new(Sha256::digest(&manifest).into());
    if found != oci.digest {
        return Err(ContextError::WrongDigest {
            what: format!("the manifest of {}", oci.image),
            found,
            expected: oci.digest,
        });
    }
    artifact::parse_manifest(&manifest).map_err(|problem| ContextError::NotAContext { problem })
}

fn not_found(what: &str) -> ContextError {
    ContextError::NotFound {
        what: what.to_owned(),
    }
}

/// Converts an error of the registry. A repository that cannot be read is the fault of the caller, who chose it.
fn access_error(
    error: function_host::registry::RegistryError,
    oci: &ContextArtifactReference,
) -> ContextError {
    use function_host::registry::RegistryError;
    match error {
        RegistryError::NoCredentials { .. } => unauthorized(StatusCode::UNAUTHORIZED, oci),
        RegistryError::Status { status, .. } | RegistryError::Token { status, .. }
            if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) =>
        {
            unauthorized(status, oci)
        }
        RegistryError::Status { status, .. } if status == StatusCode::NOT_FOUND => {
            not_found(&oci.to_string())
        }
        error => error.into(),
    }
}

/// Returns the error for a response to a request of a blob that is neither the blob nor a redirect.
fn blob_status_error(status: StatusCode, host: &str, oci: &ContextArtifactReference) -> ContextError {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => unauthorized(status, oci),
        status => ContextError::Status {
            host: host.to_owned(),
            status: status.as_u16(),
        },
    }
}

fn unauthorized(status: StatusCode, oci: &ContextArtifactReference) -> ContextError {
    ContextError::Unauthorized {
        image: oci.image.clone(),
        status: status.as_u16(),
    }
}

/// Returns the address that a response of `host` redirects to. Fails if it is no absolute http address, or names a
/// user.
fn absolute_redirect_target(response: &Response<Incoming>, host: &str) -> Result<Uri, ContextError> {
    let location = response
        .headers()
        .get(LOCATION)
        .and_then(|value| value.to_str().ok());
    let location: Option<Uri> = location.and_then(|location| location.parse().ok());
    let is_usable = |location: &Uri| {
        matches!(location.scheme_str(), Some("http" | "https"))
            && location
                .authority()
                .is_some_and(|authority| !authority.as_str().contains('@'))
    };
    location
        .filter(is_usable)
        .ok_or_else(|| redirect_error(host, "redirects to something that is no absolute http address"))
}

fn redirect_error(host: &str, problem: &str) -> ContextError {
    ContextError::Redirect {
        member: OCI_MEMBER,
        host: host.to_owned(),
        problem: problem.to_owned(),
    }
}

fn get_request(uri: Uri) -> Request<OutgoingRequestBody> {
    let mut request = Request::new(empty_body());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = uri;
    request
}
