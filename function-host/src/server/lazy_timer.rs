//! A timer for waits that rarely last until their end.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use crate::connection_state::ExpectedInput;

/// A timer that is created and reset as late as possible.
#[derive(Default)]
pub(super) struct LazyTimer {
    /// The purpose of the wait, and its end once that is known; `None` if the timer is stopped.
    waiting: Option<(TimerPurpose, Option<Instant>)>,
    sleep: Option<Pin<Box<Sleep>>>,
    /// Whether the timer's `sleep` will wake the connection's task, which is always the same one.
    registered: bool,
}

/// The purpose of a timer: the bytes that it waits for, and the number of the request.
pub(super) type TimerPurpose = (ExpectedInput, u32);

/// The length of a timer's wait.
#[derive(Clone, Copy)]
pub(super) enum ExactOrMinimumWait {
    Exactly(Duration),
    /// The timer waits for up to twice this time. It need not read the clock, so it is used after every
    /// request.
    AtLeast(Duration),
}

impl LazyTimer {
    /// Ends the current wait; the next one starts anew.
    pub(super) fn stop(&mut self) {
        self.waiting = None;
    }

    /// Returns `Ready` at the end of `timeout`. The wait continues if `purpose` is unchanged, and else starts
    /// anew.
    pub(super) fn poll_elapsed(
        &mut self,
        cx: &mut Context<'_>,
        timeout: ExactOrMinimumWait,
        purpose: TimerPurpose,
    ) -> Poll<()> {
        let (ExactOrMinimumWait::Exactly(duration) | ExactOrMinimumWait::AtLeast(duration)) = timeout;
        let mut due = match self.waiting {
            Some((before, due)) if before == purpose => due,
            _ => None,
        };
        if due.is_none() && (matches!(timeout, ExactOrMinimumWait::Exactly(_)) || self.sleep.is_none()) {
            due = Some(Instant::now() + duration);
        }
        self.waiting = Some((purpose, due));
        loop {
            let sleep = match (&mut self.sleep, due) {
                (Some(sleep), None) => sleep,
                (Some(sleep), Some(due)) => {
                    if sleep.deadline() > due {
                        sleep.as_mut().reset(due);
                        self.registered = false;
                    }
                    sleep
                }
                (None, due) => {
                    self.registered = false;
                    self.sleep
                        .insert(Box::pin(sleep_until(due.unwrap_or_else(Instant::now))))
                }
            };
            if self.registered && !sleep.is_elapsed() {
                return Poll::Pending;
            }
            self.registered = sleep.as_mut().poll(cx).is_pending();
            if self.registered {
                return Poll::Pending;
            }
            // The timer may have been set for an earlier wait that ended in time, and then starts again.
            if due.is_some_and(|due| sleep.deadline() >= due) {
                return Poll::Ready(());
            }
            let later = due.unwrap_or_else(|| Instant::now() + duration);
            due = Some(later);
            self.waiting = Some((purpose, due));
            sleep.as_mut().reset(later);
        }
    }
}
