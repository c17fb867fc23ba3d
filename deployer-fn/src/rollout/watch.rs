//! Waits until what was asked for is what the provider names, a replica of it is there, and the function answers.

use std::fmt;

use function_host::http::uri::PathAndQuery;
use tokio::time::Instant;
use tracing::info;

use super::Limits;
use super::pace::Pace;
use crate::error::chain;
use crate::gateway::{self, FunctionStatus, Transport, call, said};
use crate::request::FunctionSpec;

/// Where a function says that it lives: the function host, and the watchdogs before it, answer 200 here.
const HEALTH: PathAndQuery = PathAndQuery::from_static("/_/health");

/// How watching ended, other than by the time being up.
pub(super) enum Watched {
    /// The function answers.
    Ready(FunctionStatus),
    /// The provider goes on naming something else, or nothing.
    NotTaken(Option<FunctionStatus>),
}

/// What is being waited for. Where the time is up, this is why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Waiting {
    /// Nothing was asked yet.
    #[default]
    Begun,
    /// The provider to name the new image and specification. What it names now.
    Taken(Option<String>),
    /// A replica to be there.
    Replica,
    /// The function to answer well. What it answers now.
    Answer(String),
    /// The gateway to answer at all. What went wrong.
    Unknown(String),
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begun => f.write_str("the gateway has not answered yet"),
            Self::Taken(Some(image)) => write!(f, "the provider still has the specification with the image {image}"),
            Self::Taken(None) => f.write_str("the provider does not know the function"),
            Self::Replica => f.write_str(
                "no replica is available (the image cannot be pulled, or the function does not start or stay up)",
            ),
            Self::Answer(said) => write!(f, "GET {HEALTH} of the function answers {said}"),
            Self::Unknown(error) => f.write_str(error),
        }
    }
}

/// Watches until one of [`Watched`]. It knows no limit for that: whoever calls it bounds it, and finds in `waiting` what it
/// was waiting for.
pub(super) async fn watch(
    transport: &impl Transport,
    spec: &FunctionSpec,
    limits: &Limits,
    waiting: &mut Waiting,
) -> Watched {
    let mut pace = Pace::new();
    let mut not_taken_since = None;
    loop {
        let (now, found) = match look(transport, spec, limits).await {
            Ok(status) => return Watched::Ready(status),
            Err(found) => found,
        };
        if matches!(now, Waiting::Taken(_)) {
            let since = *not_taken_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= limits.settle {
                return Watched::NotTaken(found);
            }
        } else {
            not_taken_since = None;
        }
        if *waiting != now {
            info!(reason = %now, "waiting");
            *waiting = now;
        }
        pace.pause().await;
    }
}

/// Looks once: the function that is ready, or what there is to wait for.
async fn look(
    transport: &impl Transport,
    spec: &FunctionSpec,
    limits: &Limits,
) -> Result<FunctionStatus, (Waiting, Option<FunctionStatus>)> {
    let namespace = spec.namespace.as_deref();
    let status = match gateway::read(transport, &spec.service, namespace, limits.request).await {
        Ok(Some(status)) => status,
        Ok(None) => return Err((Waiting::Taken(None), None)),
        Err(error) => return Err((Waiting::Unknown(chain(&error)), None)),
    };
    if !status.carries(spec) {
        return Err((Waiting::Taken(Some(status.image.clone())), Some(status)));
    }
    // Where none is wanted (scaled to zero), the gateway starts one when the function is asked.
    if status.available_replicas == 0 && status.replicas > 0 {
        return Err((Waiting::Replica, Some(status)));
    }
    match transport
        .send(call::ask(&spec.service, namespace, &HEALTH), limits.request)
        .await
    {
        Ok(answer) if answer.status().is_success() => Ok(status),
        Ok(answer) => Err((Waiting::Answer(said(&answer)), Some(status))),
        Err(error) => Err((Waiting::Unknown(chain(&error)), Some(status))),
    }
}
