//! The budget of connections that wait for a request, and the choice of the one that is displaced.
//!
//! Whoever reaches the port can open connections and send nothing, or half a head. Such a connection costs a
//! descriptor, and from its first byte on a buffer. All of them share one budget: once it is used up, the connection
//! that has waited the longest is displaced, or the one with the largest buffer. Connections whose request is being
//! answered are never displaced, and cost this budget nothing: handlers and `max_inflight` limit those.
//!
//! In a function that verifies requests, a connection also needs a place to be served until it has sent an authentic
//! request, and may wait for one.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::IntCounter;
use slab::Slab;
use tokio::sync::Semaphore;

use crate::connection_state::ConnectionState;

/// The limits of a [`ConnectionBudget`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionLimits {
    /// The number of connections that may wait for a request.
    pub(crate) waiting: usize,
    /// The size of their buffers together, in bytes; `None` for no limit.
    pub(crate) buffers: Option<usize>,
    /// The number of connections that are served at a time before they have sent an authentic request; `None` for no
    /// limit. It is more than wait with a buffer or for their body, so the others are about to end, and another
    /// connection soon gets its place. Without the limit, a burst of requests would take memory for all at once.
    pub(crate) places: Option<usize>,
}

/// The budget of one listener: its connections, the limits on those that wait for a request, and the places for those
/// that are served before they have sent an authentic request.
#[derive(Debug)]
pub(crate) struct ConnectionBudget {
    limits: ConnectionLimits,
    arrivals: Arc<AtomicU32>,
    /// The places for connections that are served before they have sent an authentic request; `None` for no limit.
    places: Option<Arc<Semaphore>>,
    /// Further places, for small requests, which are soon answered or verified.
    small_places: Arc<Semaphore>,
    connections: Mutex<Slab<Arc<ConnectionState>>>,
    displaced: IntCounter,
}

/// A connection that takes part in the budget until it is dropped.
#[derive(Debug)]
pub(crate) struct AdmittedConnection {
    budget: Arc<ConnectionBudget>,
    key: usize,
    state: Arc<ConnectionState>,
}

/// The number of further places for small requests: probes, and signed requests that should not wait behind large ones.
const PLACES_FOR_SMALL_REQUESTS: usize = 32;

/// The number of connections served without an authentic request above which buffers for reading are kept small.
const SMALL_BUFFERS_ABOVE_CONNECTION_COUNT: usize = 32;

impl ConnectionBudget {
    /// Creates a budget; `displaced` counts the connections that were displaced.
    pub(crate) fn new(mut limits: ConnectionLimits, displaced: IntCounter) -> Arc<Self> {
        limits.places = limits.places.map(|places| places.min(Semaphore::MAX_PERMITS));
        Arc::new(Self {
            limits,
            arrivals: Arc::default(),
            places: limits.places.map(|places| Arc::new(Semaphore::new(places))),
            small_places: Arc::new(Semaphore::new(PLACES_FOR_SMALL_REQUESTS)),
            connections: Mutex::default(),
            displaced,
        })
    }

    /// Admits a new connection. If too many wait for a request, the one that has waited the longest is displaced.
    pub(crate) fn admit(self: &Arc<Self>) -> AdmittedConnection {
        self.arrivals.fetch_add(1, Ordering::Relaxed);
        let state = Arc::new(ConnectionState::new(self.arrivals.clone()));
        let mut connections = self.lock();
        if connections.len() >= self.limits.waiting {
            self.displace_longest_waiting(&connections, self.limits.waiting.saturating_sub(1));
        }
        let key = connections.insert(state.clone());
        AdmittedConnection {
            budget: self.clone(),
            key,
            state,
        }
    }

    /// Displaces half of the connections that wait, for a process without free descriptors.
    pub(crate) fn displace_half_of_waiting(&self) {
        let connections = self.lock();
        let waiting = connections
            .iter()
            .filter(|(_, state)| state.connections_arrived_since_waiting_began().is_some())
            .count();
        self.displace_longest_waiting(&connections, waiting / 2);
    }

