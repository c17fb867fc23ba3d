//! The route `/system/scale-function/NAME`. As in faasd, the name in the body is used, not the one in the path.

use axum::{body::Bytes, extract::State};

use super::{
    answer::{ApiOperation, ErrorResponse},
    functions::{parse_json_body, resolve_namespace},
};
use crate::{functions::FunctionStore, key::FunctionKey, model::ScaleServiceRequest};

/// Starts the function that the request's body names, or stops it for 0 replicas.
pub(super) async fn scale_function(
    State(functions): State<FunctionStore>,
    body: Bytes,
) -> Result<(), ErrorResponse> {
    let scaled = async {
        let request: ScaleServiceRequest = parse_json_body(&body)?;
        let namespace = resolve_namespace(&functions, request.namespace).await?;
        functions
            .scale_function(
                FunctionKey::new(request.service_name, namespace),
                request.replicas,
            )
            .await
    };
    scaled.await.map_err(ApiOperation::Scale.to_error_response())
}
