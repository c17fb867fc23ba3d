//! Stores what builds were made from, each beside the record of its build.

use std::time::SystemTime;

use function_host::ErrorChain;

use super::document::ArtifactManifest;
use super::seal::SealedContent;
use super::{RecordStore, StoreError, WRITE_ATTEMPT_TIMEOUT, index_tag};
use crate::builds::RecordKey;
use crate::inputs::BuildInputs;

impl RecordStore {
    /// Writes in the background what a build was made from, unless too many records wait for the registry. It is tried
    /// once: nothing but comparisons needs it. `dropped_afterwards` is dropped after that.
    pub(crate) fn record_inputs_in_background_unless_crowded(
        &self,
        key: RecordKey,
        inputs: impl Future<Output = BuildInputs> + Send + 'static,
        dropped_afterwards: impl Send + 'static,
    ) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let (guard, is_one_too_many) = self.count_pending_record_and_is_crowded(&key.tenant);
        if is_one_too_many {
            return;
        }
        let store = self.clone();
        runtime.spawn(async move {
            let _guards = (dropped_afterwards, guard);
            let inputs = inputs.await;
            let writing = tokio::time::timeout(WRITE_ATTEMPT_TIMEOUT, store.write_inputs(&key, &inputs));
            let written = match writing.await {
                Ok(written) => written,
                Err(_) => Err(StoreError::Timeout {
                    limit: WRITE_ATTEMPT_TIMEOUT,
                }),
            };
            store.0.writes.count(written.is_ok());
            if let Err(error) = written {
                tracing::warn!(
                    call_id = key.id,
                    error = %ErrorChain(&error),
                    "could not record what a build was made from"
                );
            }
        });
    }

    async fn write_inputs(&self, key: &RecordKey, inputs: &BuildInputs) -> Result<(), StoreError> {
        let _writer = self.0.writers.acquire().await;
        // With the ID: what was copied to another tag is not what its build was made from.
        let json = serde_json::to_vec(&(&key.id, inputs)).map_err(|_| StoreError::Malformed)?;
        let sealed = self.0.seal.seal(SealedContent::Inputs, &key.tenant, &json)?;
        let manifest = ArtifactManifest::of_inputs(&sealed, SystemTime::now());
        let tag = index_tag::inputs_tag(key);
        self.0.repository.put(&key.tenant, &tag, &manifest).await
    }

    /// Reads what a build was made from; `None` if that is not recorded, or not readable with the current keys.
    ///
    /// # Errors
    /// Fails if the registry does not answer in a short time.
    pub(crate) async fn read_inputs_unless_missing_or_unreadable(
        &self,
        key: &RecordKey,
    ) -> Result<Option<BuildInputs>, StoreError> {
        let limit = self.0.times.exchange;
        let reading = async {
            let tag = index_tag::inputs_tag(key);
            let Some(manifest) = self.0.repository.get(&key.tenant, &tag).await? else {
                return Ok(None);
            };
            let opened = ArtifactManifest::sealed_content(&manifest)
                .and_then(|sealed| self.0.seal.open(SealedContent::Inputs, &key.tenant, &sealed));
            match opened {
                Ok(json) => {
                    let read: Option<(String, BuildInputs)> = serde_json::from_slice(&json).ok();
                    Ok(read.filter(|(id, _)| *id == key.id).map(|(_, inputs)| inputs))
                }
                // Sealed with a key that is gone, or something else.
                Err(StoreError::OtherKey | StoreError::Malformed) => Ok(None),
                Err(error) => Err(error),
            }
        };
        match tokio::time::timeout(limit, reading).await {
            Ok(read) => read,
            Err(_) => Err(StoreError::Timeout { limit }),
        }
    }
}
