//! Brings one image to run: checks, applies, reads back, watches, asks the function itself, and puts back what was there
//! before where that fails.
//!
//! What is relied upon, and why:
//! - Everything that can be wrong is looked for before anything is changed, and told at once.
//! - An update comes first, and a creation where the answer is 404: providers have no "already exists" (pitfall 24).
//! - It always carries the whole specification (pitfall 25), by digest (28), and as annotations all that it takes to put
//!   it, and the last good one before it, back ([`crate::version`]).
//! - No answer to an update is believed: what is read back decides. faas-netes says 200 to an update that it did not
//!   make (22), faasd removes the running function when an update fails (23).
//! - Ready means: the provider names the new image and counts a replica, and the function answers its probe through the
//!   gateway. On Kubernetes that replica, and that answer, may be the old version's for as long as both run (26): the REST
//!   API does not tell them apart. A function that tells its own version in its answers does.
//!
//! Delivered again, the same hand-over changes nothing and reports the same. A rollout that was cut off, because its process
//! ended, is found by the next delivery, which goes on from what there is: it never began from anything else.

mod apply;
mod check;
mod deadline;
mod memory;
mod pace;
mod restore;
mod target;
mod watch;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use function_host::trace;
use tokio::time::Instant;
use tracing::{info, warn};

use self::apply::Applied;
use self::check::Next;
pub use self::deadline::Deadline;
pub use self::memory::Memory;
use self::pace::Pace;
use self::target::Target;
use self::watch::{Waiting, Watched};
use crate::error::chain;
use crate::gateway::{FunctionStatus, ReadError, Transport};
use crate::outcome::{Durations, Fault, Outcome, Running, Status};
use crate::request::HandOver;
use crate::version::{Failure, LastGood, Version};

/// How long the steps of a rollout may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// One question to the gateway or to the function.
    pub request: Duration,
    /// How long the provider may go on naming the image from before: it answers from a cache of its own.
    pub settle: Duration,
    /// How long a gateway that is away is waited for before anything is changed.
    pub patience: Duration,
    /// How long it may take to put back what was there before.
    pub rollback: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(10),
            settle: Duration::from_secs(10),
            patience: Duration::from_secs(15),
            rollback: Duration::from_secs(20),
        }
    }
}

/// What is read at the very end has to be read quickly: the time is up.
const LAST_LOOK: Duration = Duration::from_secs(2);
/// How often a specification that the provider did not take is sent in all.
const ATTEMPTS: usize = 3;

/// What a rollout works with.
#[derive(Debug)]
pub struct Ground<'a, T> {
    /// The way to the gateway.
    pub transport: &'a T,
    /// How long its steps may take.
    pub limits: &'a Limits,
    /// What this process has seen of functions.
    pub memory: &'a Memory,
}