    /// Displaces connections until at most `remaining` wait, those that have waited the longest first.
    fn displace_longest_waiting(&self, connections: &Slab<Arc<ConnectionState>>, remaining: usize) {
        let waiting = connections
            .iter()
            .filter_map(|(_, state)| Some((state.connections_arrived_since_waiting_began()?, state)));
        let mut waiting: Vec<_> = waiting.collect();
        let excess = waiting.len().saturating_sub(remaining);
        if excess == 0 {
            return;
        }
        waiting.select_nth_unstable_by(excess - 1, |(one, _), (other, _)| other.cmp(one));
        for (_, state) in waiting.iter().take(excess) {
            self.displace_and_count(state);
        }
    }

    /// Displaces the connections with the largest buffers until the others fit the limit; of equal ones, those that have
    /// waited the longest.
    fn displace_until_buffers_fit(&self, limit: usize) {
        let connections = self.lock();
        let buffered = connections.iter().filter_map(|(_, state)| {
            let waited = state.connections_arrived_since_waiting_began()?;
            Some((state.buffer_capacity_bytes(), waited, state))
        });
        let mut buffered: Vec<_> = buffered.filter(|(bytes, ..)| *bytes > 0).collect();
        let mut total: usize = buffered.iter().map(|(bytes, ..)| bytes).sum();
        if total <= limit {
            return;
        }
        buffered.sort_unstable_by_key(|(bytes, waited, _)| (*bytes, *waited));
        while total > limit
            && let Some((bytes, _, state)) = buffered.pop()
        {
            total -= bytes;
            self.displace_and_count(state);
        }
    }

    /// Displaces a connection, and counts it.
    fn displace_and_count(&self, state: &ConnectionState) {
        state.displace_unless_head_arrives();
        self.displaced.inc();
    }

