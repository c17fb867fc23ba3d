//! Rolls out one version of a function: checks, applies and watches it, restores the previous version if the new one
//! fails, and returns the outcome.
//!
//! The rules that a rollout follows, each with its reason:
//! - Everything is checked before anything is changed, and all objections are reported at once.
//! - An update comes first, and a creation if the answer is 404: providers do not answer 409
//!   (docs/pitfalls.md#no-conflict-status).
//! - An update carries the complete specification (docs/pitfalls.md#an-update-replaces-everything), the image by
//!   digest (docs/pitfalls.md#tags-move), and as annotations all that is needed to restore it and the last good
//!   version before it ([`crate::version`]).
//! - The state that is read after an update decides, and not the answer to it: faas-netes answers 200 to an update
//!   that it did not make (docs/pitfalls.md#a-failed-update-answers-200), and faasd deletes the running function when
//!   an update fails (docs/pitfalls.md#a-failed-update-removes-the-function).
//! - A version is ready when the provider names its image, counts an available replica, and the function answers its
//!   probe through the gateway, and stays up for a while. On Kubernetes that replica and that answer may be the old
//!   version's while both run: the REST API does not tell them apart
//!   (docs/pitfalls.md#old-replicas-count-as-available). Kubernetes itself does, if the deployer may read it
//!   ([`crate::kubernetes`]), and so does a function that repeats its version in its answers. Without either, an update
//!   is unverified there, and the version before it stays the one to restore.
//!
//! The same hand-over delivered again changes nothing and gives the same outcome. A rollout that ended with its
//! process is found by the next delivery, which starts from the state that it reads, as every rollout does.
//!
//! Each phase returns its result with its [`Findings`]; [`verdict`] is the one place where they become the outcome's
//! status.

mod apply;
mod backoff;
mod change;
mod check;
mod deadline;
mod dry_run;
mod history;
mod log;
mod panic;
mod read;
mod restore;
mod verdict;
mod watch;

use std::time::Duration;

use function_host::ErrorChain;
use function_host::policy::Tenant;
use function_host::trace;
use tokio::sync::OnceCell;
use tokio::time::Instant;
use tracing::{error, info, warn};

use self::change::VerdictOrOutdated;
use self::check::NextStep;
pub use self::deadline::RolloutDeadline;
pub(crate) use self::dry_run::check_all_but_image_and_build_order;
pub use self::history::RolloutHistory;
use self::history::UnsettledRollout;
use self::panic::RolloutPanicked;
use self::verdict::{Findings, Verdict};
use self::watch::{ReadyVersion, WaitingFor, WatchEndBeforeTimeout, WatchedVersion};
use crate::build_times::TimesOfBuild;
use crate::function::{FunctionAddress, FunctionId};
use crate::gateway::{self, FunctionStatus, GatewayReadError, GatewayRequestSender, ProviderName};
use crate::kubernetes::{Kubernetes, WantedReplicas};
use crate::outcome::{
    DeploymentOutcome, DeploymentStatus, FaultyParty, RunningState, StepDurations, SuccessorCallId,
};
use crate::request::HandOver;
use crate::succession::SuccessorReceiver;
use crate::text::{self, without_log_quote};
use crate::version::FunctionVersion;

/// The timeouts of the parts of a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RolloutPartTimeouts {
    /// The timeout of one read from the gateway, and of a probe that has no timeout of its own. Changes have none but
    /// the deadline.
    pub request: Duration,
    /// The time that the provider has to report the new image: it may answer from a cache that still has the
    /// previous one.
    pub settle: Duration,
    /// The time for which a read is retried while the gateway is unavailable.
    pub read_retries: Duration,
    /// The timeout for restoring the previous version.
    pub rollback: Duration,
    /// The time for which a new version has to stay up after its probe has succeeded.
    pub stay_up: Duration,
}

impl Default for RolloutPartTimeouts {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(10),
            settle: Duration::from_secs(10),
            read_retries: Duration::from_secs(15),
            rollback: Duration::from_secs(20),
            stay_up: Duration::from_secs(5),
        }
    }
}

