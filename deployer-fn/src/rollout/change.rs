//! Applies the new version, and decides what follows: another attempt, another check, or the restoration.

use function_host::{ErrorChain, trace};
use serde_json::Value;
use tokio::time::Instant;
use tracing::info;

use super::apply::{self, Applied};
use super::backoff::Backoff;
use super::verdict::{Findings, Verdict};
use super::{ATTEMPTS, Attempt, Rollout};
use crate::gateway::{FunctionStatus, Transport};
use crate::outcome::{Fault, Running, Successor};
use crate::request::OWN_ANNOTATIONS;
use crate::version::{LastGood, Version};

/// The result of applying the new version, with all attempts and the restoration.
pub(super) enum Change {
    /// The rollout has ended with this verdict.
    Ended(Verdict),
    /// The function was changed by another client before the new version was applied, or by an older build after it.
    Outdated,
}

impl<T: Transport> Rollout<'_, T> {
    /// Applies the new version and watches it, and restores the previous one if the new one fails.
    ///
    /// A change that had no effect by a failure that may be transient is sent again: it carries the complete
    /// specification, so that repeating it is harmless.
    pub(super) async fn apply_or_restore(&mut self) -> Change {
        self.may_coexist = self.before.is_some();
        let last_good = match self.last_good.clone() {
            Some(version) => LastGood::Version(Box::new(version)),
            None => LastGood::Nothing,
        };
        let deployment = self.version.to_deployment(&last_good, None);
        let mut backoff = Backoff::new();
        let mut findings = Findings::default();
        loop {
            if let Some(successor) = self.context.succession.current_successor() {
                return Change::Ended(self.yield_to(successor, findings));
            }
            match self.is_as_before().await {
                Ok(true) => {}
                Ok(false) => return Change::Outdated,
                Err(reason) if self.facts.changed => {
                    findings = findings.followed_by(reason);
                    break;
                }
                Err(reason) => return Change::Ended(Verdict::failed(reason)),
            }
            self.facts.changed = true;
            self.facts.running = Running::Unknown;
            let (attempt, found) = self.apply_and_watch(&deployment).await;
            findings = findings.followed_by(found);
            let now = match attempt {
                Attempt::Ready => return Change::Ended(Verdict::ready(findings)),
                Attempt::Unverified => return Change::Ended(Verdict::unverified(findings)),
                Attempt::Rejected => return self.end_rejected(findings).await,
                Attempt::Superseded(successor) => return Change::Ended(self.yield_to(successor, findings)),
                Attempt::Failed => break,
                Attempt::NotTaken(now) => now,
            };
            // Another deployer had read the function before this version was applied.
            if now.as_ref().is_some_and(|now| self.is_older_build(now)) {
                return Change::Outdated;
            }
            let retry = backoff.waits() + 1 < ATTEMPTS
                && now == self.before
                && findings.fault() == Some(Fault::Platform)
                && self.deadline.run(backoff.wait()).await.is_some();
            if !retry {
                break;
            }
            info!(attempt = backoff.waits() + 1, "applying the specification again");
        }
        Change::Ended(self.restore(findings).await)
    }

    /// Reads the function's state again, and returns whether it still is the state that was checked. There may
    /// be another deployer, and the check may have taken some time. An error is the reason why it is not known.
    async fn is_as_before(&self) -> Result<bool, Findings> {
        let reading = self.read_status(self.context.timeouts.read_retries);
        let reason = match self.deadline.run(reading).await {
            Some(Ok(now)) => {
                let identity = |status: &Option<FunctionStatus>| {
                    let status = status.as_ref()?;
                    let own = status.annotations().iter();
                    let own = own.filter(|(name, _)| name.starts_with(OWN_ANNOTATIONS));
                    let own: Vec<_> = own.map(|(name, value)| (name.clone(), value.clone())).collect();
                    Some((status.image.clone(), own))
                };
                return Ok(identity(&now) == identity(&self.before));
            }
            Some(Err(error)) => ErrorChain(&error).to_string(),
            None => self.deadline.reason(),
        };
        let prefix = match self.facts.changed {
            true => "",
            false => "nothing was changed: ",
        };
        Err(Findings::new(Fault::Platform, format!("{prefix}{reason}")))
    }

    /// Returns whether another rollout has deployed an older build than this one's since this rollout began.
    fn is_older_build(&self, status: &FunctionStatus) -> bool {
        let is_before = self
            .before
            .as_ref()
            .is_some_and(|before| Version::deployed(before).matches(status));
        !is_before && Version::deployed(status).times().is_older_than(&self.times)
    }

    /// Returns the build that is deployed, if it is newer than the one that is rolled out.
    pub(super) fn newer_build(&self, status: &FunctionStatus) -> Option<Successor> {
        let deployed = Version::deployed(status);
        self.times.is_older_than(&deployed.times()).then(|| Successor {
            call_id: deployed.call_id().map(str::to_owned),
        })
    }

    /// Applies the new version once, and watches it until it is ready or has failed.
    async fn apply_and_watch(&mut self, deployment: &Value) -> (Attempt, Findings) {
        let started = Instant::now();
        let span = trace::span("apply");
        let applying = apply::apply(
            self.context.transport,
            &self.address,
            deployment,
            self.before.is_some(),
            self.deadline,
        );
        let applied = span.run(applying).await;
        self.facts.durations.apply += started.elapsed();
        if let Applied::Rejected(reason) | Applied::Unclear(_, reason) = &applied {
            span.mark_failed(reason);
        }
        drop(span);
        match applied {
            Applied::Accepted(answer) => {
                let (attempt, watched) = self.watch(Some(answer)).await;
                (attempt, Findings::with_fault(Fault::Caller).followed_by(watched))
            }
            Applied::Rejected(reason) => (Attempt::Rejected, Findings::new(Fault::Caller, reason)),
            Applied::Unclear(fault, reason) => {
                let (attempt, found) = self.look_after_unclear_answer().await;
                (attempt, Findings::new(fault, reason).followed_by(found))
            }
        }
    }

    /// Reads the function's state after an unclear answer to a change, and watches the new version if it is deployed.
    async fn look_after_unclear_answer(&mut self) -> (Attempt, Findings) {
        let now = match self
            .deadline
            .run(self.read_status(self.context.timeouts.read_retries))
            .await
        {
            Some(now) => now,
            None => self.final_read_status().await,
        };
        match now {
            Ok(Some(status)) if self.version.is_deployed(&status) => self.watch(None).await,
            Ok(now) => (Attempt::NotTaken(now), Findings::default()),
            Err(_) => (Attempt::Failed, Findings::default()),
        }
    }

    /// Ends a rollout whose specification the provider rejected. If the rejected update has deleted the
    /// function, as with faasd (docs/pitfalls.md#a-failed-update-removes-the-function), restores it.
    async fn end_rejected(&mut self, findings: Findings) -> Change {
        Change::Ended(match self.final_read_status().await {
            Ok(now) if now == self.before && self.before_is_last_good() => {
                self.facts.changed = false;
                Verdict::refused(findings.followed_by(self.record_and_describe(Ok(now))))
            }
            // faasd answers 400 to the creation of a function that another deployer has created in the meantime.
            Ok(Some(now)) if self.is_older_build(&now) => return Change::Outdated,
            _ => self.restore(findings).await,
        })
    }

    /// Returns whether the version to restore on failure is the one that was deployed before the rollout.
    fn before_is_last_good(&self) -> bool {
        match (&self.before, &self.last_good) {
            (Some(status), Some(version)) => version.matches(status),
            (None, None) => true,
            _ => false,
        }
    }
}
