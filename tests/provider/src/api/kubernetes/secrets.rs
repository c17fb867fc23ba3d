//! The route `/system/secrets`. Errors have empty bodies.

use axum::{
    Json,
    body::Bytes,
    extract::{Query, State},
};
use http::StatusCode;
use serde::Deserialize;

use super::{
    answer::{ClusterOperation, ErrorResponse},
    functions::{check_namespace, parse_json},
};
use crate::{
    api::{functions::NamespaceParameters, secrets::SecretRequest},
    error::ProviderError,
    kubernetes::ClusterFunctions,
    model::SecretNameAndNamespace,
};

/// The namespace in a request's body. One that is present and empty is another namespace than the functions' one.
#[derive(Default, Deserialize)]
#[serde(default)]
struct RequestedNamespace {
    namespace: Option<String>,
}

/// Answers with the names of the labelled secrets.
pub(super) async fn list_secrets(
    State(functions): State<ClusterFunctions>,
    Query(query): Query<NamespaceParameters>,
) -> Result<Json<Vec<SecretNameAndNamespace>>, ErrorResponse> {
    let listed = async {
        check_namespace(&functions, &query.namespace)?;
        let names = functions.list_names_of_labelled_secrets().await?;
        let named = |name| SecretNameAndNamespace {
            name,
            namespace: functions.settings().function_namespace.clone(),
        };
        Ok(Json(names.into_iter().map(named).collect()))
    };
    listed.await.map_err(ClusterOperation::Secret.to_error_response())
}

/// Creates a secret; answers with 409 if it exists.
pub(super) async fn create_secret(
    State(functions): State<ClusterFunctions>,
    body: Bytes,
) -> Result<StatusCode, ErrorResponse> {
    let created = async {
        let secret = parse_secret(&functions, &body)?;
        functions.create_secret(&secret.name, secret.value_bytes()?).await
    };
    created
        .await
        .map_err(ClusterOperation::Secret.to_error_response())?;
    Ok(StatusCode::ACCEPTED)
}

/// Replaces the keys of a secret; answers with 404 if it does not exist.
pub(super) async fn replace_secret(
    State(functions): State<ClusterFunctions>,
    body: Bytes,
) -> Result<StatusCode, ErrorResponse> {
    let replaced = async {
        let secret = parse_secret(&functions, &body)?;
        functions
            .replace_all_keys_of_secret(&secret.name, secret.value_bytes()?)
            .await
    };
    replaced
        .await
        .map_err(ClusterOperation::Secret.to_error_response())?;
    Ok(StatusCode::ACCEPTED)
}

/// Deletes a secret; answers with 404 if it does not exist.
pub(super) async fn delete_secret(
    State(functions): State<ClusterFunctions>,
    body: Bytes,
) -> Result<StatusCode, ErrorResponse> {
    let deleted = async {
        let secret = parse_secret(&functions, &body)?;
        functions.delete_secret(&secret.name).await
    };
    deleted
        .await
        .map_err(ClusterOperation::Secret.to_error_response())?;
    Ok(StatusCode::ACCEPTED)
}

/// Parses a secret, and checks its namespace. The namespace in the query is not read.
fn parse_secret(functions: &ClusterFunctions, body: &Bytes) -> Result<SecretRequest, ProviderError> {
    let RequestedNamespace { namespace } = parse_json(body)?;
    let own = &functions.settings().function_namespace;
    match namespace {
        Some(requested) if requested != *own => Err(ProviderError::NamespaceOther {
            requested,
            own: own.clone(),
        }),
        _ => parse_json(body),
    }
}
