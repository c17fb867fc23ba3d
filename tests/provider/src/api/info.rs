//! `/system/info`: the provider's own name and version; it does not claim to be faasd.

use axum::Json;

use crate::model::{ProviderInfo, VersionInfo};

pub(super) async fn info() -> Json<ProviderInfo> {
    let version = VersionInfo {
        sha: "",
        release: env!("CARGO_PKG_VERSION"),
    };
    Json(ProviderInfo {
        provider: "slipway-dev",
        version,
        orchestration: "containerd",
    })
}
