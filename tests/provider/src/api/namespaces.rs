//! The route `/system/namespaces`: the containerd namespaces with the label `openfaas`. The API cannot create
//! any.

use axum::{Json, extract::State};
use http::StatusCode;

use super::answer::{ErrorResponse, Operation};
use crate::functions::Functions;

pub(super) async fn list(State(functions): State<Functions>) -> Result<Json<Vec<String>>, ErrorResponse> {
    functions
        .namespaces()
        .await
        .map(Json)
        .map_err(Operation::Read.failed())
}

/// Answers, as faas-provider does, that the provider cannot change namespaces.
pub(super) async fn not_implemented() -> (StatusCode, &'static str) {
    (
        StatusCode::NOT_IMPLEMENTED,
        "Feature not implemented in this version of OpenFaaS\n",
    )
}
