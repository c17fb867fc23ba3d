//! The conversion of errors to HTTP responses: the only module that chooses statuses.
//!
//! The statuses are faasd's, which differ by operation: create answers every failure with 400; update does
//! too, except for a function that does not exist (404) and an image that cannot be pulled (500).

use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};

use crate::error::Error;

/// The operation that a request to the API asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Operation {
    Read,
    Create,
    Update,
    Delete,
    Scale,
    Secret,
}

/// The HTTP response for an operation that failed.
#[derive(Debug)]
pub(super) struct ErrorResponse(Operation, Error);

impl Operation {
    pub(super) fn failed(self) -> impl FnOnce(Error) -> ErrorResponse {
        move |error| ErrorResponse(self, error)
    }
}

fn status(operation: Operation, error: &Error) -> StatusCode {
    match (operation, error) {
        (_, Error::FunctionNotFound(_)) => StatusCode::NOT_FOUND,
        (_, Error::Stopping) => StatusCode::SERVICE_UNAVAILABLE,
        (Operation::Update, Error::Pull { .. }) | (Operation::Secret, Error::Json(_)) => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
        (_, Error::NamespaceInvalid | Error::Invalid(_) | Error::Json(_) | Error::SecretMissing(_)) => {
            StatusCode::BAD_REQUEST
        }
        (Operation::Delete | Operation::Secret, _) => StatusCode::INTERNAL_SERVER_ERROR,
        (Operation::Read | Operation::Create | Operation::Update | Operation::Scale, _) => {
            StatusCode::BAD_REQUEST
        }
    }
}

impl IntoResponse for ErrorResponse {
    fn into_response(self) -> Response {
        let Self(operation, error) = self;
        let status = status(operation, &error);
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
    fn statuses_are_those_of_faasd() {
        let pull = || Error::Pull {
            image: "i".into(),
            source: ContainerdStatus::new(Status::not_found("gone")),
        };
        let containerd = || Error::Containerd {
            operation: "create task",
            subject: "f".into(),
            source: ContainerdStatus::new(Status::unknown("exec failed")),
        };
        let missing = || Error::FunctionNotFound("f".into());
        let cases = [
            (Operation::Create, pull(), 400),
            (Operation::Create, containerd(), 400),
            (Operation::Create, Error::FunctionExists("f".into()), 400),
            (Operation::Create, Error::SecretMissing("s".into()), 400),
            (Operation::Update, missing(), 404),
            (Operation::Update, Error::SecretMissing("s".into()), 400),
            (Operation::Update, pull(), 500),
            (Operation::Update, containerd(), 400),
            (Operation::Delete, missing(), 404),
            (Operation::Delete, containerd(), 500),
            (Operation::Scale, missing(), 404),
            (Operation::Scale, containerd(), 400),
            (Operation::Read, Error::NamespaceInvalid, 400),
            (Operation::Secret, Error::Invalid("name".into()), 400),
        ];
        for (operation, error, expected) in cases {
            assert_eq!(
                status(operation, &error).as_u16(),
                expected,
                "{operation:?} {error}"
            );
        }
    }
}
