//! The outcome of a solve.

use std::time::SystemTime;

use tonic::Status;

/// The image of a successful build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltImageDigestCommitAndTimes {
    /// The digest (`sha256:…`) of the image's manifest, or of its index if there are several platforms.
    pub digest: Option<String>,
    /// The commit of the context, if it is from a git repository.
    pub commit: Option<String>,
    /// The time at which the build ended, if an earlier delivery of the call built the image.
    pub completed_at: Option<SystemTime>,
    /// The time of submission in the build's record, if an earlier delivery of the call built the image.
    pub submitted_at: Option<SystemTime>,
}

/// The outcome of a solve.
#[derive(Debug)]
pub(super) enum SolveOutcome {
    /// The build succeeded with this image.
    Succeeded(BuiltImageDigestCommitAndTimes),
    /// The build failed with this status: the answer to the solve, or the error in the record of the build.
    Failed(Status),
}
