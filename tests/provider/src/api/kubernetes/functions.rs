//! The routes `/system/functions` and `/system/function/NAME`.

use axum::{
    Json,
    body::Bytes,
    extract::{Path, Query, State},
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde::de::DeserializeOwned;

use super::answer::{ClusterOperation, ErrorResponse};
use crate::{
    api::functions::NamespaceParameters,
    error::ProviderError,
    kubernetes::{ClusterFunctions, check_deployment_request},
    model::{DeleteFunctionRequest, FunctionDeployment, FunctionStatus},
};

/// A namespace of which nothing may be deleted.
const RESERVED_NAMESPACE: &str = "kube-system";

/// Fails if a request names another namespace than the one of the functions.
pub(super) fn check_namespace(functions: &ClusterFunctions, requested: &str) -> Result<(), ProviderError> {
    let own = &functions.settings().function_namespace;
    if requested.is_empty() || requested == own {
        return Ok(());
    }
    Err(ProviderError::NamespaceOther {
        requested: requested.to_owned(),
        own: own.clone(),
    })
}

/// Parses a request's body as JSON, whatever its content type is.
pub(super) fn parse_json<T: DeserializeOwned>(body: &Bytes) -> Result<T, ProviderError> {
    serde_json::from_slice(body).map_err(ProviderError::Json)
}

/// Answers with the status of every function.
pub(super) async fn list_functions(
    State(functions): State<ClusterFunctions>,
    Query(query): Query<NamespaceParameters>,
) -> Result<Json<Vec<FunctionStatus>>, ErrorResponse> {
    check_namespace(&functions, &query.namespace).map_err(ClusterOperation::Read.to_error_response())?;
    Ok(Json(functions.list_statuses()))
}

/// Answers with the status of one Deployment, or with 404 and an empty body.
pub(super) async fn read_any_deployment_as_function(
    State(functions): State<ClusterFunctions>,
    Path(name): Path<String>,
    Query(query): Query<NamespaceParameters>,
) -> Result<Response, ErrorResponse> {
    check_namespace(&functions, &query.namespace).map_err(ClusterOperation::Read.to_error_response())?;
    Ok(match functions.status_of_any_deployment(&name) {
        Some(status) => Json(status).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    })
}

/// Creates the function in the request's body, and answers before any pod exists.
pub(super) async fn create_function(
    State(functions): State<ClusterFunctions>,
    body: Bytes,
) -> Result<StatusCode, ErrorResponse> {
    let created = async {
        let request = parse_deployment(&functions, &body)?;
        functions.create_deployment_then_service(&request).await
    };
    created
        .await
        .map_err(ClusterOperation::Create.to_error_response())?;
    Ok(StatusCode::ACCEPTED)
}

/// Updates the function in the request's body, and answers before any pod of the new version exists.
pub(super) async fn update_function(
    State(functions): State<ClusterFunctions>,
    body: Bytes,
) -> Result<StatusCode, ErrorResponse> {
    let updated = async {
        let request = parse_deployment(&functions, &body)?;
        functions
            .update_deployment_and_service_annotations(&request)
            .await
    };
    updated
        .await
        .map_err(ClusterOperation::Update.to_error_response())?;
    Ok(StatusCode::ACCEPTED)
}

/// Deletes the function that the request's body names, and answers while its pods still run. The namespace is read from
/// the query.
pub(super) async fn delete_function(
    State(functions): State<ClusterFunctions>,
    Query(query): Query<NamespaceParameters>,
    body: Bytes,
) -> Result<StatusCode, ErrorResponse> {
    let deleted = async {
        if query.namespace == RESERVED_NAMESPACE {
            return Err(ProviderError::NamespaceReserved(query.namespace));
        }
        check_namespace(&functions, &query.namespace)?;
        let request: DeleteFunctionRequest = parse_json(&body)?;
        if request.function_name.is_empty() {
            let text = "functionName: missing; use the name of the function";
            return Err(ProviderError::Invalid(text.to_owned()));
        }
        functions.delete_function(&request.function_name).await
    };
    deleted
        .await
        .map_err(ClusterOperation::Delete.to_error_response())?;
    Ok(StatusCode::ACCEPTED)
}

/// Parses and checks a deployment.
fn parse_deployment(functions: &ClusterFunctions, body: &Bytes) -> Result<FunctionDeployment, ProviderError> {
    let request: FunctionDeployment = parse_json(body)?;
    check_deployment_request(&request)?;
    check_namespace(functions, &request.namespace)?;
    Ok(request)
}
