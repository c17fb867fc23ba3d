//! The run of the provider: opens its resources, serves the API, and stops.

use std::{
    future::Future,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use axum::{Router, serve::ListenerExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    api::{self, ApiCredentials},
    error::ProviderError,
    functions::{self, FunctionStore},
    kubernetes::{ClusterFunctions, KubernetesSettings},
    settings::ProviderSettings,
};

/// The longest time for calls and removals in progress to finish after the provider is asked to stop.
const REQUESTS_STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves the provider's API until `stop` resolves. Functions continue to run without the provider; the next
/// one restores them.
///
/// # Errors
///
/// Fails if a setting is invalid, containerd cannot be reached, the network plugins do not work, or the
/// address is taken.
pub async fn restore_functions_and_serve_api_until_stopped(
    settings: ProviderSettings,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), ProviderError> {
    let credentials = ApiCredentials::read_from_files(&settings.secret_mount_path)?;
    let address = settings.listen_address;
    let functions = FunctionStore::open(settings).await?;
    // Before listening, because the address may be the bridge's own.
    functions.create_bridge_and_restore_functions().await?;
    tracing::info!(update_strategy = ?functions.settings().update_strategy, "functions are restored");
    let router = api::create_router(functions.clone(), credentials);
    serve_router_until_stopped(address, router, stop, async move {
        functions.wait_for_removals().await
    })
    .await
}

/// Serves the API of the backend on Kubernetes until `stop` resolves.
///
/// # Errors
///
/// Fails if the configuration of the connection or the credentials cannot be read, or the port is taken. A cluster that
/// cannot be reached is waited for.
pub async fn serve_kubernetes_until_stopped(
    settings: KubernetesSettings,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), ProviderError> {
    let credentials = settings
        .basic_auth
        .then(|| ApiCredentials::read_from_files(&settings.secret_mount_path))
        .transpose()?;
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, settings.port));
    let mut stop = std::pin::pin!(stop);
    let functions = tokio::select! {
        connected = ClusterFunctions::connect_with_retry(settings) => connected?,
        () = &mut stop => return Ok(()),
    };
    let router = api::create_kubernetes_router(functions, credentials);
    serve_router_until_stopped(address, router, stop, async {}).await
}

/// Serves the routes until `stop` resolves; then ends connections and awaits `last_work`, for a bounded time.
async fn serve_router_until_stopped(
    address: SocketAddr,
    router: Router,
    stop: impl Future<Output = ()> + Send,
    last_work: impl Future<Output = ()> + Send,
) -> Result<(), ProviderError> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(ProviderError::io_error("listen on", address.to_string()))?;
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
    });
    tracing::info!(%address, "ready");

    let stopping = CancellationToken::new();
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    let server = axum::serve(listener, service)
        .with_graceful_shutdown(stopping.clone().cancelled_owned())
        .into_future();
    let mut server = tokio::spawn(server);
    tokio::select! {
        () = stop => {}
        ended = &mut server => {
            let ended = ended.unwrap_or_else(|error| Err(std::io::Error::other(error)));
            return ended.map_err(ProviderError::io_error("serve on", address.to_string()));
        }
    }
    tracing::info!("stopping; functions continue to run");
    stopping.cancel();
    let finished = async {
        let _ = (&mut server).await;
        last_work.await;
    };
    if tokio::time::timeout(REQUESTS_STOP_TIMEOUT, finished)
        .await
        .is_err()
    {
        tracing::warn!("stopped before all calls and removals were done");
    }
    Ok(())
}

/// Removes all functions, with their network namespaces, logs and cgroups; the bridge stays. No provider may be
/// running.
///
/// # Errors
///
/// Fails if containerd cannot be reached, or if something could not be removed; everything else is removed
/// nevertheless.
pub async fn kill_and_remove_all_functions_and_logs(settings: ProviderSettings) -> Result<(), ProviderError> {
    functions::kill_and_remove_all_functions_and_logs(settings).await
}
