//! A pool of BuildKit daemons: which there are, which answer, and which one a build goes to.
//!
//! Every daemon has a cache and a history of its own. A build prefers the daemon whose cache has the image's earlier
//! builds ([`rendezvous`]). Before it begins, up to 16 of them are asked whether one has the build ([`question`]): a
//! call that is delivered again, at another builder or after the pool has changed, follows the build that there is.
//! Builders share nothing but the daemons.
//!
//! A pool of one daemon asks nothing: the daemon itself rejects a second build of the same call.

mod member;
mod metrics;
mod part;
mod placement;
mod question;
mod rendezvous;
mod resolver;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::{ConnectError, Connection, Daemon};
use member::PoolMember;

pub use metrics::PoolMetrics;
pub(crate) use part::{BuildPart, EligibleDaemons, NoDaemonForPlatform};
pub(crate) use placement::{BuildToPlace, PlacedBuildMaybeCancelled};
pub use rendezvous::{
    ChosenAndPreferredDaemon, DaemonHashAndBuildCount, PlacementHash, busy_threshold, choose_daemon,
};
use resolver::JoinedResolver;
pub(crate) use resolver::{DaemonAtIp, DaemonGroup, HostResolverForOneAddressFamily};
pub use resolver::{DaemonResolver, ResolveFuture};

/// The time after which a pool's daemons are looked up again.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(5);

/// The longest wait for the lookup of a pool's daemons.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest wait for a connection to a daemon that is asked something.
const QUESTION_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The limit on the daemons that are probed at the same time.
const CONCURRENT_PROBES_MAX: usize = 32;

/// One or several BuildKit daemons with the same settings. Clones share the pool.
#[derive(Clone)]
pub struct DaemonPool(Arc<SharedPool>);

struct SharedPool {
    /// The address of the pool, as the setting names it.
    name: Arc<str>,
    resolver: Option<Arc<dyn DaemonResolver>>,
    members: watch::Sender<Members>,
    /// The time of the last lookup; `None` if the next one is due.
    resolved_at: Mutex<Option<Instant>>,
    metrics: OnceLock<PoolMetrics>,
}

/// The daemons of a pool at one time.
type Members = Arc<[Arc<PoolMember>]>;

/// A subscription to changes of which daemons a pool has.
pub(crate) struct PoolChanges(watch::Receiver<Members>);

/// The number of daemons that a pool has, of those that answered a probe, and of those that tenants may not share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KnownAndAnsweringDaemonCounts {
    /// The number of daemons that the pool has.
    pub known: usize,
    /// The number of daemons that answered when they were probed.
    pub answering: usize,
    /// The number of daemons that answered, and are older than
    /// [`LOWEST_SHARED_BUILDKIT_RELEASE`](super::LOWEST_SHARED_BUILDKIT_RELEASE) or of an unknown version.
    pub outdated: usize,
}

impl DaemonPool {
    /// Creates a pool of these daemons, whose addresses are the names by which builds choose among them; returns `None`
    /// if there are no daemons. A pool always has at least one: without any, builds would wait for ever.
    pub fn of_daemons(name: impl Into<Arc<str>>, daemons: impl IntoIterator<Item = Daemon>) -> Option<Self> {
        let mut daemons = daemons.into_iter().peekable();
        daemons.peek()?;
        Some(Self::new(name.into(), daemons, None))
    }

    /// Creates a pool of the daemons that `resolver` lists, again and again; `until_first_list` stands for them until
    /// the first list is there.
    pub fn of_resolved_daemons(
        name: impl Into<Arc<str>>,
        until_first_list: Daemon,
        resolver: impl DaemonResolver,
    ) -> Self {
        Self::new(name.into(), [until_first_list], Some(Arc::new(resolver)))
    }

    /// Creates a pool of the daemons of these groups; `None` if there are none.
    pub(crate) fn of_groups(name: impl Into<Arc<str>>, groups: Vec<DaemonGroup>) -> Option<Self> {
        let resolver = JoinedResolver::new(groups);
        let mut daemons = resolver.last_daemons().into_iter().peekable();
        daemons.peek()?;
        let resolver: Option<Arc<dyn DaemonResolver>> = match resolver.looks_anything_up() {
            true => Some(Arc::new(resolver)),
            false => None,
        };
        Some(Self::new(name.into(), daemons, resolver))
    }

