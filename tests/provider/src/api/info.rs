//! The route `/system/info`: the provider's name and version. It does not claim to be faasd.
//!
//! Callers decide by the name whether an update has replaced the old version when it is answered. With the strategy
//! `deferred` it has not, so the provider then has the name of the one whose behaviour it has.

use axum::{Json, extract::State};

use crate::{
    functions::FunctionStore,
    model::{ProviderInfo, VersionInfo},
    settings::UpdateStrategy,
};

/// Answers with the provider's name and version.
pub(super) async fn answer_info(State(functions): State<FunctionStore>) -> Json<ProviderInfo> {
    Json(provider_info(functions.settings().update_strategy))
}

/// Returns the name and orchestration that a provider with this default strategy reports.
fn provider_info(strategy: UpdateStrategy) -> ProviderInfo {
    let (provider, orchestration) = match strategy {
        UpdateStrategy::Rolling | UpdateStrategy::Recreate => ("slipway-dev", "containerd"),
        UpdateStrategy::Deferred => ("faas-netes", "kubernetes"),
    };
    ProviderInfo {
        provider,
        version: VersionInfo {
            sha: "",
            release: env!("CARGO_PKG_VERSION"),
        },
        orchestration,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_that_replaces_before_it_answers_has_its_own_name_and_a_deferred_one_that_of_faas_netes() {
        for (strategy, name) in [
            (UpdateStrategy::Rolling, "slipway-dev"),
            (UpdateStrategy::Recreate, "slipway-dev"),
            (UpdateStrategy::Deferred, "faas-netes"),
        ] {
            assert_eq!(provider_info(strategy).provider, name, "{strategy:?}");
        }
    }
}
