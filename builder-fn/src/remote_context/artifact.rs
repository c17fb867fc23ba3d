//! The manifest of an artifact whose only layer is the tar of a context.
//!
//! Format: <https://github.com/opencontainers/image-spec/blob/main/manifest.md>.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::registry::{EMPTY_CONFIG, MANIFEST_MEDIA_TYPE};
use crate::request::Sha256Digest;

/// The type of artifacts that the builder stores.
const CONTEXT_ARTIFACT_TYPE: &str = "application/vnd.slipway.context.v1";

/// The only layer of a context's artifact: the tar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ContextLayer {
    pub(super) digest: Sha256Digest,
    /// The length of the layer in bytes.
    pub(super) size: u64,
}

/// Parses the manifest of an artifact, and returns its only layer. Fails with a text that says what is wrong with it.
pub(super) fn parse_manifest(manifest: &[u8]) -> Result<ContextLayer, String> {
    #[derive(Deserialize)]
    struct Manifest {
        #[serde(default)]
        layers: Vec<Layer>,
        #[serde(default)]
        manifests: Vec<serde::de::IgnoredAny>,
    }
    #[derive(Deserialize)]
    struct Layer {
        digest: String,
        size: u64,
    }
    let manifest: Manifest = serde_json::from_slice(manifest)
        .map_err(|_| "the digest is not that of an OCI manifest".to_owned())?;
    if !manifest.manifests.is_empty() {
        return Err("the digest is that of an index of several manifests".to_owned());
    }
    let [layer] = &manifest.layers[..] else {
        return Err(format!("the artifact has {} layers", manifest.layers.len()));
    };
    let digest = Sha256Digest::parse(&layer.digest);
    Ok(ContextLayer {
        digest: digest.ok_or("the layer of the artifact has no SHA-256 digest")?,
        size: layer.size,
    })
}

/// Returns the manifest of a stored context. `media_type` is that of the layer, and `config` the digest of
/// [`EMPTY_CONFIG`].
///
/// The time makes manifests of the same context differ, so that deleting one leaves the others.
pub(super) fn stored_context_manifest(
    layer: ContextLayer,
    media_type: &str,
    config: Sha256Digest,
    created: &str,
) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_MEDIA_TYPE,
        "artifactType": CONTEXT_ARTIFACT_TYPE,
        "config": {
            "mediaType": "application/vnd.oci.empty.v1+json",
            "digest": config.to_string(),
            "size": EMPTY_CONFIG.len(),
        },
        "layers": [{
            "mediaType": media_type,
            "digest": layer.digest.to_string(),
            "size": layer.size,
            "annotations": { "org.opencontainers.image.title": "context.tar" },
        }],
        "annotations": { "org.opencontainers.image.created": created },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_of_a_stored_context_is_that_of_an_artifact_with_one_layer() {
        let digest = Sha256Digest::new([7; 32]);
        let layer = ContextLayer { digest, size: 12 };
        let manifest = stored_context_manifest(layer, "x/tar", digest, "2026-01-01T00:00:00Z");
        assert_eq!(parse_manifest(manifest.to_string().as_bytes()), Ok(layer));
    }

    #[test]
    fn what_is_no_artifact_with_one_layer_is_rejected_with_its_problem() {
        let layer = json!({"digest": format!("sha256:{}", "0".repeat(64)), "size": 1});
        for (manifest, problem) in [
            (json!("x"), "not that of an OCI manifest"),
            (json!({}), "has 0 layers"),
            (json!({"layers": [layer, layer]}), "has 2 layers"),
            (json!({"manifests": [{}]}), "index of several manifests"),
            (
                json!({"layers": [{"digest": "sha512:00", "size": 1}]}),
                "no SHA-256 digest",
            ),
            (
                json!({"layers": [{"digest": layer["digest"], "size": -1}]}),
                "not that of an OCI manifest",
            ),
        ] {
            let error = parse_manifest(manifest.to_string().as_bytes()).unwrap_err();
            assert!(error.contains(problem), "{manifest}: {error}");
        }
    }
}
