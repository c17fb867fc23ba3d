//! A registry with faults, in front of the stack's: it rejects chosen requests, and issues bearer tokens that it
//! revokes.
//!
//! Everything else is forwarded to the stack's registry with that registry's own credentials, so that what a build
//! pushes through the proxy is an image of the real registry.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::State,
    http::{
        HeaderMap, HeaderValue, Request, StatusCode,
        header::{
            AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, TRANSFER_ENCODING,
            WWW_AUTHENTICATE,
        },
    },
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::{registry::RegistryClient, testbed::Testbed};

/// The name of the user who gets tokens of the proxy.
const TOKEN_USER_NAME: &str = "pusher";
/// The password of [`TOKEN_USER_NAME`].
const TOKEN_USER_PASSWORD: &str = "the password of the pusher";

/// The largest body of a forwarded request.
const BODY_BYTES_MAX: usize = 64 << 20;

/// Selects requests by their method and by a part of their path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestPattern {
    /// The method, such as `PUT`.
    pub method: &'static str,
    /// The part of the path, such as `/manifests/`.
    pub path_part: &'static str,
}

/// An answer with which the proxy rejects requests.
#[derive(Debug, Clone, Copy)]
pub struct Rejection {
    /// The status of the answer.
    pub status: u16,
    /// The value of the header `Retry-After`, if there is one.
    pub retry_after: Option<&'static str>,
    /// The code and the message in the JSON body; without them, the body is empty.
    pub error: Option<(&'static str, &'static str)>,
}

/// A running proxy in front of the stack's registry; it stops on drop.
#[derive(Debug)]
pub struct RegistryProxy {
    /// The proxy's host and port, as in image references.
    pub host: String,
    shared: Arc<ProxyShared>,
    serving: JoinHandle<()>,
}

/// What the connections of the proxy share.
#[derive(Debug)]
struct ProxyShared {
    host: String,
    /// The stack's registry, with its credentials.
    target: String,
    credentials: Option<(String, String)>,
    http: reqwest::Client,
    /// The validity that issued tokens claim to have, in seconds; `None` if the proxy wants no tokens.
    token_lifetime: Option<u32>,
    state: Mutex<ProxyState>,
}

/// What the proxy does with requests, and what it has done.
#[derive(Debug, Default)]
struct ProxyState {
    rejection: Option<ActiveRejection>,
    rejected: usize,
    /// The request before which all tokens are revoked, until it has come.
    revocation: Option<RequestPattern>,
    revocations: usize,
    /// The scopes of each issued token, and the number of revocations before it.
    issued: Vec<IssuedTokenRecord>,
}

/// A rejection of the next requests that a pattern selects.
#[derive(Debug)]
struct ActiveRejection {
    pattern: RequestPattern,
    answer: Rejection,
    left: usize,
}

/// What the proxy notes when it issues a token. The text of the token is the position of its note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedTokenRecord {
    /// The scopes that the token was requested for, each `repository:NAME:ACTIONS`.
    pub scopes: String,
    /// The number of revocations before the token was issued. Each ends the validity of all tokens before it.
    pub revocations_before: usize,
}

impl RegistryProxy {
    /// Starts a proxy that wants no credentials, on a free port of the loopback address.
    pub async fn start(testbed: &Testbed) -> Result<Self> {
        Self::start_with_token_lifetime(testbed, None).await
    }

    /// Starts a proxy that wants bearer tokens, on a free port of the loopback address. A token is valid until it is
    /// revoked, whatever `expires_in` its answer has: this many seconds.
    pub async fn start_with_tokens(testbed: &Testbed, claimed_lifetime_seconds: u32) -> Result<Self> {
        Self::start_with_token_lifetime(testbed, Some(claimed_lifetime_seconds)).await
    }

    async fn start_with_token_lifetime(testbed: &Testbed, token_lifetime: Option<u32>) -> Result<Self> {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        let host = listener.local_addr()?.to_string();
        let registry = &testbed.stack.registry;
        let shared = Arc::new(ProxyShared {
            host: host.clone(),
            target: format!("http://{}", registry.host),
            credentials: Some((registry.user.clone(), registry.password.clone()))
                .filter(|(user, _)| !user.is_empty()),
            http: reqwest::Client::builder()
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .build()?,
            token_lifetime,
            state: Mutex::default(),
        });
        let app = Router::new()
            .fallback(answer_request)
            .with_state(Arc::clone(&shared));
        let serving = tokio::spawn(async move {
            axum::serve(listener, app).await.ok();
        });
        Ok(Self {
            host,
            shared,
            serving,
        })
    }

