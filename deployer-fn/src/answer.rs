//! Converts the result of handling a hand-over, an outcome or an error, to the HTTP response.
//!
//! The status decides whether a queue retries: it does on 500 and 502. The body always has `status` and `reasons`.

use function_host::ErrorChain;
use function_host::http::StatusCode;
use function_host::{Response, reply};
use serde_json::json;
use tracing::{error, info};

use crate::error::{Error, ErrorKind};
use crate::outcome::{DeploymentStatus, DryRunOutcome, DryRunStatus, Fault, Outcome};

/// The result of handling a valid hand-over.
#[derive(Debug)]
pub(crate) enum Handled {
    /// The hand-over was deployed, or its deployment ended without success; see the outcome.
    Deployment(Box<Outcome>),
    /// The hand-over was a dry run: it was checked and nothing was deployed.
    DryRun(DryRunOutcome),
}

/// Returns the response to a hand-over, and logs an error.
pub(crate) fn log_and_respond(result: &Result<Handled, Error>) -> Response {
    let (status, body) = match result {
        Ok(Handled::Deployment(outcome)) => (status_of_outcome(outcome), serde_json::to_vec(outcome)),
        Ok(Handled::DryRun(outcome)) => (status_of_dry_run(outcome.status), serde_json::to_vec(outcome)),
        Err(error) => {
            let reasons = error.reasons();
            if error.kind() == ErrorKind::Internal {
                error!(error = %ErrorChain(error), "could not handle a hand-over");
            } else {
                info!(error = %ErrorChain(error), ?reasons, "rejected a hand-over");
            }
            let status = match error {
                // Something may have been changed.
                Error::Panicked(_) => DeploymentStatus::Failed,
                _ => DeploymentStatus::Refused,
            };
            let mut body = json!({"status": status, "error": error.to_string(), "reasons": reasons});
            let status = match error {
                Error::Invalid { dry_run: true, .. } => {
                    body["dryRun"] = true.into();
                    status_of_dry_run(DryRunStatus::Refused)
                }
                _ => status_of_error(error.kind()),
            };
            (status, serde_json::to_vec(&body))
        }
    };
    let mut response = reply::json(body.unwrap_or_default());
    *response.status_mut() = status;
    response
}

fn status_of_dry_run(status: DryRunStatus) -> StatusCode {
    match status {
        DryRunStatus::Accepted => StatusCode::OK,
        DryRunStatus::Refused => StatusCode::UNPROCESSABLE_ENTITY,
        DryRunStatus::Failed => StatusCode::BAD_GATEWAY,
    }
}

fn status_of_outcome(outcome: &Outcome) -> StatusCode {
    match (outcome.status, outcome.fault) {
        (DeploymentStatus::Ready | DeploymentStatus::Unverified, _) => StatusCode::OK,
        // Not retried by queues, and not the caller's fault either.
        (DeploymentStatus::Refused, _) if outcome.superseded_by.is_some() => StatusCode::CONFLICT,
        (DeploymentStatus::Refused, _) => StatusCode::UNPROCESSABLE_ENTITY,
        (DeploymentStatus::Failed | DeploymentStatus::RolledBack, Some(Fault::Caller)) => {
            StatusCode::UNPROCESSABLE_ENTITY
        }
        (DeploymentStatus::Failed | DeploymentStatus::RolledBack, _) => StatusCode::BAD_GATEWAY,
    }
}

fn status_of_error(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::Unauthorized => StatusCode::UNAUTHORIZED,
        ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::Slow => StatusCode::REQUEST_TIMEOUT,
        ErrorKind::Invalid => StatusCode::BAD_REQUEST,
        ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
