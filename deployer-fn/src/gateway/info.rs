//! Finds out from the gateway's `/system/info` which provider is behind it.

use std::time::Duration;

use function_host::http::StatusCode;
use serde_json::Value;

use super::{ReadError, Transport, call, unexpected};

/// The names of providers that remove the old version before they answer an update: faasd
/// (`pkg/provider/handlers/info.go`) and its predecessor, and the development provider of this repository.
const REPLACE_BEFORE_ANSWERING: [&str; 4] = ["faasd", "faasd-ce", "faas-containerd", "slipway-dev"];

/// The name that a provider gives itself, for example `faasd`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProviderName(pub(crate) String);

impl ProviderName {
    /// Returns whether this provider removes the old version before it answers an update, so that only the new
    /// one can answer afterwards.
    pub(crate) fn replaces_before_answering(&self) -> bool {
        REPLACE_BEFORE_ANSWERING.contains(&self.0.as_str())
    }
}

/// Reads the provider's name from the gateway; `None` if the gateway does not give it.
pub(crate) async fn read_provider(
    transport: &impl Transport,
    limit: Duration,
) -> Result<Option<ProviderName>, ReadError> {
    let request = call::info_request().map_err(ReadError::NoResponse)?;
    let path = request.uri().path().to_owned();
    let response = transport
        .send(request, limit)
        .await
        .map_err(ReadError::NoResponse)?;
    match serde_json::from_slice::<Value>(response.body()) {
        Ok(info) if response.status() == StatusCode::OK => Ok(provider_of(&info)),
        _ => Err(unexpected(path, &response)),
    }
}

/// Returns the provider's name from the JSON of `/system/info`, as a gateway or a provider without a gateway
/// answers it.
fn provider_of(info: &Value) -> Option<ProviderName> {
    let provider = &info["provider"];
    let name = provider.as_str().or_else(|| provider["provider"].as_str())?;
    Some(ProviderName(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_provider_is_named_by_the_gateway_or_by_itself() {
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
                provider_of(&info),
                name.map(|name| ProviderName(name.to_owned())),
                "{info}"
            );
        }
    }

    #[test]
    fn only_known_providers_replace_the_old_version_first() {
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
                ProviderName(name.to_owned()).replaces_before_answering(),
                replaces,
                "{name}"
            );
        }
    }
}
