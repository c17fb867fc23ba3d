//! By when a rollout has to be over: its own time limit, the host's for the request, and the end of the process.

use std::future::Future;
use std::time::Duration;

use function_host::Shutdown;
use function_host::duration;
use tokio::time::{Instant, sleep_until};

/// What is left between the end of a rollout and that of the request or the process: time for a last look at what
/// runs, and for the answer.
const MARGIN: Duration = Duration::from_secs(3);

/// By when a rollout has to be over.
#[derive(Clone, Debug)]
pub struct Deadline {
    begun: Instant,
    until: Instant,
    shutdown: Shutdown,
}

impl Deadline {
    /// As [`new`](Self::new), with `reserve` left for putting back what was there before, where the request's limit is
    /// what counts. At least half of the request's time is for the new version.
    #[must_use]
    pub fn with_reserve(
        limit: Duration,
        reserve: Duration,
        request: Option<Instant>,
        shutdown: Shutdown,
    ) -> Self {
        let now = Instant::now();
        let request = request.map(|at| at - reserve.min(at.saturating_duration_since(now) / 2));
        Self::new(limit, request, shutdown)
    }

    /// `limit` from now, or a little before `request`, when the host ends the request; and a little before the process
    /// ends.
    #[must_use]
    pub fn new(limit: Duration, request: Option<Instant>, shutdown: Shutdown) -> Self {
        let begun = Instant::now();
        let own = begun + limit;
        let until = request
            .and_then(|at| at.checked_sub(MARGIN))
            .map_or(own, |at| at.min(own));
        Self {
            begun,
            until,
            shutdown,
        }
    }

    /// The same for what comes afterwards, `limit` from now. The request may be over by then: its caller is gone, but
    /// what was begun is ended.
    pub(super) fn anew(&self, limit: Duration) -> Self {
        Self::new(limit, None, self.shutdown.clone())
    }

    /// What `work` gives, or `None` where the time is up first: it is dropped then.
    pub(super) async fn bound<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.passed() => None,
        }
    }

    /// What is left of the rollout's own time.
    pub(super) fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Whether it is the end of the process that cuts the rollout short.
    pub(super) fn cut_short(&self) -> bool {
        self.shutdown.begun()
    }

    /// Why the time is up.
    pub(super) fn why(&self) -> String {
        if self.cut_short() {
            return "the deployer itself is being ended".to_owned();
        }
        let limit = self.until.saturating_duration_since(self.begun);
        format!(
            "not ready within {}",
            duration::format(Duration::from_secs(limit.as_secs()))
        )
    }

    async fn passed(&self) {
        tokio::select! {
            () = sleep_until(self.until) => {}
            end = self.shutdown.wait() => {
                let end = end.checked_sub(MARGIN).unwrap_or(end);
                sleep_until(end.min(self.until)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn the_earliest_end_counts() {
        let (_trigger, shutdown) = Shutdown::new();
        let begun = Instant::now();
        let own = Deadline::new(MINUTE, Some(begun + 2 * MINUTE), shutdown.clone());
        assert_eq!(own.bound(pending::<()>()).await, None);
        assert_eq!(begun.elapsed(), MINUTE);
        assert_eq!(own.why(), "not ready within 1m0s");

        let begun = Instant::now();
        let of_request = Deadline::new(MINUTE, Some(begun + MINUTE / 2), shutdown);
        assert_eq!(of_request.bound(pending::<()>()).await, None);
        assert_eq!(begun.elapsed(), MINUTE / 2 - MARGIN);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_the_process_cuts_a_rollout_short() {
        let (trigger, shutdown) = Shutdown::new();
        let begun = Instant::now();
        let deadline = Deadline::new(MINUTE, None, shutdown);
        let waiting = tokio::spawn({
            let deadline = deadline.clone();
            async move { deadline.bound(pending::<()>()).await }
        });
        tokio::task::yield_now().await;
        trigger.begin(begun + Duration::from_secs(10));

        assert_eq!(waiting.await.unwrap(), None);
        assert_eq!(begun.elapsed(), Duration::from_secs(10) - MARGIN);
        assert!(deadline.cut_short());
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_is_done_in_time_gives_its_result() {
        let (_trigger, shutdown) = Shutdown::new();
        assert_eq!(
            Deadline::new(Duration::ZERO, None, shutdown)
                .bound(async { 1 })
                .await,
            Some(1)
        );
    }
}
