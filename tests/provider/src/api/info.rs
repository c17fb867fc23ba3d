//! `/system/info`: which provider this is. It does not pass for another one.

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
