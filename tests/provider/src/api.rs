//! The REST API of faas-provider, one file for each resource.

mod answer;
mod auth;
mod functions;
mod info;
mod invocations;
mod logs;
mod namespaces;
mod scale;
mod secrets;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    middleware,
    routing::{any, get, post},
};

pub(crate) use self::auth::ApiCredentials;
use crate::{
    functions::FunctionStore,
    proxy::{self, FunctionProxy},
};

/// The longest body of a request to the API, in bytes. Calls of functions have no limit.
const API_BODY_MAX_BYTES: usize = 4 << 20;

/// Creates the router with all routes of the provider. Those under `/system` require credentials, and the others do
/// not: calls of functions, the health check, and the query for the number of calls.
pub(crate) fn create_router(functions: FunctionStore, credentials: ApiCredentials) -> Router {
    let proxy = Router::new()
        .route("/function/{*rest}", any(proxy::proxy_call))
        .layer(DefaultBodyLimit::disable())
        .with_state(FunctionProxy::new(functions.clone()));
    let system = Router::new()
        .route(
            "/system/functions",
            get(functions::list_functions)
                .post(functions::create_function)
                .put(functions::update_function)
                .delete(functions::delete_function),
        )
        .route("/system/function/{name}", get(functions::read_function))
        .route("/system/scale-function/{name}", post(scale::scale_function))
        .route("/system/info", get(info::answer_info))
        .route(
            "/system/secrets",
            get(secrets::list_secrets)
                .post(secrets::set_secret)
                .put(secrets::set_secret)
                .delete(secrets::delete_secret),
        )
        .route("/system/logs", get(logs::answer_logs))
        .route("/system/namespaces", get(namespaces::list_namespaces))
        .route(
            "/system/namespace/{name}",
            get(namespaces::answer_not_implemented),
        )
        .layer(DefaultBodyLimit::max(API_BODY_MAX_BYTES))
        .with_state(functions)
        .layer(middleware::from_fn_with_state(
            credentials,
            auth::require_credentials,
        ));
    Router::new()
        .route("/healthz", get(async || ()))
        .route("/api/v1/query", get(invocations::answer_empty_invocations))
        .merge(proxy)
        .merge(system)
}
