//! Deployments that failed: from the deployer's answer.

use serde_json::Value;

use super::{Hint, HintKind, text};

/// The most reasons of an answer that are read.
const MAX_REASONS: usize = 20;

/// The length after which a reason is not read, in bytes.
const REASON_READ_BYTES: usize = 4 << 10;

/// The words with which gateways and providers say that nothing listens on the function's port.
const NOT_LISTENING_WORDS: &[&str] = &["connection refused", "Connection refused", "no such host"];

/// What to do about a function that does not stay up.
const EXITING_FUNCTION_ADVICE: &str = "see what the function writes before it ends (faas-cli logs NAME), and correct it; a function \
                                       has to serve on port 8080 until it is stopped";

/// A rule for the reasons of an answer.
type ReasonRule = fn(&str) -> Option<Hint>;

/// The rules, of which the first with a hint decides.
const RULES: &[ReasonRule] = &[
    missing_secret,
    image_of_other_platform,
    missing_image,
    unpullable_image,
    container_without_memory,
    container_that_ended,
    container_that_does_not_start,
    unready_pod,
    exits,
    not_running,
    probe,
];

/// Returns the hint for a deployment that failed, from the deployer's answer; `None` where the cause is not known. The last
/// lines of the function's log, if a reason quotes them, are part of it.
pub fn explain_deployment(answer: &Value) -> Option<Hint> {
    let reasons = || {
        let reasons = answer["reasons"].as_array().into_iter().flatten();
        let texts = reasons.filter_map(Value::as_str).take(MAX_REASONS);
        texts.map(|reason| text::first_part(reason, REASON_READ_BYTES))
    };
    let hint = RULES.iter().find_map(|rule| reasons().find_map(rule))?;
    let is_about_function = matches!(
        hint.kind,
        HintKind::ProbeFailed
            | HintKind::FunctionExits
            | HintKind::FunctionNotListening
            | HintKind::FunctionNotRunning
            | HintKind::OutOfMemory
    );
    // On Kubernetes the deployer quotes the function's log in its reason.
    let quoted = reasons().find_map(|reason| reason.split_once("its log ends with: "));
    match quoted {
        Some((_, log)) if is_about_function => Some(hint.with_log(log.split(" | "))),
        _ => Some(hint),
    }
}

fn missing_secret(reason: &str) -> Option<Hint> {
    text::between(reason, "the secret \"", "\" does not exist").map(missing_secret_hint)
}

fn missing_secret_hint(name: &str) -> Hint {
    Hint::new(
        HintKind::FunctionSecretMissing,
        format!("the function uses the secret {name}, which does not exist"),
        format!("create it (faas-cli secret create {name}), or leave it out of the function's secrets"),
    )
}

fn image_of_other_platform(reason: &str) -> Option<Hint> {
    let rest = reason.split_once("the image ")?.1;
    let (image, rest) = rest.split_once(" is for ")?;
    let (platforms, wanted) = rest.split_once(", and functions run on ")?;
    Some(Hint::new(
        HintKind::ImagePlatform,
        format!("the image {image} is for {platforms}, and functions run on {wanted}"),
        format!("build for {wanted}: the config's \"platforms\""),
    ))
}

fn missing_image(reason: &str) -> Option<Hint> {
    let rest = reason.split_once("the registry ")?.1;
    let (registry, image) = rest.split_once(" has no image ")?;
    Some(Hint::new(
        HintKind::ImageNotPulled,
        format!("the registry {registry} has no image {image}"),
        "push the image before it is deployed: leave \"skipPush\" out of the config",
    ))
}

fn not_listening(response: &str) -> Hint {
    Hint::new(
        HintKind::FunctionNotListening,
        format!("the function does not accept connections on port 8080: {response}"),
        "let the function listen on 0.0.0.0:8080, or on the port that its watchdog expects",
    )
}

