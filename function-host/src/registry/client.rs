//! A client that looks up manifests and blobs in image registries.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::DOCKER_HUB_NAME_AND_HOST;
use super::challenge::AuthChallenge;
use super::credentials::RegistryCredentials;
use super::error::RegistryError;
use super::realm::AdditionalTokenHosts;
use crate::client::{HttpClient, OutgoingRequestBody};
use crate::error_chain::ErrorChain;
use crate::secret::Secrets;
use crate::trace;

/// The media types of the manifests and indexes that the client accepts, of OCI and Docker, for the header `Accept`.
const ACCEPTED_MANIFEST_TYPES: HeaderValue = HeaderValue::from_static(
    "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json",
);
/// The time limit for one whole response of a registry or a token server. A look-up may take several requests.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// The characters of a scope that are encoded in a query: all but those that a scope's grammar has.
const SCOPE_ENCODED_CHARACTERS: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b':')
    .remove(b'/')
    .remove(b',')
    .remove(b'-')
    .remove(b'_')
    .remove(b'.');
/// The name by which this client identifies itself to token servers.
const TOKEN_CLIENT_ID: &str = "slipway";

/// A client of image registries. It follows no redirects. Clones share connections.
#[derive(Clone)]
pub struct RegistryClient {
    http: HttpClient,
    /// Whether the client uses plain HTTP with registries.
    insecure: bool,
    realms: AdditionalTokenHosts,
}

/// A bearer token for a registry, with its lifetime.
#[derive(Clone)]
pub struct RegistryToken {
    /// The bearer token, as the token server issued it; a secret.
    pub token: String,
    /// The seconds for which the token is valid, if the token server says so.
    pub expires_in: Option<i64>,
}

impl fmt::Debug for RegistryToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryToken")
            .field("expires_in", &self.expires_in)
            .finish_non_exhaustive()
    }
}

/// A handle for requests to one repository of an image registry. It keeps the authentication that the registry asked
/// for.
#[derive(Clone)]
pub struct RepositoryClient {
    client: RegistryClient,
    host: String,
    name: String,
    credentials: RegistryCredentials,
    /// The actions that a token is requested for, separated by commas.
    actions: &'static str,
    /// The value of the header `Authorization`, once the registry has asked for authentication.
    authorization: Option<HeaderValue>,
}

impl RegistryClient {
    /// Creates a registry client that trusts the system's certificates, and those in the secret `gateway-ca` if it
    /// exists.
    ///
    /// With `insecure`, registries speak plain HTTP. `realms` are the hosts that tokens may be fetched from, besides
    /// those of the registries themselves.
    ///
    /// # Errors
    /// Fails if the certificates cannot be loaded, or there are none, and registries are not `insecure`.
    pub fn new(
        secrets: &Secrets,
        insecure: bool,
        realms: AdditionalTokenHosts,
    ) -> Result<Self, RegistryError> {
        let http =
            HttpClient::trusting_system_and_gateway_certificates(secrets, None).or_else(
                |error| match insecure {
                    true => HttpClient::trusting_no_certificate(None),
                    false => Err(error),
                },
            );
        Ok(Self::with_http_client(
            http.map_err(RegistryError::Authority)?,
            insecure,
            realms,
        ))
    }

    /// Creates a registry client that sends its requests with `http`, also those to token servers.
    pub fn with_http_client(http: HttpClient, uses_plain_http: bool, realms: AdditionalTokenHosts) -> Self {
        Self {
            http,
            insecure: uses_plain_http,
            realms,
        }
    }

    /// Returns a handle for the repository `name` of `registry`, which is the registry's name in image references.
    /// Sends nothing yet.
    pub fn repository(
        &self,
        registry: &str,
        name: &str,
        credentials: RegistryCredentials,
    ) -> RepositoryClient {
        let host = if registry == DOCKER_HUB_NAME_AND_HOST.0 {
            DOCKER_HUB_NAME_AND_HOST.1
        } else {
            registry
        };
        RepositoryClient {
            client: self.clone(),
            host: host.to_owned(),
            name: name.to_owned(),
            credentials,
            actions: "pull",
            authorization: None,
        }
    }