/// The timeout of a read of the function's state at the end of a rollout, and of a read of the provider's name.
const FINAL_READ_TIMEOUT: Duration = Duration::from_secs(2);
/// The highest number of times that a rollout sends a specification that the provider does not take.
const APPLY_ATTEMPTS_MAX: usize = 3;

/// The context of a rollout: the gateway, the timeouts, the tenant, and what is known of other rollouts.
#[derive(Debug)]
pub struct RolloutContext<'a, T> {
    /// The connection to the gateway.
    pub transport: &'a T,
    /// The Kubernetes API; `None` if the deployer does not run there, or may not read it.
    pub kubernetes: Option<&'a Kubernetes>,
    /// The timeouts of the rollout's parts.
    pub timeouts: &'a RolloutPartTimeouts,
    /// The namespace of functions whose hand-over names no namespace.
    pub default_namespace: &'a str,
    /// What this process remembers of earlier rollouts.
    pub history: &'a RolloutHistory,
    /// The tenant of the hand-over, whose rules say which functions it may change; `None` without a policy.
    pub tenant: Option<&'a Tenant>,
    /// The receiver that learns of a newer build of the function that waits.
    pub succession: &'a SuccessorReceiver,
}

/// Rolls out the version of a hand-over, and returns the outcome of the deployment.
///
/// `objections` are the reasons to reject the hand-over that were found before; `url` is the function's address in
/// the outcome. No other rollout of the function may run in this process.
///
/// Dropping the future stops the rollout where it is: changes that were sent stay in effect.
pub async fn roll_out_hand_over<T: GatewayRequestSender>(
    context: &RolloutContext<'_, T>,
    hand_over: &HandOver,
    objections: Vec<String>,
    deadline: &RolloutDeadline,
    url: String,
) -> DeploymentOutcome {
    let spec = &hand_over.spec;
    let started = Instant::now();
    let mut rollout = RunningRollout::new(context, hand_over, deadline);
    info!(image = %spec.image, tag = hand_over.tag.as_deref(), "starting the deployment");
    let verdict = match panic::catch_panic(rollout.run_to_verdict(objections)).await {
        Ok(verdict) => verdict,
        Err(RolloutPanicked) => rollout.verdict_after_panic().await,
    };
    let mut facts = rollout.facts;
    facts.durations.total = started.elapsed();
    let outcome = DeploymentOutcome {
        function: spec.service.clone(),
        namespace: facts.namespace,
        image: spec.image.to_string(),
        previous_image: facts.previous_image,
        status: verdict.status,
        changed: facts.changed,
        running: facts.running,
        url,
        durations: facts.durations,
        reasons: verdict.reasons,
        superseded_by: verdict.superseded_by,
        fault: verdict.fault,
    };
    match outcome.status {
        DeploymentStatus::Ready => info!(
            changed = outcome.changed,
            seconds = outcome.durations.total.as_secs_f64(),
            "the function is ready"
        ),
        DeploymentStatus::Unverified => warn!(
            changed = outcome.changed,
            reasons = ?outcome.reasons,
            seconds = outcome.durations.total.as_secs_f64(),
            "the function answers, and it is not known which version does"
        ),
        status => warn!(
            status = status.as_str(),
            fault = ?outcome.fault,
            reasons = ?outcome.reasons.iter().map(|reason| without_log_quote(reason)).collect::<Vec<_>>(),
            "the deployment did not succeed"
        ),
    }
    outcome
}

/// One rollout in progress.
struct RunningRollout<'a, T> {
    context: &'a RolloutContext<'a, T>,
    hand_over: &'a HandOver,
    address: FunctionAddress,
    id: FunctionId,
    /// The new version, which is rolled out.
    version: FunctionVersion,
    /// The times of the version that is rolled out. Anything newer belongs to another rollout.
    times: TimesOfBuild,
    deadline: &'a RolloutDeadline,
    /// The function's state before the rollout; `None` if the function did not exist.
    before: Option<FunctionStatus>,
    /// The version to restore if the new one fails; `None` if there was no function.
    last_good: Option<FunctionVersion>,
    /// Whether an older version may answer calls beside the new one.
    may_coexist: bool,
    /// The provider's name, after it was asked for; `None` if the gateway does not give it.
    provider: OnceCell<Option<ProviderName>>,
    facts: FactsForOutcome,
}

