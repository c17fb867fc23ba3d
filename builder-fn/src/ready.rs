//! Readiness: the daemons are probed in the background, so that requests for readiness need not wait for them.

use std::time::Duration;

use function_host::ErrorChain;
use tokio::sync::watch;

use crate::buildkit::{DaemonPool, KnownAndAnsweringDaemonCounts, LOWEST_SHARED_BUILDKIT_RELEASE};

/// The time between two probes of the daemons.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// Probes the daemons of `pool` at once and then every 5 s, and sends to `sizes` how many there are and how many
/// answer, until all receivers are dropped. The builder is ready while one answers.
pub async fn probe_periodically(pool: DaemonPool, sizes: watch::Sender<KnownAndAnsweringDaemonCounts>) {
    while !sizes.is_closed() {
        let (size, errors) = pool.probe_and_update_left_out_daemons().await;
        let before = sizes.send_replace(size);
        if before != size {
            let KnownAndAnsweringDaemonCounts {
                known,
                answering,
                outdated,
            } = size;
            for error in &errors {
                tracing::warn!(error = %ErrorChain(error), known, answering, "a BuildKit daemon does not answer");
            }
            match answering {
                0 => tracing::warn!("BuildKit does not answer; the builder is not ready"),
                _ => tracing::info!(known, answering, "BuildKit answers; the builder is ready"),
            }
            if outdated > before.outdated {
                tracing::warn!(
                    outdated,
                    lowest = LOWEST_SHARED_BUILDKIT_RELEASE,
                    "BuildKit is older than the lowest version without known advisories, or does not report its version; \
                     tenants may not share such a daemon"
                );
            }
        }
        tokio::time::sleep(PROBE_INTERVAL).await;
    }
}

/// Returns the line about the daemons in the answer to a readiness probe.
pub fn describe_pool(
    KnownAndAnsweringDaemonCounts {
        known,
        answering,
        outdated,
    }: KnownAndAnsweringDaemonCounts,
) -> String {
    let age = match outdated {
        0 => String::new(),
        _ => format!("; {outdated} are not known to be version {LOWEST_SHARED_BUILDKIT_RELEASE} or later"),
    };
    format!("{answering} of {known} BuildKit daemons answer{age}\n")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::buildkit::{Daemon, DialFuture, Dialer};

    #[test]
    fn readiness_tells_of_daemons_that_tenants_may_not_share() {
        let counts = |outdated| KnownAndAnsweringDaemonCounts {
            known: 3,
            answering: 2,
            outdated,
        };
        assert_eq!(describe_pool(counts(0)), "2 of 3 BuildKit daemons answer\n");
        assert_eq!(
            describe_pool(counts(1)),
            "2 of 3 BuildKit daemons answer; 1 are not known to be version 0.34.2 or later\n"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_is_down_is_probed_until_the_receiver_is_dropped() {
        struct UnreachableDaemonCountingDials(Arc<AtomicUsize>);
        impl Dialer for UnreachableDaemonCountingDials {
            fn open_transport(&self) -> DialFuture {
                self.0.fetch_add(1, Ordering::Relaxed);
                Box::pin(async { Err(std::io::ErrorKind::ConnectionRefused.into()) })
            }
        }
        let dials = Arc::new(AtomicUsize::new(0));
        let (sender, receiver) = watch::channel(KnownAndAnsweringDaemonCounts::default());
        let watching = tokio::spawn(probe_periodically(
            Daemon::with_dialer("down", UnreachableDaemonCountingDials(dials.clone())).into(),
            sender,
        ));

        tokio::time::sleep(PROBE_INTERVAL * 3).await;
        let down = KnownAndAnsweringDaemonCounts {
            known: 1,
            answering: 0,
            outdated: 0,
        };
        assert_eq!(*receiver.borrow(), down);
        assert!(dials.load(Ordering::Relaxed) >= 3);

        drop(receiver);
        watching.await.expect("it ends");
    }
}
