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

pub(crate) use self::auth::Credentials;
use crate::{
    functions::Functions,
    proxy::{self, Proxy},
};

/// The longest body of a request to the API, in bytes. Calls of functions have no limit.
const BODY_LIMIT: usize = 4 << 20;

/// Creates the router with all routes of the provider. Those under `/system` require credentials; functions
/// can be called without.
pub(crate) fn router(functions: Functions, credentials: Credentials) -> Router {
    let proxy = Router::new()
        .route("/function/{*rest}", any(proxy::call))
        .layer(DefaultBodyLimit::disable())
        .with_state(Proxy::new(functions.clone()));
    let system = Router::new()
        .route(
            "/system/functions",
            get(functions::list)
                .post(functions::create)
                .put(functions::update)
                .delete(functions::delete),
        )
        .route("/system/function/{name}", get(functions::read))
        .route("/system/scale-function/{name}", post(scale::scale))
        .route("/system/info", get(info::info))
        .route(
            "/system/secrets",
            get(secrets::list)
                .post(secrets::set)
                .put(secrets::set)
                .delete(secrets::delete),
        )
        .route("/system/logs", get(logs::logs))
        .route("/system/namespaces", get(namespaces::list))
        .route("/system/namespace/{name}", get(namespaces::not_implemented))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(functions)
        .layer(middleware::from_fn_with_state(
            credentials,
            auth::require_credentials,
        ));
    Router::new()
        .route("/healthz", get(async || ()))
        .route("/api/v1/query", get(invocations::empty_result))
        .merge(proxy)
        .merge(system)
}
