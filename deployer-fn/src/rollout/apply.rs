//! Sends a version to the provider: an update, or a creation if the function does not exist.

use function_host::Bytes;
use function_host::ErrorChain;
use function_host::gateway::GatewayError;
use function_host::http::{Request, Response, StatusCode};
use serde_json::Value;
use tracing::info;

use super::backoff::Backoff;
use super::deadline::RolloutDeadline;
use crate::function::FunctionAddress;
use crate::gateway::{GatewayRequestSender, call, summarize_response};
use crate::outcome::FaultyParty;

/// The number of retries of a change that certainly had no effect.
const CHANGE_RETRIES_MAX: usize = 6;

/// Texts in a provider's answer that say that an image cannot be pulled, and that a retry would not help.
const PERMANENT_PULL_ERROR_TEXTS: [&str; 6] = [
    "not found",
    "manifest unknown",
    "unauthorized",
    "denied",
    "forbidden",
    "invalid reference",
];

/// The text in a provider's answer that says that an image was not pulled. faasd answers so with 400 to a creation,
/// whatever the reason.
const FAASD_PULL_ERROR_TEXT: &str = "unable to pull image";

/// The outcome of sending a version to the provider, as far as its answer or the lack of one shows it.
#[derive(Debug)]
pub(super) enum AnswerToApply {
    /// The provider answered that it took the version. Only a later read shows whether it did.
    Accepted(String),
    /// The provider rejected the specification, for this reason.
    Rejected(String),
    /// The provider or the gateway failed, was busy, or gave no answer; with the party at fault and the reason.
    Unclear(FaultyParty, String),
}

/// Sends a version as an update of the function, or as a creation if there is nothing to update. A function that can
/// neither be updated nor created is deleted first.
///
/// A request that the provider may have acted on is not repeated: an unanswered update may still be in progress, and
/// the function's state has to be read first.
pub(super) async fn update_create_or_recreate_until_deadline(
    transport: &impl GatewayRequestSender,
    function: &FunctionAddress,
    deployment: &Value,
    recreate_if_neither_works: bool,
    deadline: &RolloutDeadline,
) -> AnswerToApply {
    let applied = deadline.run_until_deadline(update_create_or_recreate(
        transport,
        function,
        deployment,
        recreate_if_neither_works,
        deadline,
    ));
    applied.await.unwrap_or_else(|| {
        let reason = format!("{}: the provider has not answered", deadline.reason_passed());
        AnswerToApply::Unclear(FaultyParty::Platform, reason)
    })
}

/// Sends an update, or a creation if there is nothing to update. Deletes and creates a function that can neither be
/// updated nor created, because a part of it is missing.
async fn update_create_or_recreate(
    transport: &impl GatewayRequestSender,
    function: &FunctionAddress,
    deployment: &Value,
    recreate_if_neither_works: bool,
    deadline: &RolloutDeadline,
) -> AnswerToApply {
    let update = match send_change_retrying_if_without_effect(
        transport,
        || call::update_request(deployment),
        deadline,
    )
    .await
    {
        Ok(response) if response.status() == StatusCode::NOT_FOUND => response,
        response => return interpret_response("PUT", response, None),
    };
    let update = summarize_response(&update);
    info!(
        response = update,
        "creating the function: there is none to update"
    );
    let created =
        send_change_retrying_if_without_effect(transport, || call::create_request(deployment), deadline)
            .await;
    if !recreate_if_neither_works || !was_answered_with_server_error(&created) {
        return interpret_response("POST", created, Some(&update));
    }
    // The function cannot be updated and yet exists: a part of it is missing, on Kubernetes the Service
    // (docs/pitfalls.md#no-conflict-status). Such a function cannot be called, so that deleting it loses nothing.
    info!("deleting and creating the function: a part of it is missing");
    let deleted =
        send_change_retrying_if_without_effect(transport, || call::delete_request(function), deadline).await;
    if let Err(error) = deleted {
        return AnswerToApply::Unclear(FaultyParty::Platform, ErrorChain(&error).to_string());
    }
    let mut backoff = Backoff::new();
    loop {
        let created =
            send_change_retrying_if_without_effect(transport, || call::create_request(deployment), deadline)
                .await;
        // The function exists until its deletion is complete.
        if was_answered_with_server_error(&created) && backoff.wait_count() < CHANGE_RETRIES_MAX {
            backoff.wait_next().await;
            continue;
        }
        return interpret_response("POST", created, Some(&update));
    }
}