    /// Fetches a token for the registry `host` from the token server at `realm`, which the registry named.
    ///
    /// # Errors
    /// Fails if the realm is not allowed, or the token server gives no token.
    pub async fn fetch_token(
        &self,
        host: &str,
        realm: &str,
        service: Option<&str>,
        scopes: &[String],
        credentials: &RegistryCredentials,
    ) -> Result<RegistryToken, RegistryError> {
        let realm = self.realms.parse_allowed_realm(host, realm, self.insecure)?;
        self.request_token(host, &realm, service, scopes, credentials)
            .await
    }

    /// Requests a token from the token server at `realm`, which is allowed: with a POST request for an identity token,
    /// otherwise with a GET request.
    async fn request_token(
        &self,
        host: &str,
        realm: &Uri,
        service: Option<&str>,
        scopes: &[String],
        credentials: &RegistryCredentials,
    ) -> Result<RegistryToken, RegistryError> {
        // A form has one field `scope` with all scopes; a query has one for each, as Docker sends them.
        let service = service.map(|service| format!("service={}", percent_encode(service)));
        let mut request = Request::new(Full::default());
        if let Some(token) = credentials.identity_token() {
            let scope = format!("scope={}", percent_encode(&scopes.join(" ")));
            let fixed = format!(
                "grant_type=refresh_token&client_id={TOKEN_CLIENT_ID}&refresh_token={}",
                percent_encode(token)
            );
            let fields: Vec<String> = [fixed, scope].into_iter().chain(service).collect();
            *request.method_mut() = Method::POST;
            *request.uri_mut() = realm.clone();
            *request.body_mut() = fields.join("&").into();
            let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
            request.headers_mut().insert(CONTENT_TYPE, form_type);
        } else {
            let scopes = scopes
                .iter()
                .map(|scope| format!("scope={}", utf8_percent_encode(scope, SCOPE_ENCODED_CHARACTERS)));
            let fields: Vec<String> = scopes.chain(service).collect();
            let separator = if realm.query().is_some() { '&' } else { '?' };
            *request.uri_mut() = parse_uri(format!("{realm}{separator}{}", fields.join("&")))?;
        }
        if let Some(basic) = credentials.basic_authorization() {
            request
                .headers_mut()
                .insert(AUTHORIZATION, authorization_header(host, &basic)?);
        }
        let response = self.send_with_timeout(request).await?;
        let document: Value = serde_json::from_slice(response.body()).unwrap_or_default();
        let token = ["token", "access_token"]
            .into_iter()
            .find_map(|key| document[key].as_str());
        let token = token.ok_or_else(|| RegistryError::Token {
            registry: host.to_owned(),
            status: response.status(),
        })?;
        Ok(RegistryToken {
            token: token.to_owned(),
            expires_in: document["expires_in"].as_i64(),
        })
    }

    /// Sends a request in a trace span of its own and reads the whole response, within [`RESPONSE_TIMEOUT`].
    async fn send_with_timeout(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Bytes>, RegistryError> {
        let host = request
            .uri()
            .authority()
            .map(ToString::to_string)
            .unwrap_or_default();
        let span = trace::open_outgoing_span_and_inject_headers(&mut request);
        let response = self.http.send_and_receive(request, RESPONSE_TIMEOUT).await;
        let response = response.map_err(|error| RegistryError::from_exchange(error, &host));
        match &response {
            Ok(response) => span.set_response_status(response.status().as_u16()),
            Err(error) => span.mark_failed(ErrorChain(error)),
        }
        response
    }
}

impl RepositoryClient {
    /// Returns the host of the repository's registry.
    pub fn registry_host(&self) -> &str {
        &self.host
    }

