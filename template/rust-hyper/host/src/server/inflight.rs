//! How many requests are being answered, and how many may be.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts requests from their head to the end of their response.
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

    /// Counts a request in, to be counted out by [`InFlight::leave`]; the error is the limit that is reached.
    pub(crate) fn enter(&self) -> Result<(), usize> {
        let Some(limit) = self.limit else {
            self.running.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        };
        // Not added and taken back: a refused request must not make another one look refused.
        let entered = self
            .running
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |running| {
                (running < limit).then_some(running + 1)
            });
        entered.map(drop).map_err(|_| limit)
    }

    /// Counts a request out that was counted in.
    pub(crate) fn leave(&self) {
        self.running.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many requests are being answered.
    pub(crate) fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    /// Whether another request would be refused.
    pub(crate) fn full(&self) -> bool {
        self.limit.is_some_and(|limit| self.running() >= limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_exact_and_places_come_back() {
        let inflight = InFlight::new(Some(2));
        assert_eq!(inflight.enter(), Ok(()));
        assert!(!inflight.full());
        assert_eq!(inflight.enter(), Ok(()));
        assert!(inflight.full());
        assert_eq!(inflight.enter(), Err(2));
        assert_eq!(inflight.running(), 2);
        inflight.leave();
        assert_eq!(inflight.enter(), Ok(()));
    }

    #[test]
    fn without_a_limit_it_is_never_full() {
        let inflight = InFlight::new(None);
        for _ in 0..1000 {
            assert_eq!(inflight.enter(), Ok(()));
        }
        assert!(!inflight.full());
        assert_eq!(inflight.running(), 1000);
    }
}
