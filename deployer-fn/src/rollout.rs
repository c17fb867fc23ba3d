//! Brings one image to run: looks, applies, reads back, watches and asks the function itself.
//!
//! What is relied upon, and why:
//! - An update comes first, and a creation where the answer is 404: providers have no "already exists" (pitfall 24).
//! - It always carries the whole specification (pitfall 25), by digest (28), and a mark of it as an annotation.
//! - No answer to an update is believed: what is read back decides. faas-netes says 200 to an update that it did not
//!   make (22), faasd removes the running function when an update fails (23). After a failure the outcome therefore
//!   says what there is now, as far as it can be learnt.
//! - Ready means: the provider names the new image and counts a replica, and the function answers its health path
//!   through the gateway. On Kubernetes that replica, and that answer, may be the old version's for as long as both run
//!   (26): the REST API does not tell them apart.
//!
//! Delivered again, the same hand-over changes nothing and waits for the same end. Nothing is put back after a failure.

mod apply;
mod deadline;
mod pace;
mod watch;

use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use self::apply::Applied;
pub use self::deadline::Deadline;
use self::watch::{Waiting, Watched};
use crate::error::chain;
use crate::gateway::{self, FunctionStatus, ReadError, Transport};
use crate::outcome::{Durations, Fault, Outcome, Running, Status};
use crate::request::HandOver;

/// How long the steps of a rollout may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// One question to the gateway or to the function.
    pub request: Duration,
    /// How long the provider may go on naming the image from before: it answers from a cache of its own.
    pub settle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(10),
            settle: Duration::from_secs(10),
        }
    }
}

/// What is read at the very end has to be read quickly: the time is up.
const LAST_LOOK: Duration = Duration::from_secs(2);

/// Brings what was handed over to run, and says what became of it. `url` is where the function will be called.
///
/// Dropping the future stops it where it is: what was sent stays sent.
pub async fn rollout<T: Transport>(
    transport: &T,
    hand_over: &HandOver,
    limits: &Limits,
    deadline: &Deadline,
    url: String,
) -> Outcome {
    let spec = &hand_over.spec;
    let begun = Instant::now();
    let mut rollout = Rollout {
        transport,
        hand_over,
        limits,
        deadline,
        before: None,
        outcome: Outcome {
            function: spec.service.clone(),
            namespace: spec.namespace.clone(),
            image: spec.image.to_string(),
            previous_image: None,
            status: Status::Failed,
            changed: false,
            running: Running::Unknown,
            url,
            durations: Durations::default(),
            reasons: Vec::new(),
            fault: Some(Fault::Platform),
        },
    };
    info!(image = %spec.image, tag = hand_over.tag.as_deref(), "deployment begins");
    rollout.run().await;
    let mut outcome = rollout.outcome;
    outcome.durations.total = begun.elapsed();
    match outcome.status {
        Status::Ready => info!(
            changed = outcome.changed,
            seconds = outcome.durations.total.as_secs_f64(),
            "the function is ready"
        ),
        _ => {
            warn!(status = ?outcome.status, fault = ?outcome.fault, reasons = ?outcome.reasons, "the function is not ready")
        }
    }
    outcome
}

/// One rollout under way.
struct Rollout<'a, T> {
    transport: &'a T,
    hand_over: &'a HandOver,
    limits: &'a Limits,
    deadline: &'a Deadline,
    before: Option<FunctionStatus>,
    outcome: Outcome,
}

