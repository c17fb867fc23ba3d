//! The stack's registry through its HTTP API: what builds pushed, and base images that no build would make.

use anyhow::{Context as _, Result, bail, ensure};
use axum::body::Bytes;
use base64::Engine as _;
use reqwest::header::{CONTENT_TYPE, LOCATION};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use slipway_stack::Stack;

use crate::crafted_layer::{CraftedLayerBuilder, CraftedLayerTarAndZstd};

/// The value of the header `Accept` with all types of manifests and indexes.
const ACCEPTED_MANIFEST_TYPES: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// A manifest with its digest.
#[derive(Debug, Clone)]
pub struct ManifestWithDigest {
    /// The manifest's digest, `sha256:…`, as the registry reports it.
    pub digest: String,
    /// The manifest's JSON.
    pub body: Value,
}

impl ManifestWithDigest {
    /// Returns the digests of the manifest's layers, lowest first.
    pub fn layer_digests(&self) -> Vec<String> {
        let layers = self.body["layers"].as_array();
        layers
            .into_iter()
            .flatten()
            .filter_map(|layer| layer["digest"].as_str().map(str::to_owned))
            .collect()
    }
}

/// A client of a registry over plain HTTP.
#[derive(Debug, Clone)]
pub struct RegistryClient {
    host: String,
    credentials: Option<(String, String)>,
    http: reqwest::Client,
}

impl RegistryClient {
    /// Returns a client of this stack's registry.
    pub fn for_stack(stack: &Stack) -> Result<Self> {
        let registry = &stack.registry;
        Ok(Self {
            host: registry.host.clone(),
            credentials: Some((registry.user.clone(), registry.password.clone()))
                .filter(|(user, _)| !user.is_empty()),
            http: reqwest::Client::builder().no_proxy().build()?,
        })
    }

    /// Fetches the manifest with this tag or digest; returns `None` if the registry has no such manifest.
    pub async fn get_manifest(
        &self,
        repository: &str,
        reference: &str,
    ) -> Result<Option<ManifestWithDigest>> {
        let url = format!("http://{}/v2/{repository}/manifests/{reference}", self.host);
        let response = self.get_with_credentials_any_status(&url).await?;
        match response.status().as_u16() {
            200 => {
                let digest = response
                    .headers()
                    .get("Docker-Content-Digest")
                    .context("no digest header")?;
                let digest = digest.to_str()?.to_owned();
                Ok(Some(ManifestWithDigest {
                    digest,
                    body: response.json().await?,
                }))
            }
            404 => Ok(None),
            other => bail!("GET {url}: {other} {}", response.text().await?),
        }
    }

    /// Deletes the manifest with this digest, and with it all tags that name it.
    pub async fn delete_manifest_and_its_tags(&self, repository: &str, digest: &str) -> Result<()> {
        let url = format!("http://{}/v2/{repository}/manifests/{digest}", self.host);
        let request = self.with_credentials(self.http.delete(&url));
        let response = request.send().await.with_context(|| format!("DELETE {url}"))?;
        response.error_for_status()?;
        Ok(())
    }

    /// Fetches and parses the JSON blob with this digest, such as an image's configuration or an attestation.
    pub async fn get_json_blob(&self, repository: &str, digest: &str) -> Result<Value> {
        let url = format!("http://{}/v2/{repository}/blobs/{digest}", self.host);
        let response = self.get_with_credentials_any_status(&url).await?;
        Ok(response.error_for_status()?.json().await?)
    }