    /// Asks the registry whether the repository has the manifest with this digest.
    ///
    /// # Errors
    /// Fails if the registry's answer is neither yes nor no.
    pub async fn has_manifest(&mut self, digest: &str) -> Result<bool, RegistryError> {
        let response = self
            .request_by_digest_or_tag(Method::HEAD, "manifests", digest)
            .await?;
        Ok(self.body_unless_not_found(response)?.is_some())
    }

    /// Fetches the manifest with this digest or tag, if the repository has it. The content is not compared with a
    /// digest.
    ///
    /// # Errors
    /// Fails if the registry's answer is neither the manifest nor that there is none.
    pub async fn fetch_unverified_manifest(
        &mut self,
        digest_or_tag: &str,
    ) -> Result<Option<Bytes>, RegistryError> {
        let response = self
            .request_by_digest_or_tag(Method::GET, "manifests", digest_or_tag)
            .await?;
        self.body_unless_not_found(response)
    }

    /// Fetches the blob with this digest, if the repository has it. A redirect is not followed, and the content is not
    /// compared with the digest.
    ///
    /// # Errors
    /// Fails if the registry's answer is neither the blob nor that there is none.
    pub async fn fetch_unverified_blob(&mut self, digest: &str) -> Result<Option<Bytes>, RegistryError> {
        let response = self
            .request_by_digest_or_tag(Method::GET, "blobs", digest)
            .await?;
        self.body_unless_not_found(response)
    }

    /// Requests tokens for `actions`, which are separated by commas, instead of for `pull`.
    #[must_use]
    pub fn with_token_actions(self, actions: &'static str) -> Self {
        Self { actions, ..self }
    }

    /// Returns the URI of `path` in the repository's API, such as `blobs/uploads/`.
    ///
    /// # Errors
    /// Fails if the registry, the repository or the path is not valid in a URL.
    pub fn uri_in_repository_api(&self, path: &str) -> Result<Uri, RegistryError> {
        let scheme = if self.client.insecure { "http" } else { "https" };
        parse_uri(format!("{scheme}://{}/v2/{}/{path}", self.host, self.name))
    }

    /// Sends the request that `create_request` returns, and sends it again with authentication if the registry asks for
    /// it. Returns the response as soon as its head has arrived, whatever its status.
    ///
    /// The registry's credentials are sent to the registry only: a request for another host has none.
    ///
    /// # Errors
    /// Fails if there is no response within `timeout`, or authentication is not possible.
    pub async fn send(
        &mut self,
        create_request: impl Fn() -> Request<OutgoingRequestBody>,
        timeout: Duration,
    ) -> Result<Response<Incoming>, RegistryError> {
        let response = self.send_once(create_request(), timeout).await?;
        if response.status() != StatusCode::UNAUTHORIZED || self.authorization.is_some() {
            return Ok(response);
        }
        self.authorization = Some(self.answer_challenge(response.headers()).await?);
        self.send_once(create_request(), timeout).await
    }

    /// Sends a request with the known authentication, if it is for the registry's host.
    async fn send_once(
        &self,
        mut request: Request<OutgoingRequestBody>,
        timeout: Duration,
    ) -> Result<Response<Incoming>, RegistryError> {
        let host = request.uri().authority().map(ToString::to_string);
        let host = host.unwrap_or_default();
        if let Some(value) = self.authorization.as_ref().filter(|_| host == self.host) {
            request.headers_mut().insert(AUTHORIZATION, value.clone());
        }
        let response = self.client.http.send(request, timeout).await;
        response.map_err(|error| RegistryError::from_exchange(error, &host))
    }

    /// Returns the body of a response with status 200, or `None` for status 404. Another status is an error.
    fn body_unless_not_found(&self, response: Response<Bytes>) -> Result<Option<Bytes>, RegistryError> {
        match response.status() {
            StatusCode::OK => Ok(Some(response.into_body())),
            StatusCode::NOT_FOUND => Ok(None),
            status => Err(RegistryError::Status {
                registry: self.host.clone(),
                status,
            }),
        }
    }

