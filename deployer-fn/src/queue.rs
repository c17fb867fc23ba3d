//! A queue for each function: one deployment runs at a time, and the newest build that waits is next.
//!
//! The deployment that runs learns when a newer build waits, and yields to it ([`SuccessorReceiver`]). Once
//! the newest build runs, the older ones that wait are rejected without being tried; if it fails, the next
//! newest is tried. This holds within one process. Between processes, the times of the build in the function's
//! annotations keep an older build from replacing a newer one, and a restored version is checked by the next
//! deployment.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::oneshot;

use crate::build_times::TimesOfBuild;
use crate::function::FunctionId;
use crate::outcome::SuccessorCallId;
use crate::succession::{SuccessorReceiver, SuccessorSender};

/// The queues of deployments of all functions. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeploymentQueue(Arc<Mutex<HashMap<FunctionId, FunctionQueue>>>);

/// The queue of one function: the deployment that runs, and those that wait for it.
#[derive(Debug)]
struct FunctionQueue {
    /// The times of the build whose deployment runs.
    running: TimesOfBuild,
    /// Announces newer builds to the deployment that runs.
    announcer: SuccessorSender,
    /// The number of deployments that have waited so far.
    arrivals: u64,
    /// The deployments that wait, sorted by the time of their build, then by arrival. The last one is next.
    waiting: BTreeMap<(Option<Timestamp>, u64), WaitingDeployment>,
}

/// A deployment that waits in a function's queue.
#[derive(Debug)]
struct WaitingDeployment {
    times: TimesOfBuild,
    successor: SuccessorCallId,
    grant: oneshot::Sender<DeploymentPermit>,
}

impl FunctionQueue {
    /// Creates the queue of a function whose first deployment runs; returns it with that deployment's receiver of newer
    /// builds.
    fn new(running: TimesOfBuild) -> (Self, SuccessorReceiver) {
        let (announcer, succession) = SuccessorReceiver::channel_with_successor(None);
        let queue = Self {
            running,
            announcer,
            arrivals: 0,
            waiting: BTreeMap::new(),
        };
        (queue, succession)
    }

    /// Adds a waiting deployment, and announces its build if that is newer than the one that runs.
    fn add_waiting_and_announce_if_newer(&mut self, waiter: WaitingDeployment) {
        if self.running.is_older_than(&waiter.times) {
            self.announcer.send_replace(Some(waiter.successor.clone()));
        }
        self.arrivals += 1;
        let position = (waiter.times.sort_key(), self.arrivals);
        self.waiting.insert(position, waiter);
    }

    /// Removes the next waiting deployment from the queue, and makes it the one that runs.
    fn take_next_waiting_and_mark_running(&mut self) -> Option<(WaitingDeployment, SuccessorReceiver)> {
        let (_, next) = self.waiting.pop_last()?;
        self.running = next.times;
        let newer = self.waiting.values().rev();
        let newer = newer
            .into_iter()
            .find(|waiter| next.times.is_older_than(&waiter.times))
            .map(|waiter| waiter.successor.clone());
        let (announcer, succession) = SuccessorReceiver::channel_with_successor(newer);
        self.announcer = announcer;
        Some((next, succession))
    }
}

/// Permission to deploy a function, which only one deployment has at a time. When it is dropped, the next
/// deployment gets it.
#[derive(Debug)]
#[must_use]
pub(crate) struct DeploymentPermit {
    queue: DeploymentQueue,
    function: FunctionId,
    succession: SuccessorReceiver,
}

impl DeploymentPermit {
    /// Returns the receiver of newer builds that wait for this permit.
    pub(crate) fn successor_receiver(&self) -> &SuccessorReceiver {
        &self.succession
    }
}

impl DeploymentQueue {
    /// Waits until no other deployment of the function runs and this one is the next, by the time of its build; returns
    /// the permit to deploy.
    ///
    /// The deployment that runs yields if its build is older. Dropping the future leaves the queue.
    pub(crate) async fn acquire_permit(
        &self,
        function: FunctionId,
        times: TimesOfBuild,
        call_id: Option<String>,
    ) -> DeploymentPermit {
        let successor = SuccessorCallId { call_id };
        loop {
            let granted = {
                let mut queues = self.lock_queues();
                let Some(queue) = queues.get_mut(&function) else {
                    let (queue, succession) = FunctionQueue::new(times);
                    queues.insert(function.clone(), queue);
                    return DeploymentPermit {
                        queue: self.clone(),
                        function,
                        succession,
                    };
                };
                let (grant, granted) = oneshot::channel();
                queue.add_waiting_and_announce_if_newer(WaitingDeployment {
                    times,
                    successor: successor.clone(),
                    grant,
                });
                granted
            };
            // The sender is dropped unused only together with the queue.
            if let Ok(permit) = granted.await {
                return permit;
            }
        }
    }

