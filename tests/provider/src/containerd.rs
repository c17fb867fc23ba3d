//! The part of containerd's gRPC API that functions need, one file for each service.
//!
//! [`Containerd`] is the connection; [`NamespaceClient`] uses it within a containerd namespace, and
//! optionally under a lease. Every short call has a timeout, so that a hanging containerd does not hang the
//! API.

mod containers;
mod content;
mod images;
mod leases;
mod namespaces;
mod snapshots;
mod streams;
mod tasks;
mod transfer;

use std::{future::Future, path::Path, time::Duration};

use containerd_client::types::Mount;
use tonic::{
    Code, Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};

pub(crate) use self::{
    containers::{Container, NewContainer},
    namespaces::NamespaceWithOpenfaasLabel,
    tasks::{TaskExitStatus, TaskLiveness},
    transfer::{PullSource, machine_platform},
};
use crate::error::{ContainerdStatus, ProviderError};

/// The timeout of a short call to containerd, such as a look-up or a start.
const SHORT_CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// A connection to containerd, which reconnects by itself.
#[derive(Clone, Debug)]
pub(crate) struct Containerd {
    channel: Channel,
    snapshotter: String,
}

impl Containerd {
    /// Connects to containerd's socket.
    pub(crate) async fn connect(socket: &Path, snapshotter: &str) -> Result<Self, ProviderError> {
        let channel =
            containerd_client::connect(socket)
                .await
                .map_err(|source| ProviderError::Unreachable {
                    socket: socket.display().to_string(),
                    source,
                })?;
        Ok(Self {
            channel,
            snapshotter: snapshotter.to_owned(),
        })
    }

    /// Creates a client for one of containerd's namespaces, on the same connection.
    pub(crate) fn namespace_client(&self, namespace: &str) -> Result<NamespaceClient, ProviderError> {
        let header = namespace.parse().map_err(|_| ProviderError::NamespaceInvalid)?;
        Ok(NamespaceClient {
            containerd: self.clone(),
            namespace: namespace.to_owned(),
            header,
            lease: None,
        })
    }
}

/// A client for one of containerd's namespaces.
#[derive(Clone, Debug)]
pub(crate) struct NamespaceClient {
    containerd: Containerd,
    namespace: String,
    header: MetadataValue<Ascii>,
    lease: Option<MetadataValue<Ascii>>,
}

impl NamespaceClient {
    /// Returns the name of the client's namespace.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    fn channel(&self) -> Channel {
        self.containerd.channel.clone()
    }

    fn snapshotter(&self) -> String {
        self.containerd.snapshotter.clone()
    }

    /// Creates a request in the client's namespace, and under its lease if it has one.
    fn request_in_namespace_and_lease<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert("containerd-namespace", self.header.clone());
        if let Some(lease) = &self.lease {
            request.metadata_mut().insert("containerd-lease", lease.clone());
        }
        request
    }
}

/// Awaits a short call to containerd, up to the timeout; an error names the operation and its subject.
async fn await_short_call<T>(
    operation: &'static str,
    subject: &str,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, ProviderError> {
    let answer = tokio::time::timeout(SHORT_CALL_TIMEOUT, answer).await;
    let answer = answer.unwrap_or_else(|_| {
        let seconds = SHORT_CALL_TIMEOUT.as_secs();
        Err(Status::deadline_exceeded(format!("no answer within {seconds} s")))
    });
    answer
        .map(Response::into_inner)
        .map_err(containerd_error(operation, subject))
}

/// Returns a function that adds the operation and its subject to a gRPC status.
fn containerd_error(operation: &'static str, subject: &str) -> impl FnOnce(Status) -> ProviderError {
    let subject = subject.to_owned();
    move |source| ProviderError::Containerd {
        operation,
        subject,
        source: ContainerdStatus::new(source),
    }
}

/// Converts containerd's answer "not found" to success, for removals.
fn default_if_not_found<T: Default>(answer: Result<T, ProviderError>) -> Result<T, ProviderError> {
    match answer {
        Err(error) if error.is_containerd_not_found() => Ok(T::default()),
        answer => answer,
    }
}

/// Returns whether the error is containerd's answer that a subject exists already.
fn is_already_exists(error: &ProviderError) -> bool {
    matches!(error, ProviderError::Containerd { source, .. } if source.code() == Code::AlreadyExists)
}

/// The mounts of a root file system, as containerd's snapshotters describe them.
pub(crate) type SnapshotMounts = Vec<Mount>;
