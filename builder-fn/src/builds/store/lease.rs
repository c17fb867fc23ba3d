//! Which processes live: each that has accepted what it has not finished renews a sign in the registry.
//!
//! The sign of a process is the tag `o-OWNER`. Its manifest has a number that counts up to [`DISTINCT_SIGNS_OF_LIFE`] and
//! begins again, so that the registry never has more manifests of it. An observer compares what it reads with what it
//! read before, and measures by its own clock: no two clocks are compared. A process whose sign has not changed for
//! some time counts as gone. One that only cannot reach the registry is taken for gone as well, and both run the build:
//! BuildKit builds it once.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::index_tag::RELEASED_OWNER;

/// The number of manifests that a sign changes between: more than renewals in [`LeaseTimes::stale_after`], so that none
/// looks unchanged.
pub(super) const DISTINCT_SIGNS_OF_LIFE: u64 = 30;

/// The times of the signs that processes live, of claims, and of exchanges with the registry.
#[derive(Clone, Copy, Debug)]
pub struct LeaseTimes {
    /// The time between two renewals of a sign.
    pub beat: Duration,
    /// The time without a change after which a process counts as gone. Some renewals in a row have failed then.
    pub stale_after: Duration,
    /// The time after which a claim counts if it is still there.
    pub settle: Duration,
    /// The time between two searches for builds of processes that have gone.
    pub search: Duration,
    /// The longest wait for the registry to store or to return a record.
    pub exchange: Duration,
    /// Half of the pause before the end of a build is written again. Each further pause is twice as long, up to 64
    /// times this.
    pub end_pause: Duration,
}

impl Default for LeaseTimes {
    fn default() -> Self {
        Self {
            beat: Duration::from_secs(5),
            stale_after: Duration::from_secs(20),
            settle: Duration::from_secs(2),
            search: Duration::from_secs(5),
            exchange: Duration::from_secs(5),
            end_pause: Duration::from_secs(1),
        }
    }
}

/// What one process has seen of the signs of others.
#[derive(Debug, Default)]
pub(super) struct ObservedOwners(HashMap<String, ObservedSignOfLife>);

#[derive(Debug)]
struct ObservedSignOfLife {
    digest: Option<String>,
    /// The time since which the sign has not changed, as far as it was observed in every pass.
    since: Instant,
    /// The time of the last observation.
    observed: Instant,
    /// The number of the pass of the last observation.
    pass: u64,
}

/// The largest number of passes between two observations of a sign that are compared: one pass may be left out.
const MAX_PASSES_BETWEEN_OBSERVATIONS: u64 = 2;

impl ObservedOwners {
    /// Records the digest of an owner's sign, `None` if it has none, and returns whether the owner counts as gone: its
    /// sign has not changed for `stale_after`, in every `pass` over the records, whatever a pass takes. An owner
    /// without unfinished builds renews no sign and is not observed, so that what was seen before such a time says
    /// nothing.
    pub(super) fn record_and_check_gone(
        &mut self,
        owner: &str,
        digest: Option<String>,
        stale_after: Duration,
        pass: u64,
    ) -> bool {
        if owner == RELEASED_OWNER {
            return true;
        }
        let now = Instant::now();
        let fresh = || ObservedSignOfLife {
            digest: digest.clone(),
            since: now,
            observed: now,
            pass,
        };
        let seen = self.0.entry(owner.to_owned()).or_insert_with(fresh);
        if seen.digest != digest || pass - seen.pass > MAX_PASSES_BETWEEN_OBSERVATIONS {
            *seen = fresh();
        }
        seen.observed = now;
        seen.pass = pass;
        now.duration_since(seen.since) >= stale_after
    }

    /// Forgets the owners that were not observed for `age`. One that is seen again is observed from then on.
    pub(super) fn forget_older_than(&mut self, age: Duration) {
        let now = Instant::now();
        self.0.retain(|_, sign| now.duration_since(sign.observed) < age);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALE_AFTER: Duration = Duration::from_secs(20);

    #[tokio::test(start_paused = true)]
    async fn an_owner_is_gone_once_its_sign_of_life_has_not_changed_for_long() {
        let mut owners = ObservedOwners::default();
        let sign = |number: u32| Some(number.to_string());
        assert!(!owners.record_and_check_gone("a", sign(1), STALE_AFTER, 0));
        assert!(!owners.record_and_check_gone("silent", None, STALE_AFTER, 0));
        tokio::time::advance(STALE_AFTER - Duration::from_secs(1)).await;
        assert!(!owners.record_and_check_gone("a", sign(1), STALE_AFTER, 1));
        assert!(!owners.record_and_check_gone("a", sign(2), STALE_AFTER, 1));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!owners.record_and_check_gone("a", sign(2), STALE_AFTER, 2));
        assert!(
            owners.record_and_check_gone("silent", None, STALE_AFTER, 2),
            "one that never had a sign"
        );
        tokio::time::advance(STALE_AFTER).await;
        assert!(owners.record_and_check_gone("a", sign(2), STALE_AFTER, 3));
        assert!(
            !owners.record_and_check_gone("a", sign(3), STALE_AFTER, 3),
            "it lives after all"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_owner_that_was_idle_is_not_taken_for_gone_by_its_old_sign_of_life() {
        let mut owners = ObservedOwners::default();
        assert!(!owners.record_and_check_gone("a", Some("1".into()), STALE_AFTER, 0));
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert!(!owners.record_and_check_gone(
            "a",
            Some("1".into()),
            STALE_AFTER,
            MAX_PASSES_BETWEEN_OBSERVATIONS + 1
        ));
        tokio::time::advance(STALE_AFTER).await;
        assert!(owners.record_and_check_gone(
            "a",
            Some("1".into()),
            STALE_AFTER,
            MAX_PASSES_BETWEEN_OBSERVATIONS + 2
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn an_owner_that_is_gone_is_found_however_long_a_pass_takes() {
        let mut owners = ObservedOwners::default();
        assert!(!owners.record_and_check_gone("a", Some("1".into()), STALE_AFTER, 7));
        tokio::time::advance(100 * STALE_AFTER).await;
        assert!(owners.record_and_check_gone(
            "a",
            Some("1".into()),
            STALE_AFTER,
            7 + MAX_PASSES_BETWEEN_OBSERVATIONS
        ));
    }

    #[test]
    fn the_released_owner_counts_as_gone_at_once() {
        assert!(ObservedOwners::default().record_and_check_gone(RELEASED_OWNER, None, STALE_AFTER, 0));
    }

    #[test]
    fn signs_of_life_repeat_only_after_more_than_twice_stale_after() {
        let times = LeaseTimes::default();
        assert!(times.beat.as_secs() * DISTINCT_SIGNS_OF_LIFE > 2 * times.stale_after.as_secs());
    }
}
