//! Decides which failures of a request to the deployer are retried, and when.

use std::time::Duration;

use function_host::ErrorChain;
use function_host::gateway::GatewayError;
use function_host::http::StatusCode;

use super::deployment::{DeploymentOutcome, is_deployers_answer};

/// The planned wait before the second attempt to reach the deployer. Jitter shortens it by up to half.
const FIRST_WAIT_AFTER_FAILED_DELIVERY: Duration = Duration::from_millis(250);

/// The longest wait before an attempt to reach the deployer.
const LONGEST_WAIT_AFTER_FAILED_DELIVERY: Duration = Duration::from_secs(5);

/// The planned wait before a deployment that the platform failed is tried again. The deployer has tried it several times
/// itself, and each attempt may replace the running version for a moment.
const FIRST_WAIT_AFTER_FAILED_DEPLOYMENT: Duration = Duration::from_secs(4);

/// The longest wait before a deployment that the platform failed is tried again.
const LONGEST_WAIT_AFTER_FAILED_DEPLOYMENT: Duration = Duration::from_secs(30);

/// The failures of a hand-over after which it is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetriedFailures {
    /// The deployer gave no answer, or was too busy. Its own answer is final: the caller can try again.
    Delivery,
    /// The deployer gave no answer, was too busy, or answered that the platform failed. For deployments that
    /// only the builder tries again.
    DeliveryAndPlatform,
}

/// Status and body of the answer to a request, as the gateway passes it on.
pub(super) type GatewayReply = (StatusCode, Vec<u8>);

/// The waits between attempts to reach the deployer, which grow to a maximum.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    /// Creates the sequence of waits after a failure to reach the deployer, which begins with the shortest one.
    pub(super) fn new() -> Self {
        Self {
            next: FIRST_WAIT_AFTER_FAILED_DELIVERY,
            longest: LONGEST_WAIT_AFTER_FAILED_DELIVERY,
        }
    }

    /// Creates the sequence of waits after a deployment that the platform failed.
    pub(super) fn after_failed_deployments() -> Self {
        Self {
            next: FIRST_WAIT_AFTER_FAILED_DEPLOYMENT,
            longest: LONGEST_WAIT_AFTER_FAILED_DEPLOYMENT,
        }
    }

    /// Returns the sequence's next wait: between half of the planned one and all of it, so that several
    /// builders do not retry at the same moment.
    pub(super) fn next_wait(&mut self) -> Duration {
        let wait = self.next.mul_f64(0.5 + 0.5 * fastrand::f64());
        self.next = (self.next * 2).min(self.longest);
        wait
    }
}

/// Describes the failure of a request that may succeed when sent again; returns `None` for a final result, success or
/// failure.
///
/// The deployer's own answer is final, except a 429 or 503, with which a function rejects a request before it reads it.
pub(super) fn describe_transient_failure(result: &Result<GatewayReply, GatewayError>) -> Option<String> {
    match result {
        Err(
            error @ (GatewayError::Connect { .. } | GatewayError::Lost { .. } | GatewayError::Timeout { .. }),
        ) => Some(ErrorChain(error).to_string()),
        Err(_) => None,
        Ok((status, body)) => {
            let is_transient = match *status {
                StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => true,
                StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => !is_deployers_answer(body),
                _ => false,
            };
            is_transient.then(|| format!("the answer was {status}"))
        }
    }
}

/// Describes the deployer's answer that a deployment failed because of the platform; returns `None` for any other result.
pub(super) fn describe_deployment_failed_by_platform(
    result: &Result<GatewayReply, GatewayError>,
) -> Option<String> {
    match result {
        Ok((status @ StatusCode::BAD_GATEWAY, body)) if is_deployers_answer(body) => {
            Some(DeploymentOutcome::from_answer(*status, body).reasons_in_one_line())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use function_host::http::Method;

    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_with_jitter() {
        let mut backoff = Backoff::new();
        let mut planned = FIRST_WAIT_AFTER_FAILED_DELIVERY;
        for _ in 0..10 {
            let wait = backoff.next_wait();
            assert!(wait >= planned / 2 && wait <= planned, "{wait:?} of {planned:?}");
            planned = (planned * 2).min(LONGEST_WAIT_AFTER_FAILED_DELIVERY);
        }
        assert_eq!(planned, LONGEST_WAIT_AFTER_FAILED_DELIVERY);
    }

    #[test]
    fn only_the_deployers_own_502_is_a_deployment_that_the_platform_failed() {
        let answer = r#"{"status":"rolled_back","reasons":["cannot pull","restored"]}"#;
        for (status, body, reason) in [
            (502, answer, Some("cannot pull; restored")),
            (502, "upstream failed", None),
            (200, answer, None),
            (409, answer, None),
            (422, answer, None),
            (500, answer, None),
        ] {
            let status = StatusCode::from_u16(status).expect("status");
            let result = Ok((status, body.as_bytes().to_vec()));
            assert_eq!(
                describe_deployment_failed_by_platform(&result).as_deref(),
                reason,
                "{status}"
            );
        }
    }

    #[test]
    fn of_answers_only_429_503_and_a_gateways_own_502_or_504_are_transient_and_so_is_a_lost_connection() {
        let answer = r#"{"status":"failed","reasons":["x"]}"#;
        for (status, body, transient) in [
            (200, answer, false),
            (409, answer, false),
            (422, answer, false),
            (500, answer, false),
            (502, answer, false),
            (504, answer, false),
            (429, "Concurrent request limit exceeded", true),
            (503, "", true),
            (502, "", true),
            (502, "{}", true),
            (502, "<html>", true),
            (504, "upstream timed out", true),
            (401, "", false),
            (404, "error finding function deployer-fn", false),
            (500, "", false),
        ] {
            let status = StatusCode::from_u16(status).expect("status");
            let result = Ok((status, body.as_bytes().to_vec()));
            assert_eq!(
                describe_transient_failure(&result).is_some(),
                transient,
                "{status} {body}"
            );
        }
        let path = || "/".to_owned();
        let lost = Err(GatewayError::Lost {
            method: Method::POST,
            path: path(),
            source: "reset".into(),
        });
        assert!(describe_transient_failure(&lost).is_some_and(|reason| reason.ends_with(": reset")));
        assert_eq!(
            describe_transient_failure(&Err(GatewayError::Path { path: path() })),
            None
        );
    }
}
