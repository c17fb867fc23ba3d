//! Hands the specification to the provider: an update, and a creation where there is nothing to update.

use function_host::Bytes;
use function_host::gateway::GatewayError;
use function_host::http::{Response, StatusCode};
use tracing::info;

use super::deadline::Deadline;
use crate::error::chain;
use crate::gateway::{Transport, call, said};
use crate::request::{FunctionSpec, HandOver, SPEC_ANNOTATION};

/// The tag under which the image was pushed.
const TAG_ANNOTATION: &str = "slipway/tag";
/// The call that built the image.
const CALL_ID_ANNOTATION: &str = "slipway/call-id";
/// When the image was built.
const BUILT_AT_ANNOTATION: &str = "slipway/built-at";

/// What the provider made of it.
pub(super) enum Applied {
    /// It says that it did it, in these words. That is not to be believed before it was read back.
    Accepted(String),
    /// It says that it will not do it.
    Refused(String),
    /// It failed, or nobody knows.
    Unclear(String),
}

/// Updates, or creates. Neither is sent a second time: an update that did not answer may still be at work.
pub(super) async fn apply(transport: &impl Transport, hand_over: &HandOver, deadline: &Deadline) -> Applied {
    let spec = marked(hand_over);
    let work = async {
        // faasd pulls the image before it answers: nothing but the deadline bounds these two.
        let updated = transport.send(call::update(&spec), deadline.left()).await;
        match updated {
            Ok(answer) if answer.status() == StatusCode::NOT_FOUND => {
                info!(
                    answer = said(&answer),
                    "nothing to update: the function is created"
                );
                judge(
                    "POST",
                    transport.send(call::create(&spec), deadline.left()).await,
                    Some(&said(&answer)),
                )
            }
            updated => judge("PUT", updated, None),
        }
    };
    let applied = deadline.bound(work).await;
    applied.unwrap_or_else(|| Applied::Unclear(format!("{}: the provider has not answered", deadline.why())))
}

/// The specification with our own annotations: what was asked for, by whom, and from when it is.
fn marked(hand_over: &HandOver) -> FunctionSpec {
    let built_at = hand_over
        .built_at
        .map(|at| humantime::format_rfc3339_millis(at).to_string());
    let marks = [
        (SPEC_ANNOTATION, Some(hand_over.spec.digest())),
        (TAG_ANNOTATION, hand_over.tag.clone()),
        (CALL_ID_ANNOTATION, hand_over.call_id.clone()),
        (BUILT_AT_ANNOTATION, built_at),
    ];
    let mut spec = hand_over.spec.clone();
    spec.annotations.extend(
        marks
            .into_iter()
            .filter_map(|(name, mark)| Some((name.to_owned(), mark?))),
    );
    spec
}

/// `update` is what was said to the update before the creation.
fn judge(method: &str, answer: Result<Response<Bytes>, GatewayError>, update: Option<&str>) -> Applied {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return Applied::Unclear(chain(&error)),
    };
    let status = answer.status();
    let mut text = format!("{method} with {}", said(&answer));
    if status.is_success() {
        info!(answer = text, "applied");
        return Applied::Accepted(text);
    }
    if let Some(update) = update {
        text = format!("{text} (and PUT before it with {update})");
    }
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Applied::Unclear(format!(
            "the gateway does not accept the deployer's credentials: it answered {text}"
        )),
        // Of a function that was not there a moment ago, this says that there is no such route.
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
            Applied::Unclear(format!("this seems to be no gateway: it answered {text}"))
        }
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
            Applied::Unclear(format!("the gateway is busy: it answered {text}"))
        }
        status if status.is_client_error() => Applied::Refused(format!(
            "the provider refused the specification: it answered {text}"
        )),
        _ => Applied::Unclear(format!("the provider failed: it answered {text}")),
    }
}
