//! The error that a handler returns, and its conversion to a response.

use std::fmt;

use http::StatusCode;

use crate::error_chain::{BoxError, ErrorChain};
use crate::inflight::ConcurrencyLimitExceeded;
use crate::reply;
use crate::request::BodyError;
use crate::response::Response;
use crate::unverified::ReceiveError;

/// The error that a handler returns.
///
/// Every error type converts to it through `?`. The caller then gets status 500 with `internal error` and the call
/// id, and the error is logged with its sources. [`Error::status`] sets the status and the message for the caller. A
/// [`BodyError`] converts to 413, 408 or 400, a [`ReceiveError`] to 429 and 408 as well, and a
/// [`ConcurrencyLimitExceeded`] to 429.
pub struct Error {
    /// The response's status and message for the caller; `None` for an internal error.
    for_caller: Option<(StatusCode, String)>,
    cause: Option<BoxError>,
}

impl Error {
    /// Creates an internal error, which the caller gets as status 500 without details.
    pub fn new(cause: impl Into<BoxError>) -> Self {
        Self {
            for_caller: None,
            cause: Some(cause.into()),
        }
    }

    /// Creates a handler error whose response has this status and message.
    pub fn status(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            for_caller: Some((status, message.into())),
            cause: None,
        }
    }

    /// Sets the cause of the handler's error, which is logged and not sent to the caller.
    #[must_use]
    pub fn caused_by(mut self, cause: impl Into<BoxError>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// Returns the cause of the handler's error, for the tests of a handler.
    pub fn cause(&self) -> Option<&(dyn std::error::Error + Send + Sync + 'static)> {
        self.cause.as_deref()
    }

    /// Returns the status and the message of the error's response.
    pub fn status_and_message(&self) -> (StatusCode, &str) {
        match &self.for_caller {
            Some((status, message)) => (*status, message),
            None => (StatusCode::INTERNAL_SERVER_ERROR, "internal error"),
        }
    }

    /// Logs the handler's error and converts it to a response.
    pub(crate) fn log_and_into_response(self, call_id: &str) -> Response {
        let (status, message) = self.status_and_message();
        let cause = self.cause.as_deref().map(|cause| ErrorChain(cause).to_string());
        let cause = cause.as_deref();
        if status.is_server_error() {
            tracing::error!(
                status = status.as_u16(),
                error = cause.unwrap_or(message),
                "handler failed"
            );
        } else {
            tracing::info!(
                status = status.as_u16(),
                error = cause.unwrap_or(message),
                "request rejected"
            );
        }
        match self.for_caller {
            Some((StatusCode::TOO_MANY_REQUESTS, message)) => {
                reply::too_many_requests(format!("{message}\n"))
            }
            Some((status, message)) => reply::message(status, format!("{message}\n")),
            None => reply::internal_error(call_id),
        }
    }
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        let cause: BoxError = error.into();
        match status_of_callers_error_or_reached_limit(cause.as_ref()) {
            Some(status) => Self::status(status, cause.to_string()).caused_by(cause),
            None => Self::new(cause),
        }
    }
}

/// Returns the status for an error of the caller, or of a limit that the caller ran into; `None` for an internal error.
fn status_of_callers_error_or_reached_limit(cause: &(dyn std::error::Error + 'static)) -> Option<StatusCode> {
    if let Some(error) = cause.downcast_ref::<ReceiveError>() {
        return Some(match error {
            ReceiveError::Displaced(_) => StatusCode::TOO_MANY_REQUESTS,
            ReceiveError::TooSlow { .. } => StatusCode::REQUEST_TIMEOUT,
            ReceiveError::Body(error) => status_of_body_error(error),
        });
    }
    if cause.is::<ConcurrencyLimitExceeded>() {
        return Some(StatusCode::TOO_MANY_REQUESTS);
    }
    cause.downcast_ref::<BodyError>().map(status_of_body_error)
}

/// Returns the status for an error of reading a request's body.
fn status_of_body_error(error: &BodyError) -> StatusCode {
    match error {
        BodyError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        BodyError::Stalled { .. } => StatusCode::REQUEST_TIMEOUT,
        BodyError::NotUtf8 | BodyError::Broken(_) => StatusCode::BAD_REQUEST,
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("for_caller", &self.for_caller)
            .field("cause", &self.cause)
            .finish()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Some(cause) => write!(f, "{}", ErrorChain(cause.as_ref())),
            None => f.write_str(self.status_and_message().1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unverified::DisplacedForOthers;

    fn return_parse_error() -> Result<(), Error> {
        "seven".parse::<u8>()?;
        Ok(())
    }

    #[test]
    fn an_error_of_another_type_becomes_an_internal_error_with_status_500() {
        let error = return_parse_error().unwrap_err();
        assert_eq!(
            error.status_and_message(),
            (StatusCode::INTERNAL_SERVER_ERROR, "internal error")
        );
        assert!(error.to_string().contains("invalid digit"), "{error}");
    }

    #[test]
    fn a_body_over_its_limit_becomes_an_error_with_status_413() {
        let too_large = || BodyError::TooLarge { limit: 7 };
        let message = "the body is larger than 7 bytes";
        let error = Error::from(too_large());
        assert_eq!(
            error.status_and_message(),
            (StatusCode::PAYLOAD_TOO_LARGE, message)
        );
        let error = Error::from(ReceiveError::Body(too_large()));
        assert_eq!(
            error.status_and_message(),
            (StatusCode::PAYLOAD_TOO_LARGE, message)
        );
    }

    #[test]
    fn a_limit_that_is_reached_is_answered_with_429_and_a_time_for_the_retry() {
        for error in [
            Error::from(ReceiveError::<BodyError>::Displaced(
                DisplacedForOthers::Senders { limit: 7 },
            )),
            Error::from(ConcurrencyLimitExceeded { limit: 7 }),
        ] {
            let response = error.log_and_into_response("call");
            assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
            assert_eq!(response.headers()["retry-after"], "1");
        }
    }
}
