//! Catches a panic of a rollout: a defect must not hide what the rollout has changed.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

/// The error for a rollout that panicked. The panic's text is in the process's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RolloutPanicked;

/// Runs `work`, and returns its result, or an error if it panics.
pub(super) async fn catch_panic<T>(work: impl Future<Output = T>) -> Result<T, RolloutPanicked> {
    let mut work = pin!(work);
    // Nothing of the work is used after a panic, except for facts that are recorded one by one.
    poll_fn(
        |context| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
            Ok(poll) => poll.map(Ok),
            Err(_) => Poll::Ready(Err(RolloutPanicked)),
        },
    )
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_after_an_await_is_caught() {
        assert_eq!(catch_panic(async { 1 }).await, Ok(1));
        let panicking = async {
            tokio::task::yield_now().await;
            panic!("as the test wants");
        };
        assert_eq!(catch_panic::<()>(panicking).await, Err(RolloutPanicked));
    }
}
