//! The shutdown of the process, as handlers see it.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

/// The state of the function's shutdown (after SIGTERM), with its deadline. Clones share the state.
#[derive(Clone, Debug)]
pub struct Shutdown {
    deadline: watch::Receiver<Option<Instant>>,
    /// The number of guards for background work.
    work: Arc<watch::Sender<usize>>,
}

/// The trigger that begins the shutdown observed by a [`Shutdown`].
#[derive(Debug)]
pub struct ShutdownTrigger {
    deadline: watch::Sender<Option<Instant>>,
    work: Arc<watch::Sender<usize>>,
}

/// A guard for one piece of work that goes on without a request. The shutdown waits until all guards are dropped, or
/// for its deadline.
#[derive(Debug)]
pub struct BackgroundWorkGuard(Arc<watch::Sender<usize>>);

impl Shutdown {
    /// Creates the state of a shutdown that has not begun, and its trigger.
    ///
    /// In a function, the host holds the trigger; in a test, the test does.
    pub fn new() -> (ShutdownTrigger, Self) {
        let (sender, deadline) = watch::channel(None);
        let work = Arc::new(watch::Sender::new(0));
        let trigger = ShutdownTrigger {
            deadline: sender,
            work: work.clone(),
        };
        (trigger, Self { deadline, work })
    }

    /// Returns whether the function's shutdown has begun.
    pub fn has_begun(&self) -> bool {
        self.deadline.borrow().is_some()
    }

    /// Returns the time at which the host drops the remaining requests, or `None` before the shutdown has
    /// begun.
    ///
    /// A handler that would take longer should end before the deadline, with an answer that says so.
    pub fn deadline_once_begun(&self) -> Option<Instant> {
        *self.deadline.borrow()
    }

    /// Waits until the function's shutdown begins, and returns its deadline. Never returns if the trigger is dropped
    /// before.
    pub async fn wait_until_begun(&self) -> Instant {
        let mut receiver = self.deadline.clone();
        match receiver.wait_for(Option::is_some).await.map(|deadline| *deadline) {
            Ok(Some(deadline)) => deadline,
            // The trigger was dropped: the shutdown can never begin.
            _ => std::future::pending().await,
        }
    }

    /// Delays the exit of the process until the returned guard is dropped, or the deadline of the shutdown has passed.
    ///
    /// For work that no request waits for. Requests in flight delay the exit by themselves.
    #[must_use]
    pub fn begin_background_work(&self) -> BackgroundWorkGuard {
        self.work.send_modify(|count| *count += 1);
        BackgroundWorkGuard(self.work.clone())
    }
}

impl Drop for BackgroundWorkGuard {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl ShutdownTrigger {
    /// Begins the function's shutdown with this deadline.
    pub fn begin(&self, deadline: Instant) {
        self.deadline.send_replace(Some(deadline));
    }

    /// Waits until no background work goes on.
    pub async fn wait_until_background_work_ended(&self) {
        let mut work = self.work.subscribe();
        // Cannot fail: the sender lives as long as `self`.
        let _ = work.wait_for(|count| *count == 0).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn every_clone_sees_the_shutdown_and_its_deadline() {
        let (trigger, shutdown) = Shutdown::new();
        assert!(!shutdown.has_begun());
        assert_eq!(shutdown.deadline_once_begun(), None);
        let waiting = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { shutdown.wait_until_begun().await }
        });
        // The clock is paused: the timeout passes only if nothing else can happen.
        let early = tokio::time::timeout(Duration::from_secs(1), shutdown.wait_until_begun()).await;
        assert!(early.is_err(), "the shutdown began without its trigger");

        let deadline = Instant::now();
        trigger.begin(deadline);

        let waited = tokio::time::timeout(Duration::from_secs(1), waiting).await;
        assert_eq!(waited.unwrap().unwrap(), deadline);
        assert_eq!(shutdown.deadline_once_begun(), Some(deadline));
        assert!(shutdown.has_begun());
    }

    #[tokio::test(start_paused = true)]
    async fn background_work_is_waited_for_until_its_last_guard_is_dropped() {
        let (trigger, shutdown) = Shutdown::new();
        trigger.wait_until_background_work_ended().await;
        let [first, second] = [(), ()].map(|()| shutdown.clone().begin_background_work());
        let ends_within_a_second = async || {
            let ended = trigger.wait_until_background_work_ended();
            tokio::time::timeout(Duration::from_secs(1), ended).await.is_ok()
        };
        assert!(!ends_within_a_second().await);
        drop(first);
        assert!(!ends_within_a_second().await);
        drop(second);
        assert!(ends_within_a_second().await);
    }
}
