//! Hands a version to the provider: an update, and a creation where there is nothing to update.

use function_host::Bytes;
use function_host::gateway::GatewayError;
use function_host::http::{Request, Response, StatusCode};
use serde_json::Value;
use tracing::info;

use super::deadline::Deadline;
use super::pace::Pace;
use super::target::Target;
use crate::error::chain;
use crate::gateway::{Transport, call, said};
use crate::outcome::Fault;

/// How often a request that cannot have been acted on is sent again.
const AGAIN: usize = 6;

/// What pulling an image says where trying again would not help.
const NO_SUCH_IMAGE: [&str; 6] = [
    "not found",
    "manifest unknown",
    "unauthorized",
    "denied",
    "forbidden",
    "invalid reference",
];

/// What the provider made of it.
#[derive(Debug)]
pub(super) enum Applied {
    /// It says that it did it, in these words. That is not to be believed before it was read back.
    Accepted(String),
    /// It says that it will not do it.
    Refused(String),
    /// It failed, or nobody knows; whose doing it is, and in which words.
    Unclear(Fault, String),
}

/// Updates, or creates. What the provider may have acted on is not sent a second time here: an update that was not
/// answered may still be at work, and what there is now has to be looked at first.
pub(super) async fn apply(
    transport: &impl Transport,
    target: &Target,
    body: &Value,
    there_is_one: bool,
    deadline: &Deadline,
) -> Applied {
    let work = async {
        let update = match send(transport, || call::update(body), deadline).await {
            Ok(answer) if answer.status() == StatusCode::NOT_FOUND => answer,
            updated => return judge("PUT", updated, None),
        };
        let update = said(&update);
        info!(answer = update, "nothing to update: the function is created");
        let created = send(transport, || call::create(body), deadline).await;
        if !there_is_one
            || !created
                .as_ref()
                .is_ok_and(|answer| answer.status().is_server_error())
        {
            return judge("POST", created, Some(&update));
        }
        // Nothing to update, and yet it exists: a part of it is missing, on Kubernetes the Service (pitfall 24). Nobody
        // can call such a function, so nothing is lost by making all of it anew.
        info!("the function is there in part: it is made anew");
        let removed = send(
            transport,
            || call::delete(&target.name, target.namespace.as_deref()),
            deadline,
        )
        .await;
        if let Err(error) = removed {
            return Applied::Unclear(Fault::Platform, chain(&error));
        }
        let mut pace = Pace::new();
        loop {
            let created = send(transport, || call::create(body), deadline).await;
            // While the old one is being removed, there is one.
            if created
                .as_ref()
                .is_ok_and(|answer| answer.status().is_server_error())
                && pace.steps() < AGAIN
            {
                pace.pause().await;
                continue;
            }
            return judge("POST", created, Some(&update));
        }
    };
    let applied = deadline.bound(work).await;
    applied.unwrap_or_else(|| {
        let reason = format!("{}: the provider has not answered", deadline.why());
        Applied::Unclear(Fault::Platform, reason)
    })
}

/// Sends a request, again where it cannot have been acted on: the gateway was not reached, or was too busy. faasd pulls
/// the image before it answers, so nothing but the deadline bounds it.
pub(super) async fn send(
    transport: &impl Transport,
    request: impl Fn() -> Request<Bytes>,
    deadline: &Deadline,
) -> Result<Response<Bytes>, GatewayError> {
    let mut pace = Pace::new();
    loop {
        let answer = transport.send(request(), deadline.left()).await;
        let not_acted_on = match &answer {
            Ok(answer) => answer.status() == StatusCode::TOO_MANY_REQUESTS,
            Err(error) => matches!(error, GatewayError::Connect { .. }),
        };
        if !not_acted_on || pace.steps() >= AGAIN {
            return answer;
        }
        pace.pause().await;
    }
}

/// `update` is what was said to the update before the creation.
fn judge(method: &str, answer: Result<Response<Bytes>, GatewayError>, update: Option<&str>) -> Applied {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return Applied::Unclear(Fault::Platform, chain(&error)),
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
    let unclear = |reason: &str| Applied::Unclear(Fault::Platform, format!("{reason}: it answered {text}"));
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            unclear("the gateway does not accept the deployer's credentials")
        }
        // Of a function that was not there a moment ago, this says that there is no such route.
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => unclear("this seems to be no gateway"),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => unclear("the gateway is busy"),
        status if status.is_client_error() => Applied::Refused(format!(
            "the provider refused the specification: it answered {text}"
        )),
        _ if cannot_be_pulled(&answer) => Applied::Unclear(
            Fault::Caller,
            format!("the image cannot be pulled: the provider answered {text}"),
        ),
        _ => unclear("the provider failed"),
    }
}

/// Whether the provider says that the image is not there, or not for it.
fn cannot_be_pulled(answer: &Response<Bytes>) -> bool {
    let text = String::from_utf8_lossy(answer.body()).to_lowercase();
    text.contains("pull") && NO_SUCH_IMAGE.iter().any(|words| text.contains(words))
}
