//! The REST API of faas-provider, one file for each resource.

mod answer;
mod auth;
mod functions;
mod info;
mod invocations;
mod kubernetes;
mod logs;
mod namespaces;
mod scale;
mod secrets;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::DefaultBodyLimit,
    middleware,
    routing::{any, get, post},
};

pub(crate) use self::auth::ApiCredentials;
use crate::{
    functions::FunctionStore,
    kubernetes::ClusterFunctions,
    proxy::{self, FunctionProxy, ProxyOptions},
};

/// The longest body of a request to the API, in bytes. Calls of functions have no limit.
const API_BODY_MAX_BYTES: usize = 4 << 20;

/// Creates the router with all routes of the provider on containerd.
pub(crate) fn create_router(functions: FunctionStore, credentials: ApiCredentials) -> Router {
    let options = ProxyOptions {
        answer_timeout: functions.settings().service_timeout,
        connect_timeout: Duration::from_secs(5),
        idle_timeout: Duration::from_secs(5),
        marks_own_answers: true,
    };
    let proxy = FunctionProxy::new(Arc::new(functions.clone()), options);
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
        .route("/system/logs", get(logs::stream_logs_or_answer_422))
        .route("/system/namespaces", get(namespaces::list_namespaces))
        .route(
            "/system/namespace/{name}",
            get(namespaces::answer_not_implemented),
        )
        .with_state(functions);
    call_health_and_query_routes_without_credentials(proxy).merge(with_body_limit_and_optional_credentials(
        system,
        Some(credentials),
    ))
}

/// Creates the router with all routes of the provider on Kubernetes. Without credentials, the API is open.
pub(crate) fn create_kubernetes_router(
    functions: ClusterFunctions,
    credentials: Option<ApiCredentials>,
) -> Router {
    let options = ProxyOptions {
        answer_timeout: functions.settings().read_timeout,
        connect_timeout: functions.settings().read_timeout,
        // A connection that outlives its pod's turn loses a call during an update.
        idle_timeout: Duration::from_millis(120),
        marks_own_answers: false,
    };
    let proxy = FunctionProxy::new(Arc::new(functions.clone()), options);
    let (closed, open) = kubernetes::routes_with_and_without_credentials(functions);
    call_health_and_query_routes_without_credentials(proxy)
        .merge(open)
        .merge(with_body_limit_and_optional_credentials(closed, credentials))
}

/// Creates the routes that require no credentials: calls of functions, the health check, and the query for the number
/// of calls.
fn call_health_and_query_routes_without_credentials(proxy: FunctionProxy) -> Router {
    let proxy = Router::new()
        .route(
            "/function/{*rest}",
            any(proxy::proxy_call_with_faas_provider_statuses),
        )
        .layer(DefaultBodyLimit::disable())
        .with_state(proxy);
    Router::new()
        .route("/healthz", get(async || ()))
        .route("/api/v1/query", get(invocations::answer_empty_prometheus_result))
        .merge(proxy)
}

/// Limits the bodies of requests to the routes under `/system`, and requires the credentials, if there are any.
fn with_body_limit_and_optional_credentials(routes: Router, credentials: Option<ApiCredentials>) -> Router {
    let routes = routes.layer(DefaultBodyLimit::max(API_BODY_MAX_BYTES));
    match credentials {
        Some(credentials) => routes.layer(middleware::from_fn_with_state(
            credentials,
            auth::require_credentials,
        )),
        None => routes,
    }
}
