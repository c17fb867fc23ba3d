//! The number of requests in flight, and its limit.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The error that as many requests are in flight as the setting `max_inflight` allows.
///
/// Its text is that of OpenFaaS's own limit, which queues recognize and retry; a handler that returns it answers 429.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Concurrent request limit exceeded. Max concurrent requests: {limit}")]
pub struct ConcurrencyLimitExceeded {
    /// The limit on requests in flight.
    pub limit: usize,
}

/// A counter of requests in flight, with an optional limit on their number.
#[derive(Debug)]
pub(crate) struct InFlightLimiter {
    running: AtomicUsize,
    limit: Option<usize>,
}

impl InFlightLimiter {
    /// Creates a counter at 0; `None` for no limit.
    pub(crate) fn new(limit: Option<usize>) -> Self {
        Self {
            running: AtomicUsize::new(0),
            limit,
        }
    }

    /// Counts a request as in flight until [`count_request_out`](InFlightLimiter::count_request_out); fails if the limit
    /// is reached.
    pub(crate) fn count_request_in(&self) -> Result<(), ConcurrencyLimitExceeded> {
        let Some(limit) = self.limit else {
            self.running.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        };
        // Not incremented and decremented again: in between, another request would be rejected in error.
        let entered = self
            .running
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |running| {
                (running < limit).then_some(running + 1)
            });
        entered.map(drop).map_err(|_| ConcurrencyLimitExceeded { limit })
    }

    /// Ends the counting of a request that [`count_request_in`](InFlightLimiter::count_request_in) has counted.
    pub(crate) fn count_request_out(&self) {
        self.running.fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns the number of requests in flight.
    pub(crate) fn in_flight_count(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    /// Returns whether the limit on requests in flight is reached.
    pub(crate) fn is_at_limit(&self) -> bool {
        self.limit.is_some_and(|limit| self.in_flight_count() >= limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_as_many_requests_as_the_limit_are_admitted_at_a_time() {
        let inflight = InFlightLimiter::new(Some(2));
        assert_eq!(inflight.count_request_in(), Ok(()));
        assert!(!inflight.is_at_limit());
        assert_eq!(inflight.count_request_in(), Ok(()));
        assert!(inflight.is_at_limit());
        assert_eq!(
            inflight.count_request_in(),
            Err(ConcurrencyLimitExceeded { limit: 2 })
        );
        assert_eq!(inflight.in_flight_count(), 2);
        inflight.count_request_out();
        assert_eq!(inflight.count_request_in(), Ok(()));
    }

    #[test]
    fn without_a_limit_every_request_is_admitted() {
        let inflight = InFlightLimiter::new(None);
        for _ in 0..1000 {
            assert_eq!(inflight.count_request_in(), Ok(()));
        }
        assert!(!inflight.is_at_limit());
        assert_eq!(inflight.in_flight_count(), 1000);
    }
}
