//! Checks a hand-over before anything is changed: reads the function's state, and collects all objections to
//! the deployment.

use std::time::Duration;

use function_host::ErrorChain;
use function_host::gateway::GatewayError;
use function_host::{Bytes, http::Request};
use tracing::{info, warn};

use super::history::Resubmission;
use super::read;
use super::verdict::{Findings, Verdict};
use super::watch::{self, Ready, WaitingFor, Watched};
use super::{Rollout, Timeouts};
use crate::gateway::{self, FunctionStatus, ReadError, Transport, call};
use crate::outcome::{Fault, Successor};
use crate::succession::SuccessorReceiver;
use crate::version::{FailureRecord, LastGood, SIZE_MAX, Version};

/// The timeout of one request to a version that was deployed before: several requests have to fit the check.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// The step of a rollout that follows its check.
pub(super) enum NextStep {
    /// The rollout ends with this verdict, and nothing is changed.
    End(Verdict),
    /// The new version is deployed already, and is watched.
    Watch,
    /// The rollout ends, because the same hand-over failed before, as recorded. The version that was restored
    /// then may not be up yet.
    Repeat(FailureRecord),
    /// The new version may be applied.
    Apply,
    /// The hand-over is older than the deployed version, which has not been seen to work. The rollout of that version
    /// is finished.
    FinishNewer {
        /// The reason to reject the hand-over.
        older: Older,
        /// The deployed version.
        newer: Box<Version>,
    },
}

/// The rejection of a hand-over that is older than the deployed version.
pub(super) struct Older {
    reason: String,
    pub(super) newer: Successor,
}

/// The assessment of the deployed version before the rollout.
enum Assessment {
    /// The deployed version works.
    Good,
    /// The function answers, but perhaps with another version than the deployed one.
    Unverified {
        /// The version that was good before the unverified one.
        last_good: Version,
    },
    /// The deployed version does not work.
    Broken {
        /// The version that was good before the broken one.
        last_good: Version,
    },
}

impl Older {
    /// Returns the reason for the rejection as findings.
    pub(super) fn findings(&self) -> Findings {
        Findings::new(Fault::Caller, self.reason.clone())
    }

    /// Returns the verdict on the rejected hand-over, with findings about the newer version.
    pub(super) fn verdict(self, findings: Findings) -> Verdict {
        Verdict::superseded(self.newer, findings)
    }
}

