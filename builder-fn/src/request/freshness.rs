//! Limits on the age of requests. They keep a recorded request from being built, and deployed, again.

use std::time::{Duration, SystemTime};

use super::RequestError;
use super::time::format_rfc3339;

/// The limit on the age of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FreshnessLimit {
    /// A request may have any age.
    #[default]
    Unlimited,
    /// A request has a largest age, if its config says with `submittedAt` when it was signed.
    Limited {
        /// The largest age that a request may have.
        max_age: Duration,
        /// Whether a config without `submittedAt` is rejected.
        is_required: bool,
    },
}

impl FreshnessLimit {
    /// Checks a config's `submittedAt` against the limit. Returns whether it limits how long the request is
    /// valid.
    ///
    /// # Errors
    /// Fails if the request is too old, or does not say how old it is although it has to.
    pub(super) fn check_age_returning_if_dated_and_limited(
        self,
        submitted_at: Option<SystemTime>,
        now: SystemTime,
    ) -> Result<bool, RequestError> {
        let Self::Limited { max_age, is_required } = self else {
            return Ok(false);
        };
        match submitted_at {
            None if is_required => Err(RequestError::NotDated { max_age }),
            None => Ok(false),
            Some(at) if now.duration_since(at).is_ok_and(|age| age > max_age) => Err(RequestError::TooOld {
                submitted_at: format_rfc3339(at),
                now: format_rfc3339(now),
                max_age,
            }),
            Some(_) => Ok(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_requests_older_than_max_age_or_undated_where_required_are_rejected() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let max_age = Duration::from_secs(600);
        let limited = |is_required| FreshnessLimit::Limited { max_age, is_required };
        let (old, oldest) = (now - max_age - Duration::from_nanos(1), now - max_age);
        for (freshness, submitted_at, expected) in [
            (FreshnessLimit::Unlimited, None, Ok(false)),
            (FreshnessLimit::Unlimited, Some(old), Ok(false)),
            (limited(false), None, Ok(false)),
            (limited(false), Some(oldest), Ok(true)),
            (limited(true), Some(now + max_age), Ok(true)),
            (limited(true), None, Err(&["require_fresh", "submittedAt"][..])),
            (
                limited(false),
                Some(old),
                Err(&[
                    "submittedAt",
                    "2001-09-09T01:36:39Z",
                    "2001-09-09T01:46:40Z",
                    "max_age",
                    "10m",
                ]),
            ),
        ] {
            match (
                freshness.check_age_returning_if_dated_and_limited(submitted_at, now),
                expected,
            ) {
                (Ok(is_limited), Ok(expected)) => assert_eq!(is_limited, expected, "{freshness:?}"),
                (Err(error), Err(parts)) => {
                    let text = error.to_string();
                    assert!(parts.iter().all(|part| text.contains(part)), "{text}");
                }
                (checked, _) => panic!("{freshness:?}, {submitted_at:?}: {checked:?}"),
            }
        }
    }
}
