//! Deployments that failed: from the deployer's answer.

use serde_json::Value;

use super::{Hint, HintKind, text};

/// The most reasons of an answer that are read.
const MAX_REASONS_READ: usize = 20;

/// The length after which the rest of a reason is not read, in bytes.
const MAX_BYTES_READ_OF_REASON: usize = 4 << 10;

/// The words with which gateways and providers say that nothing listens on the function's port.
const NOT_LISTENING_WORDS: &[&str] = &["connection refused", "Connection refused", "no such host"];

/// The answer of faas-provider, which faasd and others use, for a function that does not accept its connection.
const UNREACHABLE_RESPONSE_PREFIX: &str = "500: Can't reach service for: ";

/// What to do about a function that does not stay up.
const EXITING_FUNCTION_ADVICE: &str = "see what the function writes before it ends (faas-cli logs NAME), and correct it; a function \
                                       has to serve on port 8080 until it is stopped";

/// The words with which the deployer begins to quote the log of a function.
const LOG_QUOTE_PREFIX: &str = "its log ends with: ";

/// A rule: returns the hint if a reason of an answer names this rule's cause. The rule gets the reason without the
/// deployer's prefixes and without the function's log.
type ReasonRule = fn(&str) -> Option<Hint>;

/// The rules, of which the first with a hint decides.
const RULES: &[ReasonRule] = &[
    missing_secret,
    image_of_other_platform,
    missing_image,
    unpullable_image,
    container_ended_for_memory,
    container_that_ended,
    container_that_does_not_start,
    unready_or_unschedulable_pod,
    function_that_exits,
    function_that_does_not_run,
    failed_probe,
];

/// Returns the hint for a deployment that failed, from the deployer's answer; `None` where the cause is not known. The
/// last lines of the function's log, if a reason quotes them, are part of it.
pub fn explain_deployment(answer: &Value) -> Option<Hint> {
    let reasons = || {
        let reasons = answer["reasons"].as_array().into_iter().flatten();
        let texts = reasons.filter_map(Value::as_str).take(MAX_REASONS_READ);
        texts.map(|reason| text::first_part(reason, MAX_BYTES_READ_OF_REASON))
    };
    let mut hint = RULES
        .iter()
        .find_map(|rule| reasons().map(without_log_and_deployers_prefixes).find_map(rule))?;
    if let Some(function) = function_in_faas_cli_commands(answer) {
        // The rules know reasons only.
        for command in ["logs", "describe"] {
            let named = format!("faas-cli {command} {function}");
            hint.next = hint.next.replace(&format!("faas-cli {command} NAME"), &named);
        }
    }
    let is_about_function = matches!(
        hint.kind,
        HintKind::ProbeFailed
            | HintKind::FunctionExits
            | HintKind::FunctionNotListening
            | HintKind::FunctionNotRunning
            | HintKind::OutOfMemory
    );
    // The deployer quotes the function's log at the end of its reason.
    let quoted = reasons().find_map(|reason| reason.split_once(LOG_QUOTE_PREFIX));
    match quoted {
        Some((_, log)) if is_about_function => Some(hint.with_last_log_lines(log.split(" | "))),
        _ => Some(hint),
    }
}

/// Returns the function of an answer with its namespace, as faas-cli's commands take them; `None` if the answer names no
/// function.
fn function_in_faas_cli_commands(answer: &Value) -> Option<String> {
    let text = |key: &str| {
        let text = answer[key].as_str();
        text.filter(|text| text::is_safe_in_shell_advice(text))
    };
    let function = text("function")?;
    Some(match text("namespace") {
        Some(namespace) => format!("{function} -n {namespace}"),
        None => function.to_owned(),
    })
}

