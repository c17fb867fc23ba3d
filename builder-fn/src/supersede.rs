//! Supersession: a build with a newer source of a function ends older builds of it.
//!
//! Builds of one function are ordered by the time at which their source was submitted. While a build waits for a slot
//! or is solved, it is registered here, and a newer build ends it: one that is registered in the same process, or one
//! that another builder runs on a daemon of the same pool. Each daemon of a pool has a registry of its own, in which
//! every build is registered ([`pool`]). BuildKit has no call that cancels another client's solve. Its history is the
//! medium instead: every solve carries [`SolveAttributes`](crate::buildkit::SolveAttributes), a [`watcher`] follows the
//! history while builds are registered, and the builder that owns an older solve drops it.
//!
//! Nothing is missed: the watcher subscribes to the history, reads what was before its subscription, and keeps the
//! newest success of each function. For each registration, and before each solve, it asks for the builds that run; it
//! asks for records again only for a build that was submitted earlier than what it keeps, because the daemon decodes
//! all of its records each time. A daemon without a history only costs the protection across builders.
//!
//! After the hand-over the deployer decides which version is newer.

mod known;
mod pool;
mod registry;
mod watcher;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::buildkit::{Daemon, KnownBuild};
use crate::function_id::FunctionId;
use crate::request::time::format_rfc3339_nanos;
use known::NewestSuccesses;
pub use pool::{Registration, Supersession};
use registry::RegisteredBuildsByFunction;

/// The longest time for which BuildKit's history is read at once, and for which a build waits for that before its
/// solve.
const HISTORY_TIMEOUT: Duration = Duration::from_secs(5);

/// The allowance for differences between clocks, by which the history is read from before a build's submission.
///
/// A newer build ends after its submission. But its caller's clock may be five minutes ahead, and the clocks of
/// builders and daemon may differ.
const CLOCK_MARGIN: Duration = Duration::from_secs(600);

/// The registry of this process's builds that may supersede each other, and the watcher of one daemon's history. Clones
/// share both.
#[derive(Clone, Debug)]
struct DaemonSupersession(Arc<SharedSupersession>);

/// The state that clones of a [`DaemonSupersession`] share.
#[derive(Debug)]
struct SharedSupersession {
    daemon: Daemon,
    /// Whether the daemon is given up soon if its host does not answer, because there are others.
    is_one_of_several: bool,
    state: Mutex<SupersessionState>,
    /// The notification that wakes the watcher: a build was registered, or the last one ended.
    changed: Notify,
    /// The number of the latest request to the watcher that it has answered.
    answered: watch::Sender<u64>,
    /// Whether the last attempt to read BuildKit's history failed, so that the failure is logged once.
    history_fails: AtomicBool,
}

/// The registry, the known builds and their watcher, under one lock.
#[derive(Debug)]
struct SupersessionState {
    registry: RegisteredBuildsByFunction,
    known: NewestSuccesses,
    /// The number of requests to the watcher to read the history.
    requests: u64,
    /// Whether the watcher runs.
    is_watching: bool,
    /// The time at which the last registered build ended; `None` while builds are registered.
    idle_since: Option<Instant>,
}

/// A build's function, call and time of submission, by which builds supersede each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    /// The function that the build deploys.
    pub function: FunctionId,
    /// The id of the call that the build belongs to.
    pub call_id: String,
    /// The time at which the source of the build was submitted.
    pub submitted_at: SystemTime,
}

/// The error of a build that a newer build has superseded; contains the newer build.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("superseded by the build {}", .0)]
pub struct Superseded(pub Submission);

/// The registration of a build for one daemon. Dropping it ends the registration.
#[derive(Debug)]
struct DaemonRegistration {
    shared: Arc<SharedSupersession>,
    id: u64,
    newer: watch::Receiver<Option<Submission>>,
}

impl DaemonSupersession {
    /// Creates an empty registry for the builds on `daemon`.
    fn new(daemon: Daemon, is_one_of_several: bool) -> Self {
        Self(Arc::new(SharedSupersession {
            daemon,
            is_one_of_several,
            state: Mutex::new(SupersessionState {
                registry: RegisteredBuildsByFunction::default(),
                known: NewestSuccesses::empty_complete_from(SystemTime::now()),
                requests: 0,
                is_watching: false,
                idle_since: None,
            }),
            changed: Notify::new(),
            answered: watch::Sender::new(0),
            history_fails: AtomicBool::new(false),
        }))
    }

    /// Registers a build, which supersedes registered older builds of its function or is superseded by a newer one.
    /// Starts the watcher.
    ///
    /// Must be called within a Tokio runtime.
    fn register(&self, submission: Submission) -> DaemonRegistration {
        let mut state = self.0.lock_state();
        let SupersessionState { registry, known, .. } = &mut *state;
        let newer = known.find_newer(&submission, SystemTime::now());
        let (id, newer) = registry.insert_and_supersede(submission, newer);
        state.requests += 1;
        state.idle_since = None;
        if !state.is_watching {
            state.is_watching = true;
            tokio::spawn(watcher::watch_history(self.0.clone()));
        }
        self.0.changed.notify_one();
        DaemonRegistration {
            shared: self.0.clone(),
            id,
            newer,
        }
    }
}

impl SharedSupersession {
    fn lock_state(&self) -> MutexGuard<'_, SupersessionState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that the requests up to this one were answered, as far as the history can be read.
    fn mark_requests_handled_even_if_unread_up_to(&self, request_number: u64) {
        self.answered.send_replace(request_number);
    }

