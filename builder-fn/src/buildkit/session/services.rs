//! The services of a session: what is served, and the list of it that a session announces, from one registration.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

use bollard_buildkit_proto::health::health_server::HealthServer;
use bollard_buildkit_proto::moby::buildkit::secrets::v1::secrets_server::SecretsServer;
use bollard_buildkit_proto::moby::filesync::v1::auth_server::AuthServer;
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

use super::{Auth, CredentialStore, FileSync, Health, Lease, Secrets};
use crate::buildkit::{CONNECTION_WINDOW, MAX_MESSAGE, STREAM_WINDOW};
use crate::context::SourceContext;
use crate::sealed::BuildSecrets;

/// Patterns of a large `.dockerignore` come as headers: what Go's server accepts by default, rather than hyper's 16 KiB.
const MAX_HEADERS: u32 = 1 << 20;

/// Bytes of an answer that may wait for the daemon to take them.
const SEND_BUFFER: usize = 128 << 10;

/// A set of services.
#[derive(Clone, Default)]
pub struct Services {
    routes: Routes,
    methods: Vec<String>,
}

impl Services {
    /// None yet. A session without [`with_health`](Self::with_health) is dropped by the daemon after 10 s.
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers whether we are still there.
    #[must_use]
    pub fn with_health(self) -> Self {
        self.with(HealthServer::new(Health), &["Check"])
    }

    /// Sends the files of `context`, under both names that the Dockerfile frontend asks for.
    #[must_use]
    pub fn with_files(self, context: Arc<SourceContext>, lease: Arc<Lease>) -> Self {
        let server =
            FileSyncServer::new(FileSync::new(context, lease)).max_decoding_message_size(MAX_MESSAGE);
        self.with(server, &["DiffCopy"])
    }

    /// Answers with credentials for registries.
    #[must_use]
    pub fn with_credentials(self, store: Arc<dyn CredentialStore>) -> Self {
        self.with(AuthServer::new(Auth::new(store)), &["Credentials"])
    }

    /// Answers with secrets. Without any the daemon is told that there are none by there being no such service.
    #[must_use]
    pub fn with_secrets(self, secrets: BuildSecrets) -> Self {
        match secrets.is_empty() {
            true => self,
            false => self.with(SecretsServer::new(Secrets::new(secrets)), &["GetSecret"]),
        }
    }

    /// Serves `service` and announces those of its `methods` that do something. Generated code has the service's
    /// name but no list of its methods; a test below keeps the two together.
    fn with<S>(mut self, service: S, methods: &[&str]) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
        S: NamedService + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        self.routes = self.routes.add_service(service);
        self.methods
            .extend(methods.iter().map(|method| format!("/{}/{method}", S::NAME)));
        self
    }

    /// The paths of what is served, such as `/moby.filesync.v1.FileSync/DiffCopy`.
    pub(super) fn methods(&self) -> &[String] {
        &self.methods
    }

    /// Serves one connection until the other side ends it. When the future is dropped, so is every request on it.
    pub(super) async fn serve(
        self,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<(), hyper::Error> {
        let requests = Requests::default();
        let _end = requests.end_on_drop();
        http2::Builder::new(requests)
            .max_header_list_size(MAX_HEADERS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .serve_connection(TokioIo::new(io), TowerToHyperService::new(self.routes))
            .await
    }
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(&self.methods).finish()
    }
}

/// Runs the requests of one connection, and none of them any longer than it.
#[derive(Clone, Debug, Default)]
struct Requests {
    ended: CancellationToken,
}

impl Requests {
    fn end_on_drop(&self) -> DropGuard {
        self.ended.clone().drop_guard()
    }
}

impl<F> hyper::rt::Executor<F> for Requests
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, request: F) {
        let ended = self.ended.clone();
        tokio::spawn(async move {
            ended.run_until_cancelled_owned(request).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use bollard_buildkit_proto::health::HealthCheckRequest;
    use bollard_buildkit_proto::health::health_client::HealthClient;
    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};
    use hyper_util::rt::TokioExecutor;

    use super::*;
    use crate::docker_config::Credentials;

    #[derive(Debug)]
    struct NoCredentials;

    #[tonic::async_trait]
    impl CredentialStore for NoCredentials {
        async fn credentials(&self, _host: &str) -> Credentials {
            Credentials::default()
        }
    }

    async fn client(services: Services) -> hyper::client::conn::http2::SendRequest<Full<Bytes>> {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        tokio::spawn(services.serve(ours));
        let (client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(theirs))
                .await
                .expect("handshake");
        tokio::spawn(connection);
        client
    }

    #[tokio::test]
    async fn every_method_that_is_announced_is_one_that_is_answered() {
        let services = Services::new()
            .with_health()
            .with_credentials(Arc::new(NoCredentials));
        let methods = services.methods().to_vec();
        assert_eq!(methods.len(), 2);
        let mut client = client(services).await;

        for path in methods
            .iter()
            .map(String::as_str)
            .chain(["/grpc.health.v1.Health/Cheque"])
        {
            // An empty message: one byte that says "not compressed", four of length.
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
    async fn a_dropped_connection_takes_its_requests_along() {
        let requests = Requests::default();
        let guard = requests.end_on_drop();
        let (alive, gone) = tokio::sync::oneshot::channel::<()>();
        hyper::rt::Executor::execute(&requests, async move {
            let _alive = alive;
            std::future::pending::<()>().await;
        });

        drop(guard);

        gone.await
            .expect_err("the request was dropped, and its sender with it");
    }

    #[tokio::test]
    async fn health_is_serving() {
        let (ours, theirs) = tokio::io::duplex(4096);
        tokio::spawn(Services::new().with_health().serve(ours));
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
