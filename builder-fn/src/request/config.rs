//! The file `com.openfaas.docker.config`: what to make of the context.

use std::collections::BTreeMap;
use std::time::Duration;

use super::image::ImageRef;

/// A build configuration whose every value has been checked.
#[derive(Clone, Debug)]
pub struct BuildConfig {
    /// The name to push to, as it is used from here on.
    pub image: ImageRef,
    /// The same as the caller wrote it, for answers.
    pub image_as_given: String,
    /// Further tags for the same image.
    pub tags: Vec<ImageRef>,
    /// Build arguments by name.
    pub build_args: BTreeMap<String, String>,
    /// Platforms such as `linux/arm64`; empty for the daemon's own.
    pub platforms: Vec<String>,
    /// Build only.
    pub skip_push: bool,
    /// The stage to build, where it is not the last.
    pub target: Option<String>,
    /// Labels for the image.
    pub labels: BTreeMap<String, String>,
    /// Run every step anew.
    pub no_cache: bool,
    /// Path of the Dockerfile, relative to the context.
    pub dockerfile: Option<String>,
    /// How long the build may take.
    pub timeout: Option<Duration>,
    /// The function to deploy afterwards: the gateway's request without `image`.
    pub deploy: Option<serde_json::Map<String, serde_json::Value>>,
    /// Keys that mean nothing here, for a warning.
    pub unknown: Vec<String>,
}
