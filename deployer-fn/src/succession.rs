//! The news that a newer build of a function waits for its turn.

use std::future::pending;

use tokio::sync::watch;

use crate::outcome::Successor;

/// Tells a rollout that a newer build waits. Clones tell the same.
#[derive(Clone, Debug)]
pub struct Succession(watch::Receiver<Option<Successor>>);

/// The end of a [`Succession`] that announces the newer build.
pub type Announcer = watch::Sender<Option<Successor>>;

impl Succession {
    /// Makes a succession without a newer build.
    #[must_use]
    pub fn none() -> Self {
        Self::new(None).1
    }

    /// Makes a succession, and its other end.
    #[must_use]
    pub fn new(successor: Option<Successor>) -> (Announcer, Self) {
        let (announcer, receiver) = watch::channel(successor);
        (announcer, Self(receiver))
    }

    /// Returns the newer build that waits.
    pub(crate) fn current(&self) -> Option<Successor> {
        self.0.borrow().clone()
    }

    /// Waits until a newer build waits, and returns it.
    pub(crate) async fn successor(&self) -> Successor {
        let mut receiver = self.0.clone();
        let found = match receiver.wait_for(Option::is_some).await {
            Ok(successor) => successor.clone(),
            Err(_) => None,
        };
        match found {
            Some(successor) => successor,
            // Nobody is left to announce one.
            None => pending().await,
        }
    }
}
