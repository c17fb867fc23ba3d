//! Supersession among the builds on all daemons of a pool.
//!
//! A newer build may run on another daemon than an older one, because its image is another, or a daemon is busy or
//! lost. So each build is registered for every daemon, also for those that join while it runs, and the first that knows
//! a newer build ends it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;

use super::{DaemonRegistration, DaemonSupersession, Submission, Superseded};
use crate::buildkit::DaemonPool;

/// The registries of this process's builds that may supersede each other, one for each daemon of a pool. Clones share
/// them.
#[derive(Clone, Debug)]
pub struct Supersession(Arc<PoolSupersession>);

/// The state that clones of a [`Supersession`] share.
#[derive(Debug)]
struct PoolSupersession {
    pool: DaemonPool,
    /// The registries, by the names of the daemons. Those of daemons that are gone stay while builds are registered in
    /// them.
    daemons: Mutex<HashMap<String, DaemonSupersession>>,
}

/// The registration of a build. Dropping it ends the registration.
#[derive(Debug)]
pub struct Registration {
    supersession: Supersession,
    submission: Submission,
    /// The registrations for single daemons, by their names.
    daemons: Mutex<HashMap<String, DaemonRegistration>>,
}

impl Supersession {
    /// Creates empty registries for the builds on the daemons of `pool`.
    pub fn new(pool: impl Into<DaemonPool>) -> Self {
        Self(Arc::new(PoolSupersession {
            pool: pool.into(),
            daemons: Mutex::default(),
        }))
    }

    /// Registers a build, which supersedes registered older builds of its function or is superseded by a newer one.
    /// Starts the watchers of the daemons.
    ///
    /// Must be called within a Tokio runtime.
    pub fn register(&self, submission: Submission) -> Registration {
        let registration = Registration {
            supersession: self.clone(),
            submission,
            daemons: Mutex::default(),
        };
        registration.register_for_all_daemons();
        registration
    }
}

impl Registration {
    /// Registers the build for the daemons of the pool for which it is not registered yet, and for those that are gone
    /// and have registered builds, so that any two builds of this process have a registry in common.
    fn register_for_all_daemons(&self) {
        let Supersession(shared) = &self.supersession;
        let current = shared.pool.known_daemons();
        let is_one_of_several = current.len() > 1;
        let mut registries = lock(&shared.daemons);
        registries.retain(|name, registry| {
            !registry.has_no_registered_builds()
                || current.iter().any(|daemon| daemon.address_for_messages() == name)
        });
        for daemon in current {
            registries
                .entry(daemon.address_for_messages().to_owned())
                .or_insert_with(|| DaemonSupersession::new(daemon, is_one_of_several));
        }
        let mut registrations = lock(&self.daemons);
        for (name, registry) in &*registries {
            registrations
                .entry(name.clone())
                .or_insert_with(|| registry.register(self.submission.clone()));
        }
    }

    /// Returns whether the histories of all daemons that answer, which have the builds of other builders, could be read
    /// last time.
    pub(crate) fn last_reads_of_answering_histories_did_not_fail(&self) -> bool {
        let pool = &self.supersession.0.pool;
        let registrations = lock(&self.daemons);
        let mut answering = registrations
            .iter()
            .filter(|(name, _)| pool.is_daemon_available(name));
        answering.all(|(_, registration)| registration.last_history_read_did_not_fail())
    }

    /// Waits until a newer build supersedes the registered build.
    pub async fn wait_until_superseded(&self) -> Superseded {
        let mut changes = self.supersession.0.pool.subscribe_to_changes();
        loop {
            let mut newer: FuturesUnordered<_> = lock(&self.daemons)
                .values()
                .map(|registration| DaemonRegistration::wait_until_superseded(registration.newer.clone()))
                .collect();
            tokio::select! {
                Some(newer) = newer.next() => return newer,
                () = changes.wait() => self.register_for_all_daemons(),
            }
        }
    }

    /// Waits until the builds in the histories of the daemons that answer are known, and checks that none of them which
    /// runs or has succeeded supersedes the registered build. A history that cannot be read in time is logged and does
    /// not prevent the build.
    ///
    /// # Errors
    /// Fails if there is a newer build.
    pub async fn check_not_superseded_in_histories(&self) -> Result<(), Superseded> {
        self.register_for_all_daemons();
        let pool = &self.supersession.0.pool;
        let waiting: Vec<_> = lock(&self.daemons)
            .iter()
            .filter(|(name, _)| pool.is_daemon_available(name))
            .map(|(_, registration)| {
                DaemonRegistration::wait_until_history_is_read_or_timeout(registration.shared.clone())
            })
            .collect();
        join_all(waiting).await;
        let registrations = lock(&self.daemons);
        registrations
            .values()
            .try_for_each(DaemonRegistration::check_not_superseded)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
