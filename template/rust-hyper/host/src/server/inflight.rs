//! How many requests are being answered, and how many may be.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts requests from their head to the end of their response.
#[derive(Debug)]
pub(crate) struct InFlight {
    running: AtomicUsize,
    limit: Option<usize>,
}

/// One request's place; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place(Arc<InFlight>);

impl InFlight {
    pub(crate) fn new(limit: Option<usize>) -> Self {
        Self {
            running: AtomicUsize::new(0),
            limit,
        }
    }

    /// A place, or the limit that is reached.
    pub(crate) fn enter(self: &Arc<Self>) -> Result<Place, usize> {
        let before = self.running.fetch_add(1, Ordering::Relaxed);
        let place = Place(self.clone());
        match self.limit {
            Some(limit) if before >= limit => Err(limit),
            _ => Ok(place),
        }
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

impl Drop for Place {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_exact_and_places_come_back() {
        let inflight = Arc::new(InFlight::new(Some(2)));
        let first = inflight.enter().unwrap();
        assert!(!inflight.full());
        let _second = inflight.enter().unwrap();
        assert!(inflight.full());
        assert_eq!(inflight.enter().unwrap_err(), 2);
        assert_eq!(inflight.running(), 2);
        drop(first);
        assert!(inflight.enter().is_ok());
    }

    #[test]
    fn without_a_limit_it_is_never_full() {
        let inflight = Arc::new(InFlight::new(None));
        let _places: Vec<_> = (0..1000).map(|_| inflight.enter().unwrap()).collect();
        assert!(!inflight.full());
        assert_eq!(inflight.running(), 1000);
    }
}
