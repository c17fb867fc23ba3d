//! The call that a build belongs to: its identity, its place in the queue for build slots, its secrets, and when it
//! has to end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use function_host::Shutdown;
use tokio::time::Instant;

use super::cache_export::FinishedSolve;
use super::evidence::FailureEvidence;
use crate::buildkit::BuildReference;
use crate::builds::RecordedDelivery;
use crate::inputs::InputsRecorder;
use crate::redact::TraceMask;
use crate::sealed::BuildSecrets;
use crate::slots::QueueAdmission;

/// The time before the deadline of a call, or the end of the process, at which a build is cancelled, to leave time for
/// the answer.
const TIME_RESERVED_FOR_ANSWER: Duration = Duration::from_secs(2);

/// One call of the builder function.
#[derive(Debug)]
pub(crate) struct BuilderCall<'a> {
    /// The call's ID: the caller's `X-Call-Id`, or one that the host generated.
    pub(crate) id: &'a str,
    /// The reference under which BuildKit knows the call's build.
    pub(crate) reference: BuildReference,
    /// The time at which the host ends the call.
    pub(crate) deadline: Option<Instant>,
    /// Announces that the process ends.
    pub(crate) shutdown: &'a Shutdown,
    /// The opened secrets for the steps of the build.
    pub(crate) secrets: BuildSecrets,
    /// The mask for secrets and build arguments in the build's trace.
    pub(crate) trace_mask: &'a TraceMask,
    /// The admission of the call to the queue for a build slot.
    pub(crate) admission: &'a QueueAdmission,
    /// Whether the call came from the gateway's queue. Only then is a build retried after a failure of the platform.
    pub(crate) is_asynchronous: bool,
    /// The record of the build, and requests to cancel it.
    pub(crate) accepted: &'a RecordedDelivery,
    /// Whether the call is submitted to its queue again if the process ends before its build, and no other process
    /// resumes it.
    pub(crate) is_submitted_again: bool,
    /// Whether the dry run of the deployment is over, also if the deployer was not asked or gave no answer.
    pub(crate) is_dry_run_done: AtomicBool,
    /// Collects what the build is made from, for comparisons with other builds; `None` without a record store.
    pub(crate) inputs: Option<&'a InputsRecorder>,
    /// Whether an attempt to hand the build back has failed, so that it waits on for a slot even during a shutdown.
    pub(crate) failed_to_hand_back: AtomicBool,
    /// The solves that succeeded and whose caches are to be exported once the build has.
    pub(crate) finished_solves: Mutex<Vec<FinishedSolve>>,
    /// What the build leaves behind that explains its failure.
    pub(crate) evidence: Mutex<FailureEvidence>,
}

impl BuilderCall<'_> {
    /// Returns whether another builder continues or repeats the build if the process ends before it.
    pub(super) fn is_continued_elsewhere_if_process_ends(&self) -> bool {
        self.accepted.can_be_resumed_once_handed_back() || self.is_submitted_again
    }

    /// Returns the shorter of `timeout` and the time until 2 s before the call's deadline; `None` if there is neither.
    pub(super) fn build_time_limit(&self, timeout: Option<Duration>) -> Option<Duration> {
        time_limit_before_deadline(timeout, self.deadline)
    }

    /// Returns what explains a failure of the build, to add to it or to read it.
    pub(super) fn lock_evidence(&self) -> MutexGuard<'_, FailureEvidence> {
        self.evidence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the solves that succeeded, to add one or to take them.
    pub(crate) fn lock_finished_solves(&self) -> MutexGuard<'_, Vec<FinishedSolve>> {
        self.finished_solves
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a shutdown begins, if another process can resume the build and no attempt to hand it back has
    /// failed; otherwise waits forever.
    pub(super) async fn wait_for_shutdown_to_hand_back(&self) {
        match self.accepted.can_be_resumed_once_handed_back()
            && !self.failed_to_hand_back.load(Ordering::Relaxed)
        {
            true => {
                self.shutdown.wait_until_begun().await;
            }
            false => std::future::pending().await,
        }
    }

    /// Waits until 2 s before a shutdown ends the process, when the build has to be cancelled.
    pub(super) async fn wait_until_shortly_before_shutdown_ends(&self) {
        wait_until_shortly_before_shutdown_ends(self.shutdown).await;
    }
}

/// Waits for `limit` and returns it. Waits forever if there is no limit.
pub(super) async fn wait_for_expiry(limit: Option<Duration>) -> Duration {
    match limit {
        Some(limit) => {
            tokio::time::sleep(limit).await;
            limit
        }
        None => std::future::pending().await,
    }
}

/// Returns the shorter of `timeout` and the time until [`TIME_RESERVED_FOR_ANSWER`] before `deadline`.
fn time_limit_before_deadline(timeout: Option<Duration>, deadline: Option<Instant>) -> Option<Duration> {
    let left = deadline.map(|deadline| {
        deadline
            .saturating_duration_since(Instant::now())
            .saturating_sub(TIME_RESERVED_FOR_ANSWER)
    });
    match (timeout, left) {
        (Some(timeout), Some(left)) => Some(timeout.min(left)),
        (timeout, left) => timeout.or(left),
    }
}

/// Waits until [`TIME_RESERVED_FOR_ANSWER`] before `shutdown` ends the process.
pub(super) async fn wait_until_shortly_before_shutdown_ends(shutdown: &Shutdown) {
    let end = shutdown.wait_until_begun().await;
    tokio::time::sleep_until(end.checked_sub(TIME_RESERVED_FOR_ANSWER).unwrap_or(end)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_build_ends_at_its_timeout_or_two_seconds_before_the_calls_deadline_whichever_is_first() {
        let seconds = Duration::from_secs;
        let deadline = Some(Instant::now() + seconds(62));

        for (timeout, deadline, limit) in [
            (None, None, None),
            (Some(5), None, Some(5)),
            (None, deadline, Some(60)),
            (Some(5), deadline, Some(5)),
            (Some(500), deadline, Some(60)),
        ] {
            assert_eq!(
                time_limit_before_deadline(timeout.map(seconds), deadline),
                limit.map(seconds),
                "{timeout:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_for_the_end_of_a_shutdown_is_over_two_seconds_before_it() {
        let (trigger, shutdown) = Shutdown::new();
        trigger.begin(Instant::now() + Duration::from_secs(30));
        let start = Instant::now();

        wait_until_shortly_before_shutdown_ends(&shutdown).await;

        assert_eq!(start.elapsed(), Duration::from_secs(28));
    }
}
