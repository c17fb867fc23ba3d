//! The conversion of [`ProviderError`]s to HTTP responses: the only place that chooses statuses for them, except that
//! of a missing function in a look-up.
//!
//! The statuses are faasd's, which differ by operation: create answers every failure with 400; update does
//! too, except for a function that does not exist (404) and an image that cannot be pulled (500).

use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};

use crate::error::ProviderError;

/// The operation that a request to the API asks for; the status of an error depends on it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ApiOperation {
    Read,
    Create,
    Update,
    Delete,
    Scale,
    Secret,
}

/// The HTTP response for an operation that failed.
#[derive(Debug)]
pub(super) struct ErrorResponse(ApiOperation, ProviderError);

impl ApiOperation {
    /// Returns a function that makes the response for this operation's error.
    pub(super) fn to_error_response(self) -> impl FnOnce(ProviderError) -> ErrorResponse {
        move |error| ErrorResponse(self, error)
    }
}

/// Returns the HTTP status of an operation's error.
fn status_of_error(operation: ApiOperation, error: &ProviderError) -> StatusCode {
    match (operation, error) {
        (_, ProviderError::FunctionNotFound(_)) => StatusCode::NOT_FOUND,
        (_, ProviderError::Stopping) => StatusCode::SERVICE_UNAVAILABLE,
        (ApiOperation::Update, ProviderError::Pull { .. })
        | (ApiOperation::Secret, ProviderError::Json(_)) => StatusCode::INTERNAL_SERVER_ERROR,
        (
            _,
            ProviderError::NamespaceInvalid
            | ProviderError::Invalid(_)
            | ProviderError::Json(_)
            | ProviderError::SecretMissing(_),
        ) => StatusCode::BAD_REQUEST,
        (ApiOperation::Delete | ApiOperation::Secret, _) => StatusCode::INTERNAL_SERVER_ERROR,
        (ApiOperation::Read | ApiOperation::Create | ApiOperation::Update | ApiOperation::Scale, _) => {
            StatusCode::BAD_REQUEST
        }
    }
}

impl IntoResponse for ErrorResponse {
    fn into_response(self) -> Response {
        let Self(operation, error) = self;
        let status = status_of_error(operation, &error);
        let text = format!("{:#}", anyhow::Error::from(error));
        tracing::warn!(
            ?operation,
            status = status.as_u16(),
            error = text,
            "request failed"
        );
        (
            status,
            [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
            text + "\n",
        )
            .into_response()
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;
    use crate::error::ContainerdStatus;

    #[test]
    fn statuses_of_failed_operations_are_those_of_faasd() {
        let pull = || ProviderError::Pull {
            image: "i".into(),
            source: ContainerdStatus::new(Status::not_found("gone")),
        };
        let containerd = || ProviderError::Containerd {
            operation: "create task",
            subject: "f".into(),
            source: ContainerdStatus::new(Status::unknown("exec failed")),
        };
        let missing = || ProviderError::FunctionNotFound("f".into());
        let cases = [
            (ApiOperation::Create, pull(), 400),
            (ApiOperation::Create, containerd(), 400),
            (
                ApiOperation::Create,
                ProviderError::FunctionExists("f".into()),
                400,
            ),
            (
                ApiOperation::Create,
                ProviderError::SecretMissing("s".into()),
                400,
            ),
            (ApiOperation::Update, missing(), 404),
            (
                ApiOperation::Update,
                ProviderError::SecretMissing("s".into()),
                400,
            ),
            (ApiOperation::Update, pull(), 500),
            (ApiOperation::Update, containerd(), 400),
            (ApiOperation::Delete, missing(), 404),
            (ApiOperation::Delete, containerd(), 500),
            (ApiOperation::Scale, missing(), 404),
            (ApiOperation::Scale, containerd(), 400),
            (ApiOperation::Read, ProviderError::NamespaceInvalid, 400),
            (ApiOperation::Secret, ProviderError::Invalid("name".into()), 400),
        ];
        for (operation, error, expected) in cases {
            assert_eq!(
                status_of_error(operation, &error).as_u16(),
                expected,
                "{operation:?} {error}"
            );
        }
    }
}