    /// Returns a Docker `config.json` with credentials for the proxy and for the stack's registry.
    pub fn docker_config_for_proxy_and_registry(&self, testbed: &Testbed) -> Result<String> {
        let registry = &testbed.stack.registry;
        let parse = |config: String| serde_json::from_str::<serde_json::Value>(&config);
        let mut config = parse(RegistryClient::docker_config(
            &registry.host,
            &registry.user,
            &registry.password,
        ))?;
        let own = parse(RegistryClient::docker_config(
            &self.host,
            TOKEN_USER_NAME,
            TOKEN_USER_PASSWORD,
        ))?;
        config["auths"][&self.host] = own["auths"][&self.host].clone();
        Ok(config.to_string())
    }

    /// Rejects the next `times` requests that `pattern` selects, and forgets earlier rejections.
    pub fn set_rejection_of_next(&self, pattern: RequestPattern, times: usize, answer: Rejection) {
        let mut state = self.shared.lock();
        state.rejected = 0;
        state.rejection = Some(ActiveRejection {
            pattern,
            answer,
            left: times,
        });
    }

    /// Returns the number of requests that were rejected since the last
    /// [`set_rejection_of_next`](Self::set_rejection_of_next).
    pub fn rejected_since_set_rejection(&self) -> usize {
        self.shared.lock().rejected
    }

    /// Revokes all tokens right before the next request that `pattern` selects is checked.
    pub fn revoke_tokens_before_next(&self, pattern: RequestPattern) {
        self.shared.lock().revocation = Some(pattern);
    }

    /// Revokes all tokens that were issued so far.
    pub fn revoke_tokens(&self) {
        self.shared.lock().revocations += 1;
    }

    /// Returns the number of revocations so far.
    pub fn total_revocation_count(&self) -> usize {
        self.shared.lock().revocations
    }

    /// Returns all tokens that were issued so far.
    pub fn issued_tokens(&self) -> Vec<IssuedTokenRecord> {
        self.shared.lock().issued.clone()
    }
}

impl Drop for RegistryProxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl RequestPattern {
    fn selects(self, request: &Request<Body>) -> bool {
        request.method().as_str() == self.method && request.uri().path().contains(self.path_part)
    }
}

impl ProxyState {
    /// Returns the answer to a request that is rejected, and counts it.
    fn take_rejection(&mut self, request: &Request<Body>) -> Option<Rejection> {
        let rejection = self
            .rejection
            .as_mut()
            .filter(|rejection| rejection.pattern.selects(request))?;
        rejection.left = rejection.left.checked_sub(1)?;
        self.rejected += 1;
        Some(rejection.answer)
    }

    /// Revokes all tokens if `request` is the one before which that happens.
    fn revoke_tokens_if_due_before(&mut self, request: &Request<Body>) {
        if self.revocation.is_some_and(|pattern| pattern.selects(request)) {
            self.revocation = None;
            self.revocations += 1;
        }
    }

    /// Returns whether this is the text of a token that was not revoked.
    fn is_issued_and_unrevoked_token(&self, token: &str) -> bool {
        let token = token
            .parse::<usize>()
            .ok()
            .and_then(|number| self.issued.get(number));
        token.is_some_and(|token| token.revocations_before == self.revocations)
    }
}

