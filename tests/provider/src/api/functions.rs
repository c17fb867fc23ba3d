//! The routes `/system/functions` and `/system/function/NAME`.

use axum::{
    Json,
    body::Bytes,
    extract::{Path, Query, State},
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde::{Deserialize, de::DeserializeOwned};

use super::answer::{ErrorResponse, Operation};
use crate::{
    error::Error,
    functions::{Functions, Update},
    key::FunctionKey,
    model::{DeleteFunctionRequest, FunctionDeployment, FunctionStatus},
};

/// The query parameters of requests that name a namespace.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct NamespaceQuery {
    pub(super) namespace: String,
}

/// Returns the namespace of a request: the given one, or the default if it is empty; fails if functions may
/// not be in it.
pub(super) async fn resolve_namespace(functions: &Functions, given: String) -> Result<String, Error> {
    if given.is_empty() {
        return Ok(functions.settings().function_namespace.clone());
    }
    functions.check_namespace(&given).await?;
    Ok(given)
}

/// Parses a request's body as JSON, whatever its content type is.
pub(super) fn json<T: DeserializeOwned>(body: &Bytes) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|error| Error::Invalid(error.to_string()))
}

pub(super) async fn list(
    State(functions): State<Functions>,
    Query(query): Query<NamespaceQuery>,
) -> Result<Json<Vec<FunctionStatus>>, ErrorResponse> {
    let namespace = resolve_namespace(&functions, query.namespace)
        .await
        .map_err(Operation::Read.failed())?;
    Ok(Json(functions.list(&namespace)))
}

pub(super) async fn read(
    State(functions): State<Functions>,
    Path(name): Path<String>,
    Query(query): Query<NamespaceQuery>,
) -> Result<Response, ErrorResponse> {
    let namespace = resolve_namespace(&functions, query.namespace)
        .await
        .map_err(Operation::Read.failed())?;
    Ok(match functions.get(&FunctionKey::new(name, namespace)) {
        Ok(status) => Json(status).into_response(),
        Err(_) => StatusCode::NOT_FOUND.into_response(),
    })
}

pub(super) async fn create(State(functions): State<Functions>, body: Bytes) -> Result<(), ErrorResponse> {
    let created = async {
        let deployment = deployment(&functions, &body).await?;
        functions.create(deployment).await
    };
    created.await.map_err(Operation::Create.failed())
}

pub(super) async fn update(
    State(functions): State<Functions>,
    body: Bytes,
) -> Result<StatusCode, ErrorResponse> {
    let updated = async {
        let deployment = deployment(&functions, &body).await?;
        functions.update(deployment).await
    };
    match updated.await.map_err(Operation::Update.failed())? {
        Update::Done => Ok(StatusCode::OK),
        Update::Accepted => Ok(StatusCode::ACCEPTED),
    }
}

pub(super) async fn delete(State(functions): State<Functions>, body: Bytes) -> Result<(), ErrorResponse> {
    let deleted = async {
        let request: DeleteFunctionRequest = json(&body)?;
        let namespace = resolve_namespace(&functions, request.namespace).await?;
        functions
            .delete(FunctionKey::new(request.function_name, namespace))
            .await
    };
    deleted.await.map_err(Operation::Delete.failed())
}

async fn deployment(functions: &Functions, body: &Bytes) -> Result<FunctionDeployment, Error> {
    let mut deployment: FunctionDeployment = json(body)?;
    deployment.namespace = resolve_namespace(functions, deployment.namespace).await?;
    Ok(deployment)
}
