//! Images that cannot be pulled or pushed.

use super::evidence::Evidence;
use super::failure::{CredentialHolder, LoginStateAtRefusingRegistry};
use super::network::explain_connection_problem;
use super::{Hint, HintKind, dockerfile, text};

/// The beginning of the error for a credential helper that cannot be started.
const CREDENTIAL_HELPER_NOT_RUN_PREFIX: &str = "could not run ";

/// The kind of answer with which a registry refuses or fails a pull or a push.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RegistryRefusalOrFailure {
    Unauthorized,
    Forbidden,
    NotFound,
    RateLimit,
    ImmutableTag,
    Quota,
    Failing,
}

/// The words of registries (Harbor, Quay, GitLab and others) for a push for which the quota has no room. No name has
/// spaces, so that the name of an image never has these words.
const QUOTA_EXCEEDED_WORDS: &[&str] = &[
    "quota exceeded",
    "quota has been exceeded",
    "exceeds the quota",
    "exceeded the quota",
    "storage quota",
    "exceed the configured upper limit",
];

/// Explains a base image that cannot be pulled.
pub(super) fn explain_pull(evidence: &Evidence<'_>) -> Option<Hint> {
    let (image, reason) = image_and_reason_of_failed_pull(&evidence.error)
        .or_else(|| image_and_reason_of_failed_token(evidence))?;
    if let Some(hint) = copy_from_missing_stage(evidence, image, reason) {
        return Some(hint);
    }
    let registry = registry_of(image);
    if reason.contains("no match for platform in manifest") {
        return Some(Hint::new(
            HintKind::ImagePlatform,
            format!("{registry} has the image {image}, and not for the platform of the build"),
            "use an image that is made for this platform, or build for another one: the config's \"platforms\"",
        ));
    }
    if reason.contains("pull access denied, repository does not exist or may require authorization") {
        return Some(Hint::new(
            HintKind::ImagePrivate,
            format!(
                "{registry} does not give {image} to this build: the repository does not exist, or needs credentials{}",
                credentials_problem_as_end_of_sentence_or_empty(evidence)
            ),
            format!(
                "correct the image's name; if it is private, have credentials for {registry} added that may pull it"
            ),
        ));
    }
    if let Some(hint) = explain_connection_problem(reason, Some(registry), &format!("to pull {image}")) {
        return Some(hint);
    }
    match parse_refusal_or_failure(reason)? {
        RegistryRefusalOrFailure::NotFound => Some(Hint::new(
            HintKind::ImageMissing,
            format!("{registry} has no image {image}"),
            "correct the image's name or tag; the name is the one in the Dockerfile, or that of a build argument",
        )),
        RegistryRefusalOrFailure::Unauthorized | RegistryRefusalOrFailure::Forbidden => Some(
            missing_credential_helper_hint(evidence, registry).unwrap_or_else(|| {
                Hint::new(
                    HintKind::ImagePrivate,
                    format!(
                        "{registry} does not let this build pull {image}{}",
                        credentials_problem_as_end_of_sentence_or_empty(evidence)
                    ),
                    format!(
                        "have credentials for {registry} added that may pull {image}, or use another image"
                    ),
                )
            }),
        ),
        other => Some(registry_limit_or_failure_hint(other, registry, "pull")),
    }
}

/// Explains a push that the registry refuses, or for which BuildKit cannot connect to it.
pub(super) fn explain_push(evidence: &Evidence<'_>) -> Option<Hint> {
    let (image, reason) = image_and_reason_of_failed_push(&evidence.error)?;
    let registry = registry_of(image);
    if let Some(hint) = explain_connection_problem(reason, Some(registry), &format!("to push {image}")) {
        return Some(hint);
    }
    match parse_refusal_or_failure(reason)? {
        RegistryRefusalOrFailure::Unauthorized | RegistryRefusalOrFailure::Forbidden => Some(missing_credential_helper_hint(evidence, registry).unwrap_or_else(|| {
            Hint::new(
                HintKind::PushDenied,
                format!("{registry} refuses the push of {image}{}", credentials_problem_as_end_of_sentence_or_empty(evidence)),
                format!("have credentials for {registry} added that may push to {}, or push to another repository", repository_of(image)),
            )
        })),
        RegistryRefusalOrFailure::NotFound => Some(Hint::new(
            HintKind::RepositoryMissing,
            format!("{registry} has no repository for {image}, and does not create it"),
            format!("create the repository {}, or push to another one", repository_of(image)),
        )),
        RegistryRefusalOrFailure::ImmutableTag => Some(Hint::new(
            HintKind::TagImmutable,
            format!("{registry} has the tag of {image} already, and does not let it be replaced"),
            "push with another tag",
        )),
        RegistryRefusalOrFailure::Quota => {
            let answer = reason.rsplit_once("denied: ").map_or(reason, |(_, answer)| answer);
            Some(Hint::new(
                HintKind::PushDenied,
                format!("{registry} refuses the push of {image}, for which its quota has no room: {answer}"),
                format!("delete images that are not used any more, or have the operator of {registry} raise the quota"),
            ))
        }
        other => Some(registry_limit_or_failure_hint(other, registry, "push")),
    }
}

