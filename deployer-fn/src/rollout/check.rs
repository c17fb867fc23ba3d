//! What is looked at before anything is changed.

use std::time::Duration;

use tracing::info;

use super::pace::Pace;
use super::watch::{self, Waiting, Watched};
use super::{Limits, Rollout};
use crate::error::chain;
use crate::gateway::{self, FunctionStatus, ReadError, Transport, call};
use crate::outcome::{Fault, Status};
use crate::time;
use crate::version::{Failure, LastGood, SIZE_MAX, Version};

/// How long one question may take to a version that worked before: several have to have their time.
const QUESTION: Duration = Duration::from_secs(2);

/// What a check leads to.
pub(super) enum Next {
    /// The outcome is known: nothing is to be changed.
    End,
    /// It has been applied already.
    Watch,
    /// It failed before. What was put back then is there, and may not be up yet.
    Repeat,
    /// It may be applied.
    Apply,
    /// It is older than what there is, as this says, and nobody has seen to it that that works.
    Finish(String),
}

impl<T: Transport> Rollout<'_, T> {
    /// Looks for everything that speaks against the change, and at what there is now.
    pub(super) async fn check(&mut self, objections: Vec<String>) -> Next {
        match self.look_around(objections).await {
            Ok(next) => next,
            Err(error) => {
                self.fail(Fault::Platform, format!("nothing was changed: {}", chain(&error)));
                Next::End
            }
        }
    }

    async fn look_around(&mut self, mut objections: Vec<String>) -> Result<Next, ReadError> {
        let limits = self.ground.limits;
        if let Some(namespace) = &self.target.namespace
            && let Some(namespaces) = self.names(call::namespaces).await?
            && !namespaces.contains(namespace)
        {
            objections.push(format!("there is no namespace {namespace:?} for functions"));
            // The rest would be asked of that namespace.
            return Ok(self.refuse(objections));
        }
        let before = self
            .target
            .look_patiently(self.ground.transport, limits.request, limits.patience)
            .await?;
        self.outcome.previous_image = before.as_ref().map(|status| status.image.clone());
        self.told(before.as_ref());
        self.before = before;

        if objections.is_empty() {
            if let Some(next) = self.known_already() {
                return Ok(next);
            }
            if let Some(older) = self.older() {
                match self.newer_that_never_worked().await {
                    None => return Ok(self.refuse(vec![older])),
                    // Nobody has finished with the newer one: its deployer was ended meanwhile.
                    Some(last_good) if last_good.built_at() > self.hand_over.built_at => {
                        self.last_good = Some(last_good);
                        return Ok(Next::Finish(older));
                    }
                    Some(_) => info!("the newer version does not work, and this is the next newest"),
                }
            }
        } else if let Some(older) = self.older() {
            objections.push(older);
        }
        self.look_for_secrets(&mut objections).await?;
        self.last_good = match &self.before {
            Some(status) => Some(self.last_good_of(status).await),
            // What could not be put back last time is still what should be there.
            None => self.ground.memory.owed(&self.target.key()),
        };
        let largest = LastGood::Version(Box::new(
            self.last_good.clone().unwrap_or_else(|| self.version.clone()),
        ));
        let size = Version::size_of_annotations(&self.version.body(&largest, None));
        if size > SIZE_MAX {
            objections.push(format!(
                "the specification is too large: its annotations, with the specification itself and the one before it \
                 kept in them, have {size} bytes, and {SIZE_MAX} are allowed"
            ));
        }
        if objections.is_empty() {
            return Ok(Next::Apply);
        }
        Ok(self.refuse(objections))
    }

    /// Whether the end, or the way to it, is known from an earlier delivery.
    fn known_already(&mut self) -> Option<Next> {
        let noted = self
            .before
            .as_ref()
            .and_then(|status| Failure::noted(status.notes()));
        let remembered = self.ground.memory.failure(&self.target.key());
        let delivery = self.hand_over.delivery();
        let failure = [noted, remembered]
            .into_iter()
            .flatten()
            .find(|failure| Some(&failure.delivery) == delivery.as_ref());
        if let Some(status) = &self.before
            && self.version.is_surely_in(status)
        {
            let known_good = self
                .version
                .mark()
                .is_some_and(|mark| self.ground.memory.has_answered(&self.target.key(), mark));
            self.last_good = match LastGood::noted(status.notes()) {
                // It worked before: what troubles it now is not that it is new.
                _ if known_good => Some(self.version.clone()),
                Some(LastGood::Nothing) => None,
                Some(LastGood::Version(version)) => Some(*version),
                Some(LastGood::Itself) | None => Some(self.version.clone()),
            };
            return Some(Next::Watch);
        }
        if let Some(failure) = failure {
            info!("this delivery has failed before");
            self.outcome.status = Status::RolledBack;
            self.outcome.fault = Some(Fault::Caller);
            self.outcome.previous_image = failure.previous_image;
            self.outcome.reasons = failure.reasons;
            self.reason("delivered again after it had failed: nothing was changed");
            return Some(Next::Repeat);
        }
        None
    }

    /// The last good version, where what there is now came after it and does not work.
    async fn newer_that_never_worked(&self) -> Option<Version> {
        let status = self.before.as_ref()?;
        let last_good = self.last_good_of(status).await;
        (!last_good.is_in(status)).then_some(last_good)
    }

    /// Why the hand-over is older than what there is, where it is.
    fn older(&self) -> Option<String> {
        let current = Version::in_place(self.before.as_ref()?);
        let (there, here) = (current.built_at()?, self.hand_over.built_at?);
        (there > here).then(|| {
            format!(
                "a newer build has been deployed: {} built at {}{}, and this one was built at {}",
                current.image(),
                time::format_millis(there),
                current
                    .call_id()
                    .map(|call| format!(" by the call {call}"))
                    .unwrap_or_default(),
                time::format_millis(here)
            )
        })
    }

    async fn look_for_secrets(&self, objections: &mut Vec<String>) -> Result<(), ReadError> {
        let wanted = &self.hand_over.spec.secrets;
        if wanted.is_empty() {
            return Ok(());
        }
        let namespace = self.target.namespace.as_deref();
        match self.names(|| call::secrets(namespace)).await? {
            Some(there) => {
                let missing = wanted.iter().filter(|name| !there.contains(name));
                objections.extend(missing.map(|name| format!("there is no secret {name:?}")));
            }
            None => info!("the provider has no list of secrets: they are not looked for"),
        }
        Ok(())
    }

    /// What is put back if the new version fails: the current one where it works, or else the last good one that it
    /// carries. Without either, the current one: it is what there was.
    async fn last_good_of(&self, status: &FunctionStatus) -> Version {
        let current = Version::in_place(status);
        let Some(mark) = current.mark() else {
            return current;
        };
        let Some(LastGood::Version(carried)) = LastGood::noted(status.notes()) else {
            return current;
        };
        if self.ground.memory.has_answered(&self.target.key(), mark) || self.works(&current).await {
            return current;
        }
        info!(
            image = carried.image(),
            "the current version does not work: the one before it is kept as the last good one"
        );
        *carried
    }

    /// Whether a version works. A gateway that is in trouble for a moment does not speak against it.
    async fn works(&self, version: &Version) -> bool {
        let limits = Limits {
            request: self.ground.limits.request.min(QUESTION),
            ..*self.ground.limits
        };
        let mut waiting = Waiting::default();
        let watching = watch::watch(
            self.ground.transport,
            &self.target,
            version,
            &limits,
            &mut waiting,
        );
        let watched = tokio::time::timeout(limits.settle, watching).await;
        matches!(watched, Ok(Watched::Ready(_)))
    }

    /// A list of the gateway's. To ask changes nothing, so it may be done again.
    async fn names(
        &self,
        list: impl Fn() -> function_host::http::Request<function_host::Bytes>,
    ) -> Result<Option<Vec<String>>, ReadError> {
        let begun = tokio::time::Instant::now();
        let limits = self.ground.limits;
        let mut pace = Pace::new();
        loop {
            match gateway::names(self.ground.transport, &list, limits.request).await {
                Err(error) if error.may_pass() && begun.elapsed() < limits.patience => pace.pause().await,
                answer => return answer,
            }
        }
    }

    pub(super) fn refuse(&mut self, objections: Vec<String>) -> Next {
        self.outcome.status = Status::Refused;
        self.outcome.fault = Some(Fault::Caller);
        self.outcome.reasons = objections;
        Next::End
    }
}