    fn lock(&self) -> MutexGuard<'_, Slab<Arc<ConnectionState>>> {
        // Every operation leaves the slab consistent, so that a panic elsewhere does not matter.
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AdmittedConnection {
    /// Returns the state of the connection.
    pub(crate) fn state(&self) -> &Arc<ConnectionState> {
        &self.state
    }

    /// Takes a place to be served if one is free, and returns whether the connection may be served: it has a place, or
    /// their number has no limit.
    pub(crate) fn take_free_place(&self) -> bool {
        let Some(places) = &self.budget.places else {
            return true;
        };
        let place = places.clone().try_acquire_owned().ok();
        let is_taken = place.is_some();
        if is_taken {
            self.state.set_or_free_place(place);
        }
        is_taken
    }

    /// Waits for a place to be served, in the order of arrival. A small request also gets one of those that are kept for
    /// small ones.
    pub(crate) async fn wait_for_place(&self, is_small: bool) {
        let Some(places) = &self.budget.places else {
            return;
        };
        let small = async {
            match is_small {
                true => self.budget.small_places.clone().acquire_owned().await,
                false => std::future::pending().await,
            }
        };
        let place = tokio::select! {
            biased;
            place = small => place,
            place = places.clone().acquire_owned() => place,
        };
        // Fails only if the semaphore was closed, which it never is.
        self.state.set_or_free_place(place.ok());
    }

    /// Returns whether buffers for reading are to be kept small, because more than
    /// [`SMALL_BUFFERS_ABOVE_CONNECTION_COUNT`]
    /// connections are served before they have sent an authentic request.
    pub(crate) fn should_keep_buffers_small(&self) -> bool {
        match (&self.budget.places, self.budget.limits.places) {
            (Some(places), Some(all)) => {
                places.available_permits() + SMALL_BUFFERS_ABOVE_CONNECTION_COUNT < all
            }
            _ => false,
        }
    }

    /// Records the size of the connection's buffer while it waits, in bytes. If all of them are too large together, the
    /// largest are displaced.
    pub(crate) fn set_buffer_capacity_and_enforce_limit(&self, bytes: usize) {
        self.state.set_buffer_capacity_bytes(bytes);
        if let Some(limit) = self.budget.limits.buffers {
            self.budget.displace_until_buffers_fit(limit);
        }
    }
}

impl Drop for AdmittedConnection {
    fn drop(&mut self) {
        self.budget.lock().try_remove(self.key);
        self.state.set_or_free_place(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget_with_limits(waiting: usize, buffers: usize) -> Arc<ConnectionBudget> {
        let displaced = IntCounter::new("displaced", "displaced").unwrap();
        let limits = ConnectionLimits {
            waiting,
            buffers: Some(buffers),
            places: None,
        };
        ConnectionBudget::new(limits, displaced)
    }

    #[tokio::test]
    async fn a_small_request_does_not_wait_for_a_place_behind_others() {
        let displaced = IntCounter::new("displaced", "displaced").unwrap();
        let limits = ConnectionLimits {
            waiting: 1000,
            buffers: None,
            places: Some(1),
        };
        let budget = ConnectionBudget::new(limits, displaced);
        let (first, large) = (budget.admit(), budget.admit());
        assert!(first.take_free_place() && !large.take_free_place());
        let mut waiting = Box::pin(large.wait_for_place(false));
        let mut poll = || {
            waiting
                .as_mut()
                .poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
        };
        assert!(poll().is_pending());
        let small: Vec<_> = (0..PLACES_FOR_SMALL_REQUESTS).map(|_| budget.admit()).collect();
        for connection in &small {
            connection.wait_for_place(true).await;
        }
        assert!(poll().is_pending());
        drop(first);
        assert!(poll().is_ready());
    }

    #[test]
    fn the_connection_that_has_waited_the_longest_is_displaced_by_one_over_the_limit() {
        let budget = budget_with_limits(3, 0);
        let (first, second, third) = (budget.admit(), budget.admit(), budget.admit());
        // A request of the first one has ended since the others arrived.
        drop(first.state().begin_request(false, true));

        let _fourth = budget.admit();

        let displaced =
            [&first, &second, &third].map(|connection| connection.state().is_displaced_and_still_waiting());
        assert_eq!(displaced, [false, true, false]);
        assert_eq!(budget.displaced.get(), 1);
    }

    #[test]
    fn a_connection_whose_request_is_answered_is_not_displaced_and_does_not_count_as_waiting() {
        let budget = budget_with_limits(2, 0);
        let (answering, waiting) = (budget.admit(), budget.admit());
        let _request = answering.state().begin_request(true, false);

        let _another = budget.admit();
        assert!(
            !answering.state().is_displaced_and_still_waiting()
                && !waiting.state().is_displaced_and_still_waiting()
        );

        let _another = budget.admit();
        assert!(
            !answering.state().is_displaced_and_still_waiting()
                && waiting.state().is_displaced_and_still_waiting()
        );
    }

    #[test]
    fn an_ended_connection_does_not_count_as_waiting() {
        let budget = budget_with_limits(2, 0);
        let first = budget.admit();
        drop(budget.admit());
        let _third = budget.admit();
        assert!(!first.state().is_displaced_and_still_waiting());
    }

    #[test]
    fn the_connections_with_the_largest_buffers_are_displaced_once_all_buffers_exceed_the_limit() {
        let budget = budget_with_limits(8, 100);
        let (small, large, medium) = (budget.admit(), budget.admit(), budget.admit());
        small.set_buffer_capacity_and_enforce_limit(10);
        large.set_buffer_capacity_and_enforce_limit(60);
        assert!(!large.state().is_displaced_and_still_waiting());

        medium.set_buffer_capacity_and_enforce_limit(40);

        let displaced =
            [&small, &large, &medium].map(|connection| connection.state().is_displaced_and_still_waiting());
        assert_eq!(displaced, [false, true, false]);
    }

    #[test]
    fn of_equal_buffers_the_one_that_has_waited_the_longest_is_displaced() {
        let budget = budget_with_limits(8, 20);
        let connections = [budget.admit(), budget.admit(), budget.admit()];
        connections
            .iter()
            .for_each(|connection| connection.set_buffer_capacity_and_enforce_limit(10));
        let displaced = connections.map(|connection| connection.state().is_displaced_and_still_waiting());
        assert_eq!(displaced, [true, false, false]);
    }

    #[test]
    fn displace_half_of_waiting_displaces_the_half_that_has_waited_the_longest() {
        let budget = budget_with_limits(100, 0);
        let connections: Vec<_> = (0..4).map(|_| budget.admit()).collect();
        budget.displace_half_of_waiting();
        let displaced: Vec<_> = connections
            .iter()
            .map(|connection| connection.state().is_displaced_and_still_waiting())
            .collect();
        assert_eq!(displaced, [true, true, false, false]);
    }
}