/// The facts that a rollout has found so far, for its outcome, whatever its verdict will be.
struct FactsForOutcome {
    namespace: Option<String>,
    previous_image: Option<String>,
    changed: bool,
    running: RunningState,
    durations: StepDurations,
}

impl FactsForOutcome {
    /// Records the current state of the function for the outcome.
    fn record_function_state(&mut self, status: Option<&FunctionStatus>) {
        if let Some(namespace) = status.and_then(|status| status.namespace.clone()) {
            self.namespace = Some(namespace);
        }
        self.running = RunningState::from(status);
    }
}

/// The result of one attempt to apply the new version.
enum ApplyAttemptResult {
    /// The new version runs and answered its probe.
    Ready,
    /// The function answers, but perhaps with the previous version.
    Unverified,
    /// The provider rejected the new version's specification.
    Rejected,
    /// A newer build waits, and the new version is not ready.
    Superseded(SuccessorCallId),
    /// The provider has this state of the function instead of the new version, perhaps because of a transient
    /// failure.
    NotTaken(Option<FunctionStatus>),
    /// The new version is stuck, or was not ready by the deadline, or the function's state could not be read.
    Failed,
}

impl<'a, T: GatewayRequestSender> RunningRollout<'a, T> {
    /// Creates the rollout of a hand-over, of which nothing has been done yet.
    fn new(
        context: &'a RolloutContext<'a, T>,
        hand_over: &'a HandOver,
        deadline: &'a RolloutDeadline,
    ) -> Self {
        let address = hand_over.spec.function_address();
        Self {
            context,
            hand_over,
            id: address.identity(context.default_namespace),
            address,
            version: FunctionVersion::of_hand_over(hand_over),
            times: hand_over.build_times(),
            deadline,
            before: None,
            last_good: None,
            may_coexist: false,
            provider: OnceCell::new(),
            facts: FactsForOutcome {
                namespace: hand_over.spec.namespace.clone(),
                previous_image: None,
                changed: false,
                running: RunningState::Unknown,
                durations: StepDurations::default(),
            },
        }
    }

    /// Checks the hand-over, takes the step that the check decides on, and returns the verdict. Checks again if another
    /// client has changed the function in between.
    async fn run_to_verdict(&mut self, mut objections: Vec<String>) -> Verdict {
        loop {
            let next = match self
                .check_until_deadline_or_newer_build(std::mem::take(&mut objections))
                .await
            {
                Ok(next) => next,
                Err(verdict) => return verdict,
            };
            return match next {
                NextStep::End(verdict) => self.settle_earlier_rollout(verdict).await,
                NextStep::Watch => self.watch_already_deployed_or_restore().await,
                NextStep::RepeatFailure(failure) => self.watch_deployed_after_repeated_failure(failure).await,
                NextStep::FinishNewer { older, newer } => {
                    self.finish_rollout_of_newer_version(older, &newer).await
                }
                NextStep::Apply => match self.apply_or_restore().await {
                    VerdictOrOutdated::Ended(verdict) => verdict,
                    VerdictOrOutdated::Outdated => {
                        info!("the function has changed since it was read: checking again");
                        continue;
                    }
                },
            };
        }
    }

    /// Runs the check of the hand-over until the deadline, or until a newer build waits. Nothing is changed
    /// yet, so that the check may be dropped at any point.
    async fn check_until_deadline_or_newer_build(
        &mut self,
        objections: Vec<String>,
    ) -> Result<NextStep, Verdict> {
        let started = Instant::now();
        let (deadline, succession) = (self.deadline, self.context.succession);
        let span = trace::span("check");
        let check = span.run(deadline.run_until_deadline(self.check_hand_over(objections)));
        let next = tokio::select! {
            biased;
            next = check => Ok(next),
            successor = succession.wait_for_successor() => Err(successor),
        };
        self.facts.durations.check += started.elapsed();
        match next {
            Ok(Some(next)) => {
                if let NextStep::End(verdict) = &next {
                    span.mark_failed(verdict.reasons.join("; "));
                }
                Ok(next)
            }
            Ok(None) => {
                span.mark_failed(deadline.reason_passed());
                Err(self.verdict_after_check_timeout_with_read_error().await)
            }
            Err(successor) => Err(self.yield_to_newer_build(successor, Findings::default())),
        }
    }

