//! The state of a connection: what the client is expected to send next.
//!
//! hyper reads from the connection all the time, but how long the client may take depends on the state: waiting for a
//! request, for more of its body, or for the handler. The connection's timeouts look the state up here, and so does the
//! budget of connections, which may displace a connection that waits.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Waker;

use tokio::sync::OwnedSemaphorePermit;

/// The next bytes that the client of a connection is expected to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExpectedInput {
    /// The client may send the head of the next request, or has sent a part of it.
    Head,
    /// The client should send more of the current request's body.
    Body,
    /// The client should send nothing, because the handler is working.
    Nothing,
}

/// The state of one connection: what the client should send next, whether a body or an answer was left unread, and
/// whether the connection was displaced.
///
/// It includes the number of the current request, so that a body that a handler kept from an earlier request does not
/// change the state of a later one.
#[derive(Debug, Default)]
pub(crate) struct ConnectionState {
    /// The number of the current request, with an [`ExpectedInput`] in the lowest two bits.
    packed: AtomicU32,
    /// Whether the connection's last request had a body that the handler did not read to its end.
    unread_body: AtomicBool,
    /// Whether the connection's last request is authentic, or its handler does not verify requests.
    accepted: AtomicBool,
    /// Whether the client has not read all of the answers that the host tried to send.
    unread_answers: AtomicBool,
    /// The number of connections that the listener has accepted, which all of its connections share.
    arrivals: Arc<AtomicU32>,
    /// The listener's count of accepted connections ([`arrivals`](Self::arrivals)) at the time when this connection
    /// began to wait for a request.
    waiting_since: AtomicU32,
    /// The size of the connection's buffer, in bytes; 0 before the first byte has arrived.
    buffered: AtomicU32,
    /// [`DISPLACED_BIT`] with the number of the request that the connection waited for when it was displaced; 0 at
    /// first.
    displaced: AtomicU32,
    /// Wakes the connection's task, which is always the same one.
    waker: OnceLock<Waker>,
    /// The connection's place among those that are served before they have sent an authentic request.
    place: Mutex<Option<OwnedSemaphorePermit>>,
}

/// The size of a connection's smallest buffer, with the rest of its memory, in bytes.
pub(crate) const SMALLEST_BUFFER_BYTES: usize = 16 << 10;

/// The bits of [`ConnectionState::packed`] with what the connection expects from its client: [`EXPECTS_HEAD`],
/// [`EXPECTS_BODY`] or [`EXPECTS_NOTHING`]. The other bits number the request.
const EXPECTED_INPUT_MASK: u32 = 0b11;
/// The lowest two bits of [`ConnectionState::packed`] for [`ExpectedInput::Head`].
const EXPECTS_HEAD: u32 = 0;
/// The lowest two bits of [`ConnectionState::packed`] for [`ExpectedInput::Body`].
const EXPECTS_BODY: u32 = 1;
/// The lowest two bits of [`ConnectionState::packed`] for [`ExpectedInput::Nothing`].
const EXPECTS_NOTHING: u32 = 2;
/// The difference between the numbers of two requests in a row.
const REQUEST_NUMBER_STEP: u32 = 4;
/// The bit of [`ConnectionState::displaced`] that distinguishes a displacement before request 0 from none.
const DISPLACED_BIT: u32 = 1;

impl ConnectionState {
    /// Creates the state of a connection that counts among the `arrivals` of its listener.
    pub(crate) fn new(arrivals: Arc<AtomicU32>) -> Self {
        Self {
            waiting_since: arrivals.load(Ordering::Relaxed).into(),
            arrivals,
            ..Self::default()
        }
    }

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

    /// Records that the head of a request has arrived, whether a body follows it, and whether it counts as authentic.
    /// When the returned guard is dropped, the connection expects the next request.
    pub(crate) fn begin_request(
        self: &Arc<Self>,
        has_body: bool,
        counts_as_authentic: bool,
    ) -> ActiveRequestGuard {
        let number = self.packed.load(Ordering::Relaxed) & !EXPECTED_INPUT_MASK;
        self.accepted.store(counts_as_authentic, Ordering::Relaxed);
        self.packed.store(
            number | if has_body { EXPECTS_BODY } else { EXPECTS_NOTHING },
            Ordering::Relaxed,
        );
        self.unread_body.store(has_body, Ordering::Relaxed);
        ActiveRequestGuard(self.clone())
    }

