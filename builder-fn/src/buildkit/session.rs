//! The session of a build: the services that this builder offers to the daemon while it builds.
//!
//! `Control.Session` is a stream of bytes in both directions. This side *serves* gRPC over it, and the daemon is the
//! client: it asks for the context's files, credentials and secrets, and checks the health of the session every 5 s.

mod auth;
mod filesync;
mod health;
mod method;
mod pipe;
mod secrets;
mod services;
mod source_check;

use std::convert::Infallible;

use bollard_buildkit_proto::moby::buildkit::v1::BytesMessage;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{MetadataMap, MetadataValue};

pub use auth::{CredentialStore, RegistryCredentials, RegistryError, TokenRequest};
pub use filesync::FileSync;
pub(super) use filesync::{BUILDER_FAULT_PREFIX, UNCHECKED_SOURCES_ERROR};
#[cfg(test)]
pub(crate) use secrets::NamedSecretsWithValueX;
pub use secrets::SecretStore;
pub use services::SessionServices;
pub use source_check::{
    CheckPolicyRequest, CheckPolicyResponse, DecisionResponse, Denial, DenyMessage, SourceCheck,
    SourceDecision,
};

use super::connection::Connection;

/// The header with the id of the session that a call opens: BuildKit `session/session.go`. gRPC metadata is lower case.
const SESSION_ID_HEADER: &str = "x-docker-expose-session-uuid";
/// The header with the name of the session.
const SESSION_NAME_HEADER: &str = "x-docker-expose-session-name";
/// The header with the key under which the daemon keeps transferred folders.
const SHARED_KEY_HEADER: &str = "x-docker-expose-session-sharedkey";
/// The header with the path of a gRPC method that the session serves, one header for each method.
const GRPC_METHOD_HEADER: &str = "x-docker-expose-session-grpc-method";

/// The number of session messages that may wait until they are sent. Each is at most as large as one write of the
/// HTTP/2 server.
const PIPE_DEPTH_MESSAGES: usize = 2;

/// A session of a build, before it is opened.
#[derive(Debug)]
pub(super) struct Session {
    id: String,
    shared_key: String,
    services: SessionServices,
}

/// The reason why a session ended. The caller is to blame for none of them.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    /// The daemon did not accept the session.
    #[error("BuildKit did not open the session")]
    Rejected(#[source] Box<tonic::Status>),
    /// The daemon ended the session, or the connection broke.
    #[error("BuildKit ended the session")]
    Ended(#[source] Option<hyper::Error>),
}

impl Session {
    /// Creates a session with a new id, which serves `services`.
    ///
    /// The daemon keeps transferred folders under `shared_key`: see [`shared_key`](super::shared_key).
    pub(super) fn new(shared_key: String, services: SessionServices) -> Self {
        Self {
            id: uuid::Uuid::new_v4().simple().to_string(),
            shared_key,
            services,
        }
    }

    /// Returns the session's id, by which a solve names the session.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Opens the session and serves it until the daemon or the connection ends it.
    ///
    /// It does not return otherwise. Dropping the future ends the session and every answer that is not complete.
    pub(super) async fn open_and_serve(self, connection: &Connection) -> Result<Infallible, SessionError> {
        let (sender, receiver) = mpsc::channel(PIPE_DEPTH_MESSAGES);
        let outgoing =
            ReceiverStream::new(receiver).map(|bytes: bytes::Bytes| BytesMessage { data: bytes.into() });
        let mut request = tonic::Request::new(outgoing);
        *request.metadata_mut() = self.to_grpc_metadata();
        let incoming = connection
            .control_client()
            .session(request)
            .await
            .map_err(|status| SessionError::Rejected(Box::new(status)))?
            .into_inner();
        let served = self
            .services
            .serve_connection(pipe::byte_stream_over_messages(sender, incoming))
            .await;
        Err(SessionError::Ended(served.err()))
    }

    /// Returns the headers of the call that opens the session: its id, name, shared key and methods.
    fn to_grpc_metadata(&self) -> MetadataMap {
        let mut headers = MetadataMap::new();
        let methods = self
            .services
            .announced_methods()
            .iter()
            .map(|method| (GRPC_METHOD_HEADER, method.as_str()));
        let attributes = [
            (SESSION_ID_HEADER, self.id.as_str()),
            (SESSION_NAME_HEADER, "slipway"),
            (SHARED_KEY_HEADER, self.shared_key.as_str()),
        ];
        for (name, value) in attributes.into_iter().chain(methods) {
            // All values are made here, of ASCII. One that is not would be left out, and not fail a build.
            if let Ok(value) = MetadataValue::try_from(value) {
                headers.append(name, value);
            }
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_announces_its_id_shared_key_and_grpc_methods_in_headers() {
        let session = Session::new("key".into(), SessionServices::new().with_health());
        let headers = session.to_grpc_metadata();

        assert_eq!(headers.get(SESSION_ID_HEADER).expect("id"), session.id());
        assert_eq!(headers.get(SHARED_KEY_HEADER).expect("key"), "key");
        let methods: Vec<_> = headers
            .get_all(GRPC_METHOD_HEADER)
            .iter()
            .map(|value| value.to_str().expect("ascii"))
            .collect();
        assert_eq!(methods, ["/grpc.health.v1.Health/Check"]);
    }
}