    /// Ends the rollout in favour of a newer build that waits. The newer build's rollout inherits the version
    /// to restore.
    fn yield_to_newer_build(&mut self, successor: SuccessorCallId, findings: Findings) -> Verdict {
        let call = successor.call_id.as_deref();
        let call = call
            .map(|call| format!(", of the call {call},"))
            .unwrap_or_default();
        let mut reason = format!("a newer build{call} waits, and takes the place of this one");
        if self.facts.changed {
            self.context.history.set_or_clear_unsettled_rollout(
                &self.id,
                Some(UnsettledRollout {
                    last_good: self.last_good.clone(),
                    spec_digest: self.version.spec_digest().map(str::to_owned),
                }),
            );
            self.facts.running = RunningState::Unknown;
        } else {
            reason.push_str(": nothing was changed");
        }
        Verdict::superseded(successor, findings.with_further_reason(reason))
    }

    /// Ends a rollout that panicked, and reports the function's present state. The next hand-over continues
    /// from there.
    async fn verdict_after_panic(&mut self) -> Verdict {
        error!("the rollout panicked");
        let mut reason = "the rollout ended unexpectedly, by a defect of deployer-fn".to_owned();
        if !self.facts.changed {
            reason.push_str(": nothing was changed");
        }
        let findings = Findings::new(FaultyParty::Platform, reason);
        match panic::catch_panic(self.final_read_function_status()).await {
            Ok(now) => Verdict::failed(findings.followed_by(self.record_and_describe_state(now))),
            Err(RolloutPanicked) => {
                self.facts.running = RunningState::Unknown;
                Verdict::failed(findings.with_further_reason("the function's state is unknown"))
            }
        }
    }

    /// Ends a rollout whose check took too long. The check retried its reads, so that their errors are not
    /// known; one more read provides the error.
    async fn verdict_after_check_timeout_with_read_error(&self) -> Verdict {
        let mut reason = self.deadline.reason_passed();
        if !self.facts.changed {
            reason = format!("nothing was changed: {reason}");
        }
        let mut findings = Findings::new(FaultyParty::Platform, reason);
        if let Err(error) = self.final_read_function_status().await {
            findings = findings.with_further_reason(ErrorChain(&error).to_string());
        }
        Verdict::failed(findings)
    }

    /// Watches the new version, which is deployed already, and returns the verdict; restores the last good version if
    /// the new one does not become ready.
    async fn watch_already_deployed_or_restore(&mut self) -> Verdict {
        info!("the function already has this image and specification");
        let deployed = Findings::new(
            FaultyParty::Caller,
            "the function already has this image and specification",
        );
        let (attempt, watched) = self
            .watch_until_deadline_and_record_result(None, WantedReplicas::One)
            .await;
        let findings = deployed.followed_by(watched);
        match attempt {
            ApplyAttemptResult::Ready => Verdict::ready(findings.with_further_reason("nothing was changed")),
            ApplyAttemptResult::Unverified => {
                Verdict::unverified(findings.with_further_reason("nothing was changed"))
            }
            ApplyAttemptResult::Superseded(successor) => self.yield_to_newer_build(successor, findings),
            _ => self.restore_after_failure(findings).await,
        }
    }