/// Returns the image and the reason in BuildKit's error for a base image: `[NAME: ]failed to resolve source metadata
/// for IMAGE: REASON`, with the name as the Dockerfile has it.
fn image_and_reason_of_failed_pull(error: &str) -> Option<(&str, &str)> {
    const RESOLVE_FAILED_WORDS: &str = "failed to resolve source metadata for ";
    let rest = error.strip_prefix(RESOLVE_FAILED_WORDS).or_else(|| {
        let (name, rest) = error.split_once(": ")?;
        text::is_safe_image_name(name).then_some(())?;
        rest.strip_prefix(RESOLVE_FAILED_WORDS)
    })?;
    let (image, reason) = rest.split_once(": ")?;
    text::is_safe_image_name(image).then_some((image, reason))
}

/// Returns the image and the reason of an error for a token without which BuildKit cannot look an image up. Only the
/// name of the step names the image.
fn image_and_reason_of_failed_token<'e>(evidence: &'e Evidence<'_>) -> Option<(&'e str, &'e str)> {
    let error = &*evidence.error;
    [
        "failed to fetch anonymous token: ",
        "failed to fetch oauth token: ",
        "failed to authorize: ",
    ]
    .iter()
    .any(|words| error.starts_with(words))
    .then_some(())?;
    let image = evidence
        .failure
        .step?
        .name
        .strip_prefix("[internal] load metadata for ")?;
    text::is_safe_image_name(image).then_some((image, error))
}

/// Returns the hint for a `COPY --from` with a name that is no stage, and that BuildKit therefore took for an image of
/// Docker Hub which is not there.
fn copy_from_missing_stage(evidence: &Evidence<'_>, image: &str, reason: &str) -> Option<Hint> {
    reason.contains("pull access denied").then_some(())?;
    let name = image
        .strip_prefix("docker.io/library/")?
        .strip_suffix(":latest")?;
    let instruction = evidence.instruction()?;
    (instruction.flag("from") == Some(name)).then_some(())?;
    let mut stages = dockerfile::stage_names(evidence.instructions());
    stages.retain(|stage| text::is_safe_in_shell_advice(stage));
    if stages.is_empty() {
        return None;
    }
    let stages = stages.join(", ");
    Some(Hint::new(
        HintKind::StageMissing,
        format!(
            "the Dockerfile has no stage {name}, so that it was taken for an image of docker.io, which does not give it; it has the stages {stages}"
        ),
        format!("write one of {stages}, or name the image with its registry"),
    ))
}

/// Returns the image and the reason in BuildKit's error for a push: `failed to push IMAGE: REASON`.
fn image_and_reason_of_failed_push(error: &str) -> Option<(&str, &str)> {
    let (image, reason) = error.strip_prefix("failed to push ")?.split_once(": ")?;
    text::is_safe_image_name(image).then_some((image, reason))
}

/// Returns the registry that refuses a pull or a push for its credentials, by the text of the error; `docker.io` for
/// Docker Hub.
pub fn registry_refusing_credentials(error: &str) -> Option<&str> {
    let error = text::first_part(error, 16 << 10);
    let (image, reason) =
        image_and_reason_of_failed_pull(error).or_else(|| image_and_reason_of_failed_push(error))?;
    let is_refused = reason.contains("pull access denied")
        || matches!(
            parse_refusal_or_failure(reason),
            Some(RegistryRefusalOrFailure::Unauthorized | RegistryRefusalOrFailure::Forbidden)
        );
    is_refused.then(|| registry_of(image))
}

/// Returns the hint for a registry that limits or fails.
fn registry_limit_or_failure_hint(
    refusal: RegistryRefusalOrFailure,
    registry: &str,
    operation: &str,
) -> Hint {
    match refusal {
        RegistryRefusalOrFailure::RateLimit => Hint::new(
            HintKind::RegistryRateLimit,
            format!("{registry} limits how often this builder may {operation}"),
            format!(
                "build again later, or have credentials for {registry} added, which raise the limit; a mirror avoids it"
            ),
        ),
        _ => Hint::new(
            HintKind::RegistryFailing,
            format!("{registry} answered the {operation} with an error of its own"),
            "build again later; if that fails too, the operator of the registry finds the reason in its log",
        ),
    }
}

