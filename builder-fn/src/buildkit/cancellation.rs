//! Requests to cancel builds of other builders, with BuildKit's history as the medium.
//!
//! BuildKit has no call that cancels another client's solve. A *marker* is a solve of nothing whose attributes name the
//! call to cancel. Every builder that follows the daemon's history sees it within milliseconds, and the one that owns
//! the build drops its solve. The marker's record stays in the history, so that a later delivery of the call is not
//! built.

use std::collections::HashMap;
use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::{BuildHistoryRequest, SolveRequest};
use bollard_buildkit_proto::pb::Definition;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use sha2::{Digest, Sha256};
use tonic::Status;

use super::Connection;
use super::history;

/// The attribute with the ID of the call to cancel.
const CANCEL_ATTRIBUTE: &str = "slipway.cancel";

/// The attribute with the tenant of the call to cancel.
const CANCEL_TENANT_ATTRIBUTE: &str = "slipway.cancel-tenant";

/// The longest wait for the daemon's answer to the solve of a marker.
const CANCELLATION_MARKER_TIMEOUT: Duration = Duration::from_secs(5);

/// A request to cancel the build of a call.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cancellation {
    /// The tenant of the call; `None` without a policy.
    pub tenant: Option<String>,
    /// The ID of the call.
    pub call_id: String,
}

impl Connection {
    /// Puts a marker into the daemon's history, which requests every builder of the daemon to cancel the build of a
    /// call.
    ///
    /// # Errors
    /// Fails if the daemon does not answer in time, or the connection breaks.
    pub async fn request_cancellation(&self, cancellation: &Cancellation) -> Result<(), Status> {
        let tenant = cancellation.tenant.as_deref();
        let mut attrs = HashMap::from([(CANCEL_ATTRIBUTE.to_owned(), cancellation.call_id.clone())]);
        if let Some(tenant) = tenant {
            attrs.insert(CANCEL_TENANT_ATTRIBUTE.to_owned(), tenant.to_owned());
        }
        let request = SolveRequest {
            r#ref: cancellation_marker_reference(tenant, &cancellation.call_id),
            // A solve with neither a definition nor a frontend waits for a client that sends one.
            definition: Some(Definition::default()),
            frontend_attrs: attrs,
            ..SolveRequest::default()
        };
        let mut control = self.control_client();
        match tokio::time::timeout(CANCELLATION_MARKER_TIMEOUT, control.solve(request)).await {
            Err(_) => Err(Status::deadline_exceeded("BuildKit did not answer in time")),
            // What the solve of nothing results in does not matter: its record is the marker.
            Ok(Err(status)) if super::job::is_connection_loss(&status) => Err(status),
            Ok(_) => Ok(()),
        }
    }

    /// Subscribes to cancellations: each one as it is requested. Those before the subscription are not among them
    /// ([`Self::is_cancellation_known_to_be_requested`]).
    pub(crate) async fn subscribe_to_new_cancellations(
        &self,
    ) -> Result<BoxStream<'static, Result<Cancellation, Status>>, Status> {
        let request = BuildHistoryRequest {
            // The daemon decodes no records for this.
            active_only: true,
            ..BuildHistoryRequest::default()
        };
        let events = history::listen_to_history(self, request).await?;
        Ok(events
            .try_filter_map(|event| {
                let record = event.record.map(|record| record.frontend_attrs);
                std::future::ready(Ok(record.and_then(|attrs| Cancellation::from_attributes(&attrs))))
            })
            .boxed())
    }
}

impl Cancellation {
    /// Returns the reference of the record in the history that has the request.
    pub(crate) fn reference_of_marker(&self) -> String {
        cancellation_marker_reference(self.tenant.as_deref(), &self.call_id)
    }

    /// Parses the attributes of a marker; `None` if they are those of another solve.
    pub(super) fn from_attributes(attrs: &HashMap<String, String>) -> Option<Self> {
        Some(Self {
            call_id: attrs.get(CANCEL_ATTRIBUTE)?.clone(),
            tenant: attrs.get(CANCEL_TENANT_ATTRIBUTE).cloned(),
        })
    }
}

/// Returns the reference of the marker for a call of a tenant.
fn cancellation_marker_reference(tenant: Option<&str>, call_id: &str) -> String {
    let mut hash = Sha256::new();
    // No name of a tenant is empty, and none contains a NUL.
    for part in ["\0cancel\0", tenant.unwrap_or_default(), "\0", call_id] {
        hash.update(part);
    }
    hex::encode(&hash.finalize()[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_tenants_have_markers_of_their_own() {
        let markers = [
            cancellation_marker_reference(None, "call-1"),
            cancellation_marker_reference(None, "call-2"),
            cancellation_marker_reference(Some("acme"), "call-1"),
            cancellation_marker_reference(Some("bcme"), "call-1"),
        ];
        for (index, marker) in markers.iter().enumerate() {
            assert!(!markers[..index].contains(marker), "{marker}");
        }
    }
}
