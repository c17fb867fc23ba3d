//! The part of containerd's gRPC API that functions need, one file for each service.
//!
//! [`Containerd`] is the connection; [`Scope`] uses it within a containerd namespace, and
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
    tasks::{Exit, TaskState},
    transfer::{Source, platform},
};
use crate::error::{Answer, Error};

/// The timeout of a call that looks something up or starts something.
const CALL_LIMIT: Duration = Duration::from_secs(60);

/// A connection to containerd, which reconnects by itself.
#[derive(Clone, Debug)]
pub(crate) struct Containerd {
    channel: Channel,
    snapshotter: String,
}

impl Containerd {
    /// Connects to containerd's socket.
    pub(crate) async fn connect(socket: &Path, snapshotter: &str) -> Result<Self, Error> {
        let channel = containerd_client::connect(socket)
            .await
            .map_err(|source| Error::Unreachable {
                socket: socket.display().to_string(),
                source,
            })?;
        Ok(Self {
            channel,
            snapshotter: snapshotter.to_owned(),
        })
    }

    /// Returns a client for a namespace, on the same connection.
    pub(crate) fn within(&self, namespace: &str) -> Result<Scope, Error> {
        let header = namespace.parse().map_err(|_| Error::NamespaceInvalid)?;
        Ok(Scope {
            containerd: self.clone(),
            namespace: namespace.to_owned(),
            header,
            lease: None,
        })
    }
}

/// A client for one of containerd's namespaces.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    containerd: Containerd,
    namespace: String,
    header: MetadataValue<Ascii>,
    lease: Option<MetadataValue<Ascii>>,
}

impl Scope {
    /// Returns the namespace's name.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    fn channel(&self) -> Channel {
        self.containerd.channel.clone()
    }

    fn snapshotter(&self) -> String {
        self.containerd.snapshotter.clone()
    }

    fn request<T>(&self, message: T) -> Request<T> {
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

/// Awaits a short call, up to the timeout; an error names the operation and its subject.
async fn call<T>(
    operation: &'static str,
    subject: &str,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Error> {
    let answer = tokio::time::timeout(CALL_LIMIT, answer).await;
    let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")));
    answer
        .map(Response::into_inner)
        .map_err(refused(operation, subject))
}

fn refused(operation: &'static str, subject: &str) -> impl FnOnce(Status) -> Error {
    let subject = subject.to_owned();
    move |source| Error::Containerd {
        operation,
        subject,
        source: Answer::new(source),
    }
}

/// Converts "not found" to success, for removals.
fn unless_missing<T: Default>(answer: Result<T, Error>) -> Result<T, Error> {
    match answer {
        Err(error) if error.is_not_found() => Ok(T::default()),
        answer => answer,
    }
}

fn is_existing(error: &Error) -> bool {
    matches!(error, Error::Containerd { source, .. } if source.code() == Code::AlreadyExists)
}

/// The mounts of a root file system, as containerd's snapshotters describe them.
pub(crate) type Mounts = Vec<Mount>;