/// Brings what was handed over to run, and says what became of it. `objections` are what is known to be wrong with it
/// already; `url` is where the function will be called. There must be no other rollout of the function in this process.
///
/// Dropping the future stops it where it is: what was sent stays sent.
pub async fn rollout<T: Transport>(
    ground: &Ground<'_, T>,
    hand_over: &HandOver,
    objections: Vec<String>,
    deadline: &Deadline,
    url: String,
) -> Outcome {
    let spec = &hand_over.spec;
    let begun = Instant::now();
    let mut rollout = Rollout {
        ground,
        hand_over,
        target: Target::of(spec),
        version: Version::of(hand_over),
        deadline: deadline.clone(),
        before: None,
        last_good: None,
        restoring: AtomicBool::new(false),
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
    rollout.run(objections).await;
    let restored = rollout.restoring.load(Ordering::Relaxed);
    let mut outcome = rollout.outcome;
    outcome.changed |= restored;
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
    ground: &'a Ground<'a, T>,
    hand_over: &'a HandOver,
    target: Target,
    version: Version,
    deadline: Deadline,
    before: Option<FunctionStatus>,
    /// What is put back on failure; `None` where there was no function.
    last_good: Option<Version>,
    /// Whether the provider was asked to put something back.
    restoring: AtomicBool,
    outcome: Outcome,
}

/// How an attempt to bring the new version to run ended.
enum Attempt {
    /// It runs.
    Ready,
    /// The provider has something else, or nothing. It may have met a passing obstacle.
    NotTaken(Option<FunctionStatus>),
    /// It does not run.
    Failed,
}

impl<T: Transport> Rollout<'_, T> {
    async fn run(&mut self, objections: Vec<String>) {
        let begun = Instant::now();
        let deadline = self.deadline.clone();
        let step = trace::span("check");
        let next = step.run(deadline.bound(self.check(objections))).await;
        self.outcome.durations.check = begun.elapsed();
        match next {
            Some(Next::End) => step.mark_failed(self.outcome.reasons.join("; ")),
            None => step.mark_failed(self.deadline.why()),
            _ => {}
        }
        drop(step);
        match next {
            Some(Next::End) => {}
            Some(Next::Watch) => {
                info!("the function has this image and specification already");
                self.reason("the function has this image and specification already");
                self.outcome.fault = Some(Fault::Caller);
                match self.watch(None).await {
                    Attempt::Ready => self.reason("nothing was changed"),
                    _ => self.put_back().await,
                }
            }
            Some(Next::Repeat) => self.repeat().await,
            Some(Next::Apply) => self.change().await,
            Some(Next::Finish(older)) => self.finish(older).await,
            None => {
                let why = format!("nothing was changed: {}", self.deadline.why());
                self.fail(Fault::Platform, why);
                // The questions were asked again and again, and what troubled them was not kept.
                if let Err(error) = self.last_look().await {
                    self.reason(error.to_string());
                }
            }
        }
    }

    /// Applies, reads back and watches, and applies again where nothing came of it by what may have been an accident. To ask
    /// for the same whole specification twice comes to the same as asking once.
    async fn change(&mut self) {
        self.outcome.changed = true;
        self.outcome.running = Running::Unknown;
        let last_good = match self.last_good.clone() {
            Some(version) => LastGood::Version(Box::new(version)),
            None => LastGood::Nothing,
        };
        let body = self.version.body(&last_good, None);
        let mut pace = Pace::new();
        loop {
            let begun = Instant::now();
            let step = trace::span("apply");
            let applying = apply::apply(
                self.ground.transport,
                &self.target,
                &body,
                self.before.is_some(),
                &self.deadline,
            );
            let applied = step.run(applying).await;
            self.outcome.durations.apply += begun.elapsed();
            if let Applied::Refused(reason) | Applied::Unclear(_, reason) = &applied {
                step.mark_failed(reason);
            }
            drop(step);
            let attempt = match applied {
                Applied::Accepted(said) => {
                    self.outcome.fault = Some(Fault::Caller);
                    self.watch(Some(said)).await
                }
                Applied::Refused(reason) => return self.refused(reason).await,
                Applied::Unclear(fault, reason) => {
                    self.outcome.fault = Some(fault);
                    self.reason(reason);
                    self.unclear().await
                }
            };
            let now = match attempt {
                Attempt::Ready => return,
                Attempt::Failed => break,
                Attempt::NotTaken(now) => now,
            };
            let again = pace.steps() + 1 < ATTEMPTS
                && now == self.before
                && self.outcome.fault == Some(Fault::Platform)
                && self.deadline.bound(pace.pause()).await.is_some();
            if !again {
                break;
            }
            info!("asking for it again");
        }
        self.put_back().await;
    }

    /// The provider said that it will not have it. faasd has removed the function by then (pitfall 23).
    async fn refused(&mut self, reason: String) {
        self.reason(reason);
        self.outcome.fault = Some(Fault::Caller);
        match self.last_look().await {
            Ok(now) if now == self.before && self.before_is_good() => {
                self.outcome.changed = false;
                self.outcome.status = Status::Refused;
                self.tell(Ok(now));
            }
            _ => self.put_back().await,
        }
    }

    /// Whether what was there before is what would be put back.
    fn before_is_good(&self) -> bool {
        match (&self.before, &self.last_good) {
            (Some(status), Some(version)) => version.is_in(status),
            (None, None) => true,
            _ => false,
        }
    }

    /// Nobody knows whether the provider did it. Where it did, there is something to watch.
    async fn unclear(&mut self) -> Attempt {
        let Limits {
            request, patience, ..
        } = *self.ground.limits;
        let look = self
            .target
            .look_patiently(self.ground.transport, request, patience);
        let now = match self.deadline.bound(look).await {
            Some(now) => now,
            None => self.last_look().await,
        };
        match now {
            Ok(Some(status)) if self.version.is_surely_in(&status) => self.watch(None).await,
            Ok(now) => Attempt::NotTaken(now),
            Err(_) => Attempt::Failed,
        }
    }

    /// Watches to the end. `said` is what was answered to the change.
    async fn watch(&mut self, said: Option<String>) -> Attempt {
        let begun = Instant::now();
        let mut waiting = Waiting::default();
        let watching = watch::watch(
            self.ground.transport,
            &self.target,
            &self.version,
            self.ground.limits,
            &mut waiting,
        );
        let step = trace::span("watch");
        let watched = step.run(self.deadline.bound(watching)).await;
        self.outcome.durations.watch += begun.elapsed();
        match &watched {
            Some(Watched::Ready(_)) => {}
            Some(Watched::NotTaken(_)) => step.mark_failed("the provider did not take the new specification"),
            None => step.mark_failed(format_args!("{}: {waiting}", self.deadline.why())),
        }
        drop(step);
        match watched {
            Some(Watched::Ready(status)) => {
                self.ready(&status);
                Attempt::Ready
            }
            Some(Watched::NotTaken(found)) => {
                let said = said
                    .map(|said| format!("the gateway answered {said}, but "))
                    .unwrap_or_default();
                self.reason(format!("{said}the provider did not take the new specification"));
                self.outcome.fault = Some(Fault::Platform);
                Attempt::NotTaken(found)
            }
            None => {
                self.reason(format!("{}: {waiting}", self.deadline.why()));
                if self.deadline.cut_short() || matches!(waiting, Waiting::Unknown(_) | Waiting::Begun) {
                    self.outcome.fault = Some(Fault::Platform);
                }
                Attempt::Failed
            }
        }
    }

    fn ready(&mut self, status: &FunctionStatus) {
        let key = self.target.key();
        if let Some(mark) = self.version.mark() {
            self.ground.memory.answered(&key, mark);
        }
        self.ground.memory.ended(&key, None);
        self.ground.memory.owes(&key, None);
        self.outcome.status = Status::Ready;
        self.outcome.fault = None;
        self.told(Some(status));
    }

    async fn last_look(&self) -> Result<Option<FunctionStatus>, ReadError> {
        let limit = self.ground.limits.request.min(LAST_LOOK);
        self.target.look(self.ground.transport, limit).await
    }

    /// What is kept so that the same delivery is not tried again.
    fn failure(&self) -> Option<Failure> {
        (self.outcome.fault == Some(Fault::Caller)).then_some(())?;
        Some(Failure {
            delivery: self.hand_over.delivery()?,
            reasons: self.outcome.reasons.clone(),
            previous_image: self.outcome.previous_image.clone(),
        })
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
                self.told(now.as_ref());
            }
            Err(error) => {
                self.reason(format!("what runs now is not known: {}", chain(&error)));
                self.outcome.running = Running::Unknown;
            }
        }
    }

    fn told(&mut self, now: Option<&FunctionStatus>) {
        if let Some(namespace) = now.and_then(|now| now.namespace.clone()) {
            self.outcome.namespace = Some(namespace);
        }
        self.outcome.running = Running::from(now);
    }

    fn fail(&mut self, fault: Fault, reason: String) {
        self.outcome.fault = Some(fault);
        self.reason(reason);
    }

    fn reason(&mut self, reason: impl Into<String>) {
        self.outcome.reasons.push(reason.into());
    }
}
