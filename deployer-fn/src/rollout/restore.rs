//! Puts back what was there before a version that does not run, and sees that it works.

use std::sync::atomic::Ordering;

use function_host::trace;
use tokio::time::Instant;
use tracing::{info, warn};

use super::apply::{self, Applied};
use super::pace::Pace;
use super::watch::{self, Waiting, Watched};
use super::{Limits, Rollout};
use crate::error::chain;
use crate::gateway::{FunctionStatus, Transport, call};
use crate::outcome::{Fault, Status};
use crate::version::{LastGood, Version};

/// How putting back ended.
enum Restored {
    /// What was there before is there again, and answers; or there is nothing, as before.
    Done(Option<FunctionStatus>),
    /// Somebody else has deployed something meanwhile: that is left alone.
    Taken(FunctionStatus),
}

impl<T: Transport> Rollout<'_, T> {
    /// Puts back what was there before, within a time of its own.
    ///
    /// Not when it is the process that ends: the new version may only need longer, and it may be the deployer's own. The next
    /// delivery finds it and goes on.
    pub(super) async fn put_back(&mut self) {
        if self.deadline.cut_short() {
            let now = self.last_look().await;
            self.outcome.fault = Some(Fault::Platform);
            return self.tell(now);
        }
        let failure = self.failure();
        self.deadline = self.deadline.anew(self.ground.limits.rollback);
        let begun = Instant::now();
        let mut waiting = Waiting::default();
        let step = trace::span("roll back");
        let restored = step.run(self.deadline.bound(self.restore(&mut waiting))).await;
        self.outcome.durations.restore = begun.elapsed();
        if restored.is_none() {
            step.mark_failed(format_args!("{}: {waiting}", self.deadline.why()));
        }
        drop(step);
        match restored {
            // It was only late: there is nothing older to put back.
            Some(Restored::Done(Some(now))) if self.version.is_surely_in(&now) => self.ready(&now),
            Some(Restored::Done(now)) => {
                self.outcome.status = Status::RolledBack;
                self.ground.memory.ended(&self.target.key(), failure);
                self.ground.memory.owes(&self.target.key(), None);
                match (&now, &self.last_good) {
                    (Some(now), Some(version)) => {
                        let text = format!("what was there before runs again: {}", now.image);
                        let whole = version.is_whole();
                        self.reason(text);
                        if !whole {
                            self.reason(
                                "it had not been deployed by Slipway, and the gateway does not show all of it: environment \
                                 variables may have been lost if it had to be put back",
                            );
                        }
                    }
                    _ => self.reason("there is no such function now, as before"),
                }
                self.told(now.as_ref());
            }
            Some(Restored::Taken(now)) => {
                self.reason("somebody else has deployed the function meanwhile: that is left alone");
                self.tell(Ok(now.into()));
            }
            None => {
                let why = match &self.last_good {
                    Some(version) => format!(
                        "what was there before, {}, could not be brought to run again within the time for it: {waiting}",
                        version.image()
                    ),
                    None => "the new version could not be removed within the time for it".to_owned(),
                };
                warn!(reason = why, "not rolled back");
                self.reason(why);
                self.outcome.status = Status::Failed;
                self.outcome.fault = Some(Fault::Platform);
                self.ground
                    .memory
                    .owes(&self.target.key(), self.last_good.clone());
                let now = self.last_look().await;
                self.tell(now);
            }
        }
    }

    /// Sees that what was put back after the same delivery failed is up: the process that put it back may have ended before
    /// it was.
    pub(super) async fn repeat(&mut self) {
        let Some(current) = self.before.as_ref().map(Version::in_place) else {
            return;
        };
        let mut waiting = Waiting::default();
        let watched = self
            .deadline
            .bound(self.watch_restored(&current, &mut waiting))
            .await;
        if let Some(Watched::Ready(status)) = watched {
            return self.told(Some(&status));
        }
        self.outcome.status = Status::Failed;
        self.fail(Fault::Platform, format!("what runs now does not work: {waiting}"));
        let now = self.last_look().await;
        self.tell(now);
    }

    /// Finishes the rollout of a newer version that another process began: it is given the time to come up, and what was there
    /// before it is put back where it does not. The hand-over itself is refused, as `older` than that.
    pub(super) async fn finish(&mut self, older: String) {
        let Some(current) = self.before.as_ref().map(Version::in_place) else {
            return;
        };
        self.refuse(vec![older]);
        let mut waiting = Waiting::default();
        let watched = self
            .deadline
            .bound(self.watch_restored(&current, &mut waiting))
            .await;
        match watched {
            Some(Watched::Ready(status)) => return self.told(Some(&status)),
            Some(Watched::NotTaken(_)) => return self.reason("somebody else is deploying the function"),
            None if self.deadline.cut_short() => return,
            None => self.reason(format!("the newer build does not work, however: {waiting}")),
        }
        self.outcome.changed = true;
        // It is not this delivery that failed.
        self.outcome.fault = Some(Fault::Platform);
        self.put_back().await;
        if self.outcome.status == Status::RolledBack {
            self.outcome.status = Status::Refused;
            self.outcome.fault = Some(Fault::Caller);
        }
    }

    /// Goes on until it is done. It looks before each step, and acts on what there is.
    async fn restore(&self, waiting: &mut Waiting) -> Restored {
        let Limits {
            request, rollback, ..
        } = *self.ground.limits;
        let transport = self.ground.transport;
        let mut pace = Pace::new();
        loop {
            let now = match self.target.look_patiently(transport, request, rollback).await {
                Ok(now) => now,
                Err(error) => {
                    *waiting = Waiting::Unknown(chain(&error));
                    pace.pause().await;
                    continue;
                }
            };
            match (&now, &self.last_good) {
                (None, None) => return Restored::Done(None),
                (Some(status), Some(version)) if version.is_in(status) => {
                    // A version that is put back in place of itself is only started anew. That is for one that does not
                    // come up by itself: a provider may keep a function that it could not start.
                    let watching = self.watch_restored(version, waiting);
                    match tokio::time::timeout(rollback / 2, watching).await {
                        Ok(Watched::Ready(status)) => return Restored::Done(Some(status)),
                        Ok(Watched::NotTaken(_)) => continue,
                        Err(_) => self.apply_again(version, true, waiting).await,
                    }
                }
                (Some(status), _) if !self.is_of_this_rollout(status) => {
                    return Restored::Taken(status.clone());
                }
                (now, Some(version)) => self.apply_again(version, now.is_some(), waiting).await,
                (Some(_), None) => self.remove().await,
            }
            pace.pause().await;
        }
    }

    /// Whether what is there came of this rollout, or was there before it.
    fn is_of_this_rollout(&self, status: &FunctionStatus) -> bool {
        let was_before = self
            .before
            .as_ref()
            .is_some_and(|before| Version::in_place(before).is_in(status));
        self.version.is_in(status) || was_before
    }

    async fn apply_again(&self, version: &Version, there_is_one: bool, waiting: &mut Waiting) {
        info!(image = version.image(), "putting back what was there before");
        self.restoring.store(true, Ordering::Relaxed);
        let body = version.body(&LastGood::Itself, self.failure().as_ref());
        // Where this is not answered, there is time to do it again.
        let half = self.deadline.anew(self.ground.limits.rollback / 2);
        let applied = apply::apply(self.ground.transport, &self.target, &body, there_is_one, &half).await;
        match applied {
            Applied::Accepted(_) => {
                // Until the provider names it, which it may do late.
                self.watch_restored(version, waiting).await;
            }
            Applied::Refused(reason) | Applied::Unclear(_, reason) => {
                warn!(reason, "not put back yet");
                *waiting = Waiting::Unknown(reason);
            }
        }
    }

    async fn watch_restored(&self, version: &Version, waiting: &mut Waiting) -> Watched {
        watch::watch(
            self.ground.transport,
            &self.target,
            version,
            self.ground.limits,
            waiting,
        )
        .await
    }

    async fn remove(&self) {
        info!("removing the new version: there was none before");
        self.restoring.store(true, Ordering::Relaxed);
        let request = || call::delete(&self.target.name, self.target.namespace.as_deref());
        match apply::send(self.ground.transport, request, &self.deadline).await {
            Ok(answer) => info!(status = answer.status().as_u16(), "asked for its removal"),
            Err(error) => warn!(reason = chain(&error), "not removed yet"),
        }
    }
}
