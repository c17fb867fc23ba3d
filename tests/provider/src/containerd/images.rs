//! containerd's image store: the names of images and their targets.

use containerd_client::services::v1::{GetImageRequest, images_client::ImagesClient};
use containerd_client::types::Descriptor;

use super::{NamespaceClient, await_short_call};
use crate::error::ProviderError;

impl NamespaceClient {
    /// Returns the descriptor that an image's name refers to: a manifest or an index.
    pub(crate) async fn image_target(&self, name: &str) -> Result<Descriptor, ProviderError> {
        let mut client = ImagesClient::new(self.channel());
        let request = self.request_in_namespace_and_lease(GetImageRequest {
            name: name.to_owned(),
        });
        let answer = await_short_call("get image", name, client.get(request)).await?;
        Ok(answer.image.and_then(|image| image.target).unwrap_or_default())
    }
}
