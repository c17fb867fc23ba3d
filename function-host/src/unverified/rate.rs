//! The lowest rate at which a sender may send.

use std::time::Duration;

/// The time that a sender has left for its next piece.
///
/// It is used up by waiting for the sender, and won back by what arrives. It never exceeds the grace period, so that a
/// sender cannot send a lot at once and then pause for long.
#[derive(Clone, Copy, Debug)]
pub(super) struct TimeCredit {
    left: Duration,
    grace: Duration,
    rate: u64,
}

impl TimeCredit {
    /// Returns the time credit of a new sender: it starts at `grace`, and `bytes_per_second` bytes win back a second.
    pub(super) fn new(bytes_per_second: u64, grace: Duration) -> Self {
        Self {
            left: grace,
            grace,
            rate: bytes_per_second.max(1),
        }
    }

    /// Returns the time that the sender has left for its next piece.
    pub(super) fn time_left(&self) -> Duration {
        self.left
    }

    /// Records that `bytes` have arrived after a wait of `waited`.
    pub(super) fn record_received(&mut self, bytes: usize, waited: Duration) {
        let won = Duration::try_from_secs_f64(bytes as f64 / self.rate as f64).unwrap_or(self.grace);
        self.left = self
            .left
            .saturating_sub(waited)
            .saturating_add(won)
            .min(self.grace);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(10);

    #[test]
    fn received_bytes_restore_time_up_to_the_grace_period() {
        let mut credit = TimeCredit::new(1000, GRACE);
        credit.record_received(0, Duration::from_secs(4));
        assert_eq!(credit.time_left(), Duration::from_secs(6));
        credit.record_received(1500, Duration::ZERO);
        assert_eq!(credit.time_left(), Duration::from_millis(7500));
        credit.record_received(1 << 30, Duration::ZERO);
        assert_eq!(credit.time_left(), GRACE);
    }

    #[test]
    fn a_sender_below_the_lowest_rate_runs_out_of_time() {
        let mut credit = TimeCredit::new(1000, GRACE);
        let mut seconds = 0;
        while credit.time_left() >= Duration::from_secs(1) {
            credit.record_received(500, Duration::from_secs(1));
            seconds += 1;
        }
        assert_eq!(seconds, 19);
    }

    #[test]
    fn a_lowest_rate_of_zero_does_not_panic() {
        let mut credit = TimeCredit::new(0, GRACE);
        credit.record_received(usize::MAX, Duration::from_secs(1));
        assert_eq!(credit.time_left(), GRACE);
    }
}
