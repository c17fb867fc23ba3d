//! The acceptance of a request: its handler has verified who sent it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::connection_state::{ConnectionState, SMALLEST_BUFFER_BYTES};
use crate::inflight::{ConcurrencyLimitExceeded, InFlightLimiter};

/// The acceptance of one request, for functions that verify requests. It counts the request against `max_inflight` from
/// when it is accepted until it ends.
#[derive(Debug)]
pub(crate) struct Acceptance {
    accepted: Arc<InFlightLimiter>,
    connection: Arc<ConnectionState>,
    stage: AtomicU8,
}

/// The first stage of a request: it was not accepted yet.
const STAGE_NOT_YET_ACCEPTED: u8 = 0;
/// The stage of an accepted request, which counts.
const STAGE_ACCEPTED: u8 = 1;
/// The last stage of a request, accepted or not.
const STAGE_ENDED: u8 = 2;

impl Acceptance {
    /// Creates the acceptance of a request on `connection`, which is not accepted yet. `accepted` counts and limits the
    /// accepted requests of all connections.
    pub(crate) fn new(accepted: Arc<InFlightLimiter>, connection: Arc<ConnectionState>) -> Self {
        Self {
            accepted,
            connection,
            stage: AtomicU8::new(STAGE_NOT_YET_ACCEPTED),
        }
    }

    /// Accepts the request: counts it among the accepted ones, and lets its connection give up its place. Fails if
    /// their limit is reached; without effect for a request that was accepted before or has ended.
    pub(crate) fn accept(&self) -> Result<(), ConcurrencyLimitExceeded> {
        if self.stage.load(Ordering::Relaxed) != STAGE_NOT_YET_ACCEPTED {
            return Ok(());
        }
        self.accepted.count_request_in()?;
        let from = self.stage.compare_exchange(
            STAGE_NOT_YET_ACCEPTED,
            STAGE_ACCEPTED,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        match from {
            Ok(_) => self.connection.mark_request_authentic_and_free_place(),
            // It was accepted by another clone of the context, or has ended.
            Err(_) => self.accepted.count_request_out(),
        }
        Ok(())
    }

    /// Records the end of the request. If it was accepted, it no longer counts.
    pub(crate) fn record_end(&self) {
        if self.stage.swap(STAGE_ENDED, Ordering::Relaxed) == STAGE_ACCEPTED {
            self.accepted.count_request_out();
        }
    }

    /// Returns whether the connection must not be used for further requests: the request was not accepted, so that each
    /// further one costs its sender a connection; or the connection has a large buffer.
    pub(crate) fn must_close_connection_afterwards(&self) -> bool {
        let accepted = self.stage.load(Ordering::Relaxed) != STAGE_NOT_YET_ACCEPTED;
        !accepted || self.connection.buffer_capacity_bytes() > SMALLEST_BUFFER_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acceptance_limited_by(accepted: &Arc<InFlightLimiter>) -> Acceptance {
        Acceptance::new(accepted.clone(), Arc::default())
    }

    #[test]
    fn a_request_counts_from_its_acceptance_to_its_end() {
        let accepted = Arc::new(InFlightLimiter::new(Some(1)));
        let (first, second) = (acceptance_limited_by(&accepted), acceptance_limited_by(&accepted));
        assert_eq!(accepted.in_flight_count(), 0);
        first.accept().unwrap();
        first.accept().unwrap();
        assert_eq!(accepted.in_flight_count(), 1);
        assert_eq!(second.accept(), Err(ConcurrencyLimitExceeded { limit: 1 }));
        first.record_end();
        second.accept().unwrap();
        second.record_end();
        assert_eq!(accepted.in_flight_count(), 0);
    }

    #[test]
    fn a_request_that_has_ended_is_not_counted_when_it_is_accepted() {
        let accepted = Arc::new(InFlightLimiter::new(None));
        let late = acceptance_limited_by(&accepted);
        late.record_end();
        late.accept().unwrap();
        assert_eq!(accepted.in_flight_count(), 0);
    }

    #[test]
    fn a_connection_is_kept_after_an_accepted_request_unless_its_buffer_is_large() {
        let connection = Arc::new(ConnectionState::default());
        let request = Acceptance::new(Arc::new(InFlightLimiter::new(None)), connection.clone());
        assert!(request.must_close_connection_afterwards());
        request.accept().unwrap();
        assert!(!request.must_close_connection_afterwards());
        connection.set_buffer_capacity_bytes(SMALLEST_BUFFER_BYTES + 1);
        assert!(request.must_close_connection_afterwards());
    }
}
