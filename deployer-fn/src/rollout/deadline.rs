//! The deadline of a rollout: the earliest of its own timeout, the host's timeout for the request, and the end
//! of the process.

use std::future::Future;
use std::time::Duration;

use function_host::Shutdown;
use function_host::duration;
use tokio::time::{Instant, sleep_until};

/// The time between the end of a rollout and the end of the request or the process: for a last read of the
/// function's state, and for the response.
const RESPONSE_MARGIN: Duration = Duration::from_secs(3);

/// The deadline of a rollout, or of a part of it.
#[derive(Clone, Debug)]
pub struct RolloutDeadline {
    start: Instant,
    end: Instant,
    shutdown: Shutdown,
}

impl RolloutDeadline {
    /// Creates the deadline of a rollout, at most `limit` from now, that leaves `reserve` of the request's time for
    /// restoring the previous version, but never more than half of that time.
    #[must_use]
    pub(crate) fn with_reserve_before_request_deadline(
        limit: Duration,
        reserve: Duration,
        request_deadline: Option<Instant>,
        shutdown: Shutdown,
    ) -> Self {
        let now = Instant::now();
        let request_deadline =
            request_deadline.map(|at| at - reserve.min(at.saturating_duration_since(now) / 2));
        Self::new(limit, request_deadline, shutdown)
    }

    /// Creates a deadline that is `limit` from now, but at the latest shortly before the host ends the request at
    /// `request_deadline`, and shortly before the process ends.
    #[must_use]
    pub fn new(limit: Duration, request_deadline: Option<Instant>, shutdown: Shutdown) -> Self {
        let start = Instant::now();
        let own = start + limit;
        let end = request_deadline
            .and_then(|at| at.checked_sub(RESPONSE_MARGIN))
            .map_or(own, |at| at.min(own));
        Self { start, end, shutdown }
    }

    /// Returns a deadline for the next part of the rollout, `limit` from now. It does not depend on the request,
    /// whose caller may have gone: a rollout that has begun is completed.
    pub(super) fn renewed_without_request_deadline(&self, limit: Duration) -> Self {
        Self::new(limit, None, self.shutdown.clone())
    }

    /// Runs `work` until the deadline and returns its result. At the deadline, drops it and returns `None`.
    pub(super) async fn run_until_deadline<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.wait_until_passed() => None,
        }
    }

    /// Returns the time that is left until the deadline, without regard to a shutdown of the process.
    pub(super) fn time_remaining_ignoring_shutdown(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    /// Returns whether the process is shutting down.
    pub(super) fn is_shutting_down(&self) -> bool {
        self.shutdown.has_begun()
    }

    /// Returns the reason why the deadline has passed, for people.
    pub(super) fn reason_passed(&self) -> String {
        if self.is_shutting_down() {
            return "the deployer is shutting down".to_owned();
        }
        let limit = self.end.saturating_duration_since(self.start);
        format!(
            "not ready within {}",
            duration::format_duration(Duration::from_secs(limit.as_secs()))
        )
    }

    /// Waits until the deadline has passed.
    async fn wait_until_passed(&self) {
        tokio::select! {
            () = sleep_until(self.end) => {}
            end = self.shutdown.wait_until_begun() => {
                let end = end.checked_sub(RESPONSE_MARGIN).unwrap_or(end);
                sleep_until(end.min(self.end)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    const ONE_MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn the_earlier_of_limit_and_request_end_is_the_deadline() {
        let (_trigger, shutdown) = Shutdown::new();
        let start = Instant::now();
        let own = RolloutDeadline::new(ONE_MINUTE, Some(start + 2 * ONE_MINUTE), shutdown.clone());
        assert_eq!(own.run_until_deadline(pending::<()>()).await, None);
        assert_eq!(start.elapsed(), ONE_MINUTE);
        assert_eq!(own.reason_passed(), "not ready within 1m0s");

        let start = Instant::now();
        let of_request = RolloutDeadline::new(ONE_MINUTE, Some(start + ONE_MINUTE / 2), shutdown);
        assert_eq!(of_request.run_until_deadline(pending::<()>()).await, None);
        assert_eq!(start.elapsed(), ONE_MINUTE / 2 - RESPONSE_MARGIN);
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_ends_a_rollout_before_the_process_shuts_down() {
        let (trigger, shutdown) = Shutdown::new();
        let start = Instant::now();
        let deadline = RolloutDeadline::new(ONE_MINUTE, None, shutdown);
        let waiting = tokio::spawn({
            let deadline = deadline.clone();
            async move { deadline.run_until_deadline(pending::<()>()).await }
        });
        tokio::task::yield_now().await;
        trigger.begin(start + Duration::from_secs(10));

        assert_eq!(waiting.await.unwrap(), None);
        assert_eq!(start.elapsed(), Duration::from_secs(10) - RESPONSE_MARGIN);
        assert!(deadline.is_shutting_down());
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_is_done_at_once_returns_its_result_although_the_deadline_has_passed() {
        let (_trigger, shutdown) = Shutdown::new();
        assert_eq!(
            RolloutDeadline::new(Duration::ZERO, None, shutdown)
                .run_until_deadline(async { 1 })
                .await,
            Some(1)
        );
    }
}
