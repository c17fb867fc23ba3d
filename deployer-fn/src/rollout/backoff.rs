//! The backoff between requests to a provider: short at first, growing to a maximum, with jitter.

use std::time::Duration;

/// The first waiting time of a backoff, before jitter.
const FIRST_WAIT_BEFORE_JITTER: Duration = Duration::from_millis(100);
/// The longest waiting time of a backoff, before jitter.
const LONGEST_WAIT_BEFORE_JITTER: Duration = Duration::from_secs(2);

/// The waiting times between requests, which grow to a maximum.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
    waits: usize,
}

impl Backoff {
    /// Creates a backoff that begins with the shortest time.
    pub(super) fn new() -> Self {
        Self {
            next: FIRST_WAIT_BEFORE_JITTER,
            waits: 0,
        }
    }

    /// Returns how often this backoff has waited so far.
    pub(super) fn wait_count(&self) -> usize {
        self.waits
    }

    /// Waits for the backoff's next waiting time, give or take a fifth, so that several deployers do not retry
    /// at the same moment.
    pub(super) async fn wait_next(&mut self) {
        tokio::time::sleep(self.next.mul_f64(0.8 + 0.4 * fastrand::f64())).await;
        self.next = (self.next * 3 / 2).min(LONGEST_WAIT_BEFORE_JITTER);
        self.waits += 1;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn backoff_waits_grow_to_a_maximum() {
        let mut backoff = Backoff::new();
        let mut waits = Vec::new();
        for _ in 0..12 {
            let started = Instant::now();
            backoff.wait_next().await;
            waits.push(started.elapsed());
        }
        assert_eq!(backoff.wait_count(), 12);
        assert!(waits[0] <= FIRST_WAIT_BEFORE_JITTER * 5 / 4 && waits[0] < waits[4]);
        assert!(
            waits[11] >= LONGEST_WAIT_BEFORE_JITTER * 3 / 4
                && waits[11] <= LONGEST_WAIT_BEFORE_JITTER * 5 / 4
        );
    }
}
