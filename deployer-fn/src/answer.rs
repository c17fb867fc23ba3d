//! The one place where an outcome or an error becomes an HTTP response.
//!
//! The status tells a queue whether to try again (502, 500) or not. The body has the same form in every case: `status` and
//! `reasons` are always there.

use function_host::http::StatusCode;
use function_host::{Response, reply};
use serde_json::json;
use tracing::{error, info};

use crate::error::{Error, Kind, chain};
use crate::outcome::{Fault, Outcome, Status};

/// What the caller gets.
#[must_use]
pub fn response(result: &Result<Outcome, Error>) -> Response {
    let (status, body) = match result {
        Ok(outcome) => (status_of(outcome), serde_json::to_vec(outcome)),
        Err(error) => {
            let status = status_of_kind(error.kind());
            let cause = chain(error);
            let reasons = error.reasons();
            if error.kind() == Kind::Internal {
                error!(error = cause, "the deployer cannot do its work");
            } else {
                info!(error = cause, ?reasons, "hand-over refused");
            }
            let answer = json!({"status": Status::Refused, "error": error.to_string(), "reasons": reasons});
            (status, serde_json::to_vec(&answer))
        }
    };
    let mut response = reply::json(body.unwrap_or_default());
    *response.status_mut() = status;
    response
}

fn status_of(outcome: &Outcome) -> StatusCode {
    match (outcome.status, outcome.fault) {
        (Status::Ready, _) => StatusCode::OK,
        (Status::Refused, _) | (Status::Failed | Status::RolledBack, Some(Fault::Caller)) => {
            StatusCode::UNPROCESSABLE_ENTITY
        }
        (Status::Failed | Status::RolledBack, _) => StatusCode::BAD_GATEWAY,
    }
}

fn status_of_kind(kind: Kind) -> StatusCode {
    match kind {
        Kind::Unauthorized => StatusCode::UNAUTHORIZED,
        Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Kind::Slow => StatusCode::REQUEST_TIMEOUT,
        Kind::Invalid => StatusCode::BAD_REQUEST,
        Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
