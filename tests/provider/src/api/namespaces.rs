//! `/system/namespaces`: those of containerd with the label `openfaas`. They are not made here.

use axum::{Json, extract::State};
use http::StatusCode;

use super::answer::{Operation, Refusal};
use crate::functions::Functions;

pub(super) async fn list(State(functions): State<Functions>) -> Result<Json<Vec<String>>, Refusal> {
    functions
        .namespaces()
        .await
        .map(Json)
        .map_err(Operation::Read.refused())
}

/// What faas-provider says where a provider cannot change namespaces.
pub(super) async fn not_implemented() -> (StatusCode, &'static str) {
    (
        StatusCode::NOT_IMPLEMENTED,
        "Feature not implemented in this version of OpenFaaS\n",
    )
}
