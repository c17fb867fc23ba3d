//! containerd's leases: what is made under one is not collected as garbage until it is released.
//!
//! A deployment takes one from before the pull until its container exists, as the container then holds what it
//! needs. Without it, a second deployment that moves the image's tag could have the first one's layers collected.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use containerd_client::services::v1::{CreateRequest, DeleteRequest, leases_client::LeasesClient};

use super::{Scope, call};
use crate::{error::Error, unique};

/// How long a lease holds when its holder died.
const LIMIT: Duration = Duration::from_secs(3600);

/// A lease, to be released.
#[derive(Debug)]
pub(crate) struct Lease {
    id: String,
    scope: Scope,
}

impl Scope {
    /// Takes a lease.
    pub(crate) async fn lease(&self) -> Result<Lease, Error> {
        let id = unique::name("slipway-dev");
        let expiry = jiff::Timestamp::try_from(SystemTime::now() + LIMIT).unwrap_or_default();
        let labels = HashMap::from([("containerd.io/gc.expire".to_owned(), expiry.to_string())]);
        let mut client = LeasesClient::new(self.channel());
        let request = self.request(CreateRequest {
            id: id.clone(),
            labels,
        });
        call("create lease", &id, client.create(request)).await?;
        let mut scope = self.clone();
        scope.lease = id.parse().ok();
        Ok(Lease { id, scope })
    }
}

impl Lease {
    /// containerd under this lease.
    pub(crate) fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Gives the lease back; if that fails it expires.
    pub(crate) async fn release(self) {
        let mut client = LeasesClient::new(self.scope.channel());
        let request = DeleteRequest {
            id: self.id.clone(),
            sync: false,
        };
        let request = Scope {
            lease: None,
            ..self.scope
        }
        .request(request);
        if let Err(error) = call("delete lease", &self.id, client.delete(request)).await {
            tracing::warn!(%error, "a lease stays until it expires");
        }
    }
}
