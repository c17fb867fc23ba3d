//! Retries of a build that failed through the platform's fault.

use std::time::Duration;

use crate::buildkit::FaultyParty;
use crate::error::Error;

/// The pause before the first retry; every further pause is up to twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause between two retries.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// The limit on the retries of one build. BuildKit's history has a place for each.
const RETRIES_MAX: u32 = 8;

/// The retries of one build.
#[derive(Debug)]
pub(super) struct BuildRetries {
    /// The time left for retries, from the first failure on.
    left: Duration,
    count: u32,
}

impl BuildRetries {
    /// Creates the retries of a build, which may take `limit` together.
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            left: limit,
            count: 0,
        }
    }

    /// Returns the pause before the build is tried again after `error`; `None` if that is of no use, or not allowed any
    /// more. `took` is how long the failed attempt took.
    pub(super) fn next_pause(&mut self, error: &Error) -> Option<Duration> {
        if !is_worth_a_retry(error) || self.count >= RETRIES_MAX {
            return None;
        }
        let longest = FIRST_PAUSE.saturating_mul(1 << self.count).min(PAUSE_MAX);
        // Half of it at random, so that builds that failed together do not come back together.
        let pause = longest.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.left = self.left.checked_sub(pause)?;
        self.count += 1;
        Some(pause)
    }

    /// Returns the number of the next attempt, from 1.
    pub(super) fn attempt(&self) -> u32 {
        self.count + 1
    }
}

/// Returns whether the same build can succeed without a change by its caller or the operator.
fn is_worth_a_retry(error: &Error) -> bool {
    match error {
        Error::Connect(error) => error.is_unreachable(),
        Error::Lost(_) => true,
        Error::Context(error) => error.is_failed_exchange(),
        Error::Failed(failure) => {
            failure.fault == FaultyParty::Platform
                && !failure.message.contains("does not ask the builder which sources")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buildkit::BuildFailure;
    use crate::remote_context::ContextError;

    fn failure(fault: FaultyParty) -> Error {
        Error::Failed(BuildFailure {
            message: "failed to push: 503 Service Unavailable".into(),
            fault,
        })
    }

    #[test]
    fn a_failure_of_the_platform_is_retried_with_growing_pauses_until_the_time_is_over() {
        let mut retries = BuildRetries::new(Duration::from_secs(20));
        let pauses: Vec<_> =
            std::iter::from_fn(|| retries.next_pause(&failure(FaultyParty::Platform))).collect();

        assert!((4..=5).contains(&pauses.len()), "{pauses:?}");
        for (number, pause) in pauses.iter().enumerate() {
            let longest = f64::from(1 << number);
            assert!(
                (longest / 2.0..=longest).contains(&pause.as_secs_f64()),
                "{pauses:?}"
            );
        }
        assert!(pauses.iter().sum::<Duration>() <= Duration::from_secs(20));
    }

    #[test]
    fn the_number_of_retries_is_limited() {
        let mut retries = BuildRetries::new(Duration::MAX);
        let lost = || Error::Lost("reset".into());
        let count = std::iter::from_fn(|| retries.next_pause(&lost())).count();
        assert_eq!(count, 8);
    }

    #[test]
    fn a_context_is_fetched_again_after_a_failure_of_its_server() {
        for error in [
            ContextError::Status {
                host: "registry.example".into(),
                status: 503,
            },
            ContextError::Stalled {
                limit: Duration::from_secs(30),
            },
            ContextError::Lost("reset".into()),
        ] {
            let pause = BuildRetries::new(Duration::MAX).next_pause(&error.into());
            assert!(pause.is_some());
        }
    }

    #[test]
    fn what_the_caller_or_the_operator_has_to_change_is_not_retried() {
        for error in [
            ContextError::NotFound {
                what: "registry.example/contexts".into(),
            }
            .into(),
            ContextError::NotStored.into(),
            failure(FaultyParty::Caller),
            Error::Cancelled,
            Error::Interrupted,
            Error::TimeLimit {
                limit: Duration::from_secs(1),
            },
            Error::NoDigest,
            Error::Failed(BuildFailure {
                message: "the daemon does not ask the builder which sources a build may read".into(),
                fault: FaultyParty::Platform,
            }),
        ] {
            assert_eq!(
                BuildRetries::new(Duration::MAX).next_pause(&error),
                None,
                "{error}"
            );
        }
    }
}
