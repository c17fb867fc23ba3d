//! What a handler fails with, and the one place that makes a response of it.

use std::fmt;

use http::StatusCode;

use crate::body::BodyError;
use crate::reply;

/// Any error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A handler's failure.
///
/// Every error becomes one through `?`. The caller then sees status 500, `internal error` and the call id, and the log
/// has the error with its causes. [`Error::status`] chooses a status and what the caller is told. A [`BodyError`] has a
/// status of its own: 413, 408 or 400.
pub struct Error {
    told: Option<(StatusCode, String)>,
    cause: Option<BoxError>,
}

impl Error {
    /// A failure that the caller learns nothing about.
    pub fn new(cause: impl Into<BoxError>) -> Self {
        Self {
            told: None,
            cause: Some(cause.into()),
        }
    }

    /// A failure with a status and a text for the caller.
    pub fn status(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            told: Some((status, message.into())),
            cause: None,
        }
    }

    /// Adds what the log is to have.
    #[must_use]
    pub fn caused_by(mut self, cause: impl Into<BoxError>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// What was wrong, for a handler's own tests.
    pub fn cause(&self) -> Option<&(dyn std::error::Error + Send + Sync + 'static)> {
        self.cause.as_deref()
    }

    /// Status and text for the caller.
    pub fn status_and_message(&self) -> (StatusCode, &str) {
        match &self.told {
            Some((status, message)) => (*status, message),
            None => (StatusCode::INTERNAL_SERVER_ERROR, "internal error"),
        }
    }

    /// Logs the failure and answers it.
    pub(crate) fn into_response(self, call_id: &str) -> crate::Response {
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
                "request refused"
            );
        }
        match self.told {
            Some((status, message)) => reply::message(status, format!("{message}\n")),
            None => reply::internal_error(call_id),
        }
    }
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        let cause: BoxError = error.into();
        let status = match cause.downcast_ref::<BodyError>() {
            Some(BodyError::TooLarge { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
            Some(BodyError::Stalled { .. }) => StatusCode::REQUEST_TIMEOUT,
            Some(BodyError::NotUtf8 | BodyError::Broken(_)) => StatusCode::BAD_REQUEST,
            None => return Self::new(cause),
        };
        Self::status(status, cause.to_string()).caused_by(cause)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("told", &self.told)
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

/// Displays an error and its sources on one line, separated by `: `.
///
/// ```
/// # let error = std::io::Error::other("disk full");
/// tracing::error!(error = %function_host::ErrorChain(&error), "could not write the file");
/// ```
pub struct ErrorChain<'a>(pub &'a (dyn std::error::Error + 'static));

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.0, f)?;
        let mut next = self.0.source();
        while let Some(error) = next {
            write!(f, ": {error}")?;
            next = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails() -> Result<(), Error> {
        "seven".parse::<u8>()?;
        Ok(())
    }

    #[test]
    fn an_error_of_any_kind_is_an_internal_one() {
        let error = fails().unwrap_err();
        assert_eq!(
            error.status_and_message(),
            (StatusCode::INTERNAL_SERVER_ERROR, "internal error")
        );
        assert!(error.to_string().contains("invalid digit"), "{error}");
    }

    #[test]
    fn an_unreadable_body_is_the_callers_fault() {
        let error = Error::from(BodyError::TooLarge { limit: 7 });
        assert_eq!(
            error.status_and_message(),
            (StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than 7 bytes")
        );
    }

    #[test]
    fn causes_are_written_once_each() {
        let broken = BodyError::Broken("connection reset".into());
        assert_eq!(
            ErrorChain(&broken).to_string(),
            "the body ended early: connection reset"
        );
    }
}
