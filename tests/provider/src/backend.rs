//! The address of a function's instance, and the number of its calls in progress.
//!
//! A call is counted when it is given the address, under the same lock under which an update replaces the
//! instance. A replaced instance therefore gets no new calls, and once its count is zero, stopping it loses
//! none.

use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
};

use tokio::sync::watch;

/// The address of a function's running instance, with the number of its calls in progress: an old instance is stopped
/// once it has none.
#[derive(Debug, Default)]
pub(crate) struct DrainableBackend {
    address: RwLock<Option<SocketAddr>>,
    calls: watch::Sender<usize>,
}

/// A guard for a call in progress; dropping it ends the call.
#[derive(Debug)]
pub(crate) struct CallGuard(Arc<DrainableBackend>);

impl DrainableBackend {
    /// Sets the address to which calls are forwarded; `None` while the instance has no process.
    pub(crate) fn set_address(&self, address: Option<SocketAddr>) {
        *self.address.write().unwrap_or_else(PoisonError::into_inner) = address;
    }

    /// Returns the address to which calls are forwarded; `None` while the instance has no process.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        *self.address.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call as in progress until the guard is dropped.
    pub(crate) fn begin_call(self: &Arc<Self>) -> CallGuard {
        self.calls.send_modify(|calls| *calls += 1);
        CallGuard(Arc::clone(self))
    }

    /// Waits until no call of the instance is in progress.
    pub(crate) async fn wait_until_idle(&self) {
        // This fails only if the sender is dropped, and `self` holds the sender.
        let _ = self.calls.subscribe().wait_for(|calls| *calls == 0).await;
    }
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        self.0.calls.send_modify(|calls| *calls -= 1);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_backend_is_idle_when_its_last_call_has_ended() {
        let backend = Arc::new(DrainableBackend::default());
        let is_idle = || backend.wait_until_idle().now_or_never().is_some();
        assert!(is_idle());
        let (first, second) = (backend.begin_call(), backend.begin_call());
        drop(first);
        assert!(!is_idle());
        drop(second);
        assert!(is_idle());
    }
}