/// Returns whether the gateway answered with a status of 500 or more.
fn was_answered_with_server_error(response: &Result<Response<Bytes>, GatewayError>) -> bool {
    response
        .as_ref()
        .is_ok_and(|response| response.status().is_server_error())
}

/// Sends a change to the gateway, and retries it if it certainly had no effect: the gateway was not reached, or
/// was too busy.
///
/// Its only time limit is the deadline: faasd pulls the image before it answers.
pub(super) async fn send_change_retrying_if_without_effect(
    transport: &impl GatewayRequestSender,
    request: impl Fn() -> Result<Request<Bytes>, GatewayError>,
    deadline: &RolloutDeadline,
) -> Result<Response<Bytes>, GatewayError> {
    let mut backoff = Backoff::new();
    loop {
        let response = transport
            .send(request()?, deadline.time_remaining_ignoring_shutdown())
            .await;
        let had_no_effect = match &response {
            Ok(response) => response.status() == StatusCode::TOO_MANY_REQUESTS,
            Err(error) => matches!(error, GatewayError::Connect { .. }),
        };
        if !had_no_effect || backoff.wait_count() >= CHANGE_RETRIES_MAX {
            return response;
        }
        backoff.wait_next().await;
    }
}

/// Interprets the response to an update or a creation. `update_summary` is the summary of the response to the update
/// before a creation.
fn interpret_response(
    method: &str,
    response: Result<Response<Bytes>, GatewayError>,
    update_summary: Option<&str>,
) -> AnswerToApply {
    let response = match response {
        Ok(response) => response,
        Err(error) => return AnswerToApply::Unclear(FaultyParty::Platform, ErrorChain(&error).to_string()),
    };
    let status = response.status();
    let mut text = format!("{method} with {}", summarize_response(&response));
    if status.is_success() {
        info!(response = text, "the provider accepted the specification");
        return AnswerToApply::Accepted(text);
    }
    if let Some(update_summary) = update_summary {
        text = format!("{text} (and PUT before it with {update_summary})");
    }
    let unclear =
        |reason: &str| AnswerToApply::Unclear(FaultyParty::Platform, format!("{reason}: it answered {text}"));
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            unclear("the gateway rejected the deployer's credentials")
        }
        // A gateway does not answer a creation with these: the server has no such route.
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
            unclear("the server at gateway_url does not have the gateway's API")
        }
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => unclear("the gateway is busy"),
        status if status.is_client_error() && !is_transient_pull_error(&response) => AnswerToApply::Rejected(
            format!("the provider rejected the specification: it answered {text}"),
        ),
        _ if is_permanent_pull_error(&response) => AnswerToApply::Unclear(
            FaultyParty::Caller,
            format!("the image cannot be pulled: the provider answered {text}"),
        ),
        _ => unclear("the provider failed"),
    }
}

/// Returns whether a provider's response says that the image does not exist, or may not be pulled.
fn is_permanent_pull_error(response: &Response<Bytes>) -> bool {
    let text = String::from_utf8_lossy(response.body()).to_lowercase();
    text.contains("pull")
        && PERMANENT_PULL_ERROR_TEXTS
            .iter()
            .any(|words| text.contains(words))
}

/// Returns whether a provider's response says that it did not pull the image, for a reason that may pass: the registry
/// cannot be reached, or fails.
fn is_transient_pull_error(response: &Response<Bytes>) -> bool {
    let text = String::from_utf8_lossy(response.body()).to_lowercase();
    text.contains(FAASD_PULL_ERROR_TEXT) && !is_permanent_pull_error(response)
}
