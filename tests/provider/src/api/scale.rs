//! The route `/system/scale-function/NAME`. As in faasd, the name in the body is used, not the one in the path.

use axum::{body::Bytes, extract::State};

use super::{
    answer::{ErrorResponse, Operation},
    functions::{json, resolve_namespace},
};
use crate::{functions::Functions, key::FunctionKey, model::ScaleServiceRequest};

pub(super) async fn scale(State(functions): State<Functions>, body: Bytes) -> Result<(), ErrorResponse> {
    let scaled = async {
        let request: ScaleServiceRequest = json(&body)?;
        let namespace = resolve_namespace(&functions, request.namespace).await?;
        functions
            .scale(
                FunctionKey::new(request.service_name, namespace),
                request.replicas,
            )
            .await
    };
    scaled.await.map_err(Operation::Scale.failed())
}
