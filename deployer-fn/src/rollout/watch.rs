//! Watches a version until it is ready: the provider names it and has an available replica, and the function
//! answers its probe.

use std::fmt;

use function_host::ErrorChain;
use function_host::gateway::GatewayError;
use function_host::http::StatusCode;
use function_host::trace;
use tokio::time::Instant;
use tracing::info;

use super::RolloutTimeouts;
use super::backoff::Backoff;
use crate::function::FunctionAddress;
use crate::gateway::{self, FunctionStatus, GatewayRequestSender, call, summarize_response};
use crate::outcome::Successor;
use crate::request::ReadinessProbe;
use crate::succession::SuccessorReceiver;
use crate::version::FunctionVersion;

/// The name of the header in which a function may repeat its version, the value of its variable
/// `slipway_version`. Only this header distinguishes the answers of two versions that run at the same time
/// (docs/pitfalls.md#old-replicas-count-as-available).
const VERSION_HEADER: &str = "x-slipway-version";

/// The result of watching a version, if watching ended before its timeout.
pub(super) enum WatchResult {
    /// The watched version is ready.
    Ready(ReadyVersion),
    /// The provider still has another version, or none, after the time that it has to report the watched one.
    NotTaken(Option<FunctionStatus>),
    /// A newer build waits, and the watched version is not ready yet.
    Superseded(Successor),
}

/// A version that is ready.
pub(super) struct ReadyVersion {
    /// The state of the function that is ready.
    pub(super) status: FunctionStatus,
    /// Whether an answer to the probe named the version. Otherwise another version may have answered.
    pub(super) recognized: bool,
}

/// The condition that a watched version has not met yet: the reason for a failure at the timeout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum WaitingFor {
    /// The gateway has not answered yet.
    #[default]
    FirstAnswer,
    /// The provider has not taken the version's specification yet.
    Specification {
        /// The image that the provider has now; `None` if the function does not exist.
        current: Option<String>,
    },
    /// The version has no available replica yet.
    Replica {
        /// Whether the version had an available replica before.
        was_available: bool,
    },
    /// The function has not given a response that the probe accepts.
    Success {
        /// The probe that did not succeed.
        probe: String,
        /// The function's response to the probe, or how there was none.
        response: String,
    },
    /// The probe has not succeeded often enough in a row.
    MoreSuccesses {
        /// The probe's successes so far.
        seen: u32,
        /// The number of successes that the probe demands.
        wanted: u32,
    },
    /// Another version, which this names, still answers in place of the new one.
    NewVersion(String),
    /// The gateway does not work; with the description of its failure.
    Gateway(String),
}

impl WaitingFor {
    /// Returns whether watching waits for the gateway, and not for the version.
    pub(super) fn is_gateway_condition(&self) -> bool {
        matches!(self, Self::FirstAnswer | Self::Gateway(_))
    }
}

impl fmt::Display for WaitingFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FirstAnswer => f.write_str("the gateway has not answered yet"),
            Self::Specification {
                current: Some(image),
            } => write!(f, "the provider still has the specification with the image {image}"),
            Self::Specification { current: None } => f.write_str("the provider does not have the function"),
            Self::Replica { was_available: false } => f.write_str(
                "no replica is available (the image cannot be pulled, or the function does not start or stay up)",
            ),
            Self::Replica { was_available: true } => f.write_str(
                "no replica is available any more (the function starts and does not stay up)",
            ),
            Self::Success { probe, response } => write!(f, "the function answered {probe} with {response}"),
            Self::MoreSuccesses { seen, wanted } => {
                write!(f, "the probe succeeded {seen} of {wanted} times in a row")
            }
            Self::NewVersion(other) => write!(f, "another version of the function still answers: {other}"),
            Self::Gateway(error) => f.write_str(error),
        }
    }
}

