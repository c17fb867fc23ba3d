//! Lookup of manifests in registries, to find out whether they still have the image of a finished build, and how large
//! it is.

use std::error::Error as StdError;
use std::fmt;

/// A layer of an image, as a registry has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageLayerSize {
    /// The digest of the layer.
    pub digest: String,
    /// The size of the layer as it is stored, in bytes.
    pub bytes: u64,
}

/// The registries that images are pushed to, which can be asked for a manifest.
#[tonic::async_trait]
pub trait ManifestLookup: fmt::Debug + Send + Sync + 'static {
    /// Returns whether the repository of the image `name` has the manifest `digest`.
    ///
    /// # Errors
    /// Fails if the registry's answer is neither yes nor no.
    async fn has_manifest(&self, name: &str, digest: &str) -> Result<bool, Box<dyn StdError + Send + Sync>>;

    /// Returns the layers of the image with the manifest `digest`; those of its first platform, if it has several.
    /// Empty if the registry does not have the image.
    ///
    /// # Errors
    /// Fails if the registry gives no manifest and does not say either that it has none.
    async fn image_layers_or_empty_if_gone(
        &self,
        name: &str,
        digest: &str,
    ) -> Result<Vec<ImageLayerSize>, Box<dyn StdError + Send + Sync>>;
}