    /// Watches the new version until it is ready, is not taken, is stuck, or is superseded, or until the deadline.
    /// `gateway_answer` is that to the change, and `wanted` the number of replicas that the version needs.
    async fn watch_until_deadline_and_record_result(
        &mut self,
        gateway_answer: Option<String>,
        wanted: WantedReplicas,
    ) -> (ApplyAttemptResult, Findings) {
        const SPEC_NOT_TAKEN_REASON: &str = "the provider did not take the new specification";
        let started = Instant::now();
        let mut waiting_for = WaitingFor::default();
        let span = trace::span("watch");
        let version = WatchedVersion {
            wanted,
            stay_up: self.context.timeouts.stay_up,
            ..self.watched_with_one_replica_and_no_stay_up(&self.version)
        };
        let watching = watch::watch_version_until_ready(&version, self.context.succession, &mut waiting_for);
        let watched = span.run(self.deadline.run_until_deadline(watching)).await;
        self.facts.durations.watch += started.elapsed();
        match watched {
            Some(WatchEndBeforeTimeout::Ready(ready)) => match self.reason_unverified(&ready).await {
                None => {
                    self.record_ready(&ready.status);
                    (ApplyAttemptResult::Ready, Findings::default())
                }
                Some(reason) => {
                    self.record_unverified_state_and_clear_failures(&ready.status);
                    (
                        ApplyAttemptResult::Unverified,
                        Findings::default().with_further_reason(reason),
                    )
                }
            },
            Some(WatchEndBeforeTimeout::NotTaken(found)) => {
                span.mark_failed(SPEC_NOT_TAKEN_REASON);
                let reason = match gateway_answer {
                    Some(gateway_answer) => {
                        format!("the gateway answered {gateway_answer}, but {SPEC_NOT_TAKEN_REASON}")
                    }
                    None => SPEC_NOT_TAKEN_REASON.to_owned(),
                };
                (
                    ApplyAttemptResult::NotTaken(found),
                    Findings::new(FaultyParty::Platform, reason),
                )
            }
            Some(WatchEndBeforeTimeout::Stuck(obstacle)) => {
                span.mark_failed(&obstacle.reason);
                let findings = obstacle.fault.map(Findings::of_fault).unwrap_or_default();
                (
                    ApplyAttemptResult::Failed,
                    findings.with_further_reason(obstacle.reason),
                )
            }
            Some(WatchEndBeforeTimeout::Superseded(successor)) => {
                let reason = waiting_for.to_string();
                span.mark_failed(&reason);
                (
                    ApplyAttemptResult::Superseded(successor),
                    Findings::default().with_further_reason(reason),
                )
            }
            None => {
                let log = self
                    .quote_log_and_record_start_of_failed_version(&mut waiting_for)
                    .await;
                let reason = format!("{}: {waiting_for}", self.deadline.reason_passed());
                span.mark_failed(&reason);
                let fault = match self.deadline.is_shutting_down() {
                    true => Some(FaultyParty::Platform),
                    false => waiting_for.faulty_party(),
                };
                let findings = fault.map(Findings::of_fault).unwrap_or_default();
                (
                    ApplyAttemptResult::Failed,
                    findings.with_further_reason(text::append_detail_after_semicolon(reason, log.as_deref())),
                )
            }
        }
    }

    /// Watches a version without a timeout of its own. The version does not have to stay up.
    async fn watch_version_without_timeout(
        &self,
        version: &FunctionVersion,
        waiting_for: &mut WaitingFor,
    ) -> WatchEndBeforeTimeout {
        let version = self.watched_with_one_replica_and_no_stay_up(version);
        watch::watch_version_until_ready(&version, self.context.succession, waiting_for).await
    }

