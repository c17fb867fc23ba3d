//! Access to registries: lookups of pushed manifests, the names of images, and what a build may do with a
//! repository.

mod access;
mod image_name;
mod operator_repository;
mod tenant;
mod upload;

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use function_host::Secrets;
use function_host::registry::{AllowedTokenHosts, RegistryClient};

use crate::buildkit::{CredentialStore, ManifestLookup};
pub use access::RepositoryAccess;
pub use image_name::ImageName;
pub use operator_repository::OperatorRepository;
pub use tenant::{NoCredentials, TenantCredentials};
pub(crate) use upload::{
    EMPTY_CONFIG, MANIFEST_MEDIA_TYPE, RESPONSE_TIMEOUT, UploadError, bytes_body, empty_body, put_manifest,
    rejection, request_to, upload_blob,
};

/// The timeout of one lookup in a registry, which may take several requests.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(15);

/// A client of registries that looks up manifests, with the credentials that images are pushed with.
#[derive(Clone, Debug)]
pub struct Registries {
    /// The credentials that lookups are authenticated with.
    pub credentials: Arc<dyn CredentialStore>,
    /// The secrets, among them the certificates of private authorities.
    pub secrets: Secrets,
    /// Whether registries speak plain HTTP.
    pub insecure: bool,
    /// The hosts that registry tokens may be fetched from.
    pub token_realms: AllowedTokenHosts,
}

#[tonic::async_trait]
impl ManifestLookup for Registries {
    async fn has_manifest(&self, name: &str, digest: &str) -> Result<bool, Box<dyn StdError + Send + Sync>> {
        let image = ImageName::parse(name).ok_or("the image's name has no registry")?;
        let (registry, repository) = (image.registry(), image.repository());
        let credentials = self.credentials.credentials(registry).await;
        let client = RegistryClient::new(&self.secrets, self.insecure, self.token_realms.clone())?;
        let mut repository = client.repository(registry, repository, credentials);
        Ok(tokio::time::timeout(LOOKUP_TIMEOUT, repository.has_manifest(digest)).await??)
    }
}