impl<T: Transport> Rollout<'_, T> {
    /// Checks whether the hand-over may be applied, and decides the rollout's next step.
    pub(super) async fn check(&mut self, objections: Vec<String>) -> NextStep {
        match self.decide(objections).await {
            Ok(next) => next,
            Err(error) => {
                let reason = format!("nothing was changed: {}", ErrorChain(&error));
                NextStep::End(Verdict::failed(Findings::new(Fault::Platform, reason)))
            }
        }
    }

    async fn decide(&mut self, mut objections: Vec<String>) -> Result<NextStep, ReadError> {
        if let Some(objection) = self.missing_namespace().await? {
            objections.push(objection);
            // All further checks would read from that namespace.
            return Ok(refuse(objections));
        }
        let before = self.read_status(self.context.timeouts.read_retries).await?;
        self.facts.previous_image = before.as_ref().map(|status| status.image.clone());
        self.facts.record_state(before.as_ref());
        self.warn_of_other_default(before.as_ref());
        self.before = before;

        if objections.is_empty() {
            if let Some(next) = self.repeated_delivery() {
                return Ok(next);
            }
            if let Some(older) = self.older_than_deployed() {
                match self.last_good_before_broken().await {
                    None => {
                        let findings = older.findings();
                        return Ok(NextStep::End(older.verdict(findings)));
                    }
                    // The newer version does not work, and its deployer ended before it could restore the one before
                    // it.
                    Some(last_good) if self.hand_over.build_times().is_older_than(&last_good.times()) => {
                        self.last_good = Some(last_good);
                        if let Some(newer) = self.before.as_ref().map(Version::deployed).map(Box::new) {
                            return Ok(NextStep::FinishNewer { older, newer });
                        }
                    }
                    Some(_) => info!("the newer version does not work, and this build is the next newest"),
                }
            }
        } else {
            objections.extend(self.older_than_deployed().map(|older| older.reason));
        }
        self.check_secrets(&mut objections).await?;
        let unsettled = self.context.history.unsettled(&self.id);
        self.last_good = match (&self.before, unsettled) {
            // What an earlier rollout left unfinished is not worth another look.
            (before, Some(unsettled)) if unsettled.still_applies_to(before.as_ref()) => unsettled.last_good,
            (Some(status), _) => Some(self.last_good_of(status).await),
            (None, _) => None,
        };
        self.check_size(&mut objections);
        if objections.is_empty() {
            return Ok(NextStep::Apply);
        }
        Ok(refuse(objections))
    }

    /// Logs a warning if the provider's default namespace differs from the setting's: the function then has two
    /// identities.
    fn warn_of_other_default(&self, status: Option<&FunctionStatus>) {
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

    /// Returns the next step if the same hand-over was delivered before.
    fn repeated_delivery(&mut self) -> Option<NextStep> {
        let history = self.context.history;
        if let Some(status) = &self.before
            && self.version.is_deployed(status)
        {
            let was_ready = self
                .version
                .spec_digest()
                .is_some_and(|digest| history.was_ready(&self.id, digest));
            if let Some(digest) = self.version.spec_digest()
                && Version::deployed(status)
                    .times()
                    .is_older_than(&self.hand_over.build_times())
            {
                let resubmission = Resubmission {
                    spec_digest: digest.to_owned(),
                    times: self.hand_over.build_times(),
                    call_id: self.hand_over.call_id.clone(),
                };
                history.record_resubmission(&self.id, resubmission);
            }
            self.last_good = match LastGood::from_annotations(status.annotations()) {
                // If it has stopped working, that is not because it is new: no older version is restored.
                _ if was_ready => Some(self.version.clone()),
                Some(LastGood::Nothing) => None,
                Some(LastGood::Version(version)) => Some(*version),
                Some(LastGood::Itself) | None => Some(self.version.clone()),
            };
            self.may_coexist = !was_ready
                && !matches!(
                    LastGood::from_annotations(status.annotations()),
                    Some(LastGood::Nothing | LastGood::Itself)
                );
            return Some(NextStep::Watch);
        }
        let stored = self
            .before
            .as_ref()
            .and_then(|status| FailureRecord::from_annotations(status.annotations()));
        let delivery = self.hand_over.delivery_digest();
        [stored, history.failure(&self.id)]
            .into_iter()
            .flatten()
            .find(|failure| Some(&failure.delivery) == delivery.as_ref())
            .map(NextStep::Repeat)
    }

    /// Returns the last good version if the version deployed after it does not work. A version that answers is
    /// not broken, even if it may be the last good one that answers in its place.
    async fn last_good_before_broken(&self) -> Option<Version> {
        match self.assess(self.before.as_ref()?).await {
            Assessment::Broken { last_good } => Some(last_good),
            Assessment::Good | Assessment::Unverified { .. } => None,
        }
    }

    /// Returns a reason to reject the hand-over if it is an older build than the deployed one.
    fn older_than_deployed(&self) -> Option<Older> {
        let deployed = Version::deployed(self.before.as_ref()?);
        let resubmission = deployed
            .spec_digest()
            .and_then(|digest| self.context.history.resubmission(&self.id, digest));
        let (theirs, call_id) = match resubmission {
            Some(newest) => (newest.times, newest.call_id),
            None => (deployed.times(), deployed.call_id().map(str::to_owned)),
        };
        let ours = self.hand_over.build_times();
        // Deliveries of one call are one build, whatever their times.
        let is_same_call = call_id.is_some() && call_id == self.hand_over.call_id;
        (!is_same_call && ours.is_older_than(&theirs)).then(|| Older {
            reason: format!(
                "a newer build is deployed: {}, {}{}; this one was {}",
                deployed.image(),
                theirs.describe(),
                call_id
                    .as_ref()
                    .map(|call| format!(" by the call {call}"))
                    .unwrap_or_default(),
                ours.describe()
            ),
            newer: Successor { call_id },
        })
    }

    /// Returns an objection if the hand-over's namespace does not exist.
    pub(super) async fn missing_namespace(&self) -> Result<Option<String>, ReadError> {
        let Some(namespace) = &self.address.namespace else {
            return Ok(None);
        };
        let namespaces = self.read_names(call::namespaces_request).await?;
        let missing = namespaces.is_some_and(|namespaces| !namespaces.contains(namespace));
        Ok(missing.then(|| format!("the namespace {namespace:?} does not exist, or may not have functions")))
    }

    /// Adds an objection for each secret of the hand-over that does not exist.
    pub(super) async fn check_secrets(&self, objections: &mut Vec<String>) -> Result<(), ReadError> {
        let wanted = &self.hand_over.spec.secrets;
        if wanted.is_empty() {
            return Ok(());
        }
        let namespace = self.address.namespace.as_deref();
        match self.read_names(|| call::secrets_request(namespace)).await? {
            Some(existing) => {
                let missing = wanted.iter().filter(|name| !existing.contains(name));
                objections.extend(missing.map(|name| format!("the secret {name:?} does not exist")));
            }
            None => info!("did not check the secrets: the provider does not list them"),
        }
        Ok(())
    }

    /// Adds an objection if the function's annotations would be too large.
    pub(super) fn check_size(&self, objections: &mut Vec<String>) {
        let largest = LastGood::Version(Box::new(
            self.last_good.clone().unwrap_or_else(|| self.version.clone()),
        ));
        let size = self.version.size_of_annotations(&largest);
        if size > SIZE_MAX {
            objections.push(format!(
                "the specification is too large: with the previous one it takes {size} bytes of annotations, and \
                 {SIZE_MAX} are allowed"
            ));
        }
    }

    /// Returns the version to restore if the new one fails: the deployed version if it certainly works, or else
    /// the last good one that its annotations carry. If they carry none, returns the deployed version all the
    /// same.
    async fn last_good_of(&self, status: &FunctionStatus) -> Version {
        match self.assess(status).await {
            Assessment::Good => Version::deployed(status),
            Assessment::Unverified { last_good } | Assessment::Broken { last_good } => {
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
    async fn assess(&self, status: &FunctionStatus) -> Assessment {
        let deployed = Version::deployed(status);
        let Some(digest) = deployed.spec_digest() else {
            return Assessment::Good;
        };
        let Some(LastGood::Version(carried)) = LastGood::from_annotations(status.annotations()) else {
            return Assessment::Good;
        };
        if self.context.history.was_ready(&self.id, digest) {
            return Assessment::Good;
        }
        match self.becomes_ready(&deployed).await {
            Some(ready) if ready.recognized || self.replaces_before_answering().await => Assessment::Good,
            Some(_) => Assessment::Unverified { last_good: *carried },
            None => Assessment::Broken { last_good: *carried },
        }
    }

    /// Watches a deployed version for the settle time, which allows for a gateway that is briefly unavailable.
    async fn becomes_ready(&self, version: &Version) -> Option<Ready> {
        let timeouts = Timeouts {
            request: self.context.timeouts.request.min(REQUEST_TIMEOUT),
            ..*self.context.timeouts
        };
        // The check as a whole ends when a newer build waits.
        let succession = SuccessorReceiver::none();
        let mut waiting_for = WaitingFor::default();
        let watching = watch::watch(
            self.context.transport,
            &self.address,
            version,
            &timeouts,
            &succession,
            &mut waiting_for,
        );
        match tokio::time::timeout(timeouts.settle, watching).await {
            Ok(Watched::Ready(ready)) => Some(ready),
            Ok(Watched::NotTaken(_) | Watched::Superseded(_)) | Err(_) => None,
        }
    }

    /// Reads a list of names from the gateway, with retries.
    async fn read_names(
        &self,
        request: impl Fn() -> Result<Request<Bytes>, GatewayError>,
    ) -> Result<Option<Vec<String>>, ReadError> {
        let timeouts = self.context.timeouts;
        read::with_retries(timeouts.read_retries, || {
            gateway::read_names(self.context.transport, request(), timeouts.request)
        })
        .await
    }
}

/// Returns the rollout's end as refused, for these objections.
fn refuse(objections: Vec<String>) -> NextStep {
    NextStep::End(Verdict::refused(Findings::from(objections)))
}
