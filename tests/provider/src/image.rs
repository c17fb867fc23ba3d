//! Images of functions: pulls the image of a deployment and reads its configuration.

use std::time::Duration;

use oci_spec::{
    distribution::Reference,
    image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType},
};
use sha2::{Digest, Sha256};
use tonic::Status;

use crate::{
    containerd::{NamespaceClient, PullSource, machine_platform},
    docker_config::DockerConfig,
    error::{ContainerdStatus, ProviderError},
    settings::ProviderSettings,
};

/// An image that is unpacked in containerd's store.
#[derive(Debug)]
pub(crate) struct UnpackedImage {
    /// The normalised reference of the image, which is also its name in the store.
    pub(crate) name: String,
    /// The snapshot on which a container's root file system is based; empty for an image without layers.
    pub(crate) top_snapshot: String,
    pub(crate) config: ImageConfiguration,
}

/// Parses an image reference and completes it by Docker's rules: `docker.io/library/NAME:latest`.
pub(crate) fn normalise_reference(image: &str) -> Result<Reference, ProviderError> {
    image
        .parse()
        .map_err(|error| ProviderError::Invalid(format!("image: {image:?}: {error}")))
}

/// The puller of images, which uses the configured registry credentials.
#[derive(Clone, Debug)]
pub(crate) struct ImagePuller {
    registry_config: Option<std::path::PathBuf>,
    plain_http: Vec<String>,
    limit: Duration,
}

impl ImagePuller {
    pub(crate) fn new(settings: &ProviderSettings) -> Self {
        Self {
            registry_config: settings.registry_config.clone(),
            plain_http: settings.plain_http_registries.clone(),
            limit: settings.pull_timeout,
        }
    }

    /// Resolves an image's reference at the registry, and pulls the content that is missing.
    pub(crate) async fn pull_image(
        &self,
        containerd: &NamespaceClient,
        reference: &Reference,
    ) -> Result<UnpackedImage, ProviderError> {
        let name = reference.whole();
        let credentials = match &self.registry_config {
            Some(path) => DockerConfig::read_existing_file(path).await?,
            None => DockerConfig::default(),
        };
        let plain_http = self.plain_http.iter().any(|host| host == reference.registry());
        let source = PullSource {
            image: &name,
            plain_http,
            credentials: &credentials,
        };
        match tokio::time::timeout(self.limit, containerd.pull_and_unpack(source)).await {
            Ok(pulled) => pulled?,
            Err(_) => {
                let status = Status::deadline_exceeded(format!("not done within {} s", self.limit.as_secs()));
                return Err(ProviderError::Pull {
                    image: name,
                    source: ContainerdStatus::new(status),
                });
            }
        }
        read_stored_image(containerd, name).await
    }

    /// Pulls the image with this reference, if it is not stored, and returns the stored image.
    pub(crate) async fn pull_if_missing(
        &self,
        containerd: &NamespaceClient,
        reference: &Reference,
    ) -> Result<UnpackedImage, ProviderError> {
        match read_stored_image(containerd, reference.whole()).await {
            Err(error) if error.is_containerd_not_found() => self.pull_image(containerd, reference).await,
            stored => stored,
        }
    }
}

/// Reads an image that is in containerd's store; fails with containerd's status if it is not.
async fn read_stored_image(
    containerd: &NamespaceClient,
    name: String,
) -> Result<UnpackedImage, ProviderError> {
    let target = containerd.image_target(&name).await?;
    let manifest = match target.media_type.as_str() {
        "application/vnd.oci.image.index.v1+json"
        | "application/vnd.docker.distribution.manifest.list.v2+json" => {
            let index: ImageIndex = containerd.read_json_blob_of_at_most_4_mib(&target.digest).await?;
            let chosen =
                first_manifest_for_architecture_or_without_platform(&index, &machine_platform().architecture)
                    .ok_or_else(|| ProviderError::Image {
                        image: name.clone(),
                        reason: "no manifest for this machine's platform".to_owned(),
                    })?;
            chosen.digest().to_string()
        }
        _ => target.digest,
    };
    let manifest: ImageManifest = containerd.read_json_blob_of_at_most_4_mib(&manifest).await?;
    let config: ImageConfiguration = containerd
        .read_json_blob_of_at_most_4_mib(manifest.config().digest().as_ref())
        .await?;
    let top_snapshot = chain_id(config.rootfs().diff_ids());
    Ok(UnpackedImage {
        name,
        top_snapshot,
        config,
    })
}

/// Returns the first manifest of an index that is for Linux on this architecture, or for no stated platform.
fn first_manifest_for_architecture_or_without_platform<'a>(
    index: &'a ImageIndex,
    architecture: &str,
) -> Option<&'a Descriptor> {
    let is_manifest = |descriptor: &&Descriptor| {
        matches!(descriptor.media_type(), MediaType::ImageManifest)
            || descriptor.media_type().to_string() == "application/vnd.docker.distribution.manifest.v2+json"
    };
    let fits = |descriptor: &&Descriptor| {
        descriptor.platform().as_ref().is_none_or(|platform| {
            platform.os().to_string() == "linux" && platform.architecture().to_string() == architecture
        })
    };
    index.manifests().iter().filter(is_manifest).find(fits)
}

/// Returns the name of the snapshot with all these image layers: the chain ID of the image specification.
fn chain_id(diff_ids: &[String]) -> String {
    let mut layers = diff_ids.iter();
    let Some(first) = layers.next() else {
        return String::new();
    };
    layers.fold(first.clone(), |below, layer| {
        let digest = Sha256::digest(format!("{below} {layer}"));
        let hex = digest.iter().map(|byte| format!("{byte:02x}"));
        format!("sha256:{}", hex.collect::<String>())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_references_are_completed_as_docker_does() {
        assert_eq!(
            normalise_reference("hello").unwrap().whole(),
            "docker.io/library/hello:latest"
        );
        assert_eq!(
            normalise_reference("reg:5000/a/b:1").unwrap().whole(),
            "reg:5000/a/b:1"
        );
        let pinned = format!("10.63.1.2:5000/hello@sha256:{}", "a".repeat(64));
        assert_eq!(normalise_reference(&pinned).unwrap().whole(), pinned);
        assert_eq!(normalise_reference(&pinned).unwrap().registry(), "10.63.1.2:5000");
        assert!(normalise_reference("Not An Image").is_err());
    }

    #[test]
    fn chain_ids_of_layers_match_the_image_specification() {
        assert_eq!(chain_id(&[]), "");
        assert_eq!(chain_id(&["sha256:aa".into()]), "sha256:aa");
        // printf 'sha256:aa sha256:bb' | sha256sum
        assert_eq!(
            chain_id(&["sha256:aa".into(), "sha256:bb".into()]),
            "sha256:b68ad689d6d1ec110ea1c13617437ad6f3766d4b3b309f6a603a222e07a0164f"
        );
    }

    #[test]
    fn attestations_in_an_image_index_are_ignored() {
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [
            {"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 1,
             "digest": format!("sha256:{}", "1".repeat(64)),
             "platform": {"os": "unknown", "architecture": "unknown"}},
            {"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 1,
             "digest": format!("sha256:{}", "2".repeat(64)),
             "platform": {"os": "linux", "architecture": "amd64"}}]});
        let index: ImageIndex = serde_json::from_value(index).unwrap();
        assert!(
            first_manifest_for_architecture_or_without_platform(&index, "amd64")
                .unwrap()
                .digest()
                .to_string()
                .contains("222")
        );
        assert!(first_manifest_for_architecture_or_without_platform(&index, "s390x").is_none());
    }
}
