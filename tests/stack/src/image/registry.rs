//! A registry client (OCI distribution specification 1.1) with the operations that the launcher needs to push
//! images.

use reqwest::{
    Client, Method, RequestBuilder, Response, StatusCode, Url,
    header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION},
};
use serde::Deserialize;

use super::blob::{BlobContent, ImageBlob};
use crate::{
    credentials::Login,
    error::{IoResultExt as _, LauncherError, Result},
    http::{expect_status, send_request},
};

/// The media type of the manifests that the launcher makes.
pub(super) const MANIFEST_MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// The blobs that a manifest refers to.
#[derive(Default, Deserialize)]
#[serde(default)]
struct ManifestBlobs {
    config: Option<BlobDescriptor>,
    layers: Vec<BlobDescriptor>,
}

#[derive(Deserialize)]
struct BlobDescriptor {
    digest: String,
    size: u64,
}

/// A client for a registry over plain HTTP.
#[derive(Debug)]
pub(crate) struct RegistryClient {
    client: Client,
    host: String,
    login: Option<Login>,
}

impl RegistryClient {
    /// Creates a client for the registry at `host`.
    pub(crate) fn new(client: Client, host: String, login: Option<Login>) -> Self {
        Self { client, host, login }
    }

    /// Returns the digest of the manifest with a tag; `None` if the registry lacks the manifest or one of its blobs.
    ///
    /// A store that was cleaned by hand, or whose disk was full, can have a manifest without its layers.
    /// BuildKit would fail in the middle of a build.
    pub(crate) async fn digest_if_complete(&self, repository: &str, tag: &str) -> Result<Option<String>> {
        let Some(digest) = self.manifest_digest(repository, tag).await? else {
            return Ok(None);
        };
        let request = self.request(Method::GET, &format!("/v2/{repository}/manifests/{digest}"))?;
        let response = send_request(request.header(ACCEPT, MANIFEST_MEDIA_TYPE)).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let response = expect_status(response, &[StatusCode::OK]).await?;
        let name = response.url().to_string();
        let text = response.bytes().await.map_err(|source| LauncherError::NoAnswer {
            request: name,
            source,
        })?;
        // Anything but the manifest of a single image refers to no blob.
        let ManifestBlobs { config, layers } = serde_json::from_slice(&text).unwrap_or_default();
        for blob in config.iter().chain(&layers) {
            if !self.has_blob(repository, &blob.digest, blob.size).await? {
                return Ok(None);
            }
        }
        Ok(Some(digest))
    }

    /// Asks the registry for the digest of the manifest with a tag; returns `None` if the tag does not exist.
    pub(crate) async fn manifest_digest(&self, repository: &str, tag: &str) -> Result<Option<String>> {
        let request = self.request(Method::HEAD, &format!("/v2/{repository}/manifests/{tag}"))?;
        let response = send_request(request.header(ACCEPT, MANIFEST_MEDIA_TYPE)).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let response = expect_status(response, &[StatusCode::OK]).await?;
        let digest = response.headers().get("docker-content-digest");
        Ok(digest.and_then(|digest| digest.to_str().ok()).map(str::to_owned))
    }

    /// Pushes a blob to a repository of the registry, unless the repository has it.
    pub(super) async fn push_blob(&self, repository: &str, blob: &ImageBlob) -> Result<()> {
        if self.has_blob(repository, &blob.digest, blob.size).await? {
            return Ok(());
        }
        let begin = self.request(Method::POST, &format!("/v2/{repository}/blobs/uploads/"))?;
        let response = expect_status(send_request(begin).await?, &[StatusCode::ACCEPTED]).await?;
        let mut upload = self.upload_location(&response)?;
        upload.query_pairs_mut().append_pair("digest", &blob.digest);
        let body = match &blob.content {
            BlobContent::Bytes(bytes) => reqwest::Body::from(bytes.to_vec()),
            BlobContent::File(path) => tokio::fs::File::open(path)
                .await
                .with_operation("read", path)?
                .into(),
        };
        let put = self
            .with_credentials(self.client.put(upload))
            .header(CONTENT_LENGTH, blob.size);
        let put = put.header(CONTENT_TYPE, "application/octet-stream").body(body);
        expect_status(send_request(put).await?, &[StatusCode::CREATED])
            .await
            .map(drop)
    }

    /// Asks the registry whether a repository has a blob with this digest and size.
    async fn has_blob(&self, repository: &str, digest: &str, size: u64) -> Result<bool> {
        let head = self.request(Method::HEAD, &format!("/v2/{repository}/blobs/{digest}"))?;
        let response = send_request(head).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(false);
        }
        let response = expect_status(response, &[StatusCode::OK]).await?;
        let length = response.headers().get(CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        Ok(length == Some(size))
    }

    /// Pushes an image's manifest with a tag to the registry.
    pub(super) async fn push_manifest(&self, repository: &str, tag: &str, manifest: Vec<u8>) -> Result<()> {
        let put = self.request(Method::PUT, &format!("/v2/{repository}/manifests/{tag}"))?;
        let put = put
            .header(CONTENT_TYPE, HeaderValue::from_static(MANIFEST_MEDIA_TYPE))
            .body(manifest);
        expect_status(send_request(put).await?, &[StatusCode::CREATED])
            .await
            .map(drop)
    }

    /// Creates a request to a path of the registry, with credentials if there are any.
    fn request(&self, method: Method, path_from_root: &str) -> Result<RequestBuilder> {
        Ok(self.with_credentials(
            self.client.request(
                method,
                self.base_url()?
                    .join(path_from_root)
                    .map_err(|_| self.invalid_host_error())?,
            ),
        ))
    }

    fn with_credentials(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.login {
            Some(Login { user, password }) => request.basic_auth(user, Some(password)),
            None => request,
        }
    }

    /// Returns the URL at which a blob's upload continues: the header `Location`, which may be relative to
    /// the registry.
    fn upload_location(&self, response: &Response) -> Result<Url> {
        let location = response
            .headers()
            .get(LOCATION)
            .and_then(|location| location.to_str().ok());
        self.base_url()?
            .join(location.unwrap_or_default())
            .map_err(|_| self.invalid_host_error())
    }

    fn base_url(&self) -> Result<Url> {
        Url::parse(&format!("http://{}/", self.host)).map_err(|_| self.invalid_host_error())
    }

    fn invalid_host_error(&self) -> LauncherError {
        LauncherError::Environment(format!("{:?} is not the host and port of a registry", self.host))
    }
}
