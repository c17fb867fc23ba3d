//! Access to registries: lookups of pushed manifests, uploads, the names of images, and what a build or a tenant may do
//! with a repository.

mod access;
mod image_name;
mod layers;
mod operator_repository;
mod tenant;
mod upload;

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use function_host::Secrets;
use function_host::registry::{AdditionalTokenHosts, RegistryClient, RepositoryClient};

use crate::buildkit::{CredentialStore, INDEX_MEDIA_TYPE, ImageLayerSize, ManifestLookup};
pub use access::RepositoryAccess;
pub use image_name::ImageName;
pub use operator_repository::OperatorRepository;
pub use tenant::{NoCredentials, ScopeLimitedTenantCredentials};
pub(crate) use upload::{
    EMPTY_CONFIG, MANIFEST_MEDIA_TYPE, RESPONSE_TIMEOUT, UploadError, bytes_body, empty_body, put_manifest,
    rejection, request_to, upload_blob_if_missing,
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
    pub token_realms: AdditionalTokenHosts,
}

#[tonic::async_trait]
impl ManifestLookup for Registries {
    async fn has_manifest(&self, name: &str, digest: &str) -> Result<bool, Box<dyn StdError + Send + Sync>> {
        let mut repository = self.repository_with_credentials(name).await?;
        Ok(tokio::time::timeout(LOOKUP_TIMEOUT, repository.has_manifest(digest)).await??)
    }

    async fn image_layers_or_empty_if_gone(
        &self,
        name: &str,
        digest: &str,
    ) -> Result<Vec<ImageLayerSize>, Box<dyn StdError + Send + Sync>> {
        let mut repository = self.repository_with_credentials(name).await?;
        let fetching = async {
            let Some(manifest) = repository.fetch_unverified_manifest(digest).await? else {
                return Ok(Vec::new());
            };
            let manifest = match layers::digest_of_first_image_in_index(&manifest)? {
                None => Some(manifest),
                Some(digest) => repository.fetch_unverified_manifest(&digest).await?,
            };
            let layers = manifest
                .map(|manifest| layers::parse_layers_or_empty_for_index(&manifest))
                .transpose()?;
            Ok(layers.unwrap_or_default())
        };
        tokio::time::timeout(LOOKUP_TIMEOUT, fetching).await?
    }

    async fn fetch_unverified_manifest(
        &self,
        name: &str,
        digest: &str,
    ) -> Result<Option<Bytes>, Box<dyn StdError + Send + Sync>> {
        let mut repository = self.repository_with_credentials(name).await?;
        Ok(tokio::time::timeout(LOOKUP_TIMEOUT, repository.fetch_unverified_manifest(digest)).await??)
    }

    async fn push_index(&self, name: &str, index: String) -> Result<(), Box<dyn StdError + Send + Sync>> {
        let (_, tag) = name.rsplit_once(':').ok_or("the image's name has no tag")?;
        let repository = self.repository_with_credentials(name).await?;
        let mut repository = repository.with_token_actions("pull,push");
        let pushing = put_manifest(&mut repository, tag, index, INDEX_MEDIA_TYPE);
        Ok(tokio::time::timeout(LOOKUP_TIMEOUT, pushing).await??)
    }
}

impl Registries {
    /// Returns the repository of an image, with the credentials for it.
    async fn repository_with_credentials(
        &self,
        name: &str,
    ) -> Result<RepositoryClient, Box<dyn StdError + Send + Sync>> {
        let image = ImageName::parse_with_registry(name).ok_or("the image's name has no registry")?;
        let (registry, repository) = (image.registry(), image.repository());
        let credentials = self.credentials.credentials_or_empty(registry).await;
        let client = RegistryClient::new(&self.secrets, self.insecure, self.token_realms.clone())?;
        Ok(client.repository(registry, repository, credentials))
    }
}
