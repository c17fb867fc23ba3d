//! The number of requests in flight, and its limit.

use std::sync::atomic::{AtomicUsize, Ordering};

/// A counter of requests in flight, from their head to the end of their response, that limits their number.
#[derive(Debug)]
pub(crate) struct InFlight {
    running: AtomicUsize,
    limit: Option<usize>,
}

impl InFlight {
    pub(crate) fn new(limit: Option<usize>) -> Self {
        Self {
            running: AtomicUsize::new(0),
            limit,
        }
    }

    /// Counts a request in; [`leave`](InFlight::leave) must count it out. Fails with the limit if it is
    /// reached.
    pub(crate) fn admit(&self) -> Result<(), usize> {
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
        entered.map(drop).map_err(|_| limit)
    }

    /// Counts out a request that was admitted by [`admit`](InFlight::admit).
    pub(crate) fn leave(&self) {
        self.running.fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns the number of requests in flight.
    pub(crate) fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    /// Returns whether the limit on requests in flight is reached.
    pub(crate) fn is_full(&self) -> bool {
        self.limit.is_some_and(|limit| self.running() >= limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_as_many_requests_as_the_limit_are_admitted_at_a_time() {
        let inflight = InFlight::new(Some(2));
        assert_eq!(inflight.admit(), Ok(()));
        assert!(!inflight.is_full());
        assert_eq!(inflight.admit(), Ok(()));
        assert!(inflight.is_full());
        assert_eq!(inflight.admit(), Err(2));
        assert_eq!(inflight.running(), 2);
        inflight.leave();
        assert_eq!(inflight.admit(), Ok(()));
    }

    #[test]
    fn every_request_is_admitted_without_a_limit() {
        let inflight = InFlight::new(None);
        for _ in 0..1000 {
            assert_eq!(inflight.admit(), Ok(()));
        }
        assert!(!inflight.is_full());
        assert_eq!(inflight.running(), 1000);
    }
}
