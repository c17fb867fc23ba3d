//! Checks what the builder handed over before the function is changed: reads the function's state, collects objections
//! up to one that makes the others moot, and decides the rollout's next step.

use std::time::Duration;

use function_host::ErrorChain;
use function_host::gateway::GatewayError;
use function_host::{Bytes, http::Request};
use tracing::{info, warn};

use super::history::NewerBuildOfDeployedVersion;
use super::read;
use super::verdict::{Findings, Verdict};
use super::watch::{self, ReadyVersion, WaitingFor, WatchEndBeforeTimeout, WatchedVersion};
use super::{RolloutPartTimeouts, RunningRollout};
use crate::gateway::{self, FunctionStatus, GatewayReadError, GatewayRequestSender, ProviderName, call};
use crate::outcome::{FaultyParty, SuccessorCallId};
use crate::succession::SuccessorReceiver;
use crate::tenancy;
use crate::version::{ANNOTATIONS_MAX_BYTES, FunctionVersion, LastGoodVersion, PermanentFailureRecord};

/// The timeout of one read, and of a probe without a timeout of its own, while the check assesses the deployed version.
const PROBE_OF_DEPLOYED_TIMEOUT: Duration = Duration::from_secs(2);

/// The step of a rollout that follows its check.
pub(super) enum NextStep {
    /// The rollout ends with this verdict, and nothing is changed.
    End(Verdict),
    /// The new version is deployed already, and is watched.
    Watch,
    /// The rollout ends with the failure that is recorded of an earlier delivery of the same hand-over. The version
    /// that was restored then may not be up yet.
    RepeatFailure(PermanentFailureRecord),
    /// The new version may be applied.
    Apply,
    /// The hand-over is older than the deployed version, which has not been seen to work. The rollout of that version
    /// is finished.
    FinishNewer {
        /// The reason to reject the hand-over.
        older: OlderBuildRejection,
        /// The deployed version.
        newer: Box<FunctionVersion>,
    },
}

/// The rejection of a hand-over that is older than the deployed version.
pub(super) struct OlderBuildRejection {
    reason: String,
    pub(super) newer: SuccessorCallId,
}

/// The assessment of the deployed version before the rollout.
enum DeployedAssessment {
    /// The deployed version works, or its annotations name no other version to restore.
    Good,
    /// The function answers, but perhaps with another version than the deployed one.
    Unverified {
        /// The version that was good before the unverified one.
        last_good: FunctionVersion,
    },
    /// The deployed version does not work.
    Broken {
        /// The version that was good before the broken one.
        last_good: FunctionVersion,
    },
}

impl OlderBuildRejection {
    /// Returns the reason for the rejection as findings.
    pub(super) fn as_findings(&self) -> Findings {
        Findings::new(FaultyParty::Caller, self.reason.clone())
    }

    /// Returns the verdict on the rejected hand-over, with findings about the newer version.
    pub(super) fn into_verdict_with_only_these_findings(self, findings: Findings) -> Verdict {
        Verdict::superseded(self.newer, findings)
    }
}

