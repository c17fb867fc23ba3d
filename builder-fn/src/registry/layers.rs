//! The layers in the manifest of an image.

use serde::Deserialize;

use crate::buildkit::ImageLayerSize;

/// The most layers that are read. Container runtimes accept fewer.
const LAYERS_MAX: usize = 200;

/// What is read of the manifest of an image, or of an index of several.
#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    size: u64,
    platform: Option<PlatformArchitecture>,
}

#[derive(Deserialize)]
struct PlatformArchitecture {
    architecture: String,
}

/// Returns the digest of the first image in an index; `None` for the manifest of an image, and for an index without
/// images. Attestations, which have the architecture `unknown`, are no images.
///
/// # Errors
/// Fails if `manifest` is no manifest.
pub(super) fn digest_of_first_image_in_index(manifest: &[u8]) -> Result<Option<String>, serde_json::Error> {
    let manifest: Manifest = serde_json::from_slice(manifest)?;
    let mut images = manifest.manifests.into_iter();
    let image = images.find(|image| {
        let platform = image.platform.as_ref();
        platform.is_none_or(|platform| platform.architecture != "unknown")
    });
    Ok(image.map(|image| image.digest))
}

/// Returns the layers in the manifest of an image, the lowest first.
///
/// # Errors
/// Fails if `manifest` is no manifest.
pub(super) fn parse_layers_or_empty_for_index(
    manifest: &[u8],
) -> Result<Vec<ImageLayerSize>, serde_json::Error> {
    let manifest: Manifest = serde_json::from_slice(manifest)?;
    let layers = manifest.layers.into_iter().take(LAYERS_MAX);
    Ok(layers
        .map(|Descriptor { digest, size, .. }| ImageLayerSize { digest, bytes: size })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_of_an_image_and_the_digest_of_the_first_image_in_an_index_are_parsed() {
        let image = br#"{"config": {"digest": "c", "size": 1}, "layers": [{"digest": "a", "size": 10}, {"digest": "b", "size": 20}]}"#;
        assert_eq!(digest_of_first_image_in_index(image).expect("a manifest"), None);
        let sizes: Vec<_> = parse_layers_or_empty_for_index(image)
            .expect("layers")
            .iter()
            .map(|layer| layer.bytes)
            .collect();
        assert_eq!(sizes, [10, 20]);
        let index = br#"{"manifests": [
            {"digest": "x", "size": 1, "platform": {"architecture": "unknown", "os": "unknown"}},
            {"digest": "y", "size": 1, "platform": {"architecture": "amd64", "os": "linux"}}
        ]}"#;
        assert_eq!(
            digest_of_first_image_in_index(index)
                .expect("an index")
                .as_deref(),
            Some("y")
        );
        assert!(parse_layers_or_empty_for_index(b"no manifest").is_err());
    }
}
