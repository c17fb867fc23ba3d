//! Why a build failed, and whose doing it was.
//!
//! BuildKit gives nearly every failure the code `Unknown` and says the rest in words. What it does tell apart is the
//! step that failed, so that comes first; words count only where a step talks to a registry.

use tonic::{Code, Status};

use super::Event;

/// The name of the step in which the exporter makes the image and pushes it: BuildKit
/// `exporter/containerimage/export.go`.
const EXPORT: &str = "exporting to image";
/// The name of the step that pushes cached steps: BuildKit `cache/remotecache/registry/registry.go`.
const EXPORT_CACHE: &str = "exporting cache to registry";

/// Beginnings of the names of steps that pull: base images, and images that a `# syntax=` line names.
const PULLS: [&str; 2] = ["[internal] load metadata for ", "resolve image config for "];

/// Failed steps that are remembered. One failure cancels the others, so there are never many.
const REMEMBERED: usize = 32;

/// Whose doing a failed build is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The Dockerfile's, the context's: again, it would fail again.
    Caller,
    /// A registry's, our credentials', the daemon's.
    Platform,
}

/// A build that BuildKit says has failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// In BuildKit's words.
    pub message: String,
    /// Whose doing.
    pub fault: Fault,
}

/// The steps that failed so far.
#[derive(Debug, Default)]
pub(super) struct FailedSteps(Vec<(String, String)>);

impl FailedSteps {
    pub(super) fn note(&mut self, event: &Event) {
        if let Event::Step { name, error, .. } = event
            && !error.is_empty()
            && self.0.len() < REMEMBERED
        {
            self.0.push((name.clone(), error.clone()));
        }
    }

    /// The name of the step that `message` is about. Steps that were cancelled because of it have other errors.
    fn behind(&self, message: &str) -> Option<&str> {
        let step = self
            .0
            .iter()
            .find(|(_, error)| message.contains(error.as_str()))?;
        Some(&step.0)
    }
}

impl Failure {
    pub(super) fn new(status: &Status, steps: &FailedSteps) -> Self {
        let message = status.message();
        let fault = match (status.code(), steps.behind(message)) {
            (Code::Internal | Code::ResourceExhausted | Code::DeadlineExceeded, _) => Fault::Platform,
            (_, Some(EXPORT | EXPORT_CACHE)) => Fault::Platform,
            // The generator is the operator's choice.
            (_, Some(step)) if makes_sbom(step) => Fault::Platform,
            (_, Some(step)) if pulls(step) && registry_failed(message) => Fault::Platform,
            _ => Fault::Caller,
        };
        Self {
            message: message.to_owned(),
            fault,
        }
    }
}

/// As BuildKit `frontend/attestations/sbom/sbom.go` names such a step: `[PLATFORM] generating sbom using IMAGE`.
fn makes_sbom(step: &str) -> bool {
    step.strip_prefix('[')
        .and_then(|rest| rest.split_once("] "))
        .is_some_and(|(_, rest)| rest.starts_with("generating sbom using "))
}

fn pulls(step: &str) -> bool {
    PULLS.iter().any(|beginning| step.starts_with(beginning)) || step.contains("] FROM ")
}

