//! containerd's content store: blobs by digest.

use containerd_client::services::v1::{ReadContentRequest, content_client::ContentClient};
use serde::de::DeserializeOwned;

use super::{NamespaceClient, await_short_call, containerd_error};
use crate::error::ProviderError;

/// The longest manifest or image configuration that is read, in bytes.
const JSON_BLOB_MAX_BYTES: usize = 4 << 20;

impl NamespaceClient {
    /// Reads a blob from containerd's content store and parses it as JSON; fails if it is longer than
    /// [`JSON_BLOB_MAX_BYTES`].
    pub(crate) async fn read_json_blob_of_at_most_4_mib<T: DeserializeOwned>(
        &self,
        digest: &str,
    ) -> Result<T, ProviderError> {
        let mut client = ContentClient::new(self.channel());
        let request = self.request_in_namespace_and_lease(ReadContentRequest {
            digest: digest.to_owned(),
            offset: 0,
            size: 0,
        });
        let mut stream = await_short_call("read content", digest, client.read(request)).await?;
        let mut bytes = Vec::new();
        while let Some(part) = stream
            .message()
            .await
            .map_err(containerd_error("read content", digest))?
        {
            bytes.extend_from_slice(&part.data);
            if bytes.len() > JSON_BLOB_MAX_BYTES {
                return Err(ProviderError::Image {
                    image: digest.to_owned(),
                    reason: format!("longer than {JSON_BLOB_MAX_BYTES} bytes"),
                });
            }
        }
        serde_json::from_slice(&bytes).map_err(|error| ProviderError::Image {
            image: digest.to_owned(),
            reason: error.to_string(),
        })
    }
}
