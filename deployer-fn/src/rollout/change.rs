//! Applies the new version, and decides what follows: another attempt, another check, or the restoration.

use function_host::{ErrorChain, trace};
use serde_json::Value;
use tokio::time::Instant;
use tracing::info;

use super::apply::{self, AnswerToApply};
use super::backoff::Backoff;
use super::verdict::{Findings, Verdict};
use super::{APPLY_ATTEMPTS_MAX, ApplyAttemptResult, RunningRollout};
use crate::gateway::{FunctionStatus, GatewayRequestSender};
use crate::kubernetes::WantedReplicas;
use crate::outcome::{FaultyParty, RunningState, SuccessorCallId};
use crate::request::OWN_ANNOTATION_PREFIX;
use crate::version::{FunctionVersion, LastGoodVersion};

/// The result of applying the new version, with all attempts and the restoration.
pub(super) enum VerdictOrOutdated {
    /// The rollout has ended with this verdict.
    Ended(Verdict),
    /// The function was changed by another client before the new version was applied, or by an older build after it.
    Outdated,
}

impl<T: GatewayRequestSender> RunningRollout<'_, T> {
    /// Applies the new version and watches it, and restores the previous one if the new one fails.
    ///
    /// A change that had no effect by a failure that may be transient is sent again: it carries the complete
    /// specification, so that repeating it is harmless.
    pub(super) async fn apply_or_restore(&mut self) -> VerdictOrOutdated {
        self.may_coexist = self.before.is_some();
        let last_good = match self.last_good.clone() {
            Some(version) => LastGoodVersion::Version(Box::new(version)),
            None => LastGoodVersion::Nothing,
        };
        let deployment = self
            .version
            .to_deployment_with_own_annotations_and_version_variable(&last_good, None);
        let mut backoff = Backoff::new();
        let mut findings = Findings::default();
        loop {
            if let Some(successor) = self.context.succession.current_successor() {
                return VerdictOrOutdated::Ended(self.yield_to_newer_build(successor, findings));
            }
            match self.is_state_as_checked().await {
                Ok(true) => {}
                Ok(false) => return VerdictOrOutdated::Outdated,
                Err(reason) if self.facts.changed => {
                    findings = findings.followed_by(reason);
                    break;
                }
                Err(reason) => return VerdictOrOutdated::Ended(Verdict::failed(reason)),
            }
            self.facts.changed = true;
            self.facts.running = RunningState::Unknown;
            let (attempt, found) = self.apply_and_watch(&deployment).await;
            findings = findings.followed_by(found);
            let now = match attempt {
                ApplyAttemptResult::Ready => return VerdictOrOutdated::Ended(Verdict::ready(findings)),
                ApplyAttemptResult::Unverified => {
                    return VerdictOrOutdated::Ended(Verdict::unverified(findings));
                }
                ApplyAttemptResult::Rejected => return self.conclude_after_rejected_spec(findings).await,
                ApplyAttemptResult::Superseded(successor) => {
                    return VerdictOrOutdated::Ended(self.yield_to_newer_build(successor, findings));
                }
                ApplyAttemptResult::Failed => break,
                ApplyAttemptResult::NotTaken(now) => now,
            };
            // Another deployer had read the function before this version was applied.
            if now
                .as_ref()
                .is_some_and(|now| self.other_rollout_deployed_older_build(now))
            {
                return VerdictOrOutdated::Outdated;
            }
            let retry = backoff.wait_count() + 1 < APPLY_ATTEMPTS_MAX
                && now == self.before
                && findings.faulty_party() == Some(FaultyParty::Platform)
                && self
                    .deadline
                    .run_until_deadline(backoff.wait_next())
                    .await
                    .is_some();
            if !retry {
                break;
            }
            info!(
                attempt = backoff.wait_count() + 1,
                "applying the specification again"
            );
        }
        VerdictOrOutdated::Ended(self.restore_after_failure(findings).await)
    }

    /// Reads the function's state again, and returns whether it still is the state that was checked. There may
    /// be another deployer, and the check may have taken some time. An error is the reason why it is not known.
    async fn is_state_as_checked(&self) -> Result<bool, Findings> {
        let reading = self.read_function_status_with_retries(self.context.timeouts.read_retries);
        let reason = match self.deadline.run_until_deadline(reading).await {
            Some(Ok(now)) => {
                let identity = |status: &Option<FunctionStatus>| {
                    let status = status.as_ref()?;
                    let own = status.annotations().iter();
                    let own = own.filter(|(name, _)| name.starts_with(OWN_ANNOTATION_PREFIX));
                    let own: Vec<_> = own.map(|(name, value)| (name.clone(), value.clone())).collect();
                    Some((status.image.clone(), own))
                };
                return Ok(identity(&now) == identity(&self.before));
            }
            Some(Err(error)) => ErrorChain(&error).to_string(),
            None => self.deadline.reason_passed(),
        };
        let prefix = match self.facts.changed {
            true => "",
            false => "nothing was changed: ",
        };
        Err(Findings::new(FaultyParty::Platform, format!("{prefix}{reason}")))
    }

    /// Returns whether another rollout has deployed an older build than this one's since this rollout began.
    fn other_rollout_deployed_older_build(&self, status: &FunctionStatus) -> bool {
        let is_before = self.before.as_ref().is_some_and(|before| {
            FunctionVersion::of_deployed_function(before).may_be_the_deployed_version(status)
        });
        !is_before
            && FunctionVersion::of_deployed_function(status)
                .usable_build_times()
                .is_older_than(&self.times)
    }

    /// Returns the build that is deployed, if it is newer than the one that is rolled out.
    pub(super) fn newer_deployed_build(&self, status: &FunctionStatus) -> Option<SuccessorCallId> {
        let deployed = FunctionVersion::of_deployed_function(status);
        self.times
            .is_older_than(&deployed.usable_build_times())
            .then(|| SuccessorCallId {
                call_id: deployed.call_id().map(str::to_owned),
            })
    }

    /// Applies the new version once, and watches it until it is ready or has failed.
    async fn apply_and_watch(&mut self, deployment: &Value) -> (ApplyAttemptResult, Findings) {
        let started = Instant::now();
        let span = trace::span("apply");
        let applying = apply::update_create_or_recreate_until_deadline(
            self.context.transport,
            &self.address,
            deployment,
            self.before.is_some(),
            self.deadline,
        );
        let applied = span.run(applying).await;
        self.facts.durations.apply += started.elapsed();
        if let AnswerToApply::Rejected(reason) | AnswerToApply::Unclear(_, reason) = &applied {
            span.mark_failed(reason);
        }
        drop(span);
        match applied {
            AnswerToApply::Accepted(answer) => {
                let (attempt, watched) = self
                    .watch_until_deadline_and_record_result(Some(answer), WantedReplicas::All)
                    .await;
                (
                    attempt,
                    Findings::of_fault(FaultyParty::Caller).followed_by(watched),
                )
            }
            AnswerToApply::Rejected(reason) => (
                ApplyAttemptResult::Rejected,
                Findings::new(FaultyParty::Caller, reason),
            ),
            AnswerToApply::Unclear(fault, reason) => {
                let (attempt, found) = self.read_and_watch_after_unclear_answer().await;
                (attempt, Findings::new(fault, reason).followed_by(found))
            }
        }
    }

    /// Reads the function's state after an unclear answer to a change, and watches the new version if it certainly is
    /// deployed.
    async fn read_and_watch_after_unclear_answer(&mut self) -> (ApplyAttemptResult, Findings) {
        let now = match self
            .deadline
            .run_until_deadline(self.read_function_status_with_retries(self.context.timeouts.read_retries))
            .await
        {
            Some(now) => now,
            None => self.final_read_function_status().await,
        };
        match now {
            Ok(Some(status)) if self.version.is_certainly_the_deployed_version(&status) => {
                self.watch_until_deadline_and_record_result(None, WantedReplicas::All)
                    .await
            }
            Ok(now) => (ApplyAttemptResult::NotTaken(now), Findings::default()),
            Err(_) => (ApplyAttemptResult::Failed, Findings::default()),
        }
    }

    /// Ends a rollout whose specification the provider rejected, and restores the last good version unless it is
    /// deployed as before: faasd deletes the function when it rejects an update
    /// (docs/pitfalls.md#a-failed-update-removes-the-function).
    async fn conclude_after_rejected_spec(&mut self, findings: Findings) -> VerdictOrOutdated {
        VerdictOrOutdated::Ended(match self.final_read_function_status().await {
            Ok(now) if now == self.before && self.would_restore_version_deployed_before() => {
                self.facts.changed = false;
                Verdict::refused_by_fault_of_caller(
                    findings.followed_by(self.record_and_describe_state(Ok(now))),
                )
            }
            // faasd answers 400 to the creation of a function that another deployer has created in the meantime.
            Ok(Some(now)) if self.other_rollout_deployed_older_build(&now) => {
                return VerdictOrOutdated::Outdated;
            }
            _ => self.restore_after_failure(findings).await,
        })
    }

    /// Returns whether the version to restore on failure is the one that was deployed before the rollout.
    fn would_restore_version_deployed_before(&self) -> bool {
        match (&self.before, &self.last_good) {
            (Some(status), Some(version)) => version.may_be_the_deployed_version(status),
            (None, None) => true,
            _ => false,
        }
    }
}
