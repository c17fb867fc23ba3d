//! Readiness: the daemon is probed in the background, so that requests for readiness need not wait for it.

use std::time::Duration;

use function_host::ErrorChain;
use tokio::sync::watch;

use crate::buildkit::Daemon;

/// The time between two probes of the daemon.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// Probes `daemon` at once and then every 5 s, and sends to `ready` whether it answers, until all receivers are
/// dropped.
pub async fn probe_periodically(daemon: Daemon, ready: watch::Sender<bool>) {
    while !ready.is_closed() {
        let answers = daemon.check_answers().await;
        let changed =
            ready.send_if_modified(|ready| std::mem::replace(ready, answers.is_ok()) != answers.is_ok());
        match &answers {
            Ok(()) if changed => tracing::info!("BuildKit answers; the builder is ready"),
            Err(error) if changed => {
                tracing::warn!(error = %ErrorChain(error), "BuildKit does not answer; the builder is not ready")
            }
            _ => {}
        }
        tokio::time::sleep(PROBE_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::buildkit::{DialFuture, Dialer};

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_is_down_is_probed_until_the_receiver_is_dropped() {
        struct UnreachableDaemon(Arc<AtomicUsize>);
        impl Dialer for UnreachableDaemon {
            fn open_transport(&self) -> DialFuture {
                self.0.fetch_add(1, Ordering::Relaxed);
                Box::pin(async { Err(std::io::ErrorKind::ConnectionRefused.into()) })
            }
        }
        let dials = Arc::new(AtomicUsize::new(0));
        let (sender, receiver) = watch::channel(false);
        let watching = tokio::spawn(probe_periodically(
            Daemon::with_dialer("down", UnreachableDaemon(dials.clone())),
            sender,
        ));

        tokio::time::sleep(PROBE_INTERVAL * 3).await;
        assert!(!*receiver.borrow());
        assert!(dials.load(Ordering::Relaxed) >= 3);

        drop(receiver);
        watching.await.expect("it ends");
    }
}