    /// Returns the guard of the current request's body. When it is dropped, the connection expects nothing more of the
    /// body.
    pub(crate) fn guard_current_body(self: &Arc<Self>) -> ActiveBodyGuard {
        ActiveBodyGuard {
            state: self.clone(),
            number: self.packed.load(Ordering::Relaxed) & !EXPECTED_INPUT_MASK,
        }
    }

    /// Records the end of the current request, or that a request was answered at once without a handler: the connection
    /// waits for the head of the next one.
    pub(crate) fn expect_next_request(&self) {
        let number = self.packed.load(Ordering::Relaxed) & !EXPECTED_INPUT_MASK;
        self.set_waiting_for_request_number(number.wrapping_add(REQUEST_NUMBER_STEP));
    }

    /// Records that the connection waits for the head of the request with this number, from now on.
    fn set_waiting_for_request_number(&self, number: u32) {
        self.waiting_since
            .store(self.arrivals.load(Ordering::Relaxed), Ordering::Relaxed);
        self.packed.store(number | EXPECTS_HEAD, Ordering::Relaxed);
    }

    /// Records that the current request is authentic, and frees the connection's place for another connection.
    pub(crate) fn mark_request_authentic_and_free_place(&self) {
        self.accepted.store(true, Ordering::Relaxed);
        self.set_or_free_place(None);
    }

    /// Sets the connection's place among those that are served before they have sent an authentic request; `None` frees
    /// it.
    pub(crate) fn set_or_free_place(&self, place: Option<OwnedSemaphorePermit>) {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = place;
    }

    /// Records whether the client has still to read some of the answers that the host tried to send.
    pub(crate) fn set_unread_answers(&self, unread: bool) {
        self.unread_answers.store(unread, Ordering::Relaxed);
    }

    /// Returns whether the client has still to read some of the answers that the host tried to send.
    pub(crate) fn has_unread_answers(&self) -> bool {
        self.unread_answers.load(Ordering::Relaxed)
    }

    /// Returns how many connections have arrived since this one began to wait for a request. `None` if it does not
    /// wait: while a request is answered, while the client reads the answer to an authentic one, and once it is
    /// displaced.
    pub(crate) fn connections_arrived_since_waiting_began(&self) -> Option<u32> {
        let reads_answer = self.has_unread_answers() && self.accepted.load(Ordering::Relaxed);
        if self.expected_input_and_request_number().0 != ExpectedInput::Head
            || reads_answer
            || self.is_displaced_and_still_waiting()
        {
            return None;
        }
        let arrivals = self.arrivals.load(Ordering::Relaxed);
        Some(arrivals.wrapping_sub(self.waiting_since.load(Ordering::Relaxed)))
    }

    /// Records the size of the connection's buffer, in bytes.
    pub(crate) fn set_buffer_capacity_bytes(&self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.buffered.store(bytes, Ordering::Relaxed);
    }

    /// Returns the size of the connection's buffer, in bytes; 0 before the first byte has arrived.
    pub(crate) fn buffer_capacity_bytes(&self) -> usize {
        self.buffered.load(Ordering::Relaxed) as usize
    }

    /// Sets the waker of the connection's task, which never changes after that.
    pub(crate) fn set_waker(&self, waker: &Waker) {
        self.waker.get_or_init(|| waker.clone());
    }

    /// Asks the connection to end, unless the head of its next request arrives before that.
    pub(crate) fn displace_unless_head_arrives(&self) {
        let number = self.packed.load(Ordering::Relaxed) & !EXPECTED_INPUT_MASK;
        self.displaced.store(number | DISPLACED_BIT, Ordering::Relaxed);
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
    }

    /// Returns whether the connection should end instead of waiting for a request any longer.
    pub(crate) fn is_displaced_and_still_waiting(&self) -> bool {
        let packed = self.packed.load(Ordering::Relaxed);
        packed & EXPECTED_INPUT_MASK == EXPECTS_HEAD
            && self.displaced.load(Ordering::Relaxed) == packed | DISPLACED_BIT
    }

    /// Returns whether the client may still be sending a body that no one will read.
    pub(crate) fn has_unread_body(&self) -> bool {
        self.unread_body.load(Ordering::Relaxed)
    }
}

