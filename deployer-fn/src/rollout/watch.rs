//! Waits until what was asked for is what the provider names, a replica of it is there, and the function answers.

use std::fmt;

use function_host::gateway::GatewayError;
use function_host::http::StatusCode;
use function_host::trace;
use tokio::time::Instant;
use tracing::info;

use super::Limits;
use super::pace::Pace;
use super::target::Target;
use crate::error::chain;
use crate::gateway::{FunctionStatus, Transport, call, said};
use crate::version::Version;

/// The header in which a function tells its own version, where it does: the value of the variable `slipway_version`. It
/// is the one way to know the new version's answer from the old one's where both run for a while (pitfall 26).
const VERSION_HEADER: &str = "x-slipway-version";

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
    Replica {
        /// Whether there was one that could be called, and then there was none.
        was_there: bool,
    },
    /// The function to answer well. What was asked, and what it answers now.
    Answer(String, String),
    /// The function to answer well so many times in a row. How often it did.
    Again(u32, u32),
    /// The new version to answer, where another one still does.
    Version(String),
    /// The gateway to answer at all. What went wrong.
    Unknown(String),
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begun => f.write_str("the gateway has not answered yet"),
            Self::Taken(Some(image)) => write!(f, "the provider still has the specification with the image {image}"),
            Self::Taken(None) => f.write_str("the provider does not know the function"),
            Self::Replica { was_there: false } => f.write_str(
                "no replica is available (the image cannot be pulled, or the function does not start or stay up)",
            ),
            Self::Replica { was_there: true } => f.write_str(
                "no replica is available any more (the function starts and does not stay up)",
            ),
            Self::Answer(asked, said) => write!(f, "{asked} of the function answers {said}"),
            Self::Again(good, of) => write!(f, "the function answered well {good} of {of} times in a row"),
            Self::Version(mark) => write!(f, "another version of the function still answers: {mark}"),
            Self::Unknown(error) => f.write_str(error),
        }
    }
}

/// Watches until one of [`Watched`]. It knows no limit for that: whoever calls it bounds it, and finds in `waiting` what it
/// was waiting for.
pub(super) async fn watch(
    transport: &impl Transport,
    target: &Target,
    version: &Version,
    limits: &Limits,
    waiting: &mut Waiting,
) -> Watched {
    let mut pace = Pace::new();
    let mut not_taken_since = None;
    let mut was_there = false;
    let mut good = 0;
    loop {
        let wanted = version.probe().successes;
        let (mut now, found) = match look(transport, target, version, limits).await {
            Ok(status) if good + 1 >= wanted => return Watched::Ready(status),
            Ok(status) => {
                good += 1;
                (Waiting::Again(good, wanted), Some(status))
            }
            Err(found) => {
                good = 0;
                found
            }
        };
        was_there |= found.as_ref().is_some_and(|status| {
            status.available_replicas > 0 && !matches!(now, Waiting::Taken(_) | Waiting::Version(_))
        });
        if let Waiting::Replica { was_there: told } = &mut now {
            *told = was_there;
        }
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
pub(super) async fn look(
    transport: &impl Transport,
    target: &Target,
    version: &Version,
    limits: &Limits,
) -> Result<FunctionStatus, (Waiting, Option<FunctionStatus>)> {
    let status = match target.look(transport, limits.request).await {
        Ok(Some(status)) => status,
        Ok(None) => return Err((Waiting::Taken(None), None)),
        Err(error) => return Err((Waiting::Unknown(chain(&error)), None)),
    };
    if !version.is_in(&status) {
        return Err((Waiting::Taken(Some(status.image.clone())), Some(status)));
    }
    // Where none is wanted (scaled to zero), the gateway starts one when the function is asked.
    if status.available_replicas == 0 && status.replicas > 0 {
        return Err((Waiting::Replica { was_there: false }, Some(status)));
    }
    let probe = version.probe();
    let request = call::ask(&target.name, target.namespace.as_deref(), probe);
    let step = trace::span("probe");
    let asked = transport.send(request, probe.timeout.unwrap_or(limits.request));
    let answer = step.run(asked).await;
    match &answer {
        Ok(answer) => step.set("http.response.status_code", i64::from(answer.status().as_u16())),
        Err(error) => step.mark_failed(chain(error)),
    }
    let answer = match answer {
        Ok(answer) => answer,
        Err(error @ GatewayError::Timeout { .. }) => {
            return Err((Waiting::Answer(probe.to_string(), chain(&error)), Some(status)));
        }
        Err(error) => return Err((Waiting::Unknown(chain(&error)), Some(status))),
    };
    let told = answer.headers().get(VERSION_HEADER);
    if let (Some(told), Some(mark)) = (told, version.mark())
        && told.as_bytes() != mark.as_bytes()
    {
        let told = String::from_utf8_lossy(told.as_bytes()).into_owned();
        return Err((Waiting::Version(told), Some(status)));
    }
    // How a function that Slipway did not deploy is to be asked is not known: that it answers at all has to be enough.
    let good = match version.mark() {
        Some(_) => probe.accepts(answer.status()),
        None => answer.status() < StatusCode::INTERNAL_SERVER_ERROR,
    };
    if !good {
        step.mark_failed("that is not how the function answers when it works");
    }
    match good {
        true => Ok(status),
        false => Err((Waiting::Answer(probe.to_string(), said(&answer)), Some(status))),
    }
}