impl<T: Transport> Rollout<'_, T> {
    async fn run(&mut self) {
        let begun = Instant::now();
        let looked = self.deadline.bound(self.look(self.limits.request)).await;
        self.outcome.durations.check = begun.elapsed();
        self.before = match looked {
            Some(Ok(before)) => before,
            Some(Err(error)) => {
                return self.fail(Fault::Platform, format!("nothing was changed: {}", chain(&error)));
            }
            None => {
                return self.fail(
                    Fault::Platform,
                    format!("nothing was changed: {}", self.deadline.why()),
                );
            }
        };
        self.outcome.previous_image = self.before.as_ref().map(|status| status.image.clone());

        if self
            .before
            .as_ref()
            .is_some_and(|before| before.is_known_to_be(&self.hand_over.spec))
        {
            info!("the function has this image and specification already");
            self.reason("the function has this image and specification already: nothing was changed");
            return self.watch(None, Fault::Caller).await;
        }
        self.outcome.changed = true;
        let begun = Instant::now();
        let applied = apply::apply(self.transport, self.hand_over, self.deadline).await;
        self.outcome.durations.apply = begun.elapsed();
        match applied {
            Applied::Accepted(said) => self.watch(Some(said), Fault::Caller).await,
            Applied::Refused(reason) => self.refused(reason).await,
            Applied::Unclear(reason) => self.unclear(reason).await,
        }
    }

    /// The provider said that it will not have it. faasd has removed the function by then (pitfall 23).
    async fn refused(&mut self, reason: String) {
        self.reason(reason);
        let now = self.last_look().await;
        if matches!(&now, Ok(now) if *now == self.before) {
            self.outcome.changed = false;
            self.outcome.status = Status::Refused;
        }
        self.outcome.fault = Some(Fault::Caller);
        self.tell(now);
    }

    /// Nobody knows whether the provider did it. Where it did, there is something to watch.
    async fn unclear(&mut self, reason: String) {
        self.reason(reason);
        let now = self.last_look().await;
        match now {
            Ok(Some(status)) if status.is_known_to_be(&self.hand_over.spec) => {
                self.watch(None, Fault::Platform).await;
            }
            now => self.tell(now),
        }
    }

    /// Watches to the end. `said` is what was answered to the change; `fault` is whose doing it is when a function that the
    /// provider has taken does not come up.
    async fn watch(&mut self, said: Option<String>, fault: Fault) {
        let begun = Instant::now();
        let mut waiting = Waiting::default();
        let watching = watch::watch(self.transport, &self.hand_over.spec, self.limits, &mut waiting);
        let watched = self.deadline.bound(watching).await;
        self.outcome.durations.watch = begun.elapsed();
        match watched {
            Some(Watched::Ready(status)) => {
                self.outcome.status = Status::Ready;
                self.outcome.fault = None;
                self.outcome.namespace = status.namespace.clone().or(self.outcome.namespace.take());
                self.outcome.running = Running::from(Some(&status));
            }
            Some(Watched::NotTaken(found)) => {
                let said = said
                    .map(|said| format!("the gateway answered {said}, but "))
                    .unwrap_or_default();
                self.reason(format!("{said}the provider did not take the new specification"));
                self.tell(Ok(found));
            }
            None => {
                self.reason(format!("{}: {waiting}", self.deadline.why()));
                if !self.deadline.cut_short() && !matches!(waiting, Waiting::Unknown(_)) {
                    self.outcome.fault = Some(fault);
                }
                let now = self.last_look().await;
                self.tell(now);
            }
        }
    }

    async fn look(&self, limit: Duration) -> Result<Option<FunctionStatus>, ReadError> {
        let spec = &self.hand_over.spec;
        gateway::read(self.transport, &spec.service, spec.namespace.as_deref(), limit).await
    }

    async fn last_look(&self) -> Result<Option<FunctionStatus>, ReadError> {
        self.look(self.limits.request.min(LAST_LOOK)).await
    }

    /// Says what there is now.
    fn tell(&mut self, now: Result<Option<FunctionStatus>, ReadError>) {
        match now {
            Ok(now) => {
                match (&now, &self.before) {
                    (None, Some(_)) => self.reason("the function is gone: the provider removed it"),
                    (None, None) => self.reason("there is no such function now, as before"),
                    (Some(now), _) => {
                        let text = format!(
                            "the function has the image {} now, with {} of {} replicas available",
                            now.image, now.available_replicas, now.replicas
                        );
                        self.reason(text);
                    }
                }
                if let Some(namespace) = now.as_ref().and_then(|now| now.namespace.clone()) {
                    self.outcome.namespace = Some(namespace);
                }
                self.outcome.running = Running::from(now.as_ref());
            }
            Err(error) => self.reason(format!("what runs now is not known: {}", chain(&error))),
        }
    }

    fn fail(&mut self, fault: Fault, reason: String) {
        self.outcome.fault = Some(fault);
        self.reason(reason);
    }

    fn reason(&mut self, reason: impl Into<String>) {
        self.outcome.reasons.push(reason.into());
    }
}