impl<T: GatewayRequestSender> RunningRollout<'_, T> {
    /// Checks whether the hand-over may be applied, and decides the rollout's next step.
    pub(super) async fn check_hand_over(&mut self, objections: Vec<String>) -> NextStep {
        match self.decide_next_step(objections).await {
            Ok(next) => next,
            Err(error) => {
                let reason = format!("nothing was changed: {}", ErrorChain(&error));
                NextStep::End(Verdict::failed(Findings::new(FaultyParty::Platform, reason)))
            }
        }
    }

    /// Reads the function's state, checks the hand-over against it, and decides the next step. Fails if a read fails.
    async fn decide_next_step(&mut self, mut objections: Vec<String>) -> Result<NextStep, GatewayReadError> {
        if let Some(objection) = self.objection_if_namespace_missing().await? {
            objections.push(objection);
            // All further checks would read from that namespace.
            return Ok(refusal_with(objections));
        }
        let before = self
            .read_function_status_with_retries(self.context.timeouts.read_retries)
            .await?;
        if let Some(objection) = self.tenant_objection_to_change(before.as_ref()) {
            // The state of a function that is not the tenant's is not in the outcome.
            objections.push(objection);
            return Ok(refusal_with(objections));
        }
        self.facts.previous_image = before.as_ref().map(|status| status.image.clone());
        self.facts.record_function_state(before.as_ref());
        self.warn_of_other_default_namespace(before.as_ref());
        self.before = before;

        if objections.is_empty() {
            if let Some(next) = self.next_step_if_deployed_or_failed_before() {
                return Ok(next);
            }
            if let Some(older) = self.rejection_if_older_than_deployed() {
                match self.last_good_if_deployed_is_broken().await {
                    None => {
                        let findings = older.as_findings();
                        return Ok(NextStep::End(
                            older.into_verdict_with_only_these_findings(findings),
                        ));
                    }
                    // The newer version does not work, and its deployer ended before it could restore the one before
                    // it.
                    Some(last_good)
                        if self
                            .hand_over
                            .build_times()
                            .is_older_than(&last_good.usable_build_times()) =>
                    {
                        self.last_good = Some(last_good);
                        if let Some(newer) = self
                            .before
                            .as_ref()
                            .map(FunctionVersion::of_deployed_function)
                            .map(Box::new)
                        {
                            return Ok(NextStep::FinishNewer { older, newer });
                        }
                    }
                    Some(_) => info!("the newer version does not work, and this build is the next newest"),
                }
            }
        } else {
            objections.extend(self.rejection_if_older_than_deployed().map(|older| older.reason));
        }
        self.add_secret_objections_and_return_unlisted(&mut objections)
            .await?;
        let unsettled = self.context.history.unsettled_rollout(&self.id);
        self.last_good = match (&self.before, unsettled) {
            // What an earlier rollout left unfinished is not worth another look.
            (before, Some(unsettled)) if unsettled.still_applies_to(before.as_ref()) => unsettled.last_good,
            (Some(status), _) => Some(self.determine_version_to_restore(status).await),
            (None, _) => None,
        };
        self.add_annotation_size_objection(&mut objections);
        if objections.is_empty() {
            return Ok(NextStep::Apply);
        }
        Ok(refusal_with(objections))
    }

    /// Returns why the hand-over's tenant may not change the function, if it exists.
    pub(super) fn tenant_objection_to_change(&self, status: Option<&FunctionStatus>) -> Option<String> {
        tenancy::objection_to_change(self.context.tenant, status?)
    }

    /// Logs a warning if the provider's default namespace differs from the setting's: the function then has two
    /// identities.
    fn warn_of_other_default_namespace(&self, status: Option<&FunctionStatus>) {
        if self.address.namespace.is_none()
            && let Some(namespace) = status.and_then(|status| status.namespace.as_deref())
            && namespace != self.context.default_namespace
        {
            warn!(
                namespace,
                default_namespace = self.context.default_namespace,
                "the provider's default namespace is not the setting's: set default_namespace to it"
            );
        }
    }

    /// Returns the next step if the new version is deployed already, or the same hand-over has failed before; `None`
    /// otherwise. Determines the version to restore, and records a newer build that gave the deployed version again.
    fn next_step_if_deployed_or_failed_before(&mut self) -> Option<NextStep> {
        let history = self.context.history;
        if let Some(status) = &self.before
            && self.version.is_certainly_the_deployed_version(status)
        {
            let was_ready = self
                .version
                .spec_digest()
                .is_some_and(|digest| history.was_last_ready(&self.id, digest));
            if let Some(digest) = self.version.spec_digest()
                && FunctionVersion::of_deployed_function(status)
                    .usable_build_times()
                    .is_older_than(&self.hand_over.build_times())
            {
                let newer_build = NewerBuildOfDeployedVersion {
                    spec_digest: digest.to_owned(),
                    times: self.hand_over.build_times(),
                    call_id: self.hand_over.call_id.clone(),
                };
                history.record_newer_build_of_deployed_version(&self.id, newer_build);
            }
            self.last_good = match LastGoodVersion::from_annotations(status.annotations()) {
                // If it has stopped working, that is not because it is new: no older version is restored.
                _ if was_ready => Some(self.version.clone()),
                Some(LastGoodVersion::Nothing) => None,
                Some(LastGoodVersion::Version(version)) => Some(*version),
                Some(LastGoodVersion::Itself) | None => Some(self.version.clone()),
            };
            self.may_coexist = !was_ready
                && !matches!(
                    LastGoodVersion::from_annotations(status.annotations()),
                    Some(LastGoodVersion::Nothing | LastGoodVersion::Itself)
                );
            return Some(NextStep::Watch);
        }
        let stored = self
            .before
            .as_ref()
            .and_then(|status| PermanentFailureRecord::from_annotations(status.annotations()));
        let delivery = self.hand_over.digest_shared_by_redeliveries();
        [stored, history.last_permanent_failure(&self.id)]
            .into_iter()
            .flatten()
            .find(|failure| Some(&failure.delivery) == delivery.as_ref())
            .map(NextStep::RepeatFailure)
    }

    /// Returns the last good version if the version deployed after it does not work. A version that answers is
    /// not broken, even if it may be the last good one that answers in its place.
    async fn last_good_if_deployed_is_broken(&self) -> Option<FunctionVersion> {
        match self
            .assess_deployed_version_good_if_no_other_to_restore(self.before.as_ref()?)
            .await
        {
            DeployedAssessment::Broken { last_good } => Some(last_good),
            DeployedAssessment::Good | DeployedAssessment::Unverified { .. } => None,
        }
    }

    /// Returns a reason to reject the hand-over if it is an older build than the deployed one.
    fn rejection_if_older_than_deployed(&self) -> Option<OlderBuildRejection> {
        let deployed = FunctionVersion::of_deployed_function(self.before.as_ref()?);
        let newer_build = deployed
            .spec_digest()
            .and_then(|digest| self.context.history.newest_build_of_version(&self.id, digest));
        let (theirs, call_id) = match newer_build {
            Some(newest) => (newest.times, newest.call_id),
            None => (
                deployed.usable_build_times(),
                deployed.call_id().map(str::to_owned),
            ),
        };
        let ours = self.hand_over.build_times();
        // Deliveries of one call are one build, whatever their times.
        let is_same_call = call_id.is_some() && call_id == self.hand_over.call_id;
        (!is_same_call && ours.is_older_than(&theirs)).then(|| OlderBuildRejection {
            reason: format!(
                "a newer build is deployed: {}, {}{}; this one was {}",
                deployed.image(),
                theirs.ordering_time_as_phrase(),
                call_id
                    .as_ref()
                    .map(|call| format!(" by the call {call}"))
                    .unwrap_or_default(),
                ours.ordering_time_as_phrase()
            ),
            newer: SuccessorCallId { call_id },
        })
    }

    /// Reads the namespaces from the gateway, and returns an objection if the hand-over names one that does not exist.
    /// `None` also if the provider does not list namespaces.
    pub(super) async fn objection_if_namespace_missing(&self) -> Result<Option<String>, GatewayReadError> {
        let Some(namespace) = &self.address.namespace else {
            return Ok(None);
        };
        let namespaces = self
            .read_names_with_retries_if_listed(call::namespaces_request)
            .await?;
        let missing = namespaces.is_some_and(|namespaces| !namespaces.contains(namespace));
        Ok(missing.then(|| format!("the namespace {namespace:?} does not exist, or may not have functions")))
    }

    /// Adds an objection for each secret of the hand-over that certainly does not exist. Returns the names of those
    /// that the provider leaves out of its list but may have; none if it has no such list.
    pub(super) async fn add_secret_objections_and_return_unlisted(
        &self,
        objections: &mut Vec<String>,
    ) -> Result<Vec<&str>, GatewayReadError> {
        let wanted = &self.hand_over.spec.secrets;
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let namespace = self.address.namespace.as_deref();
        match self
            .read_names_with_retries_if_listed(|| call::secrets_request(namespace))
            .await?
        {
            Some(existing) => {
                let unlisted = wanted.iter().filter(|name| !existing.contains(name));
                let unlisted: Vec<_> = unlisted.map(String::as_str).collect();
                if unlisted.is_empty() {
                    return Ok(unlisted);
                }
                let provider = self.read_provider_name_once().await;
                if provider.is_some_and(ProviderName::lists_all_secrets) {
                    let missing = unlisted.iter();
                    objections.extend(missing.map(|name| format!("the secret {name:?} does not exist")));
                    return Ok(Vec::new());
                }
                info!(secrets = ?unlisted, "the provider does not list these secrets, and may have them all the same");
                Ok(unlisted)
            }
            None => {
                info!("did not check the secrets: the provider does not list them");
                Ok(wanted.iter().map(String::as_str).collect())
            }
        }
    }

    /// Adds an objection if the function's annotations would be too large.
    pub(super) fn add_annotation_size_objection(&self, objections: &mut Vec<String>) {
        let largest = LastGoodVersion::Version(Box::new(
            self.last_good.clone().unwrap_or_else(|| self.version.clone()),
        ));
        let size = self.version.size_of_annotations(&largest);
        if size > ANNOTATIONS_MAX_BYTES {
            objections.push(format!(
                "the specification is too large: with the previous one it takes {size} bytes of annotations, and \
                 {ANNOTATIONS_MAX_BYTES} are allowed"
            ));
        }
    }

    /// Returns the version to restore if the new one fails: the deployed version if it certainly works, or else
    /// the last good one that its annotations carry. If they carry none, returns the deployed version all the
    /// same.
    async fn determine_version_to_restore(&self, status: &FunctionStatus) -> FunctionVersion {
        match self
            .assess_deployed_version_good_if_no_other_to_restore(status)
            .await
        {
            DeployedAssessment::Good => FunctionVersion::of_deployed_function(status),
            DeployedAssessment::Unverified { last_good } | DeployedAssessment::Broken { last_good } => {
                info!(
                    image = last_good.image(),
                    "the deployed version does not work, or is not known to: the one before it stays the last good one"
                );
                last_good
            }
        }
    }

    /// Assesses whether the deployed version works. If its annotations carry no last good version, it counts as
    /// good.
    async fn assess_deployed_version_good_if_no_other_to_restore(
        &self,
        status: &FunctionStatus,
    ) -> DeployedAssessment {
        let deployed = FunctionVersion::of_deployed_function(status);
        let Some(digest) = deployed.spec_digest() else {
            return DeployedAssessment::Good;
        };
        let Some(LastGoodVersion::Version(carried)) = LastGoodVersion::from_annotations(status.annotations())
        else {
            return DeployedAssessment::Good;
        };
        if self.context.history.was_last_ready(&self.id, digest) {
            return DeployedAssessment::Good;
        }
        match self.watch_deployed_version_for_settle_time(&deployed).await {
            Some(ready)
                if ready.recognized || self.provider_removes_old_version_before_answering_update().await =>
            {
                DeployedAssessment::Good
            }
            Some(_) => DeployedAssessment::Unverified { last_good: *carried },
            None => DeployedAssessment::Broken { last_good: *carried },
        }
    }

    /// Watches a deployed version for the settle time, which allows for a gateway that is briefly unavailable; returns
    /// it if it is ready by then.
    async fn watch_deployed_version_for_settle_time(
        &self,
        version: &FunctionVersion,
    ) -> Option<ReadyVersion> {
        let timeouts = RolloutPartTimeouts {
            request: self.context.timeouts.request.min(PROBE_OF_DEPLOYED_TIMEOUT),
            ..*self.context.timeouts
        };
        // The check as a whole ends when a newer build waits.
        let succession = SuccessorReceiver::without_successor();
        let mut waiting_for = WaitingFor::default();
        let watched = WatchedVersion {
            timeouts: &timeouts,
            ..self.watched_with_one_replica_and_no_stay_up(version)
        };
        let watching = watch::watch_version_until_ready(&watched, &succession, &mut waiting_for);
        match tokio::time::timeout(timeouts.settle, watching).await {
            Ok(WatchEndBeforeTimeout::Ready(ready)) => Some(ready),
            Ok(
                WatchEndBeforeTimeout::NotTaken(_)
                | WatchEndBeforeTimeout::Stuck(_)
                | WatchEndBeforeTimeout::Superseded(_),
            )
            | Err(_) => None,
        }
    }

    /// Reads a list of names from the gateway, with retries.
    async fn read_names_with_retries_if_listed(
        &self,
        request: impl Fn() -> Result<Request<Bytes>, GatewayError>,
    ) -> Result<Option<Vec<String>>, GatewayReadError> {
        let timeouts = self.context.timeouts;
        read::read_retrying_transient_errors(timeouts.read_retries, || {
            gateway::read_names_if_provider_lists_them(self.context.transport, request(), timeouts.request)
        })
        .await
    }
}

/// Returns the step that ends the rollout as refused, for these objections.
fn refusal_with(objections: Vec<String>) -> NextStep {
    NextStep::End(Verdict::refused_by_fault_of_caller(Findings::from(objections)))
}
