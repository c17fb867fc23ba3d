//! Watches a version until it is ready: the provider names it and has an available replica, and the function
//! answers its probe.

use std::fmt;
use std::time::Duration;

use function_host::ErrorChain;
use function_host::gateway::GatewayError;
use function_host::http::StatusCode;
use function_host::trace;
use tokio::time::Instant;
use tracing::info;

use super::RolloutPartTimeouts;
use super::backoff::Backoff;
use crate::function::FunctionAddress;
use crate::gateway::{self, FunctionStatus, GatewayRequestSender, call, summarize_response};
use crate::kubernetes::{Kubernetes, Obstacle, RestartCountsByPodUid, VersionState, WantedReplicas};
use crate::outcome::{FaultyParty, SuccessorCallId};
use crate::request::ReadinessProbe;
use crate::succession::SuccessorReceiver;
use crate::text::without_log_quote;
use crate::version::FunctionVersion;

/// The name of the header in which a function may repeat its version, the value of its variable
/// `slipway_version`. Only this header distinguishes the answers of two versions that run at the same time
/// (docs/pitfalls.md#old-replicas-count-as-available).
const VERSION_HEADER: &str = "x-slipway-version";

/// The time after which a version that is stuck counts as failed, because Kubernetes repeats what may pass: a pull, or
/// the creation of a pod.
const STUCK_TIME_BEFORE_FAILURE: Duration = Duration::from_secs(4);

/// The longest time between two looks at a version that has to stay up.
const STAY_UP_CHECK_INTERVAL_MAX: Duration = Duration::from_secs(1);

/// The version that is watched, and what it is watched with.
pub(super) struct WatchedVersion<'a, T> {
    pub(super) transport: &'a T,
    /// The Kubernetes API, if the deployer may read it.
    pub(super) kubernetes: Option<&'a Kubernetes>,
    pub(super) function: &'a FunctionAddress,
    /// The namespace of the function if neither the hand-over nor the provider names one.
    pub(super) default_namespace: &'a str,
    pub(super) version: &'a FunctionVersion,
    pub(super) timeouts: &'a RolloutPartTimeouts,
    /// The number of replicas on Kubernetes that the version needs.
    pub(super) wanted: WantedReplicas,
    /// The time for which the version has to stay up after its probe has succeeded.
    pub(super) stay_up: Duration,
}

/// The way in which watching a version ended before its timeout.
pub(super) enum WatchEndBeforeTimeout {
    /// The watched version is ready.
    Ready(ReadyVersion),
    /// Something keeps the version from starting, and time does not help.
    Stuck(Obstacle),
    /// The provider still has another version, or none, after the time that it has to report the watched one.
    NotTaken(Option<FunctionStatus>),
    /// A newer build waits, and the watched version is not ready yet.
    Superseded(SuccessorCallId),
}

/// A version that is ready.
pub(super) struct ReadyVersion {
    /// The state of the function that is ready.
    pub(super) status: FunctionStatus,
    /// Whether it is certain that this version answered: the answer named it, or Kubernetes has no pods of another one.
    pub(super) recognized: bool,
    /// The starts of the version's pods; `None` if Kubernetes was not asked, or did not tell.
    starts: Option<RestartCountsByPodUid>,
    /// Why Kubernetes, which was asked, did not tell.
    pub(super) kubernetes_error: Option<String>,
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
    /// Kubernetes has not started all of the version, and stopped all others.
    Kubernetes {
        /// What is missing.
        obstacle: Obstacle,
        /// Whether it stays so unless somebody changes something.
        is_stuck: bool,
    },
    /// The function has to stay up for a while.
    StayingUp,
    /// Another version, which this names, still answers in place of the new one.
    NewVersion(String),
    /// The gateway does not work; with the description of its failure.
    Gateway(String),
}

impl WaitingFor {
    /// Returns who has to act if this is not met in time; `None` if that is not known.
    pub(super) fn faulty_party(&self) -> Option<FaultyParty> {
        match self {
            Self::FirstAnswer | Self::Gateway(_) => Some(FaultyParty::Platform),
            Self::Kubernetes { obstacle, .. } => obstacle.fault,
            _ => None,
        }
    }
}

impl WaitingFor {
    /// Returns whether the log of the version may explain why this is not met.
    pub(super) fn may_be_explained_by_log(&self) -> bool {
        matches!(
            self,
            Self::Replica { .. } | Self::Success { .. } | Self::MoreSuccesses { .. }
        )
    }

