//! The state of a connection: what the client is expected to send next.
//!
//! hyper reads from the connection all the time, but how long the client may take depends on the state: waiting for a
//! request, for more of its body, or for the handler. The connection's timeouts look the state up here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// The next bytes that the client of a connection is expected to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExpectedInput {
    /// The client may send the head of another request.
    Head,
    /// The client should send more of the current request's body.
    Body,
    /// The client should send nothing, because the handler is working.
    Nothing,
}

/// The state of one connection: what the client should send next, and whether a body was left unread.
///
/// It includes the number of the current request, so that a body that a handler kept from an earlier request does not
/// change the state of a later one.
#[derive(Debug, Default)]
pub(crate) struct ConnectionState {
    /// The number of the current request, with an [`ExpectedInput`] in the lowest two bits.
    packed: AtomicU32,
    /// Whether the connection's last request had a body that the handler did not read to its end.
    unread_body: AtomicBool,
}

const EXPECTED_INPUT_MASK: u32 = 0b11;
const EXPECTS_HEAD: u32 = 0;
const EXPECTS_BODY: u32 = 1;
const EXPECTS_NOTHING: u32 = 2;
const REQUEST_NUMBER_STEP: u32 = 4;

impl ConnectionState {
    /// Returns what the client should send next, and the number of the current request.
    pub(crate) fn expected_input_and_request_number(&self) -> (ExpectedInput, u32) {
        let packed = self.packed.load(Ordering::Relaxed);
        let expected = match packed & EXPECTED_INPUT_MASK {
            EXPECTS_HEAD => ExpectedInput::Head,
            EXPECTS_BODY => ExpectedInput::Body,
            _ => ExpectedInput::Nothing,
        };
        (expected, packed & !EXPECTED_INPUT_MASK)
    }

    /// Records that the head of a request has arrived, and whether a body follows it.
    pub(crate) fn begin_request(self: &Arc<Self>, has_body: bool) -> ActiveRequest {
        let number = self.packed.load(Ordering::Relaxed) & !EXPECTED_INPUT_MASK;
        self.packed.store(
            number | if has_body { EXPECTS_BODY } else { EXPECTS_NOTHING },
            Ordering::Relaxed,
        );
        self.unread_body.store(has_body, Ordering::Relaxed);
        ActiveRequest(self.clone())
    }

    /// Returns a handle that makes the connection expect the current request's body until it is dropped.
    pub(crate) fn begin_body(self: &Arc<Self>) -> ActiveBody {
        ActiveBody {
            state: self.clone(),
            number: self.packed.load(Ordering::Relaxed) & !EXPECTED_INPUT_MASK,
        }
    }

    /// Returns whether the client may still be sending a body that no one will read.
    pub(crate) fn has_unread_body(&self) -> bool {
        self.unread_body.load(Ordering::Relaxed)
    }
}

/// A request that is being answered. Dropping it makes the connection expect the next request.
#[derive(Debug)]
pub(crate) struct ActiveRequest(Arc<ConnectionState>);

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        let number = self.0.packed.load(Ordering::Relaxed) & !EXPECTED_INPUT_MASK;
        self.0.packed.store(
            number.wrapping_add(REQUEST_NUMBER_STEP) | EXPECTS_HEAD,
            Ordering::Relaxed,
        );
    }
}

/// A request body that is being read. Dropping it makes the connection expect nothing more of the body.
#[derive(Debug)]
pub(crate) struct ActiveBody {
    state: Arc<ConnectionState>,
    number: u32,
}

impl ActiveBody {
    /// Records that the request's body was read to its end.
    pub(crate) fn record_fully_read(self) {
        if self.state.expected_input_and_request_number() == (ExpectedInput::Body, self.number) {
            self.state.unread_body.store(false, Ordering::Relaxed);
        }
    }
}

impl Drop for ActiveBody {
    fn drop(&mut self) {
        let (from, to) = (self.number | EXPECTS_BODY, self.number | EXPECTS_NOTHING);
        // Fails if a later request is current, whose state must not change.
        let _ = self
            .state
            .packed
            .compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_expected_to_send_the_head_then_the_body_then_nothing() {
        let state = Arc::new(ConnectionState::default());
        let first = state.expected_input_and_request_number().1;
        assert_eq!(state.expected_input_and_request_number().0, ExpectedInput::Head);
        let request = state.begin_request(true);
        let body = state.begin_body();
        assert_eq!(
            state.expected_input_and_request_number(),
            (ExpectedInput::Body, first)
        );
        drop(body);
        assert_eq!(
            state.expected_input_and_request_number(),
            (ExpectedInput::Nothing, first)
        );
        drop(request);
        assert_eq!(state.expected_input_and_request_number().0, ExpectedInput::Head);
        assert_ne!(state.expected_input_and_request_number().1, first);
    }

    #[test]
    fn a_body_kept_from_an_earlier_request_does_not_change_the_state_of_the_next_one() {
        let state = Arc::new(ConnectionState::default());
        let request = state.begin_request(true);
        let outliving = state.begin_body();
        drop(request);
        let _next = state.begin_request(true);
        drop(outliving);
        assert_eq!(state.expected_input_and_request_number().0, ExpectedInput::Body);
    }

    #[test]
    fn a_body_is_unread_until_it_is_read_to_its_end() {
        let state = Arc::new(ConnectionState::default());
        assert!(!state.has_unread_body());
        let request = state.begin_request(true);
        drop(state.begin_body());
        drop(request);
        assert!(state.has_unread_body());
        let request = state.begin_request(true);
        state.begin_body().record_fully_read();
        drop(request);
        assert!(!state.has_unread_body());
        let request = state.begin_request(true);
        let outliving = state.begin_body();
        drop(request);
        let _next = state.begin_request(true);
        outliving.record_fully_read();
        assert!(
            state.has_unread_body(),
            "the end of an earlier body counted for the current one"
        );
    }

    #[test]
    fn after_a_head_without_a_body_nothing_more_is_expected() {
        let state = Arc::new(ConnectionState::default());
        let _request = state.begin_request(false);
        assert_eq!(
            state.expected_input_and_request_number().0,
            ExpectedInput::Nothing
        );
    }
}
