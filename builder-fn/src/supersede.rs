//! Supersession: a build with a newer source of a function ends older builds of it.
//!
//! Builds of one function are ordered by the time at which their source was submitted. While a build waits for a slot or
//! is solved, it is registered here, and a newer build ends it: one that is registered in the same process, or one that
//! another builder runs on the same daemon. BuildKit has no call that cancels another client's solve. Its history is the
//! medium instead: every solve carries [`SolveAttributes`](crate::buildkit::SolveAttributes), a [`watcher`] follows the
//! history while builds are registered, and the builder that owns an older solve drops it.
//!
//! Nothing is missed: the watcher reads the history whenever it connects and after each registration, and a build reads
//! it before its solve. A daemon without a history only costs the protection across builders.
//!
//! After the hand-over the deployer decides which version is newer.

mod registry;
mod watcher;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::TryStreamExt;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tonic::Status;

use crate::buildkit::{Connection, Daemon};
use crate::function_id::FunctionId;
use crate::request::time::format_rfc3339_nanos;
use registry::RegisteredBuilds;

/// The longest time for which BuildKit's history is read before a solve, or after a registration.
const HISTORY_TIMEOUT: Duration = Duration::from_secs(5);

/// The allowance for differences between clocks, by which the history is read from before a build's submission.
///
/// A newer build ends after its submission. But its caller's clock may be five minutes ahead, and the clocks of builders
/// and daemon may differ.
const CLOCK_MARGIN: Duration = Duration::from_secs(600);

/// The registry of this process's builds that may supersede each other, and the watcher of the daemon's history. Clones
/// share both.
#[derive(Clone, Debug)]
pub struct Supersession(Arc<SharedSupersession>);

/// The state that clones of a [`Supersession`] share.
#[derive(Debug)]
struct SharedSupersession {
    daemon: Daemon,
    state: Mutex<SupersessionState>,
    /// The notification that wakes the watcher after a new registration.
    registered: Notify,
    /// Whether the last attempt to read BuildKit's history failed, so that the failure is logged once.
    history_fails: AtomicBool,
}

/// The registry and its watcher, under one lock.
#[derive(Debug, Default)]
struct SupersessionState {
    registry: RegisteredBuilds,
    /// The handle of the running watcher task; `Some` while builds are registered.
    watcher: Option<AbortHandle>,
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

/// The registration of a build. Dropping it ends the registration.
#[derive(Debug)]
pub struct Registration {
    shared: Arc<SharedSupersession>,
    id: u64,
    submitted_at: SystemTime,
    newer: watch::Receiver<Option<Submission>>,
}

impl Supersession {
    /// Creates an empty registry for the builds on `daemon`.
    pub fn new(daemon: Daemon) -> Self {
        Self(Arc::new(SharedSupersession {
            daemon,
            state: Mutex::default(),
            registered: Notify::new(),
            history_fails: AtomicBool::new(false),
        }))
    }

    /// Registers a build, which supersedes registered older builds of its function or is superseded by a newer one.
    /// Starts the watcher.
    ///
    /// Must be called within a Tokio runtime.
    pub fn register(&self, submission: Submission) -> Registration {
        let submitted_at = submission.submitted_at;
        let mut state = self.0.lock_state();
        let (id, newer) = state.registry.insert_and_supersede(submission);
        if state.watcher.is_none() {
            let watching = tokio::spawn(watcher::watch_history(self.0.clone()));
            state.watcher = Some(watching.abort_handle());
        }
        self.0.registered.notify_one();
        Registration {
            shared: self.0.clone(),
            id,
            submitted_at,
            newer,
        }
    }
}

impl SharedSupersession {
    fn lock_state(&self) -> MutexGuard<'_, SupersessionState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads BuildKit's history, and lets its running and its newer successful builds supersede older builds of this
    /// process. Only successful builds that may be newer than one submitted at `submitted_at` are read.
    async fn apply_history(&self, connection: &Connection, submitted_at: SystemTime) {
        let reading = async {
            let mut builds = connection
                .request_known_builds(history_start(submitted_at))
                .await?;
            while let Some(build) = builds.try_next().await? {
                self.lock_state()
                    .registry
                    .supersede_by_known_build(&build, SystemTime::now());
            }
            Ok::<_, Status>(())
        };
        match tokio::time::timeout(HISTORY_TIMEOUT, reading).await {
            Ok(Ok(())) => self.log_history_success(),
            Ok(Err(status)) => self.log_history_failure(&status),
            Err(elapsed) => self.log_history_failure(&elapsed),
        }
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

impl Registration {
    /// Returns whether BuildKit's history, which has the builds of other builders, could be read last time.
    pub(crate) fn sees_other_builders(&self) -> bool {
        !self.shared.history_fails.load(Ordering::Relaxed)
    }

    /// Waits until a newer build supersedes the registered build.
    pub async fn wait_until_superseded(&self) -> Superseded {
        let mut newer = self.newer.clone();
        let newer = newer
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|newer| newer.clone());
        match newer {
            Some(newer) => Superseded(newer),
            // Does not happen: the sender is in the registry for as long as this registration exists.
            None => std::future::pending().await,
        }
    }

    /// Checks that no known newer build has superseded the registered build.
    ///
    /// # Errors
    /// Fails if a newer build has superseded this one.
    pub fn check_not_superseded(&self) -> Result<(), Superseded> {
        match &*self.newer.borrow() {
            Some(newer) => Err(Superseded(newer.clone())),
            None => Ok(()),
        }
    }

    /// Reads BuildKit's history, and checks that no newer build that runs or has succeeded supersedes the registered
    /// build. A history that cannot be read in time is logged and does not prevent the build.
    ///
    /// # Errors
    /// Fails if there is a newer build.
    pub async fn check_history(&self, connection: &Connection) -> Result<(), Superseded> {
        self.shared.apply_history(connection, self.submitted_at).await;
        self.check_not_superseded()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut state = self.shared.lock_state();
        state.registry.remove(self.id);
        if state.registry.is_empty()
            && let Some(watcher) = state.watcher.take()
        {
            watcher.abort();
        }
    }
}

/// Returns the earliest time at which a build can have ended that is newer than one submitted at `submitted_at`.
fn history_start(submitted_at: SystemTime) -> SystemTime {
    submitted_at
        .checked_sub(CLOCK_MARGIN)
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

impl Submission {
    /// Returns whether the build was submitted later than `other`. Deliveries of one call are one build, whatever their
    /// times.
    fn is_newer_than(&self, other: &Self) -> bool {
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
