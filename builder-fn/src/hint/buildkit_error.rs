//! Errors of BuildKit beside those of steps, images and sources: of instructions, layers and rights.

use super::evidence::Evidence;
use super::{Hint, HintKind};

/// What is known of an error: words that it has, its kind, and what to do next.
type KnownError = (&'static str, HintKind, &'static str);

/// The errors, in the words of BuildKit and containerd.
const KNOWN_ERRORS: &[KnownError] = &[
    (
        "cannot copy to non-directory: ",
        HintKind::DockerfileInvalid,
        "end the destination with a slash where it is a folder, and choose one that is no file in the image",
    ),
    (
        "cannot replace to directory ",
        HintKind::DockerfileInvalid,
        "choose a destination that is no folder in the image, or remove the folder before",
    ),
    (
        ", it needs to be defined before current stage ",
        HintKind::StageMissing,
        "move the stage before the one that copies from it",
    ),
    (
        "is not allowed by build daemon configuration",
        HintKind::SourceDenied,
        "do without the right that the instruction asks for (RUN --security=insecure, RUN --network=host), which the operator did not give",
    ),
    (
        "security.insecure is not allowed",
        HintKind::SourceDenied,
        "do without RUN --security=insecure, for which the operator did not give the right",
    ),
    (
        "network.host is not allowed",
        HintKind::SourceDenied,
        "do without RUN --network=host, for which the operator did not give the right",
    ),
    (
        "digest mismatch ",
        HintKind::DownloadFailed,
        "correct the checksum of ADD --checksum if the file was replaced on purpose, or the URL",
    ),
    (
        "unexpected commit digest ",
        HintKind::RegistryFailing,
        "build again later; if that fails too, the registry or a proxy before it gives other layers than the image has",
    ),
    (
        "could not fetch content descriptor ",
        HintKind::RegistryFailing,
        "build again later; if that fails too, the registry does not have a layer of the image any more: use another tag or push the image anew",
    ),
    (
        "413 Request Entity Too Large",
        HintKind::PushDenied,
        "make the layers smaller, or have the operator of the registry, or of the proxy before it, allow larger requests",
    ),
    (
        "405 Method Not Allowed",
        HintKind::PushDenied,
        "push to another registry: this one is a mirror or a cache that takes no images, or the address is not that of its API",
    ),
    (
        "failed to process ONBUILD",
        HintKind::DockerfileInvalid,
        "use another base image: its ONBUILD instructions do not fit this Dockerfile",
    ),
    (
        "invalid user index",
        HintKind::UserMissing,
        "name a user that the image has, or create it in a step before",
    ),
];

/// Explains an error of BuildKit that no step's process is the cause of.
pub(super) fn explain(evidence: &Evidence<'_>) -> Option<Hint> {
    // The text of a command may have the words of any error.
    if evidence.process_failure_reason().is_some() {
        return None;
    }
    let error = &*evidence.error;
    if let Some(user) = error
        .strip_prefix("unable to find user ")
        .or_else(|| error.strip_prefix("unable to find group "))
    {
        let name = user.split(':').next().unwrap_or(user);
        return Some(Hint::new(
            HintKind::UserMissing,
            format!("the image has no user or group {name}, which the instruction names"),
            "create the user or group in a step before (useradd, adduser), or use its number (--chown=1000:1000)",
        ));
    }
    let (_, kind, next) = KNOWN_ERRORS.iter().find(|(words, _, _)| error.contains(words))?;
    Some(Hint::new(*kind, error, next))
}