impl ProxyShared {
    fn lock(&self) -> MutexGuard<'_, ProxyState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the answer to a request without a valid token; `None` if it has one, or none is needed.
    fn revoke_if_due_and_challenge_if_token_required(&self, request: &Request<Body>) -> Option<Response> {
        self.token_lifetime?;
        let mut state = self.lock();
        state.revoke_tokens_if_due_before(request);
        let token = bearer_token(request.headers());
        if token.is_some_and(|token| state.is_issued_and_unrevoked_token(token)) {
            return None;
        }
        let actions = match request.method().as_str() {
            "GET" | "HEAD" => "pull",
            _ => "pull,push",
        };
        let mut challenge = format!("Bearer realm=\"http://{}/token\",service=\"e2e\"", self.host);
        if let Some(repository) = repository_of_path(request.uri().path()) {
            challenge.push_str(&format!(",scope=\"repository:{repository}:{actions}\""));
        }
        if token.is_some() {
            challenge.push_str(",error=\"invalid_token\"");
        }
        Some((StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, challenge)]).into_response())
    }

    /// Answers a request for a token with the scopes in its query.
    fn issue_token_if_credentials_match(&self, request: &Request<Body>) -> Response {
        let expected = format!(
            "Basic {}",
            STANDARD.encode(format!("{TOKEN_USER_NAME}:{TOKEN_USER_PASSWORD}"))
        );
        let is_user = request
            .headers()
            .get(AUTHORIZATION)
            .is_some_and(|given| given.as_bytes() == expected.as_bytes());
        let (Some(lifetime), true) = (self.token_lifetime, is_user) else {
            return StatusCode::UNAUTHORIZED.into_response();
        };
        let url = reqwest::Url::parse(&format!("http://{}{}", self.host, request.uri()));
        let scopes: Vec<_> = url
            .iter()
            .flat_map(|url| url.query_pairs())
            .filter(|(name, _)| name == "scope")
            .map(|(_, scope)| scope.into_owned())
            .collect();
        let mut state = self.lock();
        let token = state.issued.len().to_string();
        let revocations_before = state.revocations;
        state.issued.push(IssuedTokenRecord {
            scopes: scopes.join(" "),
            revocations_before,
        });
        axum::Json(json!({ "token": token, "expires_in": lifetime })).into_response()
    }

    /// Sends a request to the stack's registry, and returns its answer.
    async fn forward(&self, request: Request<Body>) -> Result<Response> {
        let (head, body) = request.into_parts();
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut headers = without_length_and_connection_headers(head.headers);
        headers.remove(AUTHORIZATION);
        let body = to_bytes(body, BODY_BYTES_MAX).await?;
        // The header `Host` is the proxy's, so that the registry names the proxy in the places of uploads.
        let mut forwarded = self
            .http
            .request(head.method, format!("{}{path}", self.target))
            .headers(headers)
            .body(body);
        if let Some((user, password)) = &self.credentials {
            forwarded = forwarded.basic_auth(user, Some(password));
        }
        let answer = forwarded.send().await.context("the stack's registry")?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let length = headers.get(CONTENT_LENGTH).cloned();
        let content: Bytes = answer.bytes().await?;
        let is_empty = content.is_empty();
        let mut response = Response::new(Body::from(content));
        *response.status_mut() = status;
        *response.headers_mut() = without_length_and_connection_headers(headers);
        // The answer to HEAD has the length of a body that it does not have.
        if let Some(length) = length.filter(|_| is_empty) {
            response.headers_mut().insert(CONTENT_LENGTH, length);
        }
        Ok(response)
    }
}

async fn answer_request(State(proxy): State<Arc<ProxyShared>>, request: Request<Body>) -> Response {
    if request.uri().path() == "/token" {
        return proxy.issue_token_if_credentials_match(&request);
    }
    let rejection = proxy.lock().take_rejection(&request);
    if let Some(rejection) = rejection {
        return read_body_and_reject(rejection, request).await;
    }
    if let Some(challenge) = proxy.revoke_if_due_and_challenge_if_token_required(&request) {
        return challenge;
    }
    proxy
        .forward(request)
        .await
        .unwrap_or_else(|error| (StatusCode::BAD_GATEWAY, format!("{error:#}")).into_response())
}

/// Returns the answer of a rejection, after the body of its request was read.
async fn read_body_and_reject(rejection: Rejection, request: Request<Body>) -> Response {
    drop(to_bytes(request.into_body(), BODY_BYTES_MAX).await);
    let status = StatusCode::from_u16(rejection.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = rejection
        .error
        .map(|(code, message)| json!({ "errors": [{ "code": code, "message": message }] }).to_string());
    let mut response = (status, body.unwrap_or_default()).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(seconds) = rejection.retry_after.and_then(|seconds| seconds.parse().ok()) {
        headers.insert(RETRY_AFTER, seconds);
    }
    response
}

/// Returns the bearer token of a request.
fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

/// Returns the name of the repository in the path of a registry's API.
fn repository_of_path(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/v2/")?;
    let end = ["/blobs/", "/manifests/", "/tags/"]
        .iter()
        .find_map(|part| rest.find(part))?;
    rest.get(..end)
}

/// Removes headers that belong to a connection rather than to the message.
fn without_length_and_connection_headers(mut headers: HeaderMap) -> HeaderMap {
    for name in [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING] {
        headers.remove(name);
    }
    headers
}