/// A guard for a request that is being answered. Dropping it makes the connection expect the next request.
#[derive(Debug)]
pub(crate) struct ActiveRequestGuard(Arc<ConnectionState>);

impl Drop for ActiveRequestGuard {
    fn drop(&mut self) {
        self.0.expect_next_request();
    }
}

/// A guard for a request body that is being read. Dropping it makes the connection expect nothing more of the body.
#[derive(Debug)]
pub(crate) struct ActiveBodyGuard {
    state: Arc<ConnectionState>,
    number: u32,
}

impl ActiveBodyGuard {
    /// Records that the request's body was read to its end.
    pub(crate) fn mark_body_fully_read(self) {
        if self.state.expected_input_and_request_number() == (ExpectedInput::Body, self.number) {
            self.state.unread_body.store(false, Ordering::Relaxed);
        }
    }
}

impl Drop for ActiveBodyGuard {
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
        let request = state.begin_request(true, true);
        let body = state.guard_current_body();
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
        let request = state.begin_request(true, true);
        let outliving = state.guard_current_body();
        drop(request);
        let _next = state.begin_request(true, true);
        drop(outliving);
        assert_eq!(state.expected_input_and_request_number().0, ExpectedInput::Body);
    }

    #[test]
    fn a_body_is_unread_until_it_is_read_to_its_end() {
        let state = Arc::new(ConnectionState::default());
        assert!(!state.has_unread_body());
        let request = state.begin_request(true, true);
        drop(state.guard_current_body());
        drop(request);
        assert!(state.has_unread_body());
        let request = state.begin_request(true, true);
        state.guard_current_body().mark_body_fully_read();
        drop(request);
        assert!(!state.has_unread_body());
        let request = state.begin_request(true, true);
        let outliving = state.guard_current_body();
        drop(request);
        let _next = state.begin_request(true, true);
        outliving.mark_body_fully_read();
        assert!(
            state.has_unread_body(),
            "the end of an earlier body counted for the current one"
        );
    }

    #[test]
    fn after_a_head_without_a_body_nothing_more_is_expected() {
        let state = Arc::new(ConnectionState::default());
        let _request = state.begin_request(false, true);
        assert_eq!(
            state.expected_input_and_request_number().0,
            ExpectedInput::Nothing
        );
    }

    #[test]
    fn a_connection_waits_before_and_after_a_request_and_not_while_it_is_answered() {
        let arrivals = Arc::new(AtomicU32::new(5));
        let state = Arc::new(ConnectionState::new(arrivals.clone()));
        arrivals.store(7, Ordering::Relaxed);
        assert_eq!(state.connections_arrived_since_waiting_began(), Some(2));
        let request = state.begin_request(false, true);
        assert_eq!(state.connections_arrived_since_waiting_began(), None);
        drop(request);
        assert_eq!(state.connections_arrived_since_waiting_began(), Some(0));
        arrivals.store(8, Ordering::Relaxed);
        state.expect_next_request();
        assert_eq!(
            state.connections_arrived_since_waiting_began(),
            Some(0),
            "a probe's connection kept its place"
        );
    }

    #[test]
    fn a_client_with_an_unread_answer_counts_as_waiting_unless_its_request_was_authentic() {
        let state = Arc::new(ConnectionState::default());
        for (accepted, waits) in [(false, true), (true, false)] {
            drop(state.begin_request(false, accepted));
            state.set_unread_answers(true);
            assert_eq!(state.connections_arrived_since_waiting_began().is_some(), waits);
        }
        let request = state.begin_request(false, false);
        state.mark_request_authentic_and_free_place();
        drop(request);
        assert_eq!(state.connections_arrived_since_waiting_began(), None);
    }

    #[test]
    fn a_head_that_arrives_in_time_keeps_a_displaced_connection() {
        let state = Arc::new(ConnectionState::default());
        state.displace_unless_head_arrives();
        assert!(state.is_displaced_and_still_waiting());
        assert_eq!(
            state.connections_arrived_since_waiting_began(),
            None,
            "it could be displaced twice"
        );
        for has_body in [true, false] {
            let request = state.begin_request(has_body, true);
            assert!(!state.is_displaced_and_still_waiting());
            drop(request);
            assert!(!state.is_displaced_and_still_waiting());
        }
        state.displace_unless_head_arrives();
        assert!(state.is_displaced_and_still_waiting());
    }
}
