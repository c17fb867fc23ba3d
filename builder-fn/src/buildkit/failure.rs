//! The failure of a build, and whether the caller or the platform is to blame.
//!
//! BuildKit gives nearly every failure the code `Unknown` and a text. What it does distinguish is the step that failed,
//! so the step decides first; the text counts only where a registry or the daemon can fail. A failure is the platform's
//! if a retry of the same build can succeed, and the caller's otherwise.

mod source_line;

use tonic::{Code, Status};

use super::Denial;
use super::session::{BUILDER_FAULT_PREFIX, UNCHECKED_SOURCES_ERROR};
use super::status::{EventReader, without_rpc_prefix};

/// The name of the build step that makes the image and pushes it: BuildKit `exporter/containerimage/export.go`.
const IMAGE_EXPORT_STEP_NAME: &str = "exporting to image";
/// The name of the build step that pushes the cache: BuildKit `cache/remotecache/registry/registry.go`.
const CACHE_EXPORT_STEP_NAME: &str = "exporting cache to registry";

/// The beginning of an error that a session's sender of files gave: fsutil `receive.go`.
const SENDER_ERROR_PREFIX: &str = "error from sender: ";

/// The party that is to blame for a failed build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultyParty {
    /// The caller is to blame: the Dockerfile, the context or the config is wrong, and the same build would fail again.
    Caller,
    /// The platform is to blame: a registry, the operator's credentials or SBOM generator, the daemon, or the builder.
    Platform,
}

/// A failure that BuildKit reported for a build.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BuildFailure {
    /// The text of the error, without the prefixes of gRPC and of an error that the session's sender of files gave.
    pub message: String,
    /// The party that is to blame for the failed build.
    pub fault: FaultyParty,
    /// The line of the Dockerfile that BuildKit names for the error, from 1 on.
    pub dockerfile_line: Option<u32>,
}

impl BuildFailure {
    /// Returns the failure of a build on a daemon that does not ask which sources the build may read.
    pub(crate) fn of_unchecked_sources() -> Self {
        Self {
            message: UNCHECKED_SOURCES_ERROR.to_owned(),
            fault: FaultyParty::Platform,
            dockerfile_line: None,
        }
    }

    /// Returns whether the daemon does not ask which sources a build may read, which no retry changes.
    pub(crate) fn is_of_unchecked_sources(&self) -> bool {
        self.message.contains(UNCHECKED_SOURCES_ERROR)
    }

    /// Returns whether a registry refuses the push because the user may not push there, which no retry changes. A
    /// password that has expired may be replaced before a retry.
    pub(crate) fn is_push_denied_lastingly(&self) -> bool {
        let contains = |text: &str| self.message.contains(text);
        self.message.starts_with("failed to push ")
            && (contains("403 Forbidden") || contains("denied: "))
            && !contains("expired")
    }

    /// Returns the failure that `status`, the answer to a solve, describes; the failed step is looked up in `events`.
    pub(super) fn new(status: &Status, events: &EventReader) -> Self {
        let message = status.message();
        let step = events.find_failed_step(message);
        let fault = match (status.code(), step) {
            _ if untransferable_header(message).is_some() => FaultyParty::Caller,
            // The operator chooses the daemon.
            _ if message.contains(UNCHECKED_SOURCES_ERROR) => FaultyParty::Platform,
            // The frontend's own messages contain the Dockerfile and the ignore patterns.
            (Code::ResourceExhausted, None) if message.contains(" message larger than max ") => {
                FaultyParty::Caller
            }
            (Code::Internal | Code::ResourceExhausted | Code::DeadlineExceeded, _) => FaultyParty::Platform,
            (_, Some(IMAGE_EXPORT_STEP_NAME)) if is_refusal_of_image(message) => FaultyParty::Caller,
            (_, Some(IMAGE_EXPORT_STEP_NAME | CACHE_EXPORT_STEP_NAME)) => FaultyParty::Platform,
            // The operator chooses the generator.
            (_, Some(step)) if is_sbom_step(step) => FaultyParty::Platform,
            _ if is_failure_of_run_process(message) => FaultyParty::Caller,
            (_, step)
                if (step.is_some() && is_platform_fault_of_registry(message))
                    || is_daemon_or_builder_failure(message) =>
            {
                FaultyParty::Platform
            }
            _ => FaultyParty::Caller,
        };
        let message = without_rpc_prefix(message);
        Self {
            message: message
                .strip_prefix(SENDER_ERROR_PREFIX)
                .unwrap_or(message)
                .to_owned(),
            fault,
            dockerfile_line: source_line::find_innermost_dockerfile_line(status),
        }
    }