/// Whether containerd's registry client got no answer, or one that says nothing about the image. Credentials are
/// ours, so that a 401 is too; a registry that hands out tokens says `pull access denied` for an image that is not
/// there, and that is the Dockerfile's mistake.
fn registry_failed(message: &str) -> bool {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What buildkitd 0.32.2 said: code, the failed step and its error, the solve's message.
    fn judge(step: Option<(&str, &str)>, message: &str) -> Fault {
        let mut steps = FailedSteps::default();
        for (name, error) in [("[2/9] RUN slow", "context canceled")].into_iter().chain(step) {
            steps.note(&Event::Step {
                digest: String::new(),
                name: name.into(),
                started: None,
                completed: None,
                cached: false,
                error: error.into(),
            });
        }
        Failure::new(&Status::unknown(message), &steps).fault
    }

    #[test]
    fn a_dockerfile_that_fails_is_the_callers_doing() {
        for (step, message) in [
            (
                Some((
                    "[3/3] RUN exit 3",
                    "process \"/bin/sh -c exit 3\" did not complete successfully: exit code: 3",
                )),
                "process \"/bin/sh -c exit 3\" did not complete successfully: exit code: 3",
            ),
            (
                None,
                "dockerfile parse error on line 2: unknown instruction: WHAT",
            ),
            (
                None,
                "failed to read dockerfile: open Dockerfile: no such file or directory",
            ),
            (
                Some((
                    "[1/1] COPY nothere /",
                    "failed to calculate checksum of ref x::y: \"/nothere\": not found",
                )),
                "failed to compute cache key: failed to calculate checksum of ref x::y: \"/nothere\": not found",
            ),
            (
                Some((
                    "[internal] load metadata for registry:5000/nothere:1",
                    "registry:5000/nothere:1: not found",
                )),
                "registry:5000/nothere:1: failed to resolve source metadata for registry:5000/nothere:1: \
                 registry:5000/nothere:1: not found",
            ),
            (
                Some((
                    "[internal] load metadata for docker.io/library/nothere:1",
                    "pull access denied, repository does not exist or may require authorization",
                )),
                "nothere:1: failed to resolve source metadata for docker.io/library/nothere:1: pull access denied, \
                 repository does not exist or may require authorization",
            ),
        ] {
            assert_eq!(judge(step, message), Fault::Caller, "{message}");
        }
    }

    #[test]
    fn a_push_that_fails_is_the_platforms_doing() {
        for error in [
            "failed to push registry:5000/x:1: unexpected status from HEAD request to \
             http://registry:5000/v2/x/blobs/sha256:8ba7: 401 Unauthorized",
            "failed to push registry:5000/x:1: failed to do request: Head \
             \"https://registry:5000/v2/x/blobs/sha256:2270\": dial tcp 10.0.0.1:5000: connect: connection refused",
        ] {
            assert_eq!(judge(Some((EXPORT, error)), error), Fault::Platform, "{error}");
        }
    }

    #[test]
    fn what_the_operator_chose_and_fails_is_the_platforms_doing() {
        let error = "process \"scan\" did not complete successfully: exit code: 1";
        for step in [
            "exporting cache to registry",
            "[linux/amd64] generating sbom using r/scan:1",
        ] {
            assert_eq!(judge(Some((step, error)), error), Fault::Platform, "{step}");
        }
        let step = "[2/2] RUN generating sbom using x";
        assert_eq!(judge(Some((step, error)), error), Fault::Caller);
    }

    #[test]
    fn a_registry_that_fails_while_pulling_is_the_platforms_doing() {
        let step = "[internal] load metadata for registry:5000/base:1";
        for error in [
            "unexpected status from HEAD request to http://registry:5000/v2/base/manifests/1: 401 Unauthorized",
            "unexpected status from GET request to https://registry:5000/v2/base/manifests/1: 503 Service Unavailable",
            "failed to do request: Head \"http://registry:5000/v2/base/manifests/1\": dial tcp: i/o timeout",
        ] {
            let message = format!("registry:5000/base:1: failed to resolve source metadata for it: {error}");
            assert_eq!(judge(Some((step, error)), &message), Fault::Platform, "{error}");
        }
        let forbidden =
            "unexpected status from HEAD request to http://registry:5000/v2/base/manifests/1: 403 Forbidden";
        assert_eq!(judge(Some((step, forbidden)), forbidden), Fault::Caller);
    }

    #[test]
    fn a_step_that_merely_writes_such_words_is_still_a_step() {
        let error =
            "process \"/bin/sh -c curl failed to do request: \" did not complete successfully: exit code: 6";
        assert_eq!(judge(Some(("[2/2] RUN curl", error)), error), Fault::Caller);
    }

    #[test]
    fn an_error_inside_the_daemon_is_the_platforms_doing() {
        let failure = Failure::new(&Status::internal("history db is closed"), &FailedSteps::default());
        assert_eq!(failure.fault, Fault::Platform);
    }
}
