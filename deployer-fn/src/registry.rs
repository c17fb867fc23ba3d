//! Checks that a registry has an image, by digest and for the platform that functions run on.
//!
//! The lookup comes before anything is changed, with the credentials of a Docker `config.json`. Only an answer that
//! the manifest does not exist, or not for the platform, rejects the deployment. Any other failure does not: the node
//! may have other credentials, or another route to the registry.

use std::sync::Arc;
use std::time::Duration;

use function_host::registry::{
    AdditionalTokenHosts, LoginsCache, RegistryClient, RegistryCredentials, RegistryError, RepositoryClient,
};
use function_host::secret::SecretError;
use function_host::{ErrorChain, Secrets};
use serde_json::Value;
use tracing::info;

use crate::request::PinnedImage;

/// The name of the secret with the Docker `config.json` for pulling. It is not the builder's, so that
/// deployer-fn needs no credentials that may push. Helpers that it names are not run.
pub(crate) const PULL_CONFIG_SECRET: &str = "registry-pull-config";

/// The longest `os` or `architecture` of an image that is repeated to the caller, in bytes.
const OS_OR_ARCHITECTURE_MAX_BYTES: usize = 32;

/// A check whether registries have images, with the credentials for them.
#[derive(Clone, Debug)]
pub(crate) struct RegistryImageCheck {
    pub(crate) secrets: Secrets,
    /// The name of the secret with the registry logins: the tenant's own, or [`PULL_CONFIG_SECRET`].
    pub(crate) config_secret: String,
    /// The parsed registry logins from that secret.
    pub(crate) logins: Arc<LoginsCache>,
    /// Whether registries speak plain HTTP.
    pub(crate) insecure: bool,
    /// The hosts that registry tokens may be fetched from.
    pub(crate) token_realms: AdditionalTokenHosts,
    /// The platform of the node, as `os/architecture`.
    pub(crate) platform: String,
}

/// Whether a registry has an image.
#[derive(Debug, PartialEq, Eq)]
enum ImagePresenceForPlatform {
    /// The registry has the image, and does not say that it is for another platform than the node's.
    Present,
    /// The registry does not have the image, or not for the platform; with the reason.
    Missing(String),
    /// It is not known whether the registry has the image: it could not be asked, or its answer is unusable; with the
    /// reason.
    Unknown(String),
}

impl RegistryImageCheck {
    /// Asks the registry for the image, and returns why the image certainly cannot be deployed; `None` if it may be.
    /// `timeout` is that of all requests together.
    pub(crate) async fn find_objection_if_lookup_succeeds(
        &self,
        image: &PinnedImage,
        timeout: Duration,
    ) -> Option<String> {
        let looked_up = tokio::time::timeout(timeout, self.image_presence_for_platform(image)).await;
        let presence = looked_up.unwrap_or_else(|_| {
            ImagePresenceForPlatform::Unknown("the registry did not answer in time".to_owned())
        });
        match presence {
            ImagePresenceForPlatform::Present => None,
            ImagePresenceForPlatform::Missing(reason) => Some(reason),
            ImagePresenceForPlatform::Unknown(reason) => {
                info!(%image, reason, "could not check that the registry has the image");
                None
            }
        }
    }

    /// Asks the image's registry whether it has the image.
    async fn image_presence_for_platform(&self, image: &PinnedImage) -> ImagePresenceForPlatform {
        let (registry, name) = image.registry_and_path();
        let credentials = match self.registry_credentials_or_empty(registry) {
            Ok(credentials) => credentials,
            Err(reason) => return ImagePresenceForPlatform::Unknown(reason),
        };
        let client = RegistryClient::new(&self.secrets, self.insecure, self.token_realms.clone());
        let presence = async {
            self.presence_by_manifest_and_platform(client?.repository(registry, name, credentials), image)
                .await
        };
        presence
            .await
            .unwrap_or_else(|error| ImagePresenceForPlatform::Unknown(ErrorChain(&error).to_string()))
    }