    fn new(
        name: Arc<str>,
        daemons: impl IntoIterator<Item = Daemon>,
        resolver: Option<Arc<dyn DaemonResolver>>,
    ) -> Self {
        let members: Members = daemons
            .into_iter()
            .map(|daemon| Arc::new(PoolMember::new(daemon)))
            .collect();
        Self(Arc::new(SharedPool {
            name,
            resolver,
            members: watch::Sender::new(members),
            resolved_at: Mutex::default(),
            metrics: OnceLock::new(),
        }))
    }

    /// Shows the pool in `metrics`. Later calls have no effect.
    pub fn set_metrics_if_unset(&self, metrics: PoolMetrics) {
        // A second set of metrics is of no use.
        let _ = self.0.metrics.set(metrics);
    }

    /// Returns the pool's address, for messages.
    pub fn address_for_messages(&self) -> &str {
        &self.0.name
    }

    /// Returns the daemons that the pool had when it was last looked up.
    pub(crate) fn known_daemons(&self) -> Vec<Daemon> {
        let members = self.0.members.borrow();
        members.iter().map(|member| member.daemon.clone()).collect()
    }

    /// Returns the daemons of the pool, each with whether it gets builds, which one that is left out does not.
    pub(crate) async fn current_daemons_and_whether_available(&self) -> Vec<(Daemon, bool)> {
        let members = self.current_members().await;
        let is_available = |member: &PoolMember| members.len() == 1 || !member.is_left_out();
        members
            .iter()
            .map(|member| (member.daemon.clone(), is_available(member)))
            .collect()
    }

    /// Returns whether the pool has a daemon with this name that is not left out.
    pub(crate) fn is_daemon_available(&self, name: &str) -> bool {
        let members = self.0.members.borrow();
        let mut named = members.iter().filter(|member| member.name() == name);
        // The only daemon of a pool is never left out.
        named.any(|member| members.len() == 1 || !member.is_left_out())
    }

    /// Subscribes to changes of which daemons the pool has.
    pub(crate) fn subscribe_to_changes(&self) -> PoolChanges {
        PoolChanges(self.0.members.subscribe())
    }

    /// Returns the daemons of the pool, after another lookup if one is due. A lookup that fails leaves them as they
    /// are.
    async fn current_members(&self) -> Members {
        let Some(resolver) = &self.0.resolver else {
            return self.0.members.borrow().clone();
        };
        let mut resolved_at = self.0.resolved_at.lock().await;
        if resolved_at.is_none_or(|at| at.elapsed() >= RESOLVE_INTERVAL) {
            match tokio::time::timeout(RESOLVE_TIMEOUT, resolver.resolve_daemons()).await {
                Ok(Ok(daemons)) => self.replace_members_unless_empty(daemons),
                Ok(Err(error)) => {
                    tracing::debug!(pool = %self.0.name, %error, "could not look up BuildKit's daemons");
                }
                Err(_) => tracing::debug!(pool = %self.0.name, "looking up BuildKit's daemons took too long"),
            }
            *resolved_at = Some(Instant::now());
        }
        self.0.members.borrow().clone()
    }

    /// Makes the next use of the pool look up its daemons.
    async fn make_lookup_due(&self) {
        *self.0.resolved_at.lock().await = None;
    }

    /// Replaces the daemons of the pool. Those that it has already keep their state. An empty list changes nothing.
    fn replace_members_unless_empty(&self, daemons: Vec<Daemon>) {
        if daemons.is_empty() {
            return;
        }
        self.0.members.send_if_modified(|members| {
            let known: HashMap<&str, &Arc<PoolMember>> =
                members.iter().map(|member| (member.name(), member)).collect();
            let is_same = daemons.len() == members.len()
                && daemons
                    .iter()
                    .all(|daemon| known.contains_key(daemon.address_for_messages()));
            if is_same {
                return false;
            }
            let next: Members = daemons
                .into_iter()
                .map(|daemon| match known.get(daemon.address_for_messages()) {
                    Some(member) => (*member).clone(),
                    None => Arc::new(PoolMember::new(daemon)),
                })
                .collect();
            let names: Vec<_> = next.iter().map(|member| member.name()).collect();
            tracing::info!(pool = %self.0.name, daemons = names.join(","), "BuildKit's daemons have changed");
            if let Some(metrics) = self.0.metrics.get() {
                let gone = members.iter().filter(|member| !names.contains(&member.name()));
                gone.for_each(|member| metrics.forget_daemon(member.name()));
            }
            *members = next;
            true
        });
    }

