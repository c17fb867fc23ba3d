//! Announces to a rollout that a newer build of its function waits for its turn.

use std::future::pending;

use tokio::sync::watch;

use crate::outcome::SuccessorCallId;

/// The receiver from which a rollout learns that a newer build waits. Clones receive the same.
#[derive(Clone, Debug)]
pub struct SuccessorReceiver(watch::Receiver<Option<SuccessorCallId>>);

/// The sender that announces a newer build to a [`SuccessorReceiver`].
pub type SuccessorSender = watch::Sender<Option<SuccessorCallId>>;

impl SuccessorReceiver {
    /// Makes a receiver to which no newer build is ever announced.
    #[must_use]
    pub fn without_successor() -> Self {
        Self::channel_with_successor(None).1
    }

    /// Makes a sender and a receiver of newer builds. `successor`, if there is one, is announced already.
    #[must_use]
    pub fn channel_with_successor(successor: Option<SuccessorCallId>) -> (SuccessorSender, Self) {
        let (announcer, receiver) = watch::channel(successor);
        (announcer, Self(receiver))
    }

    /// Returns the newer build that waits, if one was announced.
    pub(crate) fn current_successor(&self) -> Option<SuccessorCallId> {
        self.0.borrow().clone()
    }

    /// Waits until a newer build is announced, and returns it.
    pub(crate) async fn wait_for_successor(&self) -> SuccessorCallId {
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
