//! The times of a build, which order the builds of one function.

use jiff::{SignedDuration, Timestamp};

use crate::time;

/// The time by which a build's time may be ahead of the deployer's clock. Clocks differ by less; a time further ahead
/// would keep a function from being updated until it has passed.
const MAX_TIME_AHEAD_OF_CLOCK: SignedDuration = SignedDuration::from_mins(5);

/// The times of a build: when its source was submitted, and when the build ended.
///
/// Builds are ordered by submission. Builders before that field, and the versions that they deployed, have the end of
/// the build alone. A submission is never compared with an end: a short build that was submitted later ends earlier
/// than a long one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TimesOfBuild {
    pub(crate) submitted_at: Option<Timestamp>,
    pub(crate) built_at: Option<Timestamp>,
}

impl TimesOfBuild {
    /// Returns whether this build is older than `other`: by submission if both have that time, or else by the end of
    /// the build. `false` if they have no kind of time in common.
    pub(crate) fn is_older_than(&self, other: &Self) -> bool {
        if let (Some(ours), Some(theirs)) = (self.submitted_at, other.submitted_at) {
            return ours < theirs;
        }
        matches!((self.built_at, other.built_at), (Some(ours), Some(theirs)) if ours < theirs)
    }

    /// Returns one time to sort builds by: the time of submission, or else the end of the build.
    pub(crate) fn sort_key(&self) -> Option<Timestamp> {
        self.submitted_at.or(self.built_at)
    }

    /// Returns the build's times without those that are too far ahead of `now`.
    pub(crate) fn without_times_too_far_ahead_of(self, now: Timestamp) -> Self {
        let plausible = |at: Option<Timestamp>| at.filter(|at| !is_too_far_ahead(*at, now));
        Self {
            submitted_at: plausible(self.submitted_at),
            built_at: plausible(self.built_at),
        }
    }

    /// Returns the problem with the time that orders this build if that time is too far ahead of `now`.
    pub(crate) fn problem_if_ordering_time_is_too_far_ahead_of(&self, now: Timestamp) -> Option<String> {
        let (field, at) = match (self.submitted_at, self.built_at) {
            (Some(at), _) => ("submittedAt", at),
            (None, Some(at)) => ("builtAt", at),
            (None, None) => return None,
        };
        is_too_far_ahead(at, now).then(|| {
            format!(
                "{field} is {}, more than {} minutes ahead of the deployer's clock, which is at {}",
                time::format_with_millis(at),
                MAX_TIME_AHEAD_OF_CLOCK.as_mins(),
                time::format_with_millis(now)
            )
        })
    }

    /// Returns the time that orders the build as part of a sentence: `submitted at …`, or else `built at …`, or else
    /// `of an unknown time`.
    pub(crate) fn ordering_time_as_phrase(&self) -> String {
        match (self.submitted_at, self.built_at) {
            (Some(at), _) => format!("submitted at {}", time::format_with_millis(at)),
            (None, Some(at)) => format!("built at {}", time::format_with_millis(at)),
            (None, None) => "of an unknown time".to_owned(),
        }
    }
}

/// Returns whether a build's time is too far ahead of `now`.
fn is_too_far_ahead(at: Timestamp, now: Timestamp) -> bool {
    at.duration_since(now) > MAX_TIME_AHEAD_OF_CLOCK
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some_timestamp_at_second(second: i64) -> Option<Timestamp> {
        Some(Timestamp::from_second(second).unwrap())
    }

    fn build_times_at_seconds(submitted: Option<i64>, built: Option<i64>) -> TimesOfBuild {
        TimesOfBuild {
            submitted_at: submitted.and_then(some_timestamp_at_second),
            built_at: built.and_then(some_timestamp_at_second),
        }
    }

    #[test]
    fn builds_are_ordered_by_submission_time_and_only_by_the_same_kind_of_time() {
        for (one, other, older) in [
            // A long build that was submitted first, and a short one.
            (
                build_times_at_seconds(Some(1), Some(26)),
                build_times_at_seconds(Some(3), Some(9)),
                true,
            ),
            (
                build_times_at_seconds(Some(3), Some(9)),
                build_times_at_seconds(Some(1), Some(26)),
                false,
            ),
            (
                build_times_at_seconds(Some(1), Some(1)),
                build_times_at_seconds(Some(1), Some(2)),
                false,
            ),
            // A version of an earlier release.
            (
                build_times_at_seconds(None, Some(26)),
                build_times_at_seconds(Some(3), Some(9)),
                false,
            ),
            (
                build_times_at_seconds(None, Some(9)),
                build_times_at_seconds(Some(1), Some(26)),
                true,
            ),
            (
                build_times_at_seconds(Some(1), Some(9)),
                build_times_at_seconds(None, Some(26)),
                true,
            ),
            (
                build_times_at_seconds(Some(1), None),
                build_times_at_seconds(None, Some(26)),
                false,
            ),
            (
                build_times_at_seconds(None, Some(26)),
                build_times_at_seconds(Some(30), None),
                false,
            ),
            (
                build_times_at_seconds(None, None),
                build_times_at_seconds(Some(1), Some(1)),
                false,
            ),
        ] {
            assert_eq!(one.is_older_than(&other), older, "{one:?} {other:?}");
        }
    }

    #[test]
    fn a_build_time_too_far_ahead_of_the_clock_is_a_problem_and_orders_no_builds() {
        let now = Timestamp::from_second(1000).unwrap();
        assert_eq!(
            build_times_at_seconds(Some(1300), Some(1300)).problem_if_ordering_time_is_too_far_ahead_of(now),
            None
        );
        let problem = build_times_at_seconds(Some(1301), Some(1000))
            .problem_if_ordering_time_is_too_far_ahead_of(now)
            .unwrap();
        assert_eq!(
            problem,
            "submittedAt is 1970-01-01T00:21:41.000Z, more than 5 minutes ahead of the deployer's clock, which is at \
             1970-01-01T00:16:40.000Z"
        );
        assert!(
            build_times_at_seconds(None, Some(1301))
                .problem_if_ordering_time_is_too_far_ahead_of(now)
                .unwrap()
                .starts_with("builtAt is")
        );
        // The end of the build does not order it.
        assert_eq!(
            build_times_at_seconds(Some(1000), Some(1301)).problem_if_ordering_time_is_too_far_ahead_of(now),
            None
        );
        assert_eq!(
            build_times_at_seconds(Some(1301), Some(1200)).without_times_too_far_ahead_of(now),
            build_times_at_seconds(None, Some(1200))
        );
    }
}