    /// Returns the failure of a build that wants to read a source which it may not read.
    pub(super) fn denied(denial: &Denial) -> Self {
        Self {
            message: format!("the build may not read {}: {}", denial.identifier, denial.reason),
            fault: FaultyParty::Caller,
            dockerfile_line: None,
        }
    }

    /// Returns the name of the gRPC header that the daemon could not send to this session because its value has a
    /// control character.
    pub(crate) fn untransferable_header(&self) -> Option<&str> {
        untransferable_header(&self.message)
    }
}

/// Parses the name of the header in grpc-go's error about a control character, `internal/metadata/metadata.go`. The
/// daemon sends ignore patterns and the sources of `COPY` as headers, so the values are the caller's.
fn untransferable_header(message: &str) -> Option<&str> {
    let (before, _) = message.split_once("\" contains value with non-printable ASCII characters")?;
    let (_, header) = before.rsplit_once("header key \"")?;
    Some(header)
}

/// Returns whether the error is that a process of a `RUN` step failed: BuildKit `solver/llbsolver/ops/exec.go`. The
/// command line in it is the caller's text.
fn is_failure_of_run_process(message: &str) -> bool {
    message.contains("process \"") && message.contains("\" did not complete successfully: ")
}

/// Returns whether the error is that a registry refuses an image for its name or its size: the tag must not be
/// replaced, the repository does not exist or has an invalid name, or a layer is too large. Only another config or
/// context helps.
///
/// An answer with a body of registry errors becomes these errors, of which containerd keeps the messages and few codes.
/// One without a body becomes its status. A mere 404 is not enough: a proxy answers it while the registry is away, and
/// a registry that was restarted for an upload that it has forgotten.
fn is_refusal_of_image(message: &str) -> bool {
    const IMAGE_REFUSAL_TEXTS: [&str; 9] = [
        "412 Precondition Failed",
        "TAG_INVALID",
        "tag is immutable",
        "NAME_UNKNOWN",
        "repository name not known to registry",
        // Amazon ECR: "The repository with name 'x' does not exist in the registry with id '1'".
        "' does not exist in the registry",
        "NAME_INVALID",
        "invalid repository name",
        ": 413 ",
    ];
    IMAGE_REFUSAL_TEXTS.iter().any(|text| message.contains(text))
}

/// Returns whether the error is the daemon's own, of its disk, its caches, or the session with this builder, or the
/// builder's.
fn is_daemon_or_builder_failure(message: &str) -> bool {
    [
        "no space left on device",
        "disk quota exceeded",
        "input/output error",
        "read-only file system",
        "too many open files",
        "cannot allocate memory",
        "no active session for ",
        BUILDER_FAULT_PREFIX,
        "failed to get edge: inconsistent graph state",
        "frontend grpc server closed unexpectedly",
        "database not open",
        "unexpected commit digest",
    ]
    .iter()
    .any(|text| message.contains(text))
        || (message.contains("snapshot ") && message.contains(" does not exist: not found"))
        || (message.contains("lease \"") && message.ends_with(": not found"))
}

/// Returns whether the step with this name runs the SBOM generator. BuildKit `frontend/attestations/sbom/sbom.go` names
/// such a step `[PLATFORM] generating sbom using IMAGE`.
fn is_sbom_step(step: &str) -> bool {
    step.strip_prefix('[')
        .and_then(|rest| rest.split_once("] "))
        .is_some_and(|(_, rest)| rest.starts_with("generating sbom using "))
}

/// Returns whether the error is that containerd's registry client got no answer, or one that says nothing about the
/// image.
///
/// Base images are pulled when a step first needs them, so this can be the error of any step.
///
/// The operator sets the credentials, so a 401 is the platform's fault. A registry that issues tokens answers `pull
/// access denied` for an image that does not exist, which is the Dockerfile's fault.
fn is_platform_fault_of_registry(message: &str) -> bool {
    let statuses = ["401 ", "408 ", "429 ", "5"];
    let unexpected = message.split("unexpected status").skip(1).any(|rest| {
        // "unexpected status from HEAD request to http://registry:5000/v2/…: 401 Unauthorized"
        rest.split_once("//")
            .and_then(|(_, rest)| rest.split_once(": "))
            .is_some_and(|(_, status)| statuses.iter().any(|prefix| status.starts_with(prefix)))
    });
    unexpected
        || message.contains("failed to do request: ")
        || message.contains("failed to fetch oauth token")
        || message.contains("failed to fetch anonymous token")
}

