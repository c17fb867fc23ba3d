//! The route `/system/namespaces`: the default namespace and the containerd namespaces with the label `openfaas`. The
//! API cannot create any.

use axum::{Json, extract::State};
use http::StatusCode;

use super::answer::{ApiOperation, ErrorResponse};
use crate::functions::FunctionStore;

/// Answers with the names of the namespaces.
pub(super) async fn list_namespaces(
    State(functions): State<FunctionStore>,
) -> Result<Json<Vec<String>>, ErrorResponse> {
    functions
        .default_and_labelled_namespaces()
        .await
        .map(Json)
        .map_err(ApiOperation::Read.to_error_response())
}

/// Answers with 501, as faas-provider does, that the provider cannot change namespaces.
pub(super) async fn answer_not_implemented() -> (StatusCode, &'static str) {
    (
        StatusCode::NOT_IMPLEMENTED,
        "Feature not implemented in this version of OpenFaaS\n",
    )
}
