//! What can go wrong in the provider. Nothing here knows of HTTP: `api::answer` turns it into statuses.

use std::{fmt, io, time::Duration};

use tonic::{Code, Status};

/// A failed operation, and what it was about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No function of that name.
    #[error("service {0} not found")]
    FunctionNotFound(String),

    /// A function of that name exists already.
    #[error("unable to create container: {0}, error: it already exists")]
    FunctionExists(String),

    /// The namespace does not exist, or lacks the label `openfaas`.
    #[error("namespace not valid")]
    NamespaceInvalid,

    /// A deployment names a secret that was never created.
    #[error("unable to find secret: {0}")]
    SecretMissing(String),

    /// A request is malformed; the text says where.
    #[error("{0}")]
    Invalid(String),

    /// A request's JSON is malformed.
    #[error("unable to read the request")]
    Json(#[source] serde_json::Error),

    /// An image could not be had from its registry.
    #[error("unable to pull image {image}")]
    Pull {
        /// The normalised reference.
        image: String,
        /// containerd's answer.
        source: Answer,
    },

    /// An image is not as images are.
    #[error("image {image}: {reason}")]
    Image {
        /// The normalised reference, or a digest.
        image: String,
        /// What is wrong with it.
        reason: String,
    },

    /// containerd refused.
    #[error("containerd: {operation} {subject}")]
    Containerd {
        /// What was asked of it.
        operation: &'static str,
        /// The id or name it was asked about.
        subject: String,
        /// Its answer.
        source: Answer,
    },

    /// containerd cannot be connected to.
    #[error("containerd cannot be reached at {socket}")]
    Unreachable {
        /// Path of the socket.
        socket: String,
        /// Why not.
        source: tonic::transport::Error,
    },

    /// A CNI plugin, or a tool of the network, failed.
    #[error("network: {operation} {subject}: {reason}")]
    Network {
        /// Which plugin or step.
        operation: String,
        /// The container.
        subject: String,
        /// What it said.
        reason: String,
    },

    /// A runtime specification cannot be made.
    #[error("container specification")]
    Spec(#[source] oci_spec::OciSpecError),

    /// A file operation failed.
    #[error("{operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: String,
        /// Why it failed.
        source: io::Error,
    },

    /// An updated function ended before it accepted connections.
    #[error("{instance} exited with status {status} before it listened on port 8080; its log has the reason")]
    Exited {
        /// The instance, as its log names it.
        instance: String,
        /// The exit status.
        status: u32,
    },

    /// An updated function did not accept connections in time.
    #[error("{instance} did not listen on port 8080 within {} s", .limit.as_secs())]
    NotListening {
        /// The instance, as its log names it.
        instance: String,
        /// The limit.
        limit: Duration,
    },

    /// The provider is stopping.
    #[error("the provider is stopping")]
    Stopping,
}

impl Error {
    pub(crate) fn io(
        operation: &'static str,
        path: impl AsRef<std::path::Path>,
    ) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            operation,
            path: path.as_ref().display().to_string(),
            source,
        }
    }

    /// Whether containerd says that what was asked about does not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Containerd { source, .. } if source.code() == Code::NotFound)
    }
}

/// What containerd answered instead of doing what was asked.
#[derive(Debug)]
pub struct Answer(Box<Status>);

impl Answer {
    pub(crate) fn new(status: Status) -> Self {
        Self(Box::new(status))
    }

    pub(crate) fn code(&self) -> Code {
        self.0.code()
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.message() {
            "" => write!(f, "{}", self.0.code()),
            message => f.write_str(message),
        }
    }
}

impl std::error::Error for Answer {}

/// The error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