#[cfg(test)]
mod cases;

#[cfg(test)]
mod tests {
    use bollard_buildkit_proto::moby::buildkit::v1::{StatusResponse, Vertex};

    use super::*;

    /// Decides who is to blame for a failure of buildkitd 0.34.2, from the failed step, its error, and the solve's
    /// message.
    fn party_at_fault(step_name_and_error: Option<(&str, &str)>, message: &str) -> FaultyParty {
        let steps = [("[2/9] RUN slow", "context canceled")]
            .into_iter()
            .chain(step_name_and_error);
        let vertexes = steps.map(|(name, error)| Vertex {
            name: name.into(),
            error: error.into(),
            ..Vertex::default()
        });
        let mut events = EventReader::default();
        events.read_new_events(StatusResponse {
            vertexes: vertexes.collect(),
            ..StatusResponse::default()
        });
        BuildFailure::new(&Status::unknown(message), &events).fault
    }

    #[test]
    fn an_image_push_that_gets_401_or_no_connection_is_the_platforms_fault() {
        for error in [
            "failed to push registry:5000/x:1: unexpected status from HEAD request to \
             http://registry:5000/v2/x/blobs/sha256:8ba7: 401 Unauthorized",
            "failed to push registry:5000/x:1: failed to do request: Head \
             \"https://registry:5000/v2/x/blobs/sha256:2270\": dial tcp 10.0.0.1:5000: connect: connection refused",
        ] {
            assert_eq!(
                party_at_fault(Some((IMAGE_EXPORT_STEP_NAME, error)), error),
                FaultyParty::Platform,
                "{error}"
            );
        }
    }

    #[test]
    fn a_failing_sbom_generator_or_cache_export_is_the_platforms_fault() {
        let error = "process \"scan\" did not complete successfully: exit code: 1";
        for step in [
            "exporting cache to registry",
            "[linux/amd64] generating sbom using r/scan:1",
        ] {
            assert_eq!(
                party_at_fault(Some((step, error)), error),
                FaultyParty::Platform,
                "{step}"
            );
        }
        let step = "[2/2] RUN generating sbom using x";
        assert_eq!(party_at_fault(Some((step, error)), error), FaultyParty::Caller);
    }

    #[test]
    fn a_registry_failure_during_a_pull_is_the_platforms_fault_but_a_403_is_the_callers() {
        let step = "[internal] load metadata for registry:5000/base:1";
        for error in [
            "unexpected status from HEAD request to http://registry:5000/v2/base/manifests/1: 401 Unauthorized",
            "unexpected status from GET request to https://registry:5000/v2/base/manifests/1: 503 Service Unavailable",
            "failed to do request: Head \"http://registry:5000/v2/base/manifests/1\": dial tcp: i/o timeout",
        ] {
            let message = format!("registry:5000/base:1: failed to resolve source metadata for it: {error}");
            assert_eq!(
                party_at_fault(Some((step, error)), &message),
                FaultyParty::Platform,
                "{error}"
            );
        }
        let forbidden =
            "unexpected status from HEAD request to http://registry:5000/v2/base/manifests/1: 403 Forbidden";
        assert_eq!(
            party_at_fault(Some((step, forbidden)), forbidden),
            FaultyParty::Caller
        );
    }

    #[test]
    fn a_registry_error_in_the_text_of_a_run_step_is_still_the_callers_fault() {
        let error =
            "process \"/bin/sh -c curl failed to do request: \" did not complete successfully: exit code: 6";
        assert_eq!(
            party_at_fault(Some(("[2/2] RUN curl", error)), error),
            FaultyParty::Caller
        );
    }

    #[test]
    fn an_internal_error_of_the_daemon_is_the_platforms_fault() {
        let failure = BuildFailure::new(&Status::internal("history db is closed"), &EventReader::default());
        assert_eq!(failure.fault, FaultyParty::Platform);
    }

    #[test]
    fn the_message_of_a_failure_has_no_prefix_of_a_grpc_error_or_of_the_sender() {
        let status = Status::unknown("rpc error: code = Unknown desc = dockerfile parse error on line 2");
        let failure = BuildFailure::new(&status, &EventReader::default());
        assert_eq!(failure.to_string(), "dockerfile parse error on line 2");
        let status =
            Status::unknown("rpc error: code = Unknown desc = error from sender: invalid pattern \"[\"");
        let failure = BuildFailure::new(&status, &EventReader::default());
        assert_eq!(failure.to_string(), "invalid pattern \"[\"");
    }
}