    /// Returns what keeps the version from starting, if time does not help.
    fn obstacle_if_stuck(&self) -> Option<&Obstacle> {
        match self {
            Self::Kubernetes {
                obstacle,
                is_stuck: true,
            } => Some(obstacle),
            _ => None,
        }
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
            Self::Kubernetes { obstacle, .. } => f.write_str(&obstacle.reason),
            Self::StayingUp => f.write_str("the function answers, and has to stay up for a while"),
            Self::NewVersion(other) => write!(f, "another version of the function still answers: {other}"),
            Self::Gateway(error) => f.write_str(error),
        }
    }
}

/// Watches a version until it is ready, is not taken or is stuck, or until a newer build waits while it is not ready.
///
/// There is no time limit: the caller sets one, and finds in `waiting_for` what was missing when it passed.
pub(super) async fn watch_version_until_ready(
    watched: &WatchedVersion<'_, impl GatewayRequestSender>,
    succession: &SuccessorReceiver,
    waiting_for: &mut WaitingFor,
) -> WatchEndBeforeTimeout {
    let mut backoff = Backoff::new();
    let mut not_taken_since = None;
    let mut stuck_since = None;
    let mut stays_up = StayUpTimer::default();
    let mut was_available = false;
    let mut successes = 0;
    let mut recognized = false;
    loop {
        let wanted = watched.version.usable_probe().map_or(1, |probe| probe.successes);
        let (mut missing, found) = match watched.read_and_probe().await {
            Ok(mut ready) => {
                successes += 1;
                recognized |= ready.recognized;
                ready.recognized = recognized;
                match successes >= wanted {
                    true if stays_up.record_up_and_check_passed(&ready, watched.stay_up) => {
                        return WatchEndBeforeTimeout::Ready(ready);
                    }
                    true => (WaitingFor::StayingUp, Some(ready.status)),
                    false => {
                        let seen = successes;
                        (WaitingFor::MoreSuccesses { seen, wanted }, Some(ready.status))
                    }
                }
            }
            Err(missing) => {
                successes = 0;
                recognized = false;
                stays_up = StayUpTimer::default();
                missing
            }
        };
        let is_of_version = !matches!(
            missing,
            WaitingFor::Specification { .. } | WaitingFor::NewVersion(_) | WaitingFor::Kubernetes { .. }
        );
        was_available |= is_of_version && found.as_ref().is_some_and(|status| status.available_replicas > 0);
        if let WaitingFor::Replica {
            was_available: before,
        } = &mut missing
        {
            *before = was_available;
        }
        let is_not_taken = matches!(missing, WaitingFor::Specification { .. });
        if has_lasted(&mut not_taken_since, is_not_taken, watched.timeouts.settle) {
            return WatchEndBeforeTimeout::NotTaken(found);
        }
        let stuck = missing.obstacle_if_stuck().cloned();
        if has_lasted(&mut stuck_since, stuck.is_some(), STUCK_TIME_BEFORE_FAILURE)
            && let Some(obstacle) = stuck
        {
            *waiting_for = missing;
            return WatchEndBeforeTimeout::Stuck(obstacle);
        }
        if *waiting_for != missing {
            info!(
                reason = without_log_quote(&missing.to_string()),
                "waiting for the function"
            );
            *waiting_for = missing;
        }
        let next = async {
            match stays_up.time_left(watched.stay_up) {
                Some(left) => tokio::time::sleep(left.min(STAY_UP_CHECK_INTERVAL_MAX)).await,
                None => backoff.wait_next().await,
            }
        };
        tokio::select! {
            () = next => {}
            successor = succession.wait_for_successor() => return WatchEndBeforeTimeout::Superseded(successor),
        }
    }
}

/// Records since when a condition holds, and returns whether it has held for `limit`.
fn has_lasted(since: &mut Option<Instant>, holds: bool, limit: Duration) -> bool {
    match holds {
        true => since.get_or_insert_with(Instant::now).elapsed() >= limit,
        false => {
            *since = None;
            false
        }
    }
}

/// Measures how long a version has stayed up.
#[derive(Default)]
struct StayUpTimer(Option<(Instant, Option<RestartCountsByPodUid>)>);

impl StayUpTimer {
    /// Records that the version is up, and returns whether it has been for `stay_up`, without a start of a pod in
    /// between.
    fn record_up_and_check_passed(&mut self, ready: &ReadyVersion, stay_up: Duration) -> bool {
        match &self.0 {
            // If Kubernetes does not answer for a moment, the earlier starts count.
            Some((since, starts)) if ready.starts.is_none() || *starts == ready.starts => {
                since.elapsed() >= stay_up
            }
            _ => {
                self.0 = Some((Instant::now(), ready.starts.clone()));
                stay_up.is_zero()
            }
        }
    }

