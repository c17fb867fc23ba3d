//! The conversion of [`ProviderError`]s to HTTP responses: the only place that chooses statuses for the errors of
//! Kubernetes.
//!
//! The statuses are those of faas-netes, which differ by operation. An update that the cluster rejects is answered with
//! 200, as if it had succeeded; a success has 202.

use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};

use crate::error::{KubernetesOperation, ProviderError};

/// The operation that a request to the API asks for; the answer to an error depends on it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ClusterOperation {
    Read,
    Create,
    Update,
    Delete,
    Scale,
    Secret,
    Log,
}

/// The HTTP response for an operation that failed.
#[derive(Debug)]
pub(super) struct ErrorResponse(ClusterOperation, ProviderError);

impl ClusterOperation {
    /// Returns a function that makes the response for this operation's error.
    pub(super) fn to_error_response(self) -> impl FnOnce(ProviderError) -> ErrorResponse {
        move |error| ErrorResponse(self, error)
    }
}

/// Returns the HTTP status of an operation's error, and whether the body has its text.
fn answer_to_error(operation: ClusterOperation, error: &ProviderError) -> (StatusCode, bool) {
    const WITH_TEXT: bool = true;
    const EMPTY: bool = false;
    match operation {
        ClusterOperation::Read => (StatusCode::BAD_REQUEST, WITH_TEXT),
        ClusterOperation::Create => match error {
            ProviderError::Kubernetes {
                operation: KubernetesOperation::CreateDeployment,
                ..
            } => (StatusCode::INTERNAL_SERVER_ERROR, WITH_TEXT),
            _ => (StatusCode::BAD_REQUEST, WITH_TEXT),
        },
        ClusterOperation::Update => match update_failure(error) {
            Some(status) => (status, WITH_TEXT),
            None => (StatusCode::OK, EMPTY),
        },
        ClusterOperation::Delete => match error {
            ProviderError::Json(_) | ProviderError::Invalid(_) => (StatusCode::BAD_REQUEST, EMPTY),
            ProviderError::NamespaceReserved(_) => (StatusCode::UNAUTHORIZED, WITH_TEXT),
            ProviderError::Kubernetes { .. } if error.is_kubernetes_not_found_or_gone() => {
                (StatusCode::NOT_FOUND, WITH_TEXT)
            }
            ProviderError::Kubernetes { .. } => (StatusCode::INTERNAL_SERVER_ERROR, WITH_TEXT),
            _ => (StatusCode::BAD_REQUEST, WITH_TEXT),
        },
        ClusterOperation::Scale => match error {
            ProviderError::Kubernetes { .. } => (StatusCode::INTERNAL_SERVER_ERROR, WITH_TEXT),
            _ => (StatusCode::BAD_REQUEST, WITH_TEXT),
        },
        ClusterOperation::Secret => match error {
            ProviderError::Json(_) | ProviderError::NamespaceOther { .. } => (StatusCode::BAD_REQUEST, EMPTY),
            error => (status_of_reason(error.kubernetes_reason()), EMPTY),
        },
        ClusterOperation::Log => match error {
            ProviderError::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, WITH_TEXT),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, WITH_TEXT),
        },
    }
}

/// Returns the HTTP status of an update's error, or `None` for one that is answered like a success without effect: what
/// the cluster answers about the Deployment, unless it does not exist.
fn update_failure(error: &ProviderError) -> Option<StatusCode> {
    match error {
        ProviderError::QuantityInvalid(_) => None,
        ProviderError::Kubernetes { operation, .. } => match operation {
            KubernetesOperation::ReadService => Some(StatusCode::NOT_FOUND),
            KubernetesOperation::UpdateService => Some(StatusCode::INTERNAL_SERVER_ERROR),
            _ if !error.is_kubernetes_not_found_or_gone() => None,
            KubernetesOperation::UpdateDeployment => Some(StatusCode::INTERNAL_SERVER_ERROR),
            _ => Some(StatusCode::NOT_FOUND),
        },
        _ => Some(StatusCode::BAD_REQUEST),
    }
}

/// Returns the HTTP status for the reason of an answer of the Kubernetes API about a secret.
fn status_of_reason(reason: Option<&str>) -> StatusCode {
    match reason {
        Some("Gone" | "NotFound") => StatusCode::NOT_FOUND,
        Some("AlreadyExists" | "Conflict") => StatusCode::CONFLICT,
        Some("Invalid") => StatusCode::UNPROCESSABLE_ENTITY,
        Some("BadRequest") => StatusCode::BAD_REQUEST,
        Some("Forbidden") => StatusCode::FORBIDDEN,
        Some("Timeout") => StatusCode::REQUEST_TIMEOUT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for ErrorResponse {
    fn into_response(self) -> Response {
        let Self(operation, error) = self;
        let (status, with_text) = answer_to_error(operation, &error);
        let text = format!("{:#}", anyhow::Error::from(error));
        tracing::warn!(
            ?operation,
            status = status.as_u16(),
            error = text,
            "request failed"
        );
        if !with_text {
            return status.into_response();
        }
        let plain = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
        (status, plain, text + "\n").into_response()
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn api_error(operation: KubernetesOperation, reason: &str) -> ProviderError {
        let status = Status::failure("rejected", reason).boxed();
        ProviderError::kubernetes(operation, "hello")(kube::Error::Api(status))
    }

    #[test]
    fn an_update_rejected_by_the_cluster_is_an_empty_success_except_for_services_and_missing_objects() {
        use KubernetesOperation as Operation;
        for (error, expected) in [
            (api_error(Operation::ReadDeployment, "NotFound"), (404, true)),
            (api_error(Operation::ReadDeployment, "Forbidden"), (200, false)),
            (api_error(Operation::UpdateDeployment, "Conflict"), (200, false)),
            (api_error(Operation::UpdateDeployment, "Invalid"), (200, false)),
            (api_error(Operation::UpdateDeployment, "NotFound"), (500, true)),
            (api_error(Operation::ReadSecret, "Forbidden"), (200, false)),
            (api_error(Operation::ReadService, "NotFound"), (404, true)),
            (api_error(Operation::UpdateService, "Conflict"), (500, true)),
            (
                ProviderError::QuantityInvalid("limits.memory".into()),
                (200, false),
            ),
            (ProviderError::SecretMissing("key".into()), (400, true)),
        ] {
            let (status, with_text) = answer_to_error(ClusterOperation::Update, &error);
            assert_eq!((status.as_u16(), with_text), expected, "{error}");
        }
    }

    #[test]
    fn in_a_creation_only_a_rejected_kubernetes_deployment_is_a_server_error() {
        use KubernetesOperation as Operation;
        for (error, expected) in [
            (api_error(Operation::CreateDeployment, "AlreadyExists"), 500),
            (api_error(Operation::CreateService, "AlreadyExists"), 400),
            (api_error(Operation::ReadSecret, "Forbidden"), 400),
            (ProviderError::FunctionLimit(30), 400),
        ] {
            let (status, _) = answer_to_error(ClusterOperation::Create, &error);
            assert_eq!(status.as_u16(), expected, "{error}");
        }
    }
}
