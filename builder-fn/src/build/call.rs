//! The call that a build belongs to: its identity, its secrets, and the time that it has.

use std::time::Duration;

use function_host::Shutdown;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::redact::TraceMask;
use crate::sealed::BuildSecrets;

/// How long before the deadline of a call, or the end of the process, a build is cancelled: enough time to answer.
const TIME_TO_ANSWER: Duration = Duration::from_secs(2);

/// One call of the builder.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    /// `X-Call-Id`.
    pub(crate) id: &'a str,
    /// The build's reference in BuildKit: see [`build_reference`].
    pub(crate) reference: String,
    /// When the host ends the call.
    pub(crate) deadline: Option<Instant>,
    /// Says when the process ends.
    pub(crate) shutdown: &'a Shutdown,
    /// The secrets for the steps of the build.
    pub(crate) secrets: BuildSecrets,
    /// Masks what the build's trace shows.
    pub(crate) trace_mask: &'a TraceMask,
}

impl Call<'_> {
    /// Returns the shorter of `timeout` and the time left until the deadline, less the time to answer.
    pub(super) fn time_limit(&self, timeout: Option<Duration>) -> Option<Duration> {
        shorter(timeout, self.deadline)
    }

    /// Waits until the process is about to end.
    pub(super) async fn interruption(&self) {
        interruption(self.shutdown).await;
    }
}

/// Waits for `limit` and returns it. Waits forever if there is none.
pub(super) async fn expiry(limit: Option<Duration>) -> Duration {
    match limit {
        Some(limit) => {
            tokio::time::sleep(limit).await;
            limit
        }
        None => std::future::pending().await,
    }
}

/// Returns the reference of a build in BuildKit, which rejects a second build of the same reference while one is running.
///
/// A call that is delivered twice has the same reference. The signature is part of it, so that a call id that was chosen
/// badly, or by somebody else, never leads to the build of another body. Without a signature every build has its own
/// reference.
pub(crate) fn build_reference(call_id: &str, signature: Option<&str>) -> String {
    let Some(signature) = signature else {
        return uuid::Uuid::new_v4().simple().to_string();
    };
    let mut hash = Sha256::new();
    hash.update(call_id);
    hash.update([0]);
    hash.update(signature);
    hex::encode(&hash.finalize()[..16])
}

fn shorter(timeout: Option<Duration>, deadline: Option<Instant>) -> Option<Duration> {
    let left = deadline.map(|deadline| {
        deadline
            .saturating_duration_since(Instant::now())
            .saturating_sub(TIME_TO_ANSWER)
    });
    match (timeout, left) {
        (Some(timeout), Some(left)) => Some(timeout.min(left)),
        (timeout, left) => timeout.or(left),
    }
}

async fn interruption(shutdown: &Shutdown) {
    let end = shutdown.wait().await;
    tokio::time::sleep_until(end.checked_sub(TIME_TO_ANSWER).unwrap_or(end)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_body_of_the_same_call_has_the_same_reference() {
        let reference = build_reference("id", Some("sha256=12"));
        assert_eq!(reference, build_reference("id", Some("sha256=12")));
        assert_ne!(
            reference,
            build_reference("id", Some("sha256=13")),
            "another body"
        );
        assert_ne!(
            reference,
            build_reference("di", Some("sha256=12")),
            "another call"
        );
        assert_ne!(
            build_reference("id", None),
            build_reference("id", None),
            "without a signature, bodies cannot be told apart"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_shorter_of_timeout_and_deadline_limits_a_build() {
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
                shorter(timeout.map(seconds), deadline),
                limit.map(seconds),
                "{timeout:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_build_is_interrupted_two_seconds_before_the_process_ends() {
        let (trigger, shutdown) = Shutdown::new();
        trigger.begin(Instant::now() + Duration::from_secs(30));
        let start = Instant::now();

        interruption(&shutdown).await;

        assert_eq!(start.elapsed(), Duration::from_secs(28));
    }
}
