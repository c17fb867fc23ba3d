//! Supersession: the newest source of a function is the one that is built.
//!
//! Builds of one function are ordered by the time at which their source was submitted. While a build waits for a slot or
//! is solved, it is registered here, and a newer build ends it: one that is registered in the same process, or one that
//! another builder runs on the same daemon. BuildKit has no call that cancels another client's solve. Its history is the
//! medium instead: every solve carries [`Attributes`](crate::buildkit::Attributes), a [`watcher`] follows the history
//! while builds are registered, and the builder that owns an older solve drops it.
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
use registry::Registry;

/// The longest wait for the history before a solve.
const HISTORY_TIMEOUT: Duration = Duration::from_secs(5);

/// How much earlier than the submission of a build the history is read.
///
/// A newer build ends after its submission. But its caller's clock may be five minutes ahead, and the clocks of builders
/// and daemon may differ.
const CLOCK_MARGIN: Duration = Duration::from_secs(600);

/// The builds of one process that may supersede each other, and the watcher of the daemon. Clones share them.
#[derive(Clone, Debug)]
pub struct Supersession(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    daemon: Daemon,
    state: Mutex<State>,
    /// Tells the watcher of a new registration.
    registered: Notify,
    /// Whether the last attempt to read the history failed, so that this is logged once.
    history_fails: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    registry: Registry,
    /// The running watcher. There is one while builds are registered.
    watcher: Option<AbortHandle>,
}

/// A build as other builds of its function see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    /// The function that it deploys.
    pub function: FunctionId,
    /// The call that it belongs to.
    pub call_id: String,
    /// The time at which its source was submitted.
    pub submitted_at: SystemTime,
}

/// The newer build that ended an older one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("superseded by the build {}", .0)]
pub struct Superseded(pub Submission);

/// A registered build. Dropping it ends the registration.
#[derive(Debug)]
pub struct Registration {
    shared: Arc<Shared>,
    id: u64,
    submitted_at: SystemTime,
    newer: watch::Receiver<Option<Submission>>,
}

impl Supersession {
    /// Creates the supersession of the builds on `daemon`, without builds.
    pub fn new(daemon: Daemon) -> Self {
        Self(Arc::new(Shared {
            daemon,
            state: Mutex::default(),
            registered: Notify::new(),
            history_fails: AtomicBool::new(false),
        }))
    }

    /// Registers a build, which supersedes older builds of its function that are registered, or is superseded by newer
    /// ones. Starts the watcher.
    ///
    /// Must be called within a Tokio runtime.
    pub fn register(&self, submission: Submission) -> Registration {
        let submitted_at = submission.submitted_at;
        let mut state = self.0.state();
        let (id, newer) = state.registry.insert(submission);
        if state.watcher.is_none() {
            let watching = tokio::spawn(watcher::watch(self.0.clone()));
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

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the builds in the history supersede older ones here: those that run, and those that may be newer than a build
    /// submitted at `submitted_at` and have succeeded.
    async fn read_history(&self, connection: &Connection, submitted_at: SystemTime) {
        let reading = async {
            let mut builds = connection.known_builds(history_start(submitted_at)).await?;
            while let Some(build) = builds.try_next().await? {
                self.state().registry.note(&build, SystemTime::now());
            }
            Ok::<_, Status>(())
        };
        match tokio::time::timeout(HISTORY_TIMEOUT, reading).await {
            Ok(Ok(())) => self.log_history_success(),
            Ok(Err(status)) => self.log_history_failure(&status),
            Err(elapsed) => self.log_history_failure(&elapsed),
        }
    }

    /// Logs that the history cannot be read, once until it can.
    fn log_history_failure(&self, reason: &dyn fmt::Display) {
        match self.history_fails.swap(true, Ordering::Relaxed) {
            false => tracing::warn!(
                error = %reason,
                "could not read BuildKit's history; until it can be read, builds of other builders supersede none here"
            ),
            true => tracing::debug!(error = %reason, "could not read BuildKit's history"),
        }
    }

    fn log_history_success(&self) {
        if self.history_fails.swap(false, Ordering::Relaxed) {
            tracing::info!("BuildKit's history can be read again");
        }
    }
}

impl Registration {
    /// Waits until a newer build supersedes this one.
    pub async fn superseded(&self) -> Superseded {
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

    /// Checks that no newer build is known.
    ///
    /// # Errors
    /// Fails if a newer build has superseded this one.
    pub fn check(&self) -> Result<(), Superseded> {
        match &*self.newer.borrow() {
            Some(newer) => Err(Superseded(newer.clone())),
            None => Ok(()),
        }
    }

    /// Checks that neither this process nor the daemon knows a newer build that runs or has succeeded. A history that
    /// cannot be read in time is logged and does not prevent the build.
    ///
    /// # Errors
    /// Fails if there is a newer build.
    pub async fn check_history(&self, connection: &Connection) -> Result<(), Superseded> {
        self.shared.read_history(connection, self.submitted_at).await;
        self.check()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.registry.remove(self.id);
        if state.registry.is_empty()
            && let Some(watcher) = state.watcher.take()
        {
            watcher.abort();
        }
    }
}

/// Returns the earliest time at which a build that is newer than one submitted at `submitted_at` can have ended.
fn history_start(submitted_at: SystemTime) -> SystemTime {
    submitted_at
        .checked_sub(CLOCK_MARGIN)
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

impl Submission {
    /// Returns whether a build was submitted later than `other`. Deliveries of one call are one build, whatever their times.
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