    /// Requests the manifest with this digest or tag, or the blob with this digest (`manifests_or_blobs` is `manifests`
    /// or `blobs`), and repeats the request with authentication if the registry asks for it.
    async fn request_by_digest_or_tag(
        &mut self,
        method: Method,
        manifests_or_blobs: &str,
        digest_or_tag: &str,
    ) -> Result<Response<Bytes>, RegistryError> {
        let is_digest_or_tag = digest_or_tag
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b":+._-".contains(&byte));
        if !is_digest_or_tag {
            return Err(RegistryError::Name {
                name: digest_or_tag.to_owned(),
            });
        }
        let uri = self.uri_in_repository_api(&format!("{manifests_or_blobs}/{digest_or_tag}"))?;
        let request = |authorization: Option<&HeaderValue>| {
            let mut request = Request::new(Full::default());
            *request.method_mut() = method.clone();
            *request.uri_mut() = uri.clone();
            request.headers_mut().insert(ACCEPT, ACCEPTED_MANIFEST_TYPES);
            if let Some(value) = authorization {
                request.headers_mut().insert(AUTHORIZATION, value.clone());
            }
            request
        };
        let response = self
            .client
            .send_with_timeout(request(self.authorization.as_ref()))
            .await?;
        if response.status() != StatusCode::UNAUTHORIZED || self.authorization.is_some() {
            return Ok(response);
        }
        let authorization = self.answer_challenge(response.headers()).await?;
        let response = self.client.send_with_timeout(request(Some(&authorization))).await;
        self.authorization = Some(authorization);
        response
    }

    /// Answers the challenge in the headers of a response with status 401: returns the `Authorization` header, and may
    /// fetch a token.
    async fn answer_challenge(&self, headers: &HeaderMap) -> Result<HeaderValue, RegistryError> {
        let registry = || self.host.clone();
        let challenge = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .find_map(|value| AuthChallenge::parse_www_authenticate(value.to_str().ok()?));
        let text = match challenge {
            None => return Err(RegistryError::Challenge { registry: registry() }),
            Some(AuthChallenge::Basic) => self
                .credentials
                .basic_authorization()
                .ok_or_else(|| RegistryError::NoCredentials { registry: registry() })?,
            Some(AuthChallenge::Bearer { realm, service }) => {
                let realm =
                    self.client
                        .realms
                        .parse_allowed_realm(&self.host, &realm, self.client.insecure)?;
                format!("Bearer {}", self.fetch_token(&realm, service.as_deref()).await?)
            }
        };
        self.authorization_header(&text)
    }

    /// Fetches a token for the repository's actions from the token server at `realm`.
    async fn fetch_token(&self, realm: &Uri, service: Option<&str>) -> Result<String, RegistryError> {
        let scopes = [format!("repository:{}:{}", self.name, self.actions)];
        let token = self
            .client
            .request_token(&self.host, realm, service, &scopes, &self.credentials);
        Ok(token.await?.token)
    }

    fn authorization_header(&self, text: &str) -> Result<HeaderValue, RegistryError> {
        authorization_header(&self.host, text)
    }
}

/// Returns `text` as the value of the header `Authorization`, which is not shown in debug output.
fn authorization_header(registry: &str, text: &str) -> Result<HeaderValue, RegistryError> {
    let mut value = HeaderValue::from_str(text).map_err(|_| RegistryError::Credentials {
        registry: registry.to_owned(),
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// Parses the URI of a request to a registry or its token server.
fn parse_uri(text: String) -> Result<Uri, RegistryError> {
    text.parse().map_err(|_| RegistryError::Name { name: text })
}

fn percent_encode(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

impl fmt::Debug for RegistryClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryClient")
            .field("insecure", &self.insecure)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for RepositoryClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RepositoryClient")
            .field("host", &self.host)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
