//! Restores the previous version after the new one has failed, and checks that it works.

use function_host::ErrorChain;
use function_host::trace;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::RunningRollout;
use super::apply::{self, AnswerToApply};
use super::backoff::Backoff;
use super::check::OlderBuildRejection;
use super::deadline::RolloutDeadline;
use super::history::UnsettledRollout;
use super::verdict::{Findings, RestorationResult, Verdict};
use super::watch::{WaitingFor, WatchEndBeforeTimeout};
use crate::gateway::{FunctionStatus, GatewayRequestSender, call};
use crate::outcome::{DeploymentStatus, FaultyParty, SuccessorCallId};
use crate::text::without_log_quote;
use crate::version::{FunctionVersion, LastGoodVersion, PermanentFailureRecord};

/// The function's state after a restoration that was in time.
enum StateAfterRestoration {
    /// The version to restore answers; or the function is deleted, if there was none before.
    LastGood(Option<FunctionStatus>),
    /// Another client's version is deployed, and is kept.
    Other(FunctionStatus),
    /// A newer build is deployed, and is kept.
    Newer(SuccessorCallId, FunctionStatus),
    /// The restoration was left to a newer build that waits.
    Yielded(SuccessorCallId),
}

impl<T: GatewayRequestSender> RunningRollout<'_, T> {
    /// Restores the previous version after the new one has failed with `findings`, and returns the verdict.
    pub(super) async fn restore_after_failure(&mut self, findings: Findings) -> Verdict {
        let (restoration, findings) = self.restore_last_good_unless_shutting_down(findings).await;
        Verdict::after_restoration(restoration, findings)
    }

    /// Waits until the version that was restored after an earlier failure of the hand-over is ready, because the
    /// process that restored it may have ended before that, and returns the verdict. Changes nothing of the function.
    pub(super) async fn watch_deployed_after_repeated_failure(
        &mut self,
        failure: PermanentFailureRecord,
    ) -> Verdict {
        info!("this hand-over failed before");
        self.facts.previous_image = failure.previous_image;
        let findings = Findings::of_fault(FaultyParty::Caller)
            .followed_by(Findings::from(failure.reasons))
            .with_further_reason("this hand-over failed before: nothing was changed");
        let Some(deployed) = self.before.as_ref().map(FunctionVersion::of_deployed_function) else {
            return Verdict::rolled_back(findings);
        };
        let mut waiting_for = WaitingFor::default();
        let watched = self
            .deadline
            .run_until_deadline(self.watch_version_without_timeout(&deployed, &mut waiting_for))
            .await;
        if let Some(WatchEndBeforeTimeout::Ready(ready)) = watched {
            self.facts.record_function_state(Some(&ready.status));
            return Verdict::rolled_back(findings);
        }
        if let Some(WatchEndBeforeTimeout::Superseded(successor)) = watched {
            return self.yield_to_newer_build(successor, findings);
        }
        let broken = Findings::new(
            FaultyParty::Platform,
            format!("the deployed version does not work: {waiting_for}"),
        );
        let now = self.final_read_function_status().await;
        Verdict::failed(
            findings
                .followed_by(broken)
                .followed_by(self.record_and_describe_state(now)),
        )
    }

    /// Finishes the rollout of a newer version, which another process began: waits for it to come up, and
    /// restores the version before it if it does not. The hand-over itself is rejected as `older`.
    pub(super) async fn finish_rollout_of_newer_version(
        &mut self,
        older: OlderBuildRejection,
        newer: &FunctionVersion,
    ) -> Verdict {
        let findings = older.as_findings();
        self.times = newer.usable_build_times();
        let mut waiting_for = WaitingFor::default();
        let watched = self
            .deadline
            .run_until_deadline(self.watch_version_without_timeout(newer, &mut waiting_for))
            .await;
        match watched {
            Some(WatchEndBeforeTimeout::Ready(ready)) => {
                self.facts.record_function_state(Some(&ready.status));
                return older.into_verdict_with_only_these_findings(findings);
            }
            Some(WatchEndBeforeTimeout::NotTaken(_)) => {
                return older.into_verdict_with_only_these_findings(
                    findings.with_further_reason("another client is deploying the function"),
                );
            }
            Some(WatchEndBeforeTimeout::Superseded(successor)) => {
                return self.yield_to_newer_build(successor, findings);
            }
            None if self.deadline.is_shutting_down() => {
                return older.into_verdict_with_only_these_findings(findings);
            }
            Some(WatchEndBeforeTimeout::Stuck(_)) | None => {}
        }
        self.facts.changed = true;
        // The failure is not this hand-over's, and must not be recorded as such.
        let broken = Findings::new(
            FaultyParty::Platform,
            format!("the newer build does not work: {waiting_for}"),
        );
        let (restoration, findings) = self
            .restore_last_good_unless_shutting_down(findings.followed_by(broken))
            .await;
        Verdict::for_older_build_after_restoring_newer(older.newer, restoration, findings)
    }

    /// Ends a rollout that has changed nothing. If an earlier rollout yielded to this one or ran out of time,
    /// and the function still does not work, restores the version that the earlier rollout would have restored.
    pub(super) async fn settle_earlier_rollout(&mut self, verdict: Verdict) -> Verdict {
        let unsettled = self.context.history.unsettled_rollout(&self.id);
        let unsettled = unsettled.filter(|unsettled| unsettled.still_applies_to(self.before.as_ref()));
        let (DeploymentStatus::Refused, Some(unsettled)) = (verdict.status, unsettled) else {
            return verdict;
        };
        info!("finishing the rollout before this one");
        self.last_good = unsettled.last_good;
        let mut findings = Findings::new(FaultyParty::Caller, verdict.reasons.join("; "));
        if let Some(deployed) = self.before.as_ref().map(FunctionVersion::of_deployed_function) {
            let mut waiting_for = WaitingFor::default();
            let watching = self.watch_version_without_timeout(&deployed, &mut waiting_for);
            match self.deadline.run_until_deadline(watching).await {
                Some(WatchEndBeforeTimeout::Ready(ready)) => {
                    self.context
                        .history
                        .set_or_clear_unsettled_rollout(&self.id, None);
                    self.facts.record_function_state(Some(&ready.status));
                    return Verdict {
                        reasons: findings.reasons().to_vec(),
                        ..verdict
                    };
                }
                Some(WatchEndBeforeTimeout::Superseded(successor)) => {
                    return self.yield_to_newer_build(successor, findings);
                }
                Some(WatchEndBeforeTimeout::NotTaken(_)) => return verdict,
                Some(WatchEndBeforeTimeout::Stuck(_)) | None => {}
            }
            findings = findings
                .with_further_reason(format!("the build before this one does not work: {waiting_for}"));
        }
        self.facts.changed = true;
        let (restoration, findings) = self
            .restore_last_good_unless_shutting_down(
                findings.followed_by(Findings::of_fault(FaultyParty::Platform)),
            )
            .await;
        let newer = verdict.superseded_by.clone();
        match (restoration, newer) {
            (RestorationResult::TimedOut, _) => Verdict::failed(findings),
            (RestorationResult::Superseded(successor), _) | (_, Some(successor)) => {
                Verdict::superseded(successor, findings)
            }
            _ => Verdict::refused_by_fault_of_caller(findings),
        }
    }

    /// Restores the last good version within a timeout of its own, and returns the findings with those about
    /// the restoration.
    ///
    /// Nothing is restored while the process is shutting down: the new version may only need more time, and it may be
    /// the deployer's own. The next delivery finds it and continues.
    async fn restore_last_good_unless_shutting_down(
        &mut self,
        findings: Findings,
    ) -> (RestorationResult, Findings) {
        if self.deadline.is_shutting_down() {
            let now = self.final_read_function_status().await;
            let findings = findings.followed_by(Findings::of_fault(FaultyParty::Platform));
            return (
                RestorationResult::ShuttingDown,
                findings.followed_by(self.record_and_describe_state(now)),
            );
        }
        let failure = self.failure_record_if_permanent(&findings);
        let deadline = self
            .deadline
            .renewed_without_request_deadline(self.context.timeouts.rollback);
        let started = Instant::now();
        let mut waiting_for = WaitingFor::default();
        let span = trace::span("roll back");
        let restoring = deadline.run_until_deadline(self.restore_without_timeout(
            &deadline,
            failure.as_ref(),
            &mut waiting_for,
        ));
        let restored = span.run(restoring).await;
        self.facts.durations.restore = started.elapsed();
        if restored.is_none() {
            span.mark_failed(format_args!("{}: {waiting_for}", deadline.reason_passed()));
        }
        drop(span);
        match restored {
            // The last good version is the new one, which was only late.
            Some(StateAfterRestoration::LastGood(Some(now)))
                if self.version.is_certainly_the_deployed_version(&now) =>
            {
                self.record_ready(&now);
                (RestorationResult::NewVersionReady, findings)
            }
            Some(StateAfterRestoration::LastGood(now)) => {
                let history = self.context.history;
                history.set_or_clear_last_permanent_failure(&self.id, failure);
                history.set_or_clear_unsettled_rollout(&self.id, None);
                self.facts.record_function_state(now.as_ref());
                (
                    RestorationResult::Restored,
                    findings.followed_by(self.describe_restored_state(now.as_ref())),
                )
            }
            Some(StateAfterRestoration::Other(now)) => {
                let findings = findings.with_further_reason(
                    "another client has deployed the function in the meantime: its version is kept",
                );
                let findings = findings.followed_by(self.record_and_describe_state(Ok(Some(now))));
                (RestorationResult::Overtaken, findings)
            }
            Some(StateAfterRestoration::Newer(successor, now)) => {
                let findings =
                    findings.with_further_reason("a newer build is deployed in the meantime: it is kept");
                let findings = findings.followed_by(self.record_and_describe_state(Ok(Some(now))));
                (RestorationResult::Superseded(successor), findings)
            }
            Some(StateAfterRestoration::Yielded(successor)) => {
                let verdict = self.yield_to_newer_build(successor.clone(), findings);
                (
                    RestorationResult::Superseded(successor),
                    Findings::from(verdict.reasons),
                )
            }
            None => {
                let reason = match &self.last_good {
                    Some(version) => format!(
                        "the previous version, {}, did not run again within rollback_timeout: {waiting_for}",
                        version.image()
                    ),
                    None => "the new version could not be deleted within rollback_timeout".to_owned(),
                };
                warn!(reason, "could not restore the previous version");
                let unsettled = UnsettledRollout {
                    last_good: self.last_good.clone(),
                    spec_digest: self.version.spec_digest().map(str::to_owned),
                };
                self.context
                    .history
                    .set_or_clear_unsettled_rollout(&self.id, Some(unsettled));
                let findings = findings.followed_by(Findings::new(FaultyParty::Platform, reason));
                let now = self.final_read_function_status().await;
                (
                    RestorationResult::TimedOut,
                    findings.followed_by(self.record_and_describe_state(now)),
                )
            }
        }
    }

    /// Returns a description of the restored state as findings.
    fn describe_restored_state(&self, now: Option<&FunctionStatus>) -> Findings {
        let (Some(now), Some(version)) = (now, &self.last_good) else {
            return Findings::default().with_further_reason("the function does not exist, as before");
        };
        let findings = Findings::default()
            .with_further_reason(format!("the previous version runs again: {}", now.image));
        if version.is_whole_deployment_known() {
            return findings;
        }
        findings.with_further_reason(
            "the previous version was not deployed by Slipway, and the gateway does not return all of it: environment \
             variables may have been lost if it had to be restored",
        )
    }

    /// Returns a record of the failure if the same hand-over would fail again when it is delivered again.
    fn failure_record_if_permanent(&self, findings: &Findings) -> Option<PermanentFailureRecord> {
        (findings.faulty_party() == Some(FaultyParty::Caller)).then_some(())?;
        Some(PermanentFailureRecord {
            delivery: self.hand_over.digest_shared_by_redeliveries()?,
            reasons: findings
                .reasons()
                .iter()
                .map(|reason| without_log_quote(reason).to_owned())
                .collect(),
            previous_image: self.facts.previous_image.clone(),
        })
    }

    /// Restores the last good version without a timeout. Before each step it reads the function's state, and
    /// acts on that.
    async fn restore_without_timeout(
        &mut self,
        deletion_deadline: &RolloutDeadline,
        failure: Option<&PermanentFailureRecord>,
        waiting_for: &mut WaitingFor,
    ) -> StateAfterRestoration {
        let last_good = self.last_good.clone();
        let rollback = self.context.timeouts.rollback;
        let mut backoff = Backoff::new();
        loop {
            if let Some(successor) = self.context.succession.current_successor() {
                return StateAfterRestoration::Yielded(successor);
            }
            let now = match self.read_function_status_with_retries(rollback).await {
                Ok(now) => now,
                Err(error) => {
                    *waiting_for = WaitingFor::Gateway(ErrorChain(&error).to_string());
                    backoff.wait_next().await;
                    continue;
                }
            };
            if let Some(status) = &now
                && let Some(successor) = self.newer_deployed_build(status)
            {
                return StateAfterRestoration::Newer(successor, status.clone());
            }
            match (&now, &last_good) {
                (None, None) => return StateAfterRestoration::LastGood(None),
                (Some(status), Some(version)) if version.may_be_the_deployed_version(status) => {
                    // A version that does not come up by itself is applied once more: a provider may have a function
                    // that it could not start.
                    let watching = self.watch_version_without_timeout(version, waiting_for);
                    match timeout(rollback / 2, watching).await {
                        Ok(WatchEndBeforeTimeout::Ready(ready)) => {
                            return StateAfterRestoration::LastGood(Some(ready.status));
                        }
                        Ok(WatchEndBeforeTimeout::NotTaken(_) | WatchEndBeforeTimeout::Superseded(_)) => {
                            continue;
                        }
                        Ok(WatchEndBeforeTimeout::Stuck(_)) | Err(_) => {
                            self.apply_and_watch_earlier_version(version, true, failure, waiting_for)
                                .await
                        }
                    }
                }
                (Some(status), _) if !self.is_of_or_before_this_rollout(status) => {
                    return StateAfterRestoration::Other(status.clone());
                }
                (now, Some(version)) => {
                    self.apply_and_watch_earlier_version(version, now.is_some(), failure, waiting_for)
                        .await;
                }
                (Some(_), None) => self.delete_new_function(deletion_deadline).await,
            }
            backoff.wait_next().await;
        }
    }

    /// Returns whether the function's state comes from this rollout, or is the one before it.
    fn is_of_or_before_this_rollout(&self, status: &FunctionStatus) -> bool {
        let was_before = self.before.as_ref().is_some_and(|before| {
            FunctionVersion::of_deployed_function(before).may_be_the_deployed_version(status)
        });
        self.version.may_be_the_deployed_version(status) || was_before
    }

    /// Applies a version that was deployed before, and watches it.
    async fn apply_and_watch_earlier_version(
        &mut self,
        version: &FunctionVersion,
        function_exists: bool,
        failure: Option<&PermanentFailureRecord>,
        waiting_for: &mut WaitingFor,
    ) {
        info!(image = version.image(), "restoring the previous version");
        self.facts.changed = true;
        let deployment = version
            .to_deployment_with_own_annotations_and_version_variable(&LastGoodVersion::Itself, failure);
        // Half of the time, so that an unanswered request can be repeated.
        let half = self
            .deadline
            .renewed_without_request_deadline(self.context.timeouts.rollback / 2);
        let applied = apply::update_create_or_recreate_until_deadline(
            self.context.transport,
            &self.address,
            &deployment,
            function_exists,
            &half,
        )
        .await;
        match applied {
            AnswerToApply::Accepted(_) => {
                // Until it is ready or stuck, or the provider has not named it within its settle time.
                self.watch_version_without_timeout(version, waiting_for).await;
            }
            AnswerToApply::Rejected(reason) | AnswerToApply::Unclear(_, reason) => {
                warn!(reason, "the previous version is not restored yet");
                *waiting_for = WaitingFor::Gateway(reason);
            }
        }
    }

    /// Deletes the function, because there was none before the rollout.
    async fn delete_new_function(&mut self, deadline: &RolloutDeadline) {
        info!("deleting the new version: there was no function before");
        self.facts.changed = true;
        match apply::send_change_retrying_if_without_effect(
            self.context.transport,
            || call::delete_request(&self.address),
            deadline,
        )
        .await
        {
            Ok(response) => info!(
                status = response.status().as_u16(),
                "the gateway answered the deletion"
            ),
            Err(error) => warn!(error = %ErrorChain(&error), "the new version is not deleted yet"),
        }
    }
}
