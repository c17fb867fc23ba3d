//! The deadline of a request: the end of `exec_timeout`.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep, sleep_until};

/// A request's deadline, whose timer is created at the first poll: most handlers answer without waiting.
pub(crate) struct RequestDeadline {
    at: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl RequestDeadline {
    /// Creates the deadline at this time.
    pub(crate) fn new(at: Instant) -> Self {
        Self { at, timer: None }
    }

    /// Returns `Ready` once the request's deadline has passed.
    pub(crate) fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.timer
            .get_or_insert_with(|| Box::pin(sleep_until(self.at)))
            .as_mut()
            .poll(cx)
    }
}
