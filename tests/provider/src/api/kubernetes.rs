//! The routes of the backend on Kubernetes. Their answers are those of faas-netes, which has other statuses than faasd
//! for the same errors, and rejects what faasd accepts.

mod answer;
mod functions;
mod logs;
mod scale;
mod secrets;

use axum::{
    Json, Router,
    extract::State,
    routing::{get, post},
};

use crate::{
    kubernetes::ClusterFunctions,
    model::{ProviderInfo, VersionInfo},
};

/// Creates the routes under `/system`: those that require credentials, and those that never do.
pub(super) fn routes_with_and_without_credentials(functions: ClusterFunctions) -> (Router, Router) {
    let closed = Router::new()
        .route(
            "/system/functions",
            get(functions::list_functions)
                .post(functions::create_function)
                .put(functions::update_function)
                .delete(functions::delete_function),
        )
        .route(
            "/system/function/{name}",
            get(functions::read_any_deployment_as_function),
        )
        .route(
            "/system/scale-function/{name}",
            post(scale::scale_function_in_path_to_at_least_one),
        )
        .route("/system/info", get(answer_info_with_name_of_faas_netes))
        .route(
            "/system/secrets",
            get(secrets::list_secrets)
                .post(secrets::create_secret)
                .put(secrets::replace_secret)
                .delete(secrets::delete_secret),
        )
        .route("/system/logs", get(logs::answer_logs))
        .with_state(functions.clone());
    let open = Router::new()
        .route("/system/namespaces", get(list_namespaces))
        .with_state(functions);
    (closed, open)
}

/// Answers with the only namespace of functions.
async fn list_namespaces(State(functions): State<ClusterFunctions>) -> Json<[String; 1]> {
    Json([functions.settings().function_namespace.clone()])
}

/// Answers with the name of faas-netes Community, because callers decide by it what an answer to an update means.
async fn answer_info_with_name_of_faas_netes() -> Json<ProviderInfo> {
    Json(ProviderInfo {
        provider: "faas-netes-ce",
        version: VersionInfo {
            sha: "",
            release: env!("CARGO_PKG_VERSION"),
        },
        orchestration: "kubernetes",
    })
}
