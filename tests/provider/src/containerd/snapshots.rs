//! containerd's snapshots: the root file systems of containers.

use std::collections::HashMap;

use containerd_client::services::v1::snapshots::{
    MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, snapshots_client::SnapshotsClient,
};

use super::{NamespaceClient, SnapshotMounts, await_short_call, default_if_not_found};
use crate::error::ProviderError;

impl NamespaceClient {
    /// Creates a writable snapshot on top of an unpacked image, and returns its mounts.
    pub(crate) async fn prepare_snapshot(
        &self,
        key: &str,
        parent: &str,
    ) -> Result<SnapshotMounts, ProviderError> {
        let mut client = SnapshotsClient::new(self.channel());
        let request = self.request_in_namespace_and_lease(PrepareSnapshotRequest {
            snapshotter: self.snapshotter(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: HashMap::new(),
        });
        Ok(await_short_call("prepare snapshot", key, client.prepare(request))
            .await?
            .mounts)
    }

    /// Returns the mounts of a container's snapshot.
    pub(crate) async fn snapshot_mounts(&self, key: &str) -> Result<SnapshotMounts, ProviderError> {
        let mut client = SnapshotsClient::new(self.channel());
        let request = MountsRequest {
            snapshotter: self.snapshotter(),
            key: key.to_owned(),
        };
        let request = self.request_in_namespace_and_lease(request);
        Ok(
            await_short_call("mounts of snapshot", key, client.mounts(request))
                .await?
                .mounts,
        )
    }

    /// Removes a container's snapshot. Succeeds if the snapshot does not exist.
    pub(crate) async fn remove_snapshot(&self, key: &str) -> Result<(), ProviderError> {
        let mut client = SnapshotsClient::new(self.channel());
        let request = RemoveSnapshotRequest {
            snapshotter: self.snapshotter(),
            key: key.to_owned(),
        };
        let request = self.request_in_namespace_and_lease(request);
        default_if_not_found(
            await_short_call("remove snapshot", key, client.remove(request))
                .await
                .map(drop),
        )
    }
}
