//! containerd's content store: blobs by digest.

use containerd_client::services::v1::{ReadContentRequest, content_client::ContentClient};
use serde::de::DeserializeOwned;

use super::{NamespaceClient, call, containerd_error};
use crate::error::Error;

/// The longest manifest or image configuration that is read, in bytes.
const LONGEST: usize = 4 << 20;

impl NamespaceClient {
    /// Reads a blob with JSON content from containerd's content store.
    pub(crate) async fn read_json<T: DeserializeOwned>(&self, digest: &str) -> Result<T, Error> {
        let mut client = ContentClient::new(self.channel());
        let request = self.request(ReadContentRequest {
            digest: digest.to_owned(),
            offset: 0,
            size: 0,
        });
        let mut stream = call("read content", digest, client.read(request)).await?;
        let mut bytes = Vec::new();
        while let Some(part) = stream
            .message()
            .await
            .map_err(containerd_error("read content", digest))?
        {
            bytes.extend_from_slice(&part.data);
            if bytes.len() > LONGEST {
                return Err(Error::Image {
                    image: digest.to_owned(),
                    reason: format!("longer than {LONGEST} bytes"),
                });
            }
        }
        serde_json::from_slice(&bytes).map_err(|error| Error::Image {
            image: digest.to_owned(),
            reason: error.to_string(),
        })
    }
}