    /// Ends the watcher if no build has been registered for at least `min_idle_time`, and returns whether that is so.
    /// What it knows is forgotten.
    fn stop_watching_if_idle(&self, min_idle_time: Duration) -> bool {
        let mut state = self.lock_state();
        let is_idle = state
            .idle_since
            .is_some_and(|since| since.elapsed() >= min_idle_time);
        if is_idle {
            state.is_watching = false;
            state.known = NewestSuccesses::empty_complete_from(SystemTime::now());
        }
        is_idle
    }

    /// Takes note of a build in the daemon's history, which supersedes registered older builds of its function if it
    /// runs or has succeeded.
    fn supersede_by_and_note_known_build(&self, build: &KnownBuild) {
        let mut state = self.lock_state();
        state.registry.supersede_by_known_build(build, SystemTime::now());
        state.known.add_if_succeeded(build);
    }

    /// Logs that BuildKit's history cannot be read: a warning for the first failure, debug messages for further ones.
    fn log_history_failure(&self, reason: &dyn fmt::Display) {
        match self.history_fails.swap(true, Ordering::Relaxed) {
            false => tracing::warn!(
                error = %reason,
                "could not read BuildKit's history; until it can be read, builds of other builders supersede none here"
            ),
            true => tracing::debug!(error = %reason, "could not read BuildKit's history"),
        }
    }

    /// Logs that BuildKit's history can be read again, if the last attempt failed.
    fn log_history_success(&self) {
        if self.history_fails.swap(false, Ordering::Relaxed) {
            tracing::info!("BuildKit's history can be read again");
        }
    }
}

impl DaemonSupersession {
    /// Returns whether no build is registered.
    fn has_no_registered_builds(&self) -> bool {
        self.0.lock_state().registry.is_empty()
    }
}

impl DaemonRegistration {
    /// Returns whether BuildKit's history, which has the builds of other builders, could be read last time.
    fn last_history_read_did_not_fail(&self) -> bool {
        !self.shared.history_fails.load(Ordering::Relaxed)
    }

    /// Waits until a newer build supersedes the registered build.
    async fn wait_until_superseded(mut newer: watch::Receiver<Option<Submission>>) -> Superseded {
        let newer = newer
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|newer| newer.clone());
        match newer {
            Some(newer) => Superseded(newer),
            // Does not happen: the sender is in the registry for as long as the registration exists.
            None => std::future::pending().await,
        }
    }

    /// Checks that no known newer build has superseded the registered build.
    fn check_not_superseded(&self) -> Result<(), Superseded> {
        match &*self.newer.borrow() {
            Some(newer) => Err(Superseded(newer.clone())),
            None => Ok(()),
        }
    }

    /// Waits until the watcher has read BuildKit's history once more. A history that cannot be read in time is logged.
    async fn wait_until_history_is_read_or_timeout(shared: Arc<SharedSupersession>) {
        let request = {
            let mut state = shared.lock_state();
            state.requests += 1;
            state.requests
        };
        shared.changed.notify_one();
        let mut answered = shared.answered.subscribe();
        let read = answered.wait_for(|answered| *answered >= request);
        if let Err(elapsed) = tokio::time::timeout(HISTORY_TIMEOUT, read).await {
            shared.log_history_failure(&elapsed);
        }
    }
}

impl Drop for DaemonRegistration {
    fn drop(&mut self) {
        let mut state = self.shared.lock_state();
        state.registry.remove(self.id);
        if state.registry.is_empty() {
            state.idle_since = Some(Instant::now());
            self.shared.changed.notify_one();
        }
    }
}

/// Returns the earliest time at which a build can have ended that is newer than one submitted at `submitted_at`.
fn history_start_for(submitted_at: SystemTime) -> SystemTime {
    submitted_at
        .checked_sub(CLOCK_MARGIN)
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

impl Submission {
    /// Returns the submission of a build in the daemon's history; `None` if the build supersedes none.
    fn of_superseding_known_build(build: &KnownBuild) -> Option<Self> {
        let attributes = &build.attributes;
        Some(Self {
            function: attributes.supersession_group()?.clone(),
            call_id: attributes.call_id.clone(),
            submitted_at: attributes.submitted_at,
        })
    }

    /// Returns whether the build was submitted later than `other`. Deliveries of one call are one build, whatever their
    /// times.
    fn is_another_call_submitted_after(&self, other: &Self) -> bool {
        self.submitted_at > other.submitted_at && self.call_id != other.call_id
    }
}

impl fmt::Display for Submission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            function,
            call_id,
            submitted_at,
        } = self;
        let submitted_at = format_rfc3339_nanos(*submitted_at);
        write!(f, "{call_id} of function {function}, submitted at {submitted_at}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buildkit::{BuildState, SolveAttributes};

    /// Returns a submission of `function`, some seconds after 1970.
    pub(super) fn submission(function: &str, call_id: &str, seconds: u64) -> Submission {
        Submission {
            function: FunctionId::new(function, "openfaas-fn"),
            call_id: call_id.into(),
            submitted_at: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
        }
    }

    /// Returns a build in a daemon's history.
    pub(super) fn known_build(submission: &Submission, state: BuildState) -> KnownBuild {
        KnownBuild {
            attributes: SolveAttributes {
                call_id: submission.call_id.clone(),
                signature: None,
                tenant: None,
                submitted_at: submission.submitted_at,
                function: Some(submission.function.clone()),
                supersede: true,
                commit: None,
                attempt: None,
            },
            state,
        }
    }
}
