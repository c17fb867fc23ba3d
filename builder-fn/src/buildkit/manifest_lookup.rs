//! Lookup of manifests in registries, to find out whether they still have the image of a finished build.

use std::error::Error as StdError;
use std::fmt;

/// The registries that images are pushed to, which can be asked for a manifest.
#[tonic::async_trait]
pub trait ManifestLookup: fmt::Debug + Send + Sync + 'static {
    /// Returns whether the repository of the image `name` has the manifest `digest`.
    ///
    /// # Errors
    /// Fails if the registry's answer is neither yes nor no.
    async fn has_manifest(&self, name: &str, digest: &str) -> Result<bool, Box<dyn StdError + Send + Sync>>;
}
