//! The shutdown of the process, as handlers see it.

use tokio::sync::watch;
use tokio::time::Instant;

/// The state of the function's shutdown (after SIGTERM), with its deadline. Clones share the state.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<Option<Instant>>);

/// The trigger that begins the shutdown observed by a [`Shutdown`].
#[derive(Debug)]
pub struct ShutdownTrigger(watch::Sender<Option<Instant>>);

impl Shutdown {
    /// Creates the state of a shutdown that has not begun, and its trigger.
    ///
    /// In a function, the host holds the trigger; in a test, the test does.
    pub fn new() -> (ShutdownTrigger, Self) {
        let (sender, receiver) = watch::channel(None);
        (ShutdownTrigger(sender), Self(receiver))
    }

    /// Returns whether the function's shutdown has begun.
    pub fn has_begun(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Returns the time at which the host drops the remaining requests, or `None` before the shutdown has
    /// begun.
    ///
    /// A handler that would take longer should end before the deadline, with an answer that says so.
    pub fn deadline(&self) -> Option<Instant> {
        *self.0.borrow()
    }

    /// Waits until the function's shutdown begins, and returns its deadline. Never returns if the trigger is dropped
    /// before.
    pub async fn wait_until_begun(&self) -> Instant {
        let mut receiver = self.0.clone();
        match receiver.wait_for(Option::is_some).await.map(|deadline| *deadline) {
            Ok(Some(deadline)) => deadline,
            // The trigger was dropped: the shutdown can never begin.
            _ => std::future::pending().await,
        }
    }
}

impl ShutdownTrigger {
    /// Begins the function's shutdown with this deadline.
    pub fn begin(&self, deadline: Instant) {
        self.0.send_replace(Some(deadline));
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
        assert_eq!(shutdown.deadline(), None);
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
        assert_eq!(shutdown.deadline(), Some(deadline));
        assert!(shutdown.has_begun());
    }
}
