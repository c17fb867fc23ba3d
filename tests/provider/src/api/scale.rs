//! `/system/scale-function/NAME`. As in faasd, the name in the body is used, not the one in the path.

use axum::{body::Bytes, extract::State};

use super::{
    answer::{Operation, Refusal},
    functions::{json, namespace_of},
};
use crate::{functions::Functions, key::Key, model::ScaleServiceRequest};

pub(super) async fn scale(State(functions): State<Functions>, body: Bytes) -> Result<(), Refusal> {
    let scaled = async {
        let request: ScaleServiceRequest = json(&body)?;
        let namespace = namespace_of(&functions, request.namespace).await?;
        functions
            .scale(Key::new(request.service_name, namespace), request.replicas)
            .await
    };
    scaled.await.map_err(Operation::Scale.refused())
}