    /// Returns the time for which the version still has to stay up; `None` if it is not up.
    fn time_left(&self, stay_up: Duration) -> Option<Duration> {
        let (since, _) = self.0.as_ref()?;
        Some(stay_up.saturating_sub(since.elapsed()))
    }
}

/// What Kubernetes tells of a version before its probe.
enum KubernetesView {
    /// The version's pods run, with these starts, and no others.
    Complete(RestartCountsByPodUid),
    /// The version's pods do not run, or others do, too.
    Missing(WaitingFor),
    /// Nothing; with the error, if Kubernetes was asked.
    Nothing(Option<String>),
}

impl<T: GatewayRequestSender> WatchedVersion<'_, T> {
    /// Reads the function's state and probes the function once. Returns the state if the probe succeeded, or else
    /// the condition that is not met.
    async fn read_and_probe(&self) -> Result<ReadyVersion, (WaitingFor, Option<FunctionStatus>)> {
        let (version, limit) = (self.version, self.timeouts.request);
        let status = match gateway::read_function(self.transport, self.function, limit).await {
            Ok(Some(status)) => status,
            Ok(None) => return Err((WaitingFor::Specification { current: None }, None)),
            Err(error) => return Err((WaitingFor::Gateway(ErrorChain(&error).to_string()), None)),
        };
        if !version.may_be_the_deployed_version(&status) {
            let current = Some(status.image.clone());
            return Err((WaitingFor::Specification { current }, Some(status)));
        }
        // Before the probe: what answers it then is the new version.
        let (starts, kubernetes_error) = match self.view_in_kubernetes(&status).await {
            KubernetesView::Complete(starts) => (Some(starts), None),
            KubernetesView::Missing(missing) => return Err((missing, Some(status))),
            KubernetesView::Nothing(error) => (None, error),
        };
        // With no desired replicas (scaled to zero), the gateway starts one for the probe.
        if starts.is_none() && status.available_replicas == 0 && status.replicas > 0 {
            return Err((WaitingFor::Replica { was_available: false }, Some(status)));
        }
        let named = match version.usable_probe() {
            Some(probe) => {
                send_probe_and_check_version_header(
                    self.transport,
                    self.function,
                    version,
                    probe,
                    self.timeouts,
                )
                .await
            }
            None => Ok(false),
        };
        match named {
            Ok(named) => Ok(ReadyVersion {
                status,
                recognized: named || starts.is_some(),
                starts,
                kubernetes_error,
            }),
            Err(missing) => Err((missing, Some(status))),
        }
    }

    /// Asks Kubernetes about the version, whose status the gateway has given.
    async fn view_in_kubernetes(&self, status: &FunctionStatus) -> KubernetesView {
        let Some(kubernetes) = self.kubernetes else {
            return KubernetesView::Nothing(None);
        };
        let namespace = self.function.namespace.as_deref().or(status.namespace.as_deref());
        let namespace = namespace.unwrap_or(self.default_namespace);
        let state = kubernetes.read_version_state_or_absent(
            namespace,
            &self.function.name,
            self.version.image(),
            self.wanted,
        );
        match state.await {
            Ok(VersionState::Complete(starts)) => KubernetesView::Complete(starts),
            Ok(VersionState::Pending(obstacle)) => KubernetesView::Missing(WaitingFor::Kubernetes {
                obstacle,
                is_stuck: false,
            }),
            Ok(VersionState::Stuck(obstacle)) => KubernetesView::Missing(WaitingFor::Kubernetes {
                obstacle,
                is_stuck: true,
            }),
            Ok(VersionState::Absent) => KubernetesView::Nothing(Some(format!(
                "Kubernetes has no Deployment {} in the namespace {namespace}",
                self.function.name
            ))),
            Err(error) => KubernetesView::Nothing(Some(ErrorChain(&error).to_string())),
        }
    }
}

/// Probes the function once. Returns whether the answer names the version, or as the error the condition that
/// is not met.
async fn send_probe_and_check_version_header(
    transport: &impl GatewayRequestSender,
    function: &FunctionAddress,
    version: &FunctionVersion,
    probe: &ReadinessProbe,
    timeouts: &RolloutPartTimeouts,
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
