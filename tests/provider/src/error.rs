//! Errors of the provider. They know no HTTP: `api::answer` converts them to statuses.

use std::{fmt, io, time::Duration};

use tonic::{Code, Status};

/// An error of the provider; where it helps, with the operation and its subject.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// The function does not exist.
    #[error("service {0} not found")]
    FunctionNotFound(String),

    /// A function with this name exists already.
    #[error("unable to create container: {0}, error: it already exists")]
    FunctionExists(String),

    /// The namespace of a function does not exist, or its label `openfaas` is missing or neither `true` nor `1`.
    #[error("namespace not valid")]
    NamespaceInvalid,

    /// A deployment names a secret that does not exist.
    #[error("unable to find secret: {0}")]
    SecretMissing(String),

    /// A request, a setting or the user of an image is invalid; also if the request's JSON is malformed.
    #[error("{0}")]
    Invalid(String),

    /// The JSON of a request about secrets is malformed, or a container's data cannot be written as JSON.
    #[error("unable to read the request")]
    Json(#[source] serde_json::Error),

    /// An image could not be pulled from its registry.
    #[error("unable to pull image {image}")]
    Pull {
        /// The normalised reference of the image.
        image: String,
        /// containerd's status for the pull.
        source: ContainerdStatus,
    },

    /// An image is malformed or unsuitable.
    #[error("image {image}: {reason}")]
    Image {
        /// The reference of the image, normalised or as in the deployment, or a digest.
        image: String,
        /// The reason for which the image is rejected.
        reason: String,
    },

    /// A request to containerd failed.
    #[error("containerd: {operation} {subject}")]
    Containerd {
        /// The operation that failed, as a verb with its object, such as `list namespaces`.
        operation: &'static str,
        /// The id or name of the operation's subject.
        subject: String,
        /// containerd's status for the request.
        source: ContainerdStatus,
    },

    /// The connection to containerd failed.
    #[error("cannot connect to containerd at {socket}")]
    Unreachable {
        /// The path of containerd's socket.
        socket: String,
        /// The reason for which the connection failed.
        source: tonic::transport::Error,
    },

    /// A CNI plugin, or a tool of the network, failed.
    #[error("network: {operation} {subject}: {reason}")]
    Network {
        /// The CNI plugin or the step that failed.
        operation: String,
        /// The id of the container to connect or disconnect.
        subject: String,
        /// The error message of the plugin or tool.
        reason: String,
    },

    /// The runtime specification of a container is invalid.
    #[error("invalid runtime specification")]
    Spec(#[source] oci_spec::OciSpecError),

    /// An operation on a file failed.
    #[error("cannot {operation} {path}")]
    Io {
        /// The operation that failed, as a verb such as `open`.
        operation: &'static str,
        /// The path of the file or directory, or words for one without a lasting path.
        path: String,
        /// The operating system's error for the file operation.
        source: io::Error,
    },

    /// The process of an updated function ended before it accepted connections.
    #[error("{instance} exited with status {status} before it listened on port 8080; its log has the reason")]
    Exited {
        /// The name of the instance that ended, which is also its log's name.
        instance: String,
        /// The exit status of the process.
        status: u32,
    },

    /// An updated function did not accept connections in time.
    #[error("{instance} did not listen on port 8080 within {} s", .limit.as_secs())]
    NotListening {
        /// The name of the instance, which is also its log's name.
        instance: String,
        /// The time that the function had to accept connections.
        limit: Duration,
    },

    /// The provider is stopping and accepts no operation.
    #[error("the provider is stopping")]
    Stopping,
}

impl ProviderError {
    /// Returns a function that adds the operation and the path to an I/O error.
    pub(crate) fn io_error(
        operation: &'static str,
        path: impl AsRef<std::path::Path>,
    ) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            operation,
            path: path.as_ref().display().to_string(),
            source,
        }
    }

    /// Returns whether the error is containerd's answer that a subject does not exist.
    pub(crate) fn is_containerd_not_found(&self) -> bool {
        matches!(self, Self::Containerd { source, .. } if source.code() == Code::NotFound)
    }
}

/// A gRPC status from containerd, displayed as its message only, or as its code if it has no message.
#[derive(Debug)]
pub struct ContainerdStatus(Box<Status>);

impl ContainerdStatus {
    pub(crate) fn new(status: Status) -> Self {
        Self(Box::new(status))
    }

    pub(crate) fn code(&self) -> Code {
        self.0.code()
    }
}

impl fmt::Display for ContainerdStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.message() {
            "" => write!(f, "{}", self.0.code()),
            message => f.write_str(message),
        }
    }
}

impl std::error::Error for ContainerdStatus {}
