//! The outcome of a solve.

use std::time::SystemTime;

use tonic::Status;

/// The image of a build that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltImage {
    /// `sha256:…` of the image's manifest, or of its index if there are several platforms.
    pub digest: Option<String>,
    /// The time at which the build ended, if an earlier delivery of the call had built the image.
    pub completed_at: Option<SystemTime>,
}

/// The outcome of a solve.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The image was built.
    Succeeded(BuiltImage),
    /// The build failed; this was the solve's answer.
    Failed(Status),
}
