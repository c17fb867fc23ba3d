//! A queue for each function: one deployment at a time, and of those that wait the newest build next.
//!
//! Once the newest build runs, the older ones that wait are rejected without being tried; if it fails, the next
//! newest is tried. This holds within one process. Between processes, the times of the build in the function's annotations
//! keep an older build from replacing a newer one, and a restored version is checked by the next deployment.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::oneshot;

use crate::build_times::BuildTimes;
use crate::function::FunctionId;

/// The queues of all functions. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeploymentQueue(Arc<Mutex<HashMap<FunctionId, Waiters>>>);

/// The deployments that wait for another one of the same function.
#[derive(Debug, Default)]
struct Waiters {
    /// The number of waiters so far.
    arrivals: u64,
    /// By the time of submission or else of the end of the build, then by arrival. The last one is next.
    waiting: BTreeMap<(Option<Timestamp>, u64), oneshot::Sender<DeploymentPermit>>,
}

/// Permission to deploy a function, which only one deployment has at a time. On drop it goes to the next one.
#[derive(Debug)]
#[must_use]
pub(crate) struct DeploymentPermit {
    queue: DeploymentQueue,
    function: FunctionId,
}

impl DeploymentQueue {
    /// Waits until no other deployment of the function runs, and none with a newer build waits.
    ///
    /// Dropping the future leaves the queue.
    pub(crate) async fn acquire(&self, function: FunctionId, times: BuildTimes) -> DeploymentPermit {
        loop {
            let granted = {
                let mut queues = self.lock();
                let Some(waiters) = queues.get_mut(&function) else {
                    queues.insert(function.clone(), Waiters::default());
                    return DeploymentPermit {
                        queue: self.clone(),
                        function,
                    };
                };
                let (grant, granted) = oneshot::channel();
                waiters.arrivals += 1;
                let position = (times.sort_key(), waiters.arrivals);
                waiters.waiting.insert(position, grant);
                granted
            };
            // The sender is dropped unused only together with the queue.
            if let Ok(permit) = granted.await {
                return permit;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FunctionId, Waiters>> {
        // Every operation leaves the map consistent, so that a panic elsewhere does not matter.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the next waiter and returns its sender. Without a waiter, removes the function's queue.
    fn next(&self, function: &FunctionId) -> Option<oneshot::Sender<DeploymentPermit>> {
        let mut queues = self.lock();
        let waiters = queues.get_mut(function)?;
        match waiters.waiting.pop_last() {
            Some((_, grant)) => Some(grant),
            None => {
                queues.remove(function);
                None
            }
        }
    }
}

impl Drop for DeploymentPermit {
    fn drop(&mut self) {
        if let Some(grant) = self.queue.next(&self.function) {
            let permit = Self {
                queue: self.queue.clone(),
                function: self.function.clone(),
            };
            // If the waiter has gone, the returned permit is dropped, which goes on with the one after it. The lock
            // is free by now.
            drop(grant.send(permit));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::mpsc;
    use tokio::time::timeout;

    use super::*;
    use crate::function::FunctionAddress;

    fn at(second: i64) -> BuildTimes {
        BuildTimes {
            submitted_at: Some(Timestamp::from_second(second).unwrap()),
            built_at: None,
        }
    }

    fn function(namespace: Option<&str>, name: &str) -> FunctionId {
        let address = FunctionAddress {
            name: name.to_owned(),
            namespace: namespace.map(str::to_owned),
        };
        address.id("openfaas-fn")
    }

    fn hello() -> FunctionId {
        function(None, "hello")
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_build_that_waits_is_next() {
        let queue = DeploymentQueue::default();
        let (done, mut order) = mpsc::unbounded_channel();
        let first = queue.acquire(hello(), at(1)).await;
        for number in [3, 5, 2, 4] {
            let (queue, done) = (queue.clone(), done.clone());
            tokio::spawn(async move {
                let permit = queue.acquire(hello(), at(number)).await;
                done.send(number).unwrap();
                drop(permit);
            });
            tokio::task::yield_now().await;
        }
        drop(first);
        for number in [5, 4, 3, 2] {
            assert_eq!(order.recv().await, Some(number));
        }
        tokio::task::yield_now().await;
        assert!(queue.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn only_deployments_of_the_same_function_wait_for_each_other() {
        let queue = DeploymentQueue::default();
        let acquired = async |function| {
            timeout(
                Duration::from_secs(1),
                queue.acquire(function, BuildTimes::default()),
            )
            .await
        };
        let _one = acquired(function(None, "one")).await.unwrap();
        let _other = acquired(function(None, "other")).await.unwrap();
        let _elsewhere = acquired(function(Some("team"), "one")).await.unwrap();
        for same in [None, Some("openfaas-fn")] {
            assert!(acquired(function(same, "one")).await.is_err());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_that_has_gone_is_skipped() {
        let queue = DeploymentQueue::default();
        let first = queue.acquire(hello(), BuildTimes::default()).await;
        let gone = tokio::spawn({
            let queue = queue.clone();
            async move { queue.acquire(hello(), at(9)).await }
        });
        let stays = tokio::spawn({
            let queue = queue.clone();
            async move { queue.acquire(hello(), at(1)).await }
        });
        tokio::task::yield_now().await;
        gone.abort();
        drop(gone.await);
        drop(first);
        let permit = timeout(Duration::from_secs(1), stays).await.unwrap();
        drop(permit.unwrap());
        assert!(queue.lock().is_empty());
    }
}