    fn lock_queues(&self) -> MutexGuard<'_, HashMap<FunctionId, FunctionQueue>> {
        // Every operation leaves the map consistent, so that a panic elsewhere does not matter.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the function's next waiting deployment, and returns it. If none waits, removes the function's
    /// queue.
    fn take_next_waiting_or_remove_queue(
        &self,
        function: &FunctionId,
    ) -> Option<(WaitingDeployment, SuccessorReceiver)> {
        let mut queues = self.lock_queues();
        let next = queues.get_mut(function)?.take_next_waiting_and_mark_running();
        if next.is_none() {
            queues.remove(function);
        }
        next
    }
}

impl Drop for DeploymentPermit {
    fn drop(&mut self) {
        if let Some((waiter, succession)) = self.queue.take_next_waiting_or_remove_queue(&self.function) {
            let permit = Self {
                queue: self.queue.clone(),
                function: self.function.clone(),
                succession,
            };
            // If the waiter has gone, the returned permit is dropped, which goes on with the one after it. The lock
            // is free by now.
            drop(waiter.grant.send(permit));
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

    fn build_times_submitted_at_second(second: i64) -> TimesOfBuild {
        TimesOfBuild {
            submitted_at: Some(Timestamp::from_second(second).unwrap()),
            built_at: None,
        }
    }

    fn function_id(namespace: Option<&str>, name: &str) -> FunctionId {
        let address = FunctionAddress {
            name: name.to_owned(),
            namespace: namespace.map(str::to_owned),
        };
        address.identity("openfaas-fn")
    }

    fn hello_function_id() -> FunctionId {
        function_id(None, "hello")
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_waiting_build_is_deployed_next() {
        let queue = DeploymentQueue::default();
        let (done, mut order) = mpsc::unbounded_channel();
        let first = queue
            .acquire_permit(hello_function_id(), build_times_submitted_at_second(1), None)
            .await;
        for number in [3, 5, 2, 4] {
            let (queue, done) = (queue.clone(), done.clone());
            tokio::spawn(async move {
                let permit = queue
                    .acquire_permit(hello_function_id(), build_times_submitted_at_second(number), None)
                    .await;
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
        assert!(queue.lock_queues().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn only_deployments_of_the_same_function_wait_for_each_other() {
        let queue = DeploymentQueue::default();
        let acquired = async |function| {
            timeout(
                Duration::from_secs(1),
                queue.acquire_permit(function, TimesOfBuild::default(), None),
            )
            .await
        };
        let _one = acquired(function_id(None, "one")).await.unwrap();
        let _other = acquired(function_id(None, "other")).await.unwrap();
        let _elsewhere = acquired(function_id(Some("team"), "one")).await.unwrap();
        for same in [None, Some("openfaas-fn")] {
            assert!(acquired(function_id(same, "one")).await.is_err());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_deployment_that_was_dropped_is_skipped() {
        let queue = DeploymentQueue::default();
        let first = queue
            .acquire_permit(hello_function_id(), TimesOfBuild::default(), None)
            .await;
        let gone = tokio::spawn({
            let queue = queue.clone();
            async move {
                queue
                    .acquire_permit(hello_function_id(), build_times_submitted_at_second(9), None)
                    .await
            }
        });
        let stays = tokio::spawn({
            let queue = queue.clone();
            async move {
                queue
                    .acquire_permit(hello_function_id(), build_times_submitted_at_second(1), None)
                    .await
            }
        });
        tokio::task::yield_now().await;
        gone.abort();
        drop(gone.await);
        drop(first);
        let permit = timeout(Duration::from_secs(1), stays).await.unwrap();
        drop(permit.unwrap());
        assert!(queue.lock_queues().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_waiting_build_that_is_newer_is_announced_as_the_successor() {
        let queue = DeploymentQueue::default();
        let first = queue
            .acquire_permit(hello_function_id(), build_times_submitted_at_second(2), None)
            .await;
        for (number, announced) in [(1, None), (2, None), (3, Some("3"))] {
            let queue = queue.clone();
            let call_id = Some(number.to_string());
            tokio::spawn(async move {
                queue
                    .acquire_permit(
                        hello_function_id(),
                        build_times_submitted_at_second(number),
                        call_id,
                    )
                    .await
            });
            tokio::task::yield_now().await;
            let current = first.successor_receiver().current_successor();
            let current = current.and_then(|successor| successor.call_id);
            assert_eq!(current.as_deref(), announced, "{number}");
        }
        assert_eq!(
            first
                .successor_receiver()
                .wait_for_successor()
                .await
                .call_id
                .as_deref(),
            Some("3")
        );
    }
}
