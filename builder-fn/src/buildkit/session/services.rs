//! The gRPC services of a session. Adding a service also announces its method.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

use bollard_buildkit_proto::fsutil::types::Packet;
use bollard_buildkit_proto::health::HealthCheckRequest;
use bollard_buildkit_proto::health::health_client::HealthClient;
use bollard_buildkit_proto::health::health_server::HealthServer;
use bollard_buildkit_proto::moby::buildkit::secrets::v1::GetSecretRequest;
use bollard_buildkit_proto::moby::buildkit::secrets::v1::secrets_client::SecretsClient;
use bollard_buildkit_proto::moby::buildkit::secrets::v1::secrets_server::SecretsServer;
use bollard_buildkit_proto::moby::filesync::v1::CredentialsRequest;
use bollard_buildkit_proto::moby::filesync::v1::auth_client::AuthClient;
use bollard_buildkit_proto::moby::filesync::v1::auth_server::AuthServer;
use bollard_buildkit_proto::moby::filesync::v1::file_sync_client::FileSyncClient;
use bollard_buildkit_proto::moby::filesync::v1::file_sync_server::FileSyncServer;
use http::{Request, Response};
use hyper::server::conn::http2;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::NamedService;
use tonic::service::Routes;

use super::auth::{AuthService, CredentialStore};
use super::filesync::FileSync;
use super::health::HealthService;
use super::method;
use super::secrets::{SecretStore, SecretsService};
use super::source_check::{CHECK_POLICY_PATH, Denial, PolicyVerifier, SourceCheck, SourceGate};
use crate::buildkit::shared_key::KeyLease;
use crate::buildkit::{HTTP2_CONNECTION_WINDOW_BYTES, HTTP2_STREAM_WINDOW_BYTES, MAX_GRPC_MESSAGE_BYTES};
use crate::context::SourceContext;

/// The limit on the headers of a daemon's request, in bytes. The patterns of a large `.dockerignore` come as headers;
/// this is the default of Go's server, where hyper's is 16 KiB.
const MAX_HEADER_LIST_BYTES: u32 = 1 << 20;

/// The bytes of one service's answer that may wait until the daemon reads them.
const SEND_BUFFER_BYTES: usize = 128 << 10;

/// The gRPC services of a session, which answer the daemon while it builds.
#[derive(Clone, Default)]
pub struct SessionServices {
    routes: Routes,
    methods: Vec<String>,
    /// The record of what the daemon asked about sources, if the session has rules for them.
    gate: Option<SourceGate>,
}

impl SessionServices {
    /// Creates an empty set of services. The daemon drops a session without [`with_health`](Self::with_health) after 10
    /// s.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the health service.
    #[must_use]
    pub fn with_health(self) -> Self {
        let check = method::record_method_path(|recorder| async move {
            HealthClient::new(recorder)
                .check(HealthCheckRequest::default())
                .await
        });
        self.with_service(HealthServer::new(HealthService), check)
    }

    /// Adds the service that the daemon asks whether the build may read a source.
    ///
    /// Files that are added afterwards are not sent to a daemon that does not ask.
    #[must_use]
    pub fn with_source_check_gating_later_files(mut self, check: Arc<dyn SourceCheck>) -> Self {
        let gate = SourceGate::default();
        self.gate = Some(gate.clone());
        self.with_service(
            PolicyVerifier::new(check, gate),
            Some(CHECK_POLICY_PATH.to_owned()),
        )
    }

    /// Adds the file-sync service with the files of `context`, under both folder names that the Dockerfile frontend
    /// requests.
    #[must_use]
    pub fn with_files(self, context: Arc<SourceContext>, lease: Arc<KeyLease>) -> Self {
        let mut files = FileSync::new(context, lease);
        if let Some(gate) = &self.gate {
            files = files.behind_gate(gate.clone());
        }
        let server = FileSyncServer::new(files).max_decoding_message_size(MAX_GRPC_MESSAGE_BYTES);
        let diff_copy = method::record_method_path(|recorder| async move {
            FileSyncClient::new(recorder)
                .diff_copy(tokio_stream::empty::<Packet>())
                .await
        });
        self.with_service(server, diff_copy)
    }

