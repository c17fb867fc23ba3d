//! Asks registries about images that were pushed to them.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use function_host::Secrets;
use function_host::registry::{AllowedTokenHosts, RegistryClient};

use crate::buildkit::{CredentialStore, ManifestStore};

/// The timeout of one lookup in a registry, which may take several requests.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Looks up manifests in registries, with the credentials that images are pushed with.
#[derive(Clone, Debug)]
pub struct Registries {
    /// The credentials for registries.
    pub credentials: Arc<dyn CredentialStore>,
    /// The secrets, among them the certificates of private authorities.
    pub secrets: Secrets,
    /// Whether registries speak plain HTTP.
    pub insecure: bool,
    /// The hosts that registry tokens may be fetched from.
    pub token_realms: AllowedTokenHosts,
}

#[tonic::async_trait]
impl ManifestStore for Registries {
    async fn has_manifest(&self, name: &str, digest: &str) -> Result<bool, Box<dyn StdError + Send + Sync>> {
        let (registry, repository) =
            split_registry_and_repository(name).ok_or("the image's name has no registry")?;
        let credentials = self.credentials.credentials(registry).await;
        let client = RegistryClient::new(&self.secrets, self.insecure, self.token_realms.clone())?;
        let mut repository = client.repository(registry, repository, credentials);
        Ok(tokio::time::timeout(ANSWER_TIMEOUT, repository.has_manifest(digest)).await??)
    }
}

/// Splits the full name of an image into its registry and its repository; drops the tag.
fn split_registry_and_repository(name: &str) -> Option<(&str, &str)> {
    let (registry, rest) = name.split_once('/')?;
    let repository = match rest.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => rest,
    };
    Some((registry, repository))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_name_has_a_registry_a_repository_and_a_tag() {
        for (name, expected) in [
            ("registry:5000/team/fn:1", Some(("registry:5000", "team/fn"))),
            ("registry:5000/fn", Some(("registry:5000", "fn"))),
            ("docker.io/library/fn:1.2", Some(("docker.io", "library/fn"))),
            ("fn", None),
        ] {
            assert_eq!(split_registry_and_repository(name), expected, "{name}");
        }
    }
}