/// Returns what the deployer itself says in a reason: without the log of the function, and without what it was doing.
fn without_log_and_deployers_prefixes(reason: &str) -> &str {
    let reason = reason
        .split_once(LOG_QUOTE_PREFIX)
        .map_or(reason, |(before, _)| before.trim_end_matches("; "));
    let reason = reason.strip_prefix("nothing was changed: ").unwrap_or(reason);
    let waited = reason
        .strip_prefix("not ready within ")
        .and_then(|rest| rest.split_once(": "))
        .filter(|(limit, _)| limit.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    let interrupted = || reason.strip_prefix("the deployer is shutting down: ");
    waited
        .map(|(_, rest)| rest)
        .or_else(interrupted)
        .unwrap_or(reason)
}

fn missing_secret(reason: &str) -> Option<Hint> {
    let rest = reason.strip_prefix("the secret \"")?;
    let (name, _) = rest.split_once("\" does not exist")?;
    missing_secret_hint_if_valid_name(name)
}

/// Returns the hint for a secret that does not exist; `None` if no secret can have the name.
fn missing_secret_hint_if_valid_name(name: &str) -> Option<Hint> {
    is_secret_name(name).then(|| {
        Hint::new(
            HintKind::FunctionSecretMissing,
            format!("the function uses the secret {name}, which does not exist"),
            format!("create it (faas-cli secret create {name}), or leave it out of the function's secrets"),
        )
    })
}

/// Returns whether a text can be the name of a secret in Kubernetes and faasd.
fn is_secret_name(name: &str) -> bool {
    let is_allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-');
    (1..=253).contains(&name.len()) && !name.starts_with('-') && name.bytes().all(is_allowed)
}

fn image_of_other_platform(reason: &str) -> Option<Hint> {
    let rest = reason.strip_prefix("the image ")?;
    let (image, rest) = rest.split_once(" is for ")?;
    let (platforms, wanted) = rest.split_once(", and functions run on ")?;
    Some(Hint::new(
        HintKind::ImagePlatform,
        format!("the image {image} is for {platforms}, and functions run on {wanted}"),
        format!(
            "build for {}: the config's \"platforms\"",
            text::name_if_safe_or(wanted, "their platform")
        ),
    ))
}

fn missing_image(reason: &str) -> Option<Hint> {
    let rest = reason.strip_prefix("the registry ")?;
    let (registry, image) = rest.split_once(" has no image ")?;
    Some(Hint::new(
        HintKind::ImageNotPulled,
        format!("the registry {registry} has no image {image}"),
        "push the image before it is deployed (leave \"skipPush\" out of the config), or build it again if it was deleted",
    ))
}

fn not_listening_hint(response: &str) -> Hint {
    Hint::new(
        HintKind::FunctionNotListening,
        format!("the function does not accept connections on port 8080: {response}"),
        "let the function listen on 0.0.0.0:8080, or on the port that its watchdog expects",
    )
}

fn unpullable_image(reason: &str) -> Option<Hint> {
    let (before, rest) = reason.split_once(" cannot be pulled: ")?;
    let image = before.strip_prefix("the image")?.trim_start();
    (!image.contains(' ')).then_some(())?;
    Some(Hint::new(
        HintKind::ImageNotPulled,
        format!("the provider cannot pull the image: {rest}"),
        "have the operator check that the provider reaches the registry, and has credentials that may pull the image",
    ))
}

fn container_ended_for_memory(reason: &str) -> Option<Hint> {
    let rest = reason.strip_prefix("the container was ended because it needed more memory than its limit")?;
    let limit = rest.split([',', ';']).next().unwrap_or_default().trim_end();
    Some(Hint::new(
        HintKind::OutOfMemory,
        format!("the function was ended because it needed more memory than its limit{limit}"),
        "raise the function's limits.memory, or let it use less",
    ))
}

fn container_that_ended(reason: &str) -> Option<Hint> {
    let how = reason
        .strip_prefix("the container ended with ")
        .or_else(|| reason.strip_prefix("the container was ended by "))?;
    Some(Hint::new(
        HintKind::FunctionExits,
        format!("the function does not stay up: it ended with {how}"),
        EXITING_FUNCTION_ADVICE,
    ))
}

fn container_that_does_not_start(reason: &str) -> Option<Hint> {
    let rest = reason.strip_prefix("the container cannot be started: ")?;
    let secret = rest
        .strip_prefix("CreateContainerConfigError: secret \"")
        .and_then(|rest| rest.split_once("\" not found"));
    if let Some(hint) = secret.and_then(|(name, _)| missing_secret_hint_if_valid_name(name)) {
        return Some(hint);
    }
    Some(Hint::new(
        HintKind::FunctionNotRunning,
        format!("the function cannot be started: {rest}"),
        "correct what the message names: the image's entry point, or the function's secrets and limits",
    ))
}

fn unready_or_unschedulable_pod(reason: &str) -> Option<Hint> {
    let unready = reason
        .strip_prefix("the pod ")
        .and_then(|rest| rest.split_once("; "));
    let unready = unready.and_then(|(_, rest)| rest.strip_prefix("Readiness probe failed: "));
    if let Some(rest) = unready {
        if NOT_LISTENING_WORDS.iter().any(|words| rest.contains(words)) {
            return Some(not_listening_hint(rest));
        }
        return Some(Hint::new(
            HintKind::ProbeFailed,
            format!("the function does not answer the readiness probe of Kubernetes: {rest}"),
            "see what the function logs for the probe (faas-cli logs NAME), and correct it",
        ));
    }
    let rest = reason.strip_prefix("no node takes the pod: ")?;
    Some(Hint::new(
        HintKind::FunctionNotRunning,
        format!("no node of the cluster takes the function: {rest}"),
        "lower the function's requests or change its constraints, or have the operator add nodes",
    ))
}

fn function_that_exits(reason: &str) -> Option<Hint> {
    let words = "no replica is available any more (the function starts and does not stay up)";
    reason.starts_with(words).then(|| {
        Hint::new(
            HintKind::FunctionExits,
            "the function starts and does not stay up",
            EXITING_FUNCTION_ADVICE,
        )
    })
}

fn function_that_does_not_run(reason: &str) -> Option<Hint> {
    let words =
        "no replica is available (the image cannot be pulled, or the function does not start or stay up)";
    reason.starts_with(words).then(|| {
        Hint::new(
            HintKind::FunctionNotRunning,
            "no replica of the function is available: its image cannot be pulled, or it does not start, does not stay up or is not \
             ready",
            "see what the function writes (faas-cli logs NAME) and what the provider says about it (faas-cli describe NAME); a \
             function has to listen on port 8080",
        )
    })
}

fn failed_probe(reason: &str) -> Option<Hint> {
    let rest = reason.strip_prefix("the function answered ")?;
    let (probe, response) = rest.split_once(" with ")?;
    // The function itself may say with another status that a database does not listen.
    let is_of_gateway = ["502", "503", "504"]
        .iter()
        .any(|status| response.starts_with(status));
    let is_not_listening = is_of_gateway && NOT_LISTENING_WORDS.iter().any(|words| response.contains(words));
    if is_not_listening || response.starts_with(UNREACHABLE_RESPONSE_PREFIX) {
        return Some(not_listening_hint(response));
    }
    Some(Hint::new(
        HintKind::ProbeFailed,
        format!("the function answered its probe {probe} with {response}"),
        "see what the function logs for this request (faas-cli logs NAME), and correct it, or give another \"probe\" in the config",
    ))
}
