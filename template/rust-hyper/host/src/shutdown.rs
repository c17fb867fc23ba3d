//! The end of the process, as those see it who are to finish before it.

use tokio::sync::watch;
use tokio::time::Instant;

/// Tells when the function was asked to end (SIGTERM), and by when it will have ended. Clones see the same.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<Option<Instant>>);

/// The other side of a [`Shutdown`].
#[derive(Debug)]
pub struct ShutdownTrigger(watch::Sender<Option<Instant>>);

impl Shutdown {
    /// A shutdown that has not begun, and what begins it. A test holds the trigger; in a function the host does.
    pub fn new() -> (ShutdownTrigger, Self) {
        let (sender, receiver) = watch::channel(None);
        (ShutdownTrigger(sender), Self(receiver))
    }

    /// Whether the function was asked to end.
    pub fn begun(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// When the host cuts off what still runs; `None` before the end was asked for. A handler that would take longer
    /// should end before it, with an answer that says so.
    pub fn deadline(&self) -> Option<Instant> {
        *self.0.borrow()
    }

    /// Waits until the function is asked to end; gives the deadline.
    pub async fn wait(&self) -> Instant {
        let mut receiver = self.0.clone();
        match receiver.wait_for(Option::is_some).await.map(|deadline| *deadline) {
            Ok(Some(deadline)) => deadline,
            // The trigger is gone: nobody will ever ask.
            _ => std::future::pending().await,
        }
    }
}

impl ShutdownTrigger {
    /// Begins the shutdown, to be over at `deadline`.
    pub fn begin(&self, deadline: Instant) {
        self.0.send_replace(Some(deadline));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everyone_learns_of_the_end_and_its_deadline() {
        let (trigger, shutdown) = Shutdown::new();
        assert!(!shutdown.begun());
        let waiting = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { shutdown.wait().await }
        });
        let deadline = Instant::now();
        trigger.begin(deadline);
        assert_eq!(waiting.await.unwrap(), deadline);
        assert_eq!(shutdown.wait().await, deadline);
        assert!(shutdown.begun());
    }
}
