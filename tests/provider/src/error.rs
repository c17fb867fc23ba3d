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

    /// A request names another namespace than the one of the functions.
    #[error("namespace {requested:?}: functions are in {own:?} only")]
    NamespaceOther {
        /// The namespace in the request.
        requested: String,
        /// The namespace of the functions.
        own: String,
    },

    /// A request names a namespace that is never one of functions.
    #[error("namespace {0:?} has no functions")]
    NamespaceReserved(String),

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

    /// The configuration for the connection to a cluster could not be read.
    #[error("cannot read the connection to the cluster from {path}")]
    Kubeconfig {
        /// The path of the kubeconfig, or words for the service account.
        path: String,
        /// The reason for which it could not be read.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// A request to the Kubernetes API failed.
    #[error("Kubernetes: cannot {operation} {subject}")]
    Kubernetes {
        /// The operation that failed.
        operation: KubernetesOperation,
        /// The name of the object.
        subject: String,
        /// The answer of the API, or the reason for which there was none.
        source: Box<kube::Error>,
    },

    /// A Deployment with the name of a function to delete is no function.
    #[error("{0} is not a function: its Deployment lacks the label faas_function")]
    NotAFunction(String),

    /// The Community Edition allows no more functions.
    #[error("there are {0} functions, the most of the Community Edition")]
    FunctionLimit(usize),

    /// A request names a Profile that does not exist.
    #[error("Profile {0:?} not found")]
    ProfileMissing(String),

    /// A limit or request of a container is malformed.
    #[error("{0} is not a quantity; use one like 128Mi or 0.5")]
    QuantityInvalid(String),

    /// A request for a secret has no name.
    #[error("name: missing; use the name of the secret")]
    SecretNameMissing,

    /// A function has no pods whose logs could be read.
    #[error("{0} has no pods")]
    NoInstances(String),

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

    /// Returns a function that adds the operation and its subject to an error of the Kubernetes API.
    pub(crate) fn kubernetes(
        operation: KubernetesOperation,
        subject: impl Into<String>,
    ) -> impl FnOnce(kube::Error) -> Self {
        let subject = subject.into();
        move |source| Self::Kubernetes {
            operation,
            subject,
            source: Box::new(source),
        }
    }

    /// Returns whether the error is the Kubernetes API's answer that an object does not exist, or no longer does.
    pub(crate) fn is_kubernetes_not_found_or_gone(&self) -> bool {
        matches!(self.kubernetes_reason(), Some("NotFound" | "Gone"))
    }

    /// Returns the reason in the Kubernetes API's answer, such as `AlreadyExists`; `None` for errors that are no
    /// answer.
    pub(crate) fn kubernetes_reason(&self) -> Option<&str> {
        match self {
            Self::Kubernetes { source, .. } => match &**source {
                kube::Error::Api(status) => Some(&status.reason),
                _ => None,
            },
            _ => None,
        }
    }

    /// Returns whether the error is containerd's answer that a subject does not exist.
    pub(crate) fn is_containerd_not_found(&self) -> bool {
        matches!(self, Self::Containerd { source, .. } if source.code() == Code::NotFound)
    }
}

/// An operation of the Kubernetes API, displayed as a verb with the kind of its object.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KubernetesOperation {
    Connect,
    CreateDeployment,
    ReadDeployment,
    UpdateDeployment,
    DeleteDeployment,
    CreateService,
    ReadService,
    UpdateService,
    DeleteService,
    ListSecrets,
    CreateSecret,
    ReadSecret,
    UpdateSecret,
    DeleteSecret,
    ListPods,
    ReadLog,
}

impl fmt::Display for KubernetesOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "create the client",
            Self::CreateDeployment => "create Deployment",
            Self::ReadDeployment => "read Deployment",
            Self::UpdateDeployment => "update Deployment",
            Self::DeleteDeployment => "delete Deployment",
            Self::CreateService => "create Service",
            Self::ReadService => "read Service",
            Self::UpdateService => "update Service",
            Self::DeleteService => "delete Service",
            Self::ListSecrets => "list Secrets",
            Self::CreateSecret => "create Secret",
            Self::ReadSecret => "read Secret",
            Self::UpdateSecret => "update Secret",
            Self::DeleteSecret => "delete Secret",
            Self::ListPods => "list the pods of",
            Self::ReadLog => "read the log of pod",
        })
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
