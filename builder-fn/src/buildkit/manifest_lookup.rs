//! Lookup of manifests in registries, to find out whether they still have the image of a finished build, and how large
//! it is.

use std::error::Error as StdError;
use std::fmt;

use bytes::Bytes;

/// The media type of an OCI index of images.
pub const INDEX_MEDIA_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// A layer of an image, as a registry has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageLayerSize {
    /// The digest of the layer.
    pub digest: String,
    /// The size of the layer as it is stored, in bytes.
    pub bytes: u64,
}

/// The registries that images are pushed to, which can be asked for a manifest, and take the index of several images.
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

    /// Fetches the manifest or index `digest` from the repository of the image `name`; `None` if the registry does not
    /// have it. The content is not compared with the digest.
    ///
    /// # Errors
    /// Fails if the registry gives no manifest and does not say either that it has none.
    async fn fetch_unverified_manifest(
        &self,
        name: &str,
        digest: &str,
    ) -> Result<Option<Bytes>, Box<dyn StdError + Send + Sync>>;

    /// Pushes an index of images that the repository of `name` has, under the tag of `name`.
    ///
    /// # Errors
    /// Fails if the registry does not take it.
    async fn push_index(&self, name: &str, index: String) -> Result<(), Box<dyn StdError + Send + Sync>>;
}