    /// Returns the credentials for a registry; empty ones if the secret has none.
    ///
    /// # Errors
    /// The reason why the secret, or its entry for the registry, cannot be used, without any of its content.
    fn registry_credentials_or_empty(&self, registry: &str) -> Result<RegistryCredentials, String> {
        let unusable = |error: &dyn std::fmt::Display| {
            format!("the secret {} cannot be used: {error}", self.config_secret)
        };
        let secret = match self.secrets.read_secret(&self.config_secret) {
            Ok(secret) => secret,
            Err(SecretError::Missing { .. } | SecretError::Empty { .. }) => {
                return Ok(RegistryCredentials::default());
            }
            Err(error) => return Err(ErrorChain(&error).to_string()),
        };
        let logins = self
            .logins
            .parse_if_changed(secret.expose())
            .map_err(|error| unusable(&error))?;
        logins
            .credentials_or_anonymous_for(registry)
            .map_err(|error| unusable(&error))
    }

    /// Fetches the image's manifest by digest, and compares the platforms in it with the node's.
    async fn presence_by_manifest_and_platform(
        &self,
        mut repository: RepositoryClient,
        image: &PinnedImage,
    ) -> Result<ImagePresenceForPlatform, RegistryError> {
        let Some(manifest) = repository.fetch_unverified_manifest(image.digest()).await? else {
            let reason = format!("the registry {} has no image {image}", repository.registry_host());
            return Ok(ImagePresenceForPlatform::Missing(reason));
        };
        let unknown = |reason: &str| Ok(ImagePresenceForPlatform::Unknown(reason.to_owned()));
        let Ok(manifest) = serde_json::from_slice::<Value>(&manifest) else {
            return unknown("the registry's answer is not a manifest");
        };
        let platforms = match (
            manifest["manifests"].as_array(),
            manifest["config"]["digest"].as_str(),
        ) {
            (Some(manifests), _) => manifests
                .iter()
                .map(|manifest| os_and_architecture_or_question_marks(&manifest["platform"]))
                .collect(),
            (None, Some(config)) => {
                Vec::from_iter(fetch_platform_in_image_config_if_known(&mut repository, config).await?)
            }
            (None, None) => return unknown("the image's manifest has no configuration"),
        };
        let wanted = &self.platform;
        if platforms.is_empty() || platforms.contains(wanted) {
            return Ok(ImagePresenceForPlatform::Present);
        }
        let reason = format!(
            "the image {image} is for {}, and functions run on {wanted}",
            platforms.join(", ")
        );
        Ok(ImagePresenceForPlatform::Missing(reason))
    }
}

/// Fetches the configuration of a single-platform image, and returns the platform in it; `None` if it is not known.
///
/// The blob may be on another host. The manifest shows that the image exists, and the platform is not worth a request
/// to a further host.
async fn fetch_platform_in_image_config_if_known(
    repository: &mut RepositoryClient,
    config_digest: &str,
) -> Result<Option<String>, RegistryError> {
    let config = match repository.fetch_unverified_blob(config_digest).await {
        Err(RegistryError::Status { status, .. }) if status.is_redirection() => return Ok(None),
        config => config?.unwrap_or_default(),
    };
    let platform = serde_json::from_slice(&config)
        .map(|config| os_and_architecture_or_question_marks(&config))
        .ok();
    Ok(platform.filter(|platform| !platform.contains('?')))
}

/// Returns `os/architecture` from the JSON of an image's platform or configuration, with `?` for a missing or
/// malformed part.
fn os_and_architecture_or_question_marks(object: &Value) -> String {
    let is_name = |text: &&str| {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        (1..=OS_OR_ARCHITECTURE_MAX_BYTES).contains(&text.len()) && text.bytes().all(is_allowed)
    };
    let field = |key: &str| object[key].as_str().filter(is_name).unwrap_or("?");
    format!("{}/{}", field("os"), field("architecture"))
}

#[cfg(test)]
mod tests;
