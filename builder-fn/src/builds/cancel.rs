//! Follows requests to cancel builds that other builders put into the daemons' histories.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use function_host::ErrorChain;
use futures_util::TryStreamExt;
use futures_util::future::try_join_all;
use tokio::task::AbortHandle;
use tonic::Status;

use crate::buildkit::{Cancellation, Daemon, DaemonPool};

/// The pause before a daemon's history is followed again after a failure. A request is to be seen within two seconds.
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);

/// The watchers of pools, each of which runs while builds on its daemons are in progress. Clones share them.
#[derive(Clone, Default)]
pub(super) struct CancellationWatch(Arc<Mutex<HashMap<String, PoolWatcher>>>);

/// The watcher of one pool.
struct PoolWatcher {
    /// The task that follows the histories of the pool's daemons.
    task: AbortHandle,
    /// The number of guards of the watcher.
    builds: usize,
}

/// A guard for a build whose pool is watched. Dropping the last one ends the watcher.
#[derive(Debug)]
pub(crate) struct PoolWatchGuard {
    watch: CancellationWatch,
    pool: String,
}

impl CancellationWatch {
    /// Watches the daemons of `pool` for requests to cancel builds until the last of its guards is dropped, and returns
    /// a guard.
    ///
    /// Each pool has one watcher, which uses the functions of the call that started it:
    /// `cancellations_of_builds_in_progress` lists one for each build in progress, and `on_cancellation_of_any_build`
    /// gets each one that was requested. Must be called within a Tokio runtime.
    pub(super) fn begin_or_join_watch(
        &self,
        pool: &DaemonPool,
        cancellations_of_builds_in_progress: impl Fn() -> Vec<Cancellation> + Send + Sync + 'static,
        on_cancellation_of_any_build: impl Fn(Cancellation) + Send + Sync + 'static,
    ) -> PoolWatchGuard {
        let name = pool.address_for_messages().to_owned();
        let mut watchers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let watcher = watchers.entry(name.clone()).or_insert_with(|| {
            let (pool, possible, cancel) = (
                pool.clone(),
                Arc::new(cancellations_of_builds_in_progress),
                Arc::new(on_cancellation_of_any_build),
            );
            let following = async move {
                pool.follow_members(move |daemon| {
                    follow_cancellations_until_aborted(daemon, possible.clone(), cancel.clone())
                })
                .await;
            };
            PoolWatcher {
                task: tokio::spawn(following).abort_handle(),
                builds: 0,
            }
        });
        watcher.builds += 1;
        PoolWatchGuard {
            watch: self.clone(),
            pool: name,
        }
    }
}

impl Drop for PoolWatchGuard {
    fn drop(&mut self) {
        let mut watchers = self.watch.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watcher) = watchers.get_mut(&self.pool) {
            watcher.builds -= 1;
            if watcher.builds == 0 {
                watcher.task.abort();
                watchers.remove(&self.pool);
            }
        }
    }
}

/// Passes requests to cancel builds to `on_cancellation_of_any_build`, and reconnects until the task is aborted. After
/// each subscription, asks which of the `cancellations_of_builds_in_progress` were requested before it. A build that
/// begins later asks by itself.
async fn follow_cancellations_until_aborted(
    daemon: Daemon,
    cancellations_of_builds_in_progress: Arc<impl Fn() -> Vec<Cancellation>>,
    on_cancellation_of_any_build: Arc<impl Fn(Cancellation)>,
) {
    loop {
        let following = async {
            let connection = daemon.connect().await.map_err(|error| error.to_string())?;
            let mut requests = connection
                .subscribe_to_new_cancellations()
                .await
                .map_err(|status| ErrorChain(&status).to_string())?;
            let questions = cancellations_of_builds_in_progress()
                .into_iter()
                .map(|cancellation| {
                    let connection = connection.clone();
                    async move {
                        let is_requested = connection.try_is_cancellation_requested(&cancellation).await?;
                        Ok::<_, Status>(is_requested.then_some(cancellation))
                    }
                });
            let requested = try_join_all(questions)
                .await
                .map_err(|status| ErrorChain(&status).to_string())?;
            requested
                .into_iter()
                .flatten()
                .for_each(|request| on_cancellation_of_any_build(request));
            while let Some(request) = requests
                .try_next()
                .await
                .map_err(|status| ErrorChain(&status).to_string())?
            {
                on_cancellation_of_any_build(request);
            }
            Ok::<_, String>(())
        };
        if let Err(error) = following.await {
            tracing::debug!(
                error,
                "could not follow requests to cancel builds in BuildKit's history"
            );
        }
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

impl fmt::Debug for CancellationWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CancellationWatch")
    }
}
