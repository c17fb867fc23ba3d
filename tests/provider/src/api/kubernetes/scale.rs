//! The route `/system/scale-function/NAME`. As in faas-netes, the name in the path is used, not the one in the body.

use axum::{
    body::Bytes,
    extract::{Path, Query, State},
};
use http::StatusCode;

use super::{
    answer::{ClusterOperation, ErrorResponse},
    functions::{check_namespace, parse_json},
};
use crate::{
    api::functions::NamespaceParameters, error::ProviderError, kubernetes::ClusterFunctions,
    model::ScaleServiceRequest,
};

/// Sets the number of replicas, at least one, of the function that the path names.
pub(super) async fn scale_function_in_path_to_at_least_one(
    State(functions): State<ClusterFunctions>,
    Path(name): Path<String>,
    Query(query): Query<NamespaceParameters>,
    body: Bytes,
) -> Result<StatusCode, ErrorResponse> {
    let scaled = async {
        check_namespace(&functions, &query.namespace)?;
        let request: ScaleServiceRequest = parse_json(&body)?;
        if request.replicas == 0 {
            let text = "replicas: 0 is not in the Community Edition; use at least 1";
            return Err(ProviderError::Invalid(text.to_owned()));
        }
        functions
            .scale_any_deployment_to_at_most_five(&name, request.replicas)
            .await
    };
    scaled
        .await
        .map_err(ClusterOperation::Scale.to_error_response())?;
    Ok(StatusCode::ACCEPTED)
}