    /// Probes every daemon of the pool, and leaves out those that do not answer. Returns how many there are and how
    /// many answer, and the errors of the others.
    pub(crate) async fn probe_and_update_left_out_daemons(
        &self,
    ) -> (KnownAndAnsweringDaemonCounts, Vec<ConnectError>) {
        let members = self.current_members().await;
        let probes = members.iter().cloned().map(|member| async move {
            let answer = member.daemon.check_that_it_answers().await;
            match &answer {
                Ok(_) => member.readmit(),
                Err(_) => member.leave_out(),
            }
            answer
        });
        let answers: Vec<_> = futures_util::stream::iter(probes)
            .buffer_unordered(CONCURRENT_PROBES_MAX)
            .collect()
            .await;
        let mut size = KnownAndAnsweringDaemonCounts {
            known: members.len(),
            ..KnownAndAnsweringDaemonCounts::default()
        };
        let mut errors = Vec::new();
        for answer in answers {
            match answer {
                Ok(version) => {
                    size.answering += 1;
                    size.outdated += usize::from(!version.may_be_shared());
                }
                Err(error) => errors.push(error),
            }
        }
        if let Some(metrics) = self.0.metrics.get() {
            metrics.show_size(size);
        }
        (size, errors)
    }

    /// Connects to each daemon of the pool, all at the same time, and calls `ask` with each connection. Returns the
    /// results in no order. In a pool of several, a daemon is given up sooner, and one that is left out is not asked:
    /// its result is an error.
    pub(crate) async fn ask_all_daemons_with_errors_for_left_out<T, E, F>(
        &self,
        ask: impl Fn(Connection) -> F,
    ) -> Vec<Result<T, E>>
    where
        E: From<ConnectError>,
        F: Future<Output = Result<T, E>>,
    {
        let members = self.current_members().await;
        let asking: FuturesUnordered<_> = members
            .iter()
            .map(|member| async {
                let is_only = members.len() == 1;
                if !is_only && member.is_left_out() {
                    return Err(member
                        .daemon
                        .unreachable_error("it did not answer a moment ago")
                        .into());
                }
                let connecting = async {
                    match is_only {
                        true => member.daemon.connect().await,
                        false => member.daemon.connect_if_host_accepts_quickly().await,
                    }
                };
                let connection = match tokio::time::timeout(QUESTION_CONNECT_TIMEOUT, connecting).await {
                    Ok(connection) => connection?,
                    Err(elapsed) => return Err(member.daemon.unreachable_error(elapsed).into()),
                };
                ask(connection).await
            })
            .collect();
        asking.collect().await
    }

    /// Runs `follow` for every daemon of the pool, also for those that are added later, and ends it for those that are
    /// removed. Runs until the returned future is dropped.
    pub(crate) async fn follow_members<F>(&self, follow: impl Fn(Daemon) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut changes = self.0.members.subscribe();
        let mut followers: HashMap<Arc<str>, AbortOnDropHandle<()>> = HashMap::new();
        loop {
            let members = self.current_members().await;
            changes.mark_unchanged();
            let names: Vec<Arc<str>> = members.iter().map(|member| member.name().into()).collect();
            followers.retain(|name, _| names.contains(name));
            for (member, name) in members.iter().zip(names) {
                followers
                    .entry(name)
                    .or_insert_with(|| AbortOnDropHandle::new(tokio::spawn(follow(member.daemon.clone()))));
            }
            if self.0.resolver.is_none() {
                std::future::pending::<()>().await;
            }
            // Whoever uses the pool looks its daemons up; nobody may.
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep(RESOLVE_INTERVAL) => {}
            }
        }
    }
}

impl PoolChanges {
    /// Waits until the pool has other daemons than before.
    pub(crate) async fn wait(&mut self) {
        if self.0.changed().await.is_err() {
            // The pool is gone, and changes no more.
            std::future::pending().await
        }
    }
}

impl From<Daemon> for DaemonPool {
    /// Creates a pool of one daemon.
    fn from(daemon: Daemon) -> Self {
        Self::new(daemon.address_for_messages().into(), [daemon.clone()], None)
    }
}

impl fmt::Debug for DaemonPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DaemonPool").field(&self.0.name).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buildkit::DaemonAddress;

    #[test]
    fn a_pool_is_neither_created_without_daemons_nor_emptied() {
        assert!(DaemonPool::of_daemons("none", []).is_none());
        let daemon = Daemon::at(DaemonAddress::Unix("/socket".into()));
        let pool = DaemonPool::of_daemons("one", [daemon]).expect("a pool");
        pool.replace_members_unless_empty(Vec::new());
        assert_eq!(pool.known_daemons().len(), 1);
    }
}