/// Watches a version until it is ready or is not taken, or until a newer build waits while it is not ready.
///
/// There is no time limit: the caller sets one, and finds in `waiting_for` what was missing when it passed.
pub(super) async fn watch_version_until_ready(
    transport: &impl GatewayRequestSender,
    function: &FunctionAddress,
    version: &FunctionVersion,
    timeouts: &RolloutTimeouts,
    succession: &SuccessorReceiver,
    waiting_for: &mut WaitingFor,
) -> WatchResult {
    let mut backoff = Backoff::new();
    let mut not_taken_since = None;
    let mut was_available = false;
    let mut successes = 0;
    let mut recognized = false;
    loop {
        let wanted = version.usable_probe().map_or(1, |probe| probe.successes);
        let (mut missing, found) = match read_and_probe(transport, function, version, timeouts).await {
            Ok(ready) if successes + 1 >= wanted => {
                return WatchResult::Ready(ReadyVersion {
                    recognized: recognized || ready.recognized,
                    ..ready
                });
            }
            Ok(ready) => {
                successes += 1;
                recognized |= ready.recognized;
                let missing = WaitingFor::MoreSuccesses {
                    seen: successes,
                    wanted,
                };
                (missing, Some(ready.status))
            }
            Err(missing) => {
                successes = 0;
                recognized = false;
                missing
            }
        };
        let is_of_version = !matches!(
            missing,
            WaitingFor::Specification { .. } | WaitingFor::NewVersion(_)
        );
        was_available |= is_of_version && found.as_ref().is_some_and(|status| status.available_replicas > 0);
        if let WaitingFor::Replica {
            was_available: before,
        } = &mut missing
        {
            *before = was_available;
        }
        if matches!(missing, WaitingFor::Specification { .. }) {
            let since = *not_taken_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= timeouts.settle {
                return WatchResult::NotTaken(found);
            }
        } else {
            not_taken_since = None;
        }
        if *waiting_for != missing {
            info!(reason = %missing, "waiting for the function");
            *waiting_for = missing;
        }
        tokio::select! {
            () = backoff.wait_next() => {}
            successor = succession.wait_for_successor() => return WatchResult::Superseded(successor),
        }
    }
}

/// Reads the function's state and probes the function once. Returns the state if the probe succeeded, or else
/// the condition that is not met.
async fn read_and_probe(
    transport: &impl GatewayRequestSender,
    function: &FunctionAddress,
    version: &FunctionVersion,
    timeouts: &RolloutTimeouts,
) -> Result<ReadyVersion, (WaitingFor, Option<FunctionStatus>)> {
    let status = match gateway::read_function(transport, function, timeouts.request).await {
        Ok(Some(status)) => status,
        Ok(None) => return Err((WaitingFor::Specification { current: None }, None)),
        Err(error) => return Err((WaitingFor::Gateway(ErrorChain(&error).to_string()), None)),
    };
    if !version.may_be_deployed(&status) {
        let current = Some(status.image.clone());
        return Err((WaitingFor::Specification { current }, Some(status)));
    }
    // With no desired replicas (scaled to zero), the gateway starts one for the probe.
    if status.available_replicas == 0 && status.replicas > 0 {
        return Err((WaitingFor::Replica { was_available: false }, Some(status)));
    }
    let Some(probe) = version.usable_probe() else {
        let recognized = false;
        return Ok(ReadyVersion { status, recognized });
    };
    match send_probe(transport, function, version, probe, timeouts).await {
        Ok(recognized) => Ok(ReadyVersion { status, recognized }),
        Err(missing) => Err((missing, Some(status))),
    }
}

/// Probes the function once. Returns whether the answer names the version, or as the error the condition that
/// is not met.
async fn send_probe(
    transport: &impl GatewayRequestSender,
    function: &FunctionAddress,
    version: &FunctionVersion,
    probe: &ReadinessProbe,
    timeouts: &RolloutTimeouts,
) -> Result<bool, WaitingFor> {
    let span = trace::span("probe");
    let limit = probe.timeout.unwrap_or(timeouts.request);
    let sent = async { transport.send(call::probe_request(function, probe)?, limit).await };
    let response = match span.run(sent).await {
        Ok(response) => response,
        Err(error) => {
            let text = ErrorChain(&error).to_string();
            span.mark_failed(&text);
            return Err(match error {
                GatewayError::Timeout { .. } => WaitingFor::Success {
                    probe: probe.to_string(),
                    response: text,
                },
                _ => WaitingFor::Gateway(text),
            });
        }
    };
    span.set_attribute("http.response.status_code", i64::from(response.status().as_u16()));
    let answering = response.headers().get(VERSION_HEADER);
    let mut recognized = false;
    if let (Some(answering), Some(digest)) = (answering, version.spec_digest()) {
        if answering.as_bytes() != digest.as_bytes() {
            let other = String::from_utf8_lossy(answering.as_bytes()).into_owned();
            return Err(WaitingFor::NewVersion(other));
        }
        recognized = true;
    }
    // The probe of a function that Slipway did not deploy is unknown: any answer but a server error has to be enough.
    let succeeded = match version.spec_digest() {
        Some(_) => probe.accepts_status(response.status()),
        None => response.status() < StatusCode::INTERNAL_SERVER_ERROR,
    };
    if succeeded {
        return Ok(recognized);
    }
    span.mark_failed("the probe does not accept the response");
    Err(WaitingFor::Success {
        probe: probe.to_string(),
        response: summarize_response(&response),
    })
}