    /// Adds the auth service, with credentials for registries.
    #[must_use]
    pub fn with_credentials(self, store: Arc<dyn CredentialStore>) -> Self {
        let credentials = method::record_method_path(|recorder| async move {
            AuthClient::new(recorder)
                .credentials(CredentialsRequest::default())
                .await
        });
        self.with_service(AuthServer::new(AuthService::new(store)), credentials)
    }

    /// Adds the secrets service, unless `store` is empty: the daemon learns from its absence that there are no secrets.
    #[must_use]
    pub fn with_secrets_unless_empty(self, store: Arc<dyn SecretStore>) -> Self {
        if store.is_empty() {
            return self;
        }
        let get_secret = method::record_method_path(|recorder| async move {
            SecretsClient::new(recorder)
                .get_secret(GetSecretRequest::default())
                .await
        });
        self.with_service(SecretsServer::new(SecretsService::new(store)), get_secret)
    }

    /// Adds a gRPC service, and announces one of its methods, by which the daemon learns that the session has the
    /// service.
    fn with_service<S>(mut self, service: S, method: Option<String>) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
        S: NamedService + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        self.routes = self.routes.add_service(service);
        self.methods.extend(method);
        self
    }

    /// Returns whether the session has rules for sources.
    pub(in crate::buildkit) fn checks_sources(&self) -> bool {
        self.gate.is_some()
    }

    /// Returns whether the daemon has asked about a source, as one does that obeys the session's rules.
    pub(in crate::buildkit) fn was_asked_about_sources(&self) -> bool {
        self.gate.as_ref().is_some_and(SourceGate::is_open)
    }

    /// Returns the denial of a source that a daemon's error `message` is about.
    pub(in crate::buildkit) fn denial_that_error_is_about(&self, message: &str) -> Option<Denial> {
        self.gate.as_ref()?.denial_that_error_is_about(message)
    }

    /// Returns the paths of the announced gRPC methods, such as `/moby.filesync.v1.FileSync/DiffCopy`.
    pub(super) fn announced_methods(&self) -> &[String] {
        &self.methods
    }

    /// Serves the services on one connection until the daemon ends it. Dropping the future cancels every request on it.
    pub(super) async fn serve_connection(
        self,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<(), hyper::Error> {
        let requests = RequestTasks::default();
        let _end = requests.cancel_on_drop();
        http2::Builder::new(requests)
            .max_header_list_size(MAX_HEADER_LIST_BYTES)
            .initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES)
            .initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(SEND_BUFFER_BYTES)
            .serve_connection(TokioIo::new(io), TowerToHyperService::new(self.routes))
            .await
    }
}

impl fmt::Debug for SessionServices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(&self.methods).finish()
    }
}

/// An executor for the requests of one session, which cancels them when the session ends.
#[derive(Clone, Debug, Default)]
struct RequestTasks {
    cancelled: CancellationToken,
}

impl RequestTasks {
    /// Returns a guard that cancels all requests when it is dropped.
    fn cancel_on_drop(&self) -> DropGuard {
        self.cancelled.clone().drop_guard()
    }
}

