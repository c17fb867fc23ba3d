//! containerd's image store: the names of images and their targets.

use containerd_client::services::v1::{GetImageRequest, images_client::ImagesClient};
use containerd_client::types::Descriptor;

use super::{NamespaceClient, call};
use crate::error::Error;

impl NamespaceClient {
    /// Returns the descriptor that an image's name refers to: a manifest or an index.
    pub(crate) async fn image_target(&self, name: &str) -> Result<Descriptor, Error> {
        let mut client = ImagesClient::new(self.channel());
        let request = self.request(GetImageRequest {
            name: name.to_owned(),
        });
        let answer = call("get image", name, client.get(request)).await?;
        Ok(answer.image.and_then(|image| image.target).unwrap_or_default())
    }
}
