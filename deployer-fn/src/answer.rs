//! Converts the result of handling a hand-over, an outcome or an error, to the HTTP response.
//!
//! The status tells a queue whether a retry may succeed: yes for 408, 429, 500 and 502, no for all others. The body
//! always has `status` and `reasons`.

use function_host::ErrorChain;
use function_host::http::{HeaderValue, StatusCode, header};
use function_host::{Response, reply};
use serde_json::json;
use tracing::{error, info};

use crate::error::{ErrorKind, HandOverRejectionOrPanic};
use crate::outcome::{DeploymentOutcome, DeploymentStatus, DryRunOutcome, DryRunStatus, FaultyParty};

/// The result of handling a valid hand-over.
#[derive(Debug)]
pub(crate) enum HandOverResult {
    /// The hand-over was deployed, or its deployment ended without success; see the outcome.
    Deployment(Box<DeploymentOutcome>),
    /// The hand-over was a dry run: it was checked and nothing was deployed.
    DryRun(DryRunOutcome),
}

/// Returns the response to a hand-over, and logs a rejection or an error; outcomes are logged by the rollout.
pub(crate) fn log_rejection_or_error_and_respond(
    result: &Result<HandOverResult, HandOverRejectionOrPanic>,
) -> Response {
    let (status, body) = match result {
        Ok(HandOverResult::Deployment(outcome)) => {
            (http_status_of_outcome(outcome), serde_json::to_vec(outcome))
        }
        Ok(HandOverResult::DryRun(outcome)) => (
            http_status_of_dry_run(outcome.status),
            serde_json::to_vec(outcome),
        ),
        Err(error) => {
            let reasons = error.reasons_with_causes_for_caller();
            if error.error_kind() == ErrorKind::Internal {
                error!(error = %ErrorChain(error), "could not handle a hand-over");
            } else {
                info!(error = %ErrorChain(error), ?reasons, "rejected a hand-over");
            }
            let status = match error {
                // Something may have been changed.
                HandOverRejectionOrPanic::Panicked(_) => DeploymentStatus::Failed,
                _ => DeploymentStatus::Refused,
            };
            let mut body = json!({"status": status, "error": error.to_string(), "reasons": reasons});
            let status = match error {
                HandOverRejectionOrPanic::Invalid { dry_run: true, .. }
                | HandOverRejectionOrPanic::Forbidden { dry_run: true, .. } => {
                    body["dryRun"] = true.into();
                    http_status_of_dry_run(DryRunStatus::Refused)
                }
                _ => http_status_of_error(error.error_kind()),
            };
            (status, serde_json::to_vec(&body))
        }
    };
    let mut response = reply::json(body.unwrap_or_default());
    *response.status_mut() = status;
    if status == StatusCode::TOO_MANY_REQUESTS {
        let seconds = HeaderValue::from_static("1");
        response.headers_mut().insert(header::RETRY_AFTER, seconds);
    }
    response
}

/// Returns the HTTP status for the result of a dry run.
fn http_status_of_dry_run(status: DryRunStatus) -> StatusCode {
    match status {
        DryRunStatus::Accepted => StatusCode::OK,
        DryRunStatus::Refused => StatusCode::UNPROCESSABLE_ENTITY,
        DryRunStatus::Failed => StatusCode::BAD_GATEWAY,
    }
}

/// Returns the HTTP status for the outcome of a deployment.
fn http_status_of_outcome(outcome: &DeploymentOutcome) -> StatusCode {
    match (outcome.status, outcome.fault) {
        (DeploymentStatus::Ready | DeploymentStatus::Unverified, _) => StatusCode::OK,
        // Not retried by queues, and not the caller's fault either.
        (DeploymentStatus::Refused, _) if outcome.superseded_by.is_some() => StatusCode::CONFLICT,
        (DeploymentStatus::Refused, _) => StatusCode::UNPROCESSABLE_ENTITY,
        (DeploymentStatus::Failed | DeploymentStatus::RolledBack, Some(FaultyParty::Caller)) => {
            StatusCode::UNPROCESSABLE_ENTITY
        }
        (DeploymentStatus::Failed | DeploymentStatus::RolledBack, _) => StatusCode::BAD_GATEWAY,
    }
}

/// Returns the HTTP status for an error of handling a hand-over.
fn http_status_of_error(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::Unauthorized => StatusCode::UNAUTHORIZED,
        ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::Slow => StatusCode::REQUEST_TIMEOUT,
        ErrorKind::Busy => StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::Invalid => StatusCode::BAD_REQUEST,
        ErrorKind::Forbidden => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