    /// Returns a version of the function with what is needed to watch it. It needs one replica, and does not have to
    /// stay up.
    fn watched_with_one_replica_and_no_stay_up<'b>(
        &'b self,
        version: &'b FunctionVersion,
    ) -> WatchedVersion<'b, T> {
        WatchedVersion {
            transport: self.context.transport,
            kubernetes: self.context.kubernetes,
            function: &self.address,
            default_namespace: self.context.default_namespace,
            version,
            timeouts: self.context.timeouts,
            wanted: WantedReplicas::One,
            stay_up: Duration::ZERO,
        }
    }

    /// Returns why it is not certain that the new version answers; `None` if it is certain.
    async fn reason_unverified(&self, ready: &ReadyVersion) -> Option<String> {
        if !self.may_coexist
            || ready.recognized
            || self.provider_removes_old_version_before_answering_update().await
        {
            return None;
        }
        let provider = match self.read_provider_name_once().await {
            Some(ProviderName(name)) => format!("the provider {name}"),
            None => "the provider, whose name is not known,".to_owned(),
        };
        let reason = format!(
            "the function answers, but nothing tells whether the new version does: its answers have no header \
             X-Slipway-Version, and {provider} may keep the old version until the new one is ready"
        );
        Some(match &ready.kubernetes_error {
            Some(error) => format!("{reason}; {error}"),
            None => reason,
        })
    }

    /// Returns whether the provider is known to remove the old version before it answers an update.
    async fn provider_removes_old_version_before_answering_update(&self) -> bool {
        let provider = self.read_provider_name_once().await;
        provider.is_some_and(ProviderName::removes_old_version_before_answering_update)
    }

    /// Reads the provider's name from the gateway, only once in a rollout, and returns it; `None` if it is not known.
    async fn read_provider_name_once(&self) -> Option<&ProviderName> {
        let timeouts = self.context.timeouts;
        let limit = timeouts.request.min(FINAL_READ_TIMEOUT);
        let read = async || {
            read::read_retrying_transient_errors(timeouts.settle.min(timeouts.read_retries), || {
                gateway::read_provider_name(self.context.transport, limit)
            })
            .await
            .unwrap_or_else(|error| {
                warn!(error = %ErrorChain(&error), "could not read the provider's name");
                None
            })
        };
        self.provider.get_or_init(read).await.as_ref()
    }

    /// Records that the function answers, but perhaps not with the new version. The version does not become the
    /// last good one.
    fn record_unverified_state_and_clear_failures(&mut self, status: &FunctionStatus) {
        self.context
            .history
            .set_or_clear_last_permanent_failure(&self.id, None);
        self.context
            .history
            .set_or_clear_unsettled_rollout(&self.id, None);
        self.facts.record_function_state(Some(status));
    }

    /// Records that the new version runs, in the outcome and in the process's history.
    fn record_ready(&mut self, status: &FunctionStatus) {
        let history = self.context.history;
        if let Some(digest) = self.version.spec_digest() {
            history.record_ready(&self.id, digest);
        }
        history.set_or_clear_last_permanent_failure(&self.id, None);
        history.set_or_clear_unsettled_rollout(&self.id, None);
        self.facts.record_function_state(Some(status));
    }

    /// Reads the function's state from the gateway, with retries for `limit`.
    async fn read_function_status_with_retries(
        &self,
        limit: Duration,
    ) -> Result<Option<FunctionStatus>, GatewayReadError> {
        read::read_retrying_transient_errors(limit, || {
            gateway::read_function(
                self.context.transport,
                &self.address,
                self.context.timeouts.request,
            )
        })
        .await
    }

    /// Reads the function's state once with a short timeout, at the end of a rollout.
    async fn final_read_function_status(&self) -> Result<Option<FunctionStatus>, GatewayReadError> {
        let limit = self.context.timeouts.request.min(FINAL_READ_TIMEOUT);
        gateway::read_function(self.context.transport, &self.address, limit).await
    }

    /// Records the current state of the function, and returns a description of it as findings.
    fn record_and_describe_state(
        &mut self,
        now: Result<Option<FunctionStatus>, GatewayReadError>,
    ) -> Findings {
        let reason = match now {
            Ok(now) => {
                self.facts.record_function_state(now.as_ref());
                match (now, &self.before) {
                    (None, Some(_)) => "the function no longer exists: the provider deleted it".to_owned(),
                    (None, None) => "the function does not exist, as before".to_owned(),
                    (Some(now), _) => format!(
                        "the function now has the image {}, with {} of {} replicas available",
                        now.image, now.available_replicas, now.replicas
                    ),
                }
            }
            Err(error) => {
                self.facts.running = RunningState::Unknown;
                format!("the function's state is unknown: {}", ErrorChain(&error))
            }
        };
        Findings::default().with_further_reason(reason)
    }
}
