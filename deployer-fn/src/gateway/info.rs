//! Reads the name of the provider behind the gateway from `/system/info`.

use std::time::Duration;

use function_host::http::StatusCode;
use serde_json::Value;

use super::{GatewayReadError, GatewayRequestSender, call, unexpected_response};

/// The names of providers that remove the old version before they answer an update: faasd
/// (`pkg/provider/handlers/info.go`) and its predecessor, and the development provider of this repository.
const PROVIDERS_REPLACING_BEFORE_ANSWER: [&str; 4] = ["faasd", "faasd-ce", "faas-containerd", "slipway-dev"];

/// The names of providers that stop the old version before they start a new one, and count a replica as available while
/// its process runs: faasd (`pkg/provider/handlers/update.go` and `function_get.go`) and its predecessor.
const PROVIDERS_STOPPING_OLD_VERSION_FIRST: [&str; 3] = ["faasd", "faasd-ce", "faas-containerd"];

/// The names of providers that list every secret that a function can use; faas-netes is not among them
/// (docs/pitfalls.md#secrets-without-a-label).
const PROVIDERS_LISTING_ALL_SECRETS: [&str; 4] = ["faasd", "faasd-ce", "faas-containerd", "slipway-dev"];

/// The name that a provider gives itself, for example `faasd`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProviderName(pub(crate) String);

impl ProviderName {
    /// Returns whether this provider removes the old version before it answers an update, so that only the new
    /// one can answer afterwards.
    pub(crate) fn removes_old_version_before_answering_update(&self) -> bool {
        PROVIDERS_REPLACING_BEFORE_ANSWER.contains(&self.0.as_str())
    }

    /// Returns whether this provider stops the old version before it starts a new one, and counts a replica as
    /// available while its process runs.
    pub(crate) fn stops_old_version_before_starting_new(&self) -> bool {
        PROVIDERS_STOPPING_OLD_VERSION_FIRST.contains(&self.0.as_str())
    }

    /// Returns whether this provider is known to list every secret that a function can use.
    pub(crate) fn lists_all_secrets(&self) -> bool {
        PROVIDERS_LISTING_ALL_SECRETS.contains(&self.0.as_str())
    }
}

/// Reads the provider's name from the gateway; `None` if the gateway does not give it.
pub(crate) async fn read_provider_name(
    transport: &impl GatewayRequestSender,
    limit: Duration,
) -> Result<Option<ProviderName>, GatewayReadError> {
    let request = call::info_request().map_err(GatewayReadError::NoResponse)?;
    let path = request.uri().path().to_owned();
    let response = transport
        .send(request, limit)
        .await
        .map_err(GatewayReadError::NoResponse)?;
    match serde_json::from_slice::<Value>(response.body()) {
        Ok(info) if response.status() == StatusCode::OK => Ok(provider_name_in_info(&info)),
        _ => Err(unexpected_response(path, &response)),
    }
}

/// Returns the provider's name from the JSON of `/system/info`, as a gateway or a provider without a gateway
/// answers it.
fn provider_name_in_info(info: &Value) -> Option<ProviderName> {
    let provider = &info["provider"];
    let name = provider.as_str().or_else(|| provider["provider"].as_str())?;
    Some(ProviderName(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_providers_name_is_read_from_the_gateways_info_or_from_its_own() {
        for (info, name) in [
            (
                json!({"provider": {"provider": "faas-netes", "orchestration": "kubernetes"}, "arch": "x86_64"}),
                Some("faas-netes"),
            ),
            (
                json!({"provider": "faasd", "orchestration": "containerd"}),
                Some("faasd"),
            ),
            (json!({"provider": {"name": "x"}}), None),
            (json!({"provider": null}), None),
            (json!([]), None),
        ] {
            assert_eq!(
                provider_name_in_info(&info),
                name.map(|name| ProviderName(name.to_owned())),
                "{info}"
            );
        }
    }

    #[test]
    fn only_known_providers_count_as_replacing_before_they_answer() {
        for (name, replaces) in [
            ("faasd", true),
            ("faasd-ce", true),
            ("slipway-dev", true),
            ("faas-netes", false),
            ("faas-netes-ce", false),
            ("faasd-next", false),
            ("", false),
        ] {
            assert_eq!(
                ProviderName(name.to_owned()).removes_old_version_before_answering_update(),
                replaces,
                "{name}"
            );
        }
    }
}