/// Returns the hint for credentials that could not be read because their program cannot be run.
fn missing_credential_helper_hint(evidence: &Evidence<'_>, registry: &str) -> Option<Hint> {
    let problem = evidence.failure.login?.problem?;
    let program = problem.strip_prefix(CREDENTIAL_HELPER_NOT_RUN_PREFIX)?;
    let program = program
        .split_once(':')
        .map_or(program, |(program, _)| program)
        .trim();
    Some(Hint::new(
        HintKind::CredentialHelperMissing,
        format!(
            "{registry} wants a login, and the program {program}, which has the credentials, cannot be run by the builder"
        ),
        format!(
            "have the operator add {} to the builder's image, or give the credentials in the config.json itself (auths)",
            text::name_if_safe_or(program, "the program")
        ),
    ))
}

/// Returns whose credentials were used, as the end of a sentence.
fn credentials_problem_as_end_of_sentence_or_empty(evidence: &Evidence<'_>) -> String {
    let Some(LoginStateAtRefusingRegistry {
        holder,
        is_given,
        problem,
    }) = evidence.failure.login
    else {
        return String::new();
    };
    let holder = match holder {
        CredentialHolder::Operator => "the operator".to_owned(),
        CredentialHolder::Tenant(name) => format!("the tenant {name}"),
    };
    match (is_given, problem) {
        (_, Some(problem)) => format!(": the credentials of {holder} could not be read ({problem})"),
        (true, None) => format!(": the credentials of {holder} do not have the right"),
        (false, None) => format!(": {holder} has no credentials for it"),
    }
}

/// Finds what a registry answered, in the words of containerd's client.
fn parse_refusal_or_failure(reason: &str) -> Option<RegistryRefusalOrFailure> {
    let has = |words: &[&str]| words.iter().any(|words| reason.contains(words));
    let lower_case = reason.to_lowercase();
    // "unexpected status from HEAD request to http://registry:5000/v2/…: 401 Unauthorized"
    let status = reason.rsplit_once("unexpected status").and_then(|(_, rest)| {
        let (_, rest) = rest.split_once("//")?;
        let (_, status) = rest.split_once(": ")?;
        status.get(..3)?.parse::<u16>().ok()
    });
    // Some registries call the number of requests a quota.
    if status == Some(429) || has(&["toomanyrequests", "429 Too Many Requests"]) {
        return Some(RegistryRefusalOrFailure::RateLimit);
    }
    if QUOTA_EXCEEDED_WORDS
        .iter()
        .any(|words| lower_case.contains(words))
    {
        return Some(RegistryRefusalOrFailure::Quota);
    }
    if has(&[
        "412 Precondition Failed",
        "TAG_INVALID",
        "tag is immutable",
        "immutable tag",
    ]) {
        return Some(RegistryRefusalOrFailure::ImmutableTag);
    }
    match status {
        Some(401) => return Some(RegistryRefusalOrFailure::Unauthorized),
        Some(403) => return Some(RegistryRefusalOrFailure::Forbidden),
        Some(404) => return Some(RegistryRefusalOrFailure::NotFound),
        Some(500..) => return Some(RegistryRefusalOrFailure::Failing),
        _ => {}
    }
    if has(&[
        "insufficient_scope",
        "authorization failed",
        "no basic auth credentials",
        "401 Unauthorized",
        "server message: unauthorized",
    ]) {
        Some(RegistryRefusalOrFailure::Unauthorized)
    } else if has(&[
        "denied: ",
        "push access denied",
        "403 Forbidden",
        "server message: denied",
    ]) {
        Some(RegistryRefusalOrFailure::Forbidden)
    } else if has(&["NAME_UNKNOWN", "name unknown"]) || reason.ends_with(": not found") {
        Some(RegistryRefusalOrFailure::NotFound)
    } else {
        None
    }
}

/// Returns the registry of an image's name, which is `docker.io` for a name without one.
fn registry_of(image: &str) -> &str {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
        _ => "docker.io",
    }
}

/// Returns the repository of an image's name: without its tag and digest.
fn repository_of(image: &str) -> &str {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_on_requests_is_a_rate_limit_and_a_quota_on_storage_is_not() {
        let requests = "unexpected status from GET request to https://r.example/v2/a/manifests/1: 429 Too Many Requests: \
                        toomanyrequests: Quota exceeded for quota metric 'Requests per project per region'";
        assert!(matches!(
            parse_refusal_or_failure(requests),
            Some(RegistryRefusalOrFailure::RateLimit)
        ));
        let storage = "unexpected status from PUT request to https://r.example/v2/a/manifests/1: 403 Forbidden: \
                       denied: adding 3.1 GiB of storage resource exceeds the quota";
        let storage = format!("{storage}; exceed the configured upper limit of 1.0 GiB");
        assert!(matches!(
            parse_refusal_or_failure(&storage),
            Some(RegistryRefusalOrFailure::Quota)
        ));
    }
}
