//! Deployments that failed: from the deployer's answer.

use serde_json::Value;

use super::{Hint, HintKind, text};

/// The most reasons of an answer that are read.
const MAX_REASONS: usize = 20;

/// The length after which a reason is not read, in bytes.
const REASON_READ_BYTES: usize = 4 << 10;

/// The words with which gateways and providers say that nothing listens on the function's port.
const NOT_LISTENING_WORDS: &[&str] = &["connection refused", "Connection refused", "no such host"];

/// A rule for the reasons of an answer.
type ReasonRule = fn(&str) -> Option<Hint>;

/// The rules, of which the first with a hint decides.
const RULES: &[ReasonRule] = &[
    missing_secret,
    image_of_other_platform,
    missing_image,
    unpullable_image,
    exits,
    not_running,
    probe,
];

/// Returns the hint for a deployment that failed, from the deployer's answer; `None` where the cause is not known. The last
/// lines of the function's log, if the answer has them, are part of it.
pub fn explain_deployment(answer: &Value) -> Option<Hint> {
    let reasons = || {
        let reasons = answer["reasons"].as_array().into_iter().flatten();
        let texts = reasons.filter_map(Value::as_str).take(MAX_REASONS);
        texts.map(|reason| text::first_part(reason, REASON_READ_BYTES))
    };
    let hint = RULES.iter().find_map(|rule| reasons().find_map(rule))?;
    let log = answer["log"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    let log: Vec<_> = log
        .take(200)
        .map(|line| text::first_part(line, REASON_READ_BYTES))
        .collect();
    let hint = match (hint.kind, log.is_empty()) {
        (HintKind::ProbeFailed, false)
        | (HintKind::FunctionExits, false)
        | (HintKind::FunctionNotListening, false)
        | (HintKind::FunctionNotRunning, false) => {
            let plain: Vec<_> = log
                .iter()
                .map(|line| text::without_terminal_codes(line))
                .collect();
            hint.with_log(plain.iter().map(String::as_str))
        }
        _ => hint,
    };
    Some(hint)
}

fn missing_secret(reason: &str) -> Option<Hint> {
    let name = text::between(reason, "the secret \"", "\" does not exist")?;
    Some(Hint::new(
        HintKind::FunctionSecretMissing,
        format!("the function uses the secret {name}, which does not exist"),
        format!("create it (faas-cli secret create {name}), or leave it out of the function's secrets"),
    ))
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

fn unpullable_image(reason: &str) -> Option<Hint> {
    let rest = reason.split_once("the image cannot be pulled: ")?.1;
    Some(Hint::new(
        HintKind::ImageNotPulled,
        format!("the provider cannot pull the image: {rest}"),
        "have the operator check that the provider reaches the registry, and has credentials that may pull the image",
    ))
}

fn exits(reason: &str) -> Option<Hint> {
    let words = "no replica is available any more (the function starts and does not stay up)";
    reason.contains(words).then(|| {
        Hint::new(
            HintKind::FunctionExits,
            "the function starts and does not stay up",
            "see what the function writes before it ends (faas-cli logs NAME), and correct it; a function has to serve on port 8080 \
             until it is stopped",
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
        return Some(Hint::new(
            HintKind::FunctionNotListening,
            format!("the function does not accept connections on port 8080: the gateway got {response}"),
            "let the function listen on 0.0.0.0:8080, or on the port that its watchdog expects",
        ));
    }
    Some(Hint::new(
        HintKind::ProbeFailed,
        format!("the function answered its probe {probe} with {response}"),
        "see what the function logs for this request (faas-cli logs NAME), and correct it, or give another \"probe\" in the config",
    ))
}