fn unpullable_image(reason: &str) -> Option<Hint> {
    let (before, rest) = reason.split_once(" cannot be pulled: ")?;
    before.contains("the image").then_some(())?;
    Some(Hint::new(
        HintKind::ImageNotPulled,
        format!("the provider cannot pull the image: {rest}"),
        "have the operator check that the provider reaches the registry, and has credentials that may pull the image",
    ))
}

fn container_without_memory(reason: &str) -> Option<Hint> {
    let rest = reason
        .split_once("the container was ended because it needed more memory than its limit")?
        .1;
    let limit = rest.split([',', ';']).next().unwrap_or_default().trim_end();
    Some(Hint::new(
        HintKind::OutOfMemory,
        format!("the function was ended because it needed more memory than its limit{limit}"),
        "raise the function's limits.memory, or let it use less",
    ))
}

fn container_that_ended(reason: &str) -> Option<Hint> {
    let rest = reason
        .split_once("the container ended with ")
        .or_else(|| reason.split_once("the container was ended by "));
    let how = rest?
        .1
        .split_once("; its log ends with: ")
        .map_or(rest?.1, |(how, _)| how);
    Some(Hint::new(
        HintKind::FunctionExits,
        format!("the function does not stay up: it ended with {how}"),
        EXITING_FUNCTION_ADVICE,
    ))
}

fn container_that_does_not_start(reason: &str) -> Option<Hint> {
    let rest = reason.split_once("the container cannot be started: ")?.1;
    if let Some(name) = text::between(rest, "secret \"", "\" not found") {
        return Some(missing_secret_hint(name));
    }
    Some(Hint::new(
        HintKind::FunctionNotRunning,
        format!("the function cannot be started: {rest}"),
        "correct what the message names: the image's entry point, or the function's secrets and limits",
    ))
}

fn unready_pod(reason: &str) -> Option<Hint> {
    if let Some((_, rest)) = reason.split_once("Readiness probe failed: ") {
        if NOT_LISTENING_WORDS.iter().any(|words| rest.contains(words)) {
            return Some(not_listening(rest));
        }
        return Some(Hint::new(
            HintKind::ProbeFailed,
            format!("the function does not answer the readiness probe of Kubernetes: {rest}"),
            "see what the function logs for the probe (faas-cli logs NAME), and correct it",
        ));
    }
    let rest = reason.split_once("no node takes the pod: ")?.1;
    Some(Hint::new(
        HintKind::FunctionNotRunning,
        format!("no node of the cluster takes the function: {rest}"),
        "lower the function's requests or change its constraints, or have the operator add nodes",
    ))
}

fn exits(reason: &str) -> Option<Hint> {
    let words = "no replica is available any more (the function starts and does not stay up)";
    reason.contains(words).then(|| {
        Hint::new(
            HintKind::FunctionExits,
            "the function starts and does not stay up",
            EXITING_FUNCTION_ADVICE,
        )
    })
}

fn not_running(reason: &str) -> Option<Hint> {
    let words =
        "no replica is available (the image cannot be pulled, or the function does not start or stay up)";
    reason.contains(words).then(|| {
        Hint::new(
            HintKind::FunctionNotRunning,
            "no replica of the function is available: its image cannot be pulled, or it does not start, does not stay up or is not \
             ready",
            "see what the function writes (faas-cli logs NAME) and what the provider says about it (faas-cli describe NAME); a \
             function has to listen on port 8080",
        )
    })
}

fn probe(reason: &str) -> Option<Hint> {
    let rest = reason.split_once("the function answered ")?.1;
    let (probe, response) = rest.split_once(" with ")?;
    if NOT_LISTENING_WORDS.iter().any(|words| response.contains(words)) {
        return Some(not_listening(response));
    }
    Some(Hint::new(
        HintKind::ProbeFailed,
        format!("the function answered its probe {probe} with {response}"),
        "see what the function logs for this request (faas-cli logs NAME), and correct it, or give another \"probe\" in the config",
    ))
}
