//! containerd's leases: content that is created under a lease is not garbage-collected until the lease is
//! released.
//!
//! A deployment holds a lease from before the pull until its container exists, because the container then
//! keeps its content. Without the lease, a second deployment that moves the image's tag could have the first
//! one's layers collected.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use containerd_client::services::v1::{CreateRequest, DeleteRequest, leases_client::LeasesClient};

use super::{NamespaceClient, await_short_call};
use crate::{error::ProviderError, unique};

/// The time after which a containerd lease expires if its holder died.
const LEASE_EXPIRY: Duration = Duration::from_secs(3600);

/// A containerd lease; call [`Lease::release`] when it is no longer needed.
#[derive(Debug)]
pub(crate) struct Lease {
    id: String,
    client: NamespaceClient,
}

impl NamespaceClient {
    /// Creates a containerd lease.
    pub(crate) async fn create_lease(&self) -> Result<Lease, ProviderError> {
        let id = unique::unique_name("slipway-dev");
        let expiry = jiff::Timestamp::try_from(SystemTime::now() + LEASE_EXPIRY).unwrap_or_default();
        let labels = HashMap::from([("containerd.io/gc.expire".to_owned(), expiry.to_string())]);
        let mut leases = LeasesClient::new(self.channel());
        let request = self.request_in_namespace_and_lease(CreateRequest {
            id: id.clone(),
            labels,
        });
        await_short_call("create lease", &id, leases.create(request)).await?;
        let mut client = self.clone();
        client.lease = id.parse().ok();
        Ok(Lease { id, client })
    }
}

impl Lease {
    /// Returns the containerd client whose requests are under this lease.
    pub(crate) fn leased_client(&self) -> &NamespaceClient {
        &self.client
    }

    /// Releases the containerd lease. If that fails, the lease expires later.
    pub(crate) async fn release(self) {
        let mut leases = LeasesClient::new(self.client.channel());
        let request = DeleteRequest {
            id: self.id.clone(),
            sync: false,
        };
        let request = NamespaceClient {
            lease: None,
            ..self.client
        }
        .request_in_namespace_and_lease(request);
        if let Err(error) = await_short_call("delete lease", &self.id, leases.delete(request)).await {
            tracing::warn!(
                lease = self.id,
                error = &error as &dyn std::error::Error,
                "cannot release a lease; it expires by itself"
            );
        }
    }
}