    /// Pushes an image with one layer. `config_member` is the member `config` of the image's configuration, such as its
    /// `User` and `OnBuild`.
    pub async fn push_image(
        &self,
        repository: &str,
        tag: &str,
        layer: CraftedLayerBuilder,
        config_member: Value,
    ) -> Result<()> {
        let CraftedLayerTarAndZstd { zstd: packed, tar } = layer.finish()?;
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": config_member,
            "rootfs": { "type": "layers", "diff_ids": [digest(&tar)] },
        })
        .to_string();
        let descriptor = |kind: &str, content: &[u8]| {
            json!({
                "mediaType": format!("application/vnd.oci.image.{kind}"),
                "digest": digest(content), "size": content.len(),
            })
        };
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("config.v1+json", config.as_bytes()),
            "layers": [descriptor("layer.v1.tar+zstd", &packed)],
        });
        self.push_blob(repository, config.into_bytes()).await?;
        self.push_blob(repository, packed).await?;
        let url = format!("http://{}/v2/{repository}/manifests/{tag}", self.host);
        let put = self.http.put(&url).body(manifest.to_string());
        let put = put.header(CONTENT_TYPE, "application/vnd.oci.image.manifest.v1+json");
        let status = self.with_credentials(put).send().await?.status();
        ensure!(status.is_success(), "PUT {url}: {status}");
        Ok(())
    }

    /// Pushes an artifact with one layer, as `oras push` does, and returns its digest.
    pub async fn push_artifact_and_get_digest(
        &self,
        repository: &str,
        layer: impl Into<Bytes>,
    ) -> Result<String> {
        let layer = layer.into();
        let config = b"{}";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactType": "application/vnd.unknown.artifact.v1",
            "config": {
                "mediaType": "application/vnd.oci.empty.v1+json",
                "digest": digest(config), "size": config.len(), "data": "e30=",
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": digest(&layer), "size": layer.len(),
                "annotations": { "org.opencontainers.image.title": "context.tar" },
            }],
            "annotations": { "org.opencontainers.image.created": "2026-01-01T00:00:00Z" },
        })
        .to_string();
        self.push_blob(repository, config.to_vec()).await?;
        self.push_blob(repository, layer).await?;
        let digest = digest(manifest.as_bytes());
        let url = format!("http://{}/v2/{repository}/manifests/{digest}", self.host);
        let put = self.http.put(&url).body(manifest);
        let put = put.header(CONTENT_TYPE, "application/vnd.oci.image.manifest.v1+json");
        let status = self.with_credentials(put).send().await?.status();
        ensure!(status.is_success(), "PUT {url}: {status}");
        Ok(digest)
    }

    /// Pushes a blob in one request after the one that opens the upload.
    async fn push_blob(&self, repository: &str, content: impl Into<Bytes>) -> Result<()> {
        let content = content.into();
        let url = format!("http://{}/v2/{repository}/blobs/uploads/", self.host);
        let begun = self.with_credentials(self.http.post(&url)).send().await?;
        let location = begun.headers().get(LOCATION);
        let location = location.with_context(|| format!("POST {url}: {}", begun.status()))?;
        let mut upload = begun.url().join(location.to_str()?)?;
        upload.query_pairs_mut().append_pair("digest", &digest(&content));
        let put = self.with_credentials(self.http.put(upload)).body(content);
        let status = put.send().await?.status();
        ensure!(status.is_success(), "pushing a blob to {repository}: {status}");
        Ok(())
    }

    async fn get_with_credentials_any_status(&self, url: &str) -> Result<reqwest::Response> {
        let request = self.with_credentials(self.http.get(url).header("Accept", ACCEPTED_MANIFEST_TYPES));
        request.send().await.with_context(|| format!("GET {url}"))
    }

    fn with_credentials(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.credentials {
            Some((user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        }
    }

    /// Fetches the content of the blob with this digest.
    pub async fn get_blob(&self, repository: &str, digest: &str) -> Result<Vec<u8>> {
        let url = format!("http://{}/v2/{repository}/blobs/{digest}", self.host);
        let response = self
            .get_with_credentials_any_status(&url)
            .await?
            .error_for_status()?;
        Ok(response.bytes().await?.to_vec())
    }

    /// Returns a Docker `config.json` with these credentials.
    pub fn docker_config(host: &str, user: &str, password: &str) -> String {
        let auth = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        serde_json::json!({ "auths": { host: { "auth": auth } } }).to_string()
    }
}

/// Returns `sha256:` and the hash of this content.
fn digest(content: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(content)))
}
