//! Retries of a build that failed through the platform's fault.

use std::time::Duration;

use crate::buildkit::FaultyParty;
use crate::error::Error;

/// The longest pause before the first retry; it doubles with each further retry, up to [`PAUSE_MAX`].
const FIRST_PAUSE_MAX: Duration = Duration::from_secs(1);

/// The longest pause before any retry.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// The limit on the retries of one build in one delivery. It is below the number of references that one call may use.
const RETRIES_MAX: u32 = 8;

/// The retries of one build: how many there were, and the time that is left for the pauses before further ones.
#[derive(Debug)]
pub(super) struct BuildRetries {
    /// The time left for pauses. The attempts themselves are not deducted.
    left: Duration,
    /// The number of retries so far.
    count: u32,
}

impl BuildRetries {
    /// Creates the retries of a build. The pauses before them may take `pause_budget` in total.
    pub(super) fn new(pause_budget: Duration) -> Self {
        Self {
            left: pause_budget,
            count: 0,
        }
    }

    /// Begins the next retry, and returns the pause before it; `None` if a retry after `error` is of no use, or not
    /// allowed any more.
    pub(super) fn begin_retry_and_return_pause_if_allowed(&mut self, error: &Error) -> Option<Duration> {
        if !is_worth_a_retry(error) || self.count >= RETRIES_MAX {
            return None;
        }
        let longest = FIRST_PAUSE_MAX.saturating_mul(1 << self.count).min(PAUSE_MAX);
        // Half of it at random, so that builds that failed together do not come back together.
        let pause = longest.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.left = self.left.checked_sub(pause)?;
        self.count += 1;
        Some(pause)
    }

    /// Returns the number of the current attempt, from 1.
    /// [`begin_retry_and_return_pause_if_allowed`](Self::begin_retry_and_return_pause_if_allowed) begins the next one.
    pub(super) fn current_attempt(&self) -> u32 {
        self.count + 1
    }
}

/// Returns whether the same build may succeed on a retry, without a change by its caller or the operator.
fn is_worth_a_retry(error: &Error) -> bool {
    match error {
        Error::Connect(error) => error.may_answer_later(),
        Error::Lost(_) => true,
        Error::Context(error) => error.is_failed_exchange(),
        Error::Failed(failure) => {
            failure.fault == FaultyParty::Platform
                && !failure.is_of_unchecked_sources()
                && !failure.is_push_denied_lastingly()
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buildkit::BuildFailure;
    use crate::remote_context::ContextError;

    fn failed_push_by_fault_of(fault: FaultyParty) -> Error {
        failed_push("503 Service Unavailable", fault)
    }

    /// Returns the failure of a push that the registry answered with this status or error.
    fn failed_push(answer: &str, fault: FaultyParty) -> Error {
        Error::Failed(BuildFailure {
            message: format!("failed to push registry.example/app:1: {answer}"),
            fault,
            dockerfile_line: None,
        })
    }

    #[test]
    fn a_failure_of_the_platform_is_retried_until_its_growing_pauses_reach_the_limit() {
        let mut retries = BuildRetries::new(Duration::from_secs(20));
        let pauses: Vec<_> = std::iter::from_fn(|| {
            retries.begin_retry_and_return_pause_if_allowed(&failed_push_by_fault_of(FaultyParty::Platform))
        })
        .collect();

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
    fn a_build_is_retried_at_most_eight_times() {
        let mut retries = BuildRetries::new(Duration::MAX);
        let lost = || Error::Lost("reset".into());
        let count = std::iter::from_fn(|| retries.begin_retry_and_return_pause_if_allowed(&lost())).count();
        assert_eq!(count, 8);
    }

    #[test]
    fn a_failed_fetch_of_a_context_is_retried_if_its_server_is_at_fault() {
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
            let pause =
                BuildRetries::new(Duration::MAX).begin_retry_and_return_pause_if_allowed(&error.into());
            assert!(pause.is_some());
        }
    }

    #[test]
    fn a_push_with_a_password_that_has_expired_or_is_wrong_for_a_moment_is_retried() {
        for answer in [
            "denied: Your authorization token has expired. Reauthenticate and try again.",
            "unexpected status from HEAD request to https://r/v2/x/blobs/sha256:12: 401 Unauthorized",
        ] {
            let error = failed_push(answer, FaultyParty::Platform);
            assert!(
                BuildRetries::new(Duration::MAX)
                    .begin_retry_and_return_pause_if_allowed(&error)
                    .is_some(),
                "{answer}"
            );
        }
    }

    #[test]
    fn a_failure_that_a_retry_cannot_change_is_not_retried() {
        for error in [
            ContextError::NotFound {
                what: "registry.example/contexts".into(),
            }
            .into(),
            ContextError::NotStored.into(),
            failed_push_by_fault_of(FaultyParty::Caller),
            failed_push(
                "unexpected status from PUT request to https://r/v2/x: 403 Forbidden",
                FaultyParty::Platform,
            ),
            failed_push(
                "denied: requested access to the resource is denied",
                FaultyParty::Platform,
            ),
            Error::Cancelled,
            Error::Interrupted,
            Error::TimeLimit {
                limit: Duration::from_secs(1),
            },
            Error::NoDigest,
            Error::Failed(BuildFailure::of_unchecked_sources()),
        ] {
            assert_eq!(
                BuildRetries::new(Duration::MAX).begin_retry_and_return_pause_if_allowed(&error),
                None,
                "{error}"
            );
        }
    }
}
