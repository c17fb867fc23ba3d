//! The routes `/system/functions` and `/system/function/NAME`.

use axum::{
    Json,
    body::Bytes,
    extract::{Path, Query, State},
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde::{Deserialize, de::DeserializeOwned};

use super::answer::{ApiOperation, ErrorResponse};
use crate::{
    error::ProviderError,
    functions::{FunctionStore, UpdateProgress},
    key::FunctionKey,
    model::{DeleteFunctionRequest, FunctionDeployment, FunctionStatus},
};

/// The query parameters of requests that name a namespace.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct NamespaceParameters {
    pub(super) namespace: String,
}

/// Returns the namespace of a request: the given one, or the default if it is empty; fails if functions may
/// not be in it.
pub(super) async fn resolve_namespace(
    functions: &FunctionStore,
    requested_namespace: String,
) -> Result<String, ProviderError> {
    if requested_namespace.is_empty() {
        return Ok(functions.settings().function_namespace.clone());
    }
    functions
        .check_namespace_is_default_or_labelled(&requested_namespace)
        .await?;
    Ok(requested_namespace)
}

/// Parses a request's body as JSON, whatever its content type is.
pub(super) fn parse_json_body<T: DeserializeOwned>(body: &Bytes) -> Result<T, ProviderError> {
    serde_json::from_slice(body).map_err(|error| ProviderError::Invalid(error.to_string()))
}

/// Answers with the status of every function in a namespace.
pub(super) async fn list_functions(
    State(functions): State<FunctionStore>,
    Query(query): Query<NamespaceParameters>,
) -> Result<Json<Vec<FunctionStatus>>, ErrorResponse> {
    let namespace = resolve_namespace(&functions, query.namespace)
        .await
        .map_err(ApiOperation::Read.to_error_response())?;
    Ok(Json(functions.list_statuses(&namespace)))
}

/// Answers with the status of one function, or with 404 and an empty body.
pub(super) async fn read_function(
    State(functions): State<FunctionStore>,
    Path(name): Path<String>,
    Query(query): Query<NamespaceParameters>,
) -> Result<Response, ErrorResponse> {
    let namespace = resolve_namespace(&functions, query.namespace)
        .await
        .map_err(ApiOperation::Read.to_error_response())?;
    Ok(match functions.get_status(&FunctionKey::new(name, namespace)) {
        Ok(status) => Json(status).into_response(),
        Err(_) => StatusCode::NOT_FOUND.into_response(),
    })
}

/// Creates the function in the request's body, and answers once its process is started.
pub(super) async fn create_function(
    State(functions): State<FunctionStore>,
    body: Bytes,
) -> Result<(), ErrorResponse> {
    let created = async {
        let deployment = parse_deployment_and_resolve_namespace(&functions, &body).await?;
        functions
            .create_and_start_function_unless_exists(deployment)
            .await
    };
    created.await.map_err(ApiOperation::Create.to_error_response())
}

/// Updates the function in the request's body; answers with 200 once it is updated, or with 202 if it will be.
pub(super) async fn update_function(
    State(functions): State<FunctionStore>,
    body: Bytes,
) -> Result<StatusCode, ErrorResponse> {
    let updated = async {
        let deployment = parse_deployment_and_resolve_namespace(&functions, &body).await?;
        functions.update_function(deployment).await
    };
    match updated.await.map_err(ApiOperation::Update.to_error_response())? {
        UpdateProgress::Done => Ok(StatusCode::OK),
        UpdateProgress::Accepted => Ok(StatusCode::ACCEPTED),
    }
}

/// Deletes the function that the request's body names, and answers once it is removed.
pub(super) async fn delete_function(
    State(functions): State<FunctionStore>,
    body: Bytes,
) -> Result<(), ErrorResponse> {
    let deleted = async {
        let request: DeleteFunctionRequest = parse_json_body(&body)?;
        let namespace = resolve_namespace(&functions, request.namespace).await?;
        functions
            .delete_function(FunctionKey::new(request.function_name, namespace))
            .await
    };
    deleted.await.map_err(ApiOperation::Delete.to_error_response())
}

/// Parses a deployment, and replaces an empty namespace by the default; fails if functions may not be in it.
async fn parse_deployment_and_resolve_namespace(
    functions: &FunctionStore,
    body: &Bytes,
) -> Result<FunctionDeployment, ProviderError> {
    let mut deployment: FunctionDeployment = parse_json_body(body)?;
    deployment.namespace = resolve_namespace(functions, deployment.namespace).await?;
    Ok(deployment)
}
