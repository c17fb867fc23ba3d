//! A registry, or a token server, on loopback.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use function_host::Secrets;
use function_host::http::{HeaderValue, Request, Response, StatusCode, header};
use function_host::registry::{AdditionalTokenHosts, RegistryClient, RegistryCredentials, RepositoryClient};
use http_body_util::{BodyExt, Full};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// The answer to a request: status, body, and the value of `WWW-Authenticate`.
pub(crate) type ScriptedAnswer = (u16, String, Option<String>);

/// A received request.
#[derive(Clone, Debug)]
pub(crate) struct ReceivedRequest {
    pub(crate) line: String,
    pub(crate) authorization: String,
    pub(crate) body: String,
}

/// A server that answers with a function, and remembers its requests.
pub(crate) struct TestServer {
    pub(crate) host: String,
    requests: Arc<Mutex<Vec<ReceivedRequest>>>,
}

impl TestServer {
    /// Starts a server on `address`, an IP address of this machine.
    pub(crate) async fn start(
        address: &str,
        answer: impl Fn(&ReceivedRequest) -> ScriptedAnswer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(format!("{address}:0")).await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let requests: Arc<Mutex<Vec<ReceivedRequest>>> = Arc::default();
        let (answer, log) = (Arc::new(answer), Arc::clone(&requests));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                    async move {
                        let (head, body) = request.into_parts();
                        let authorization = head.headers.get(header::AUTHORIZATION);
                        let received = ReceivedRequest {
                            line: format!("{} {}", head.method, head.uri),
                            authorization: authorization
                                .map_or("", |value| value.to_str().unwrap())
                                .to_owned(),
                            body: String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec())
                                .unwrap(),
                        };
                        let (status, body, challenge) = answer(&received);
                        log.lock().unwrap().push(received);
                        let mut response = Response::new(Full::<Bytes>::from(body));
                        *response.status_mut() = StatusCode::from_u16(status).unwrap();
                        if let Some(challenge) = challenge {
                            let challenge = HeaderValue::from_str(&challenge).unwrap();
                            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
                        }
                        Ok::<_, Infallible>(response)
                    }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { host, requests }
    }

    /// Returns all requests since the start, in the order in which they were answered.
    pub(crate) fn received_requests(&self) -> Vec<ReceivedRequest> {
        self.requests.lock().unwrap().clone()
    }

    /// Returns the repository `team/hello` of this registry, for a client that speaks plain HTTP and asks for tokens at
    /// `other_token_hosts` too.
    pub(crate) fn team_hello_repository(
        &self,
        username: &str,
        secret: &str,
        other_token_hosts: &str,
    ) -> RepositoryClient {
        let other_token_hosts: AdditionalTokenHosts = other_token_hosts.parse().unwrap();
        let client = RegistryClient::new(&Secrets::new("/nowhere"), true, other_token_hosts).unwrap();
        let credentials = RegistryCredentials {
            username: username.to_owned(),
            secret: secret.to_owned(),
        };
        client.repository(&self.host, "team/hello", credentials)
    }
}