impl<F> hyper::rt::Executor<F> for RequestTasks
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, request: F) {
        let cancelled = self.cancelled.clone();
        tokio::spawn(async move {
            cancelled.run_until_cancelled_owned(request).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use function_host::prometheus::IntCounter;
    use http_body_util::{BodyExt, Full};
    use hyper_util::rt::TokioExecutor;

    use super::*;
    use crate::buildkit::SharedKeyPool;
    use crate::buildkit::session::RegistryCredentials;
    use crate::context::{Entry, Index, Spool};

    #[derive(Debug)]
    struct EmptyCredentialStore;

    #[tonic::async_trait]
    impl CredentialStore for EmptyCredentialStore {
        async fn credentials_or_empty(&self, _host: &str) -> RegistryCredentials {
            RegistryCredentials::default()
        }
    }

    /// A store with the same value for every id.
    #[derive(Debug)]
    struct SameSecretForEveryIdStore;

    impl SecretStore for SameSecretForEveryIdStore {
        fn secret(&self, _id: &str) -> Option<&[u8]> {
            Some(b"value")
        }

        fn is_empty(&self) -> bool {
            false
        }
    }

    /// Returns all services but the source check.
    fn all_services_but_source_check() -> SessionServices {
        let keys = SharedKeyPool::new(IntCounter::new("sent", "sent").expect("counter"));
        let context = SourceContext::new(
            Index::of_entries_linking_same_offset(std::iter::empty::<(&str, Entry<'_>)>()),
            Spool::in_memory(Vec::new()),
        );
        SessionServices::new()
            .with_health()
            .with_files(Arc::new(context), Arc::new(keys.lease_single_use()))
            .with_credentials(Arc::new(EmptyCredentialStore))
            .with_secrets_unless_empty(Arc::new(SameSecretForEveryIdStore))
    }

    /// Serves `services` over a pipe in memory, and returns a client at its other end.
    async fn connect_http2_client(
        services: SessionServices,
    ) -> hyper::client::conn::http2::SendRequest<Full<Bytes>> {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        tokio::spawn(services.serve_connection(ours));
        let (client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(theirs))
                .await
                .expect("handshake");
        tokio::spawn(connection);
        client
    }

    #[test]
    fn a_session_announces_one_method_of_each_of_its_services() {
        assert_eq!(
            all_services_but_source_check().announced_methods(),
            [
                "/grpc.health.v1.Health/Check",
                "/moby.filesync.v1.FileSync/DiffCopy",
                "/moby.filesync.v1.Auth/Credentials",
                "/moby.buildkit.secrets.v1.Secrets/GetSecret",
            ]
        );
    }

    #[tokio::test]
    async fn every_announced_session_method_is_implemented() {
        let services = all_services_but_source_check();
        let methods = services.announced_methods().to_vec();
        let mut client = connect_http2_client(services).await;

        for path in methods
            .iter()
            .map(String::as_str)
            .chain(["/grpc.health.v1.Health/Cheque"])
        {
            // An empty message: one byte for "not compressed", four for the length.
            let request = Request::post(format!("http://session{path}"))
                .header("content-type", "application/grpc")
                .body(Full::from(vec![0; 5]))
                .expect("request");
            let response = client.send_request(request).await.expect("response");
            let (head, body) = response.into_parts();
            let trailers = body
                .collect()
                .await
                .expect("body")
                .trailers()
                .cloned()
                .unwrap_or_default();
            let status = trailers
                .get("grpc-status")
                .or(head.headers.get("grpc-status"))
                .expect("a status")
                .clone();
            let unimplemented = "12";
            assert_eq!(
                status == unimplemented,
                path.ends_with("Cheque"),
                "{path}: {status:?}"
            );
        }
    }

    #[tokio::test]
    async fn dropping_the_guard_of_request_tasks_cancels_their_requests() {
        let requests = RequestTasks::default();
        let guard = requests.cancel_on_drop();
        let (alive, cancelled) = tokio::sync::oneshot::channel::<()>();
        hyper::rt::Executor::execute(&requests, async move {
            let _alive = alive;
            std::future::pending::<()>().await;
        });

        drop(guard);

        cancelled
            .await
            .expect_err("the request was dropped, and its sender with it");
    }

    #[tokio::test]
    async fn the_health_check_answers_serving() {
        let (ours, theirs) = tokio::io::duplex(4096);
        tokio::spawn(SessionServices::new().with_health().serve_connection(ours));
        let mut theirs = Some(TokioIo::new(theirs));
        let channel = tonic::transport::Endpoint::from_static("http://session")
            .connect_with_connector(tower::service_fn(move |_| {
                let io = theirs.take();
                async move {
                    io.ok_or(std::io::ErrorKind::NotConnected)
                        .map_err(std::io::Error::from)
                }
            }))
            .await
            .expect("channel");

        let answer = HealthClient::new(channel)
            .check(HealthCheckRequest::default())
            .await
            .expect("answer");

        assert_eq!(answer.into_inner().status().as_str_name(), "SERVING");
    }
}
