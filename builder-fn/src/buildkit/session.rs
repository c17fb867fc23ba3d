//! What a daemon may ask of us while it builds.
//!
//! `Control.Session` is a stream of bytes in both directions. Over it we *serve* gRPC, and the daemon is the client:
//! it asks for the context's files, for credentials, and every 5 s whether we are still there.

mod auth;
mod filesync;
mod health;
mod keys;
mod pipe;
mod secrets;
mod services;

use std::convert::Infallible;

use bollard_buildkit_proto::moby::buildkit::v1::BytesMessage;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{MetadataMap, MetadataValue};

pub use auth::{Auth, CredentialStore};
pub use filesync::FileSync;
pub use health::Health;
pub use keys::{Lease, SharedKeys};
pub use secrets::Secrets;
pub use services::Services;

use super::connection::Connection;

/// Names of the headers that open a session: BuildKit `session/session.go`. gRPC metadata is lower case.
const ID: &str = "x-docker-expose-session-uuid";
const NAME: &str = "x-docker-expose-session-name";
const SHARED_KEY: &str = "x-docker-expose-session-sharedkey";
const METHOD: &str = "x-docker-expose-session-grpc-method";

/// Messages that may wait to be sent. Each is at most as large as one write of the HTTP/2 server.
const PIPE_DEPTH: usize = 2;

/// One session, not yet open.
#[derive(Debug)]
pub struct Session {
    id: String,
    shared_key: String,
    services: Services,
}

/// Why a session is over. None of these is the caller's doing.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The daemon did not take the session.
    #[error("BuildKit did not open the session")]
    Refused(#[source] Box<tonic::Status>),
    /// The daemon ended it, or the connection broke.
    #[error("BuildKit ended the session")]
    Ended(#[source] Option<hyper::Error>),
}

impl Session {
    /// A session with an id of its own, which serves `services`.
    ///
    /// `shared_key` is what the daemon keeps transferred folders under: see [`SharedKeys`].
    pub fn new(shared_key: String, services: Services) -> Self {
        Self {
            id: uuid::Uuid::new_v4().simple().to_string(),
            shared_key,
            services,
        }
    }

    /// What a solve names to make use of this session.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Opens the session and serves it until the daemon or the connection ends it. Never returns otherwise: whoever
    /// no longer needs the session drops the future, and with it every answer that is still under way.
    pub(super) async fn run(self, connection: &Connection) -> Result<Infallible, SessionError> {
        let (sender, receiver) = mpsc::channel(PIPE_DEPTH);
        let outgoing =
            ReceiverStream::new(receiver).map(|bytes: bytes::Bytes| BytesMessage { data: bytes.into() });
        let mut request = tonic::Request::new(outgoing);
        *request.metadata_mut() = self.headers();
        let incoming = connection
            .control()
            .session(request)
            .await
            .map_err(|status| SessionError::Refused(Box::new(status)))?
            .into_inner();
        let served = self.services.serve(pipe::pipe(sender, incoming)).await;
        Err(SessionError::Ended(served.err()))
    }

    fn headers(&self) -> MetadataMap {
        let mut headers = MetadataMap::new();
        let methods = self
            .services
            .methods()
            .iter()
            .map(|method| (METHOD, method.as_str()));
        let about = [
            (ID, self.id.as_str()),
            (NAME, "slipway"),
            (SHARED_KEY, self.shared_key.as_str()),
        ];
        for (name, value) in about.into_iter().chain(methods) {
            // All of these are made here, of ASCII; one that were not would be left out rather than end a build.
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
    fn a_session_announces_itself_and_every_method_it_serves() {
        let session = Session::new("key".into(), Services::new().with_health());
        let headers = session.headers();

        assert_eq!(headers.get(ID).expect("id"), session.id());
        assert_eq!(headers.get(SHARED_KEY).expect("key"), "key");
        let methods: Vec<_> = headers
            .get_all(METHOD)
            .iter()
            .map(|value| value.to_str().expect("ascii"))
            .collect();
        assert_eq!(methods, ["/grpc.health.v1.Health/Check"]);
    }
}
