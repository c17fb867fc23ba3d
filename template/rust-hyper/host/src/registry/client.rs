//! A client that looks up manifests and blobs in image registries.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::DOCKER_HUB;
use super::challenge::Challenge;
use super::credentials::Credentials;
use super::error::RegistryError;
use super::realm::TokenRealms;
use crate::client::HttpClient;
use crate::connector;
use crate::error_chain::ErrorChain;
use crate::gateway::CA_SECRET;
use crate::secret::{Secret, Secrets};
use crate::trace;

const MANIFEST_TYPES: HeaderValue = HeaderValue::from_static(
    "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json",
);
/// The size of a registry's largest response, in bytes: registries limit manifests to this.
const RESPONSE_MAX: usize = 4 * 1024 * 1024;
/// The time limit for one response of a registry. A look-up may take several requests.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// The name by which this client identifies itself to token servers.
const CLIENT_ID: &str = "slipway";

/// A client of image registries. It follows no redirects. Clones share connections.
#[derive(Clone)]
pub struct RegistryClient {
    http: HttpClient,
    /// Whether the client uses plain HTTP with registries.
    insecure: bool,
    realms: TokenRealms,
}

/// A repository of an image registry, with the token that was fetched for it.
pub struct Repository {
    client: RegistryClient,
    host: String,
    name: String,
    credentials: Credentials,
    authorization: Option<HeaderValue>,
}

impl RegistryClient {
    /// Creates a registry client that trusts the system's certificates, and those in the secret `gateway-ca`.
    ///
    /// With `insecure`, registries speak plain HTTP. `realms` are the hosts that tokens may be fetched from.
    ///
    /// # Errors
    /// Fails if there are no certificates to trust, and registries are not `insecure`.
    pub fn new(secrets: &Secrets, insecure: bool, realms: TokenRealms) -> Result<Self, RegistryError> {
        let more = match secrets.exists(CA_SECRET) {
            true => secrets.read_secret(CA_SECRET).map(Some),
            false => Ok(None),
        };
        let connector = more
            .map_err(Into::into)
            .and_then(|more| connector::trusting(more.as_ref().map(Secret::expose)))
            .or_else(|error| if insecure { connector::plain() } else { Err(error) })
            .map_err(RegistryError::Authority)?;
        Ok(Self {
            http: HttpClient::new(connector, RESPONSE_MAX),
            insecure,
            realms,
        })
    }

    /// Returns the handle of the repository `name` of `registry`, which is the registry's name in image
    /// references.
    pub fn repository(&self, registry: &str, name: &str, credentials: Credentials) -> Repository {
        let host = if registry == DOCKER_HUB.0 {
            DOCKER_HUB.1
        } else {
            registry
        };
        Repository {
            client: self.clone(),
            host: host.to_owned(),
            name: name.to_owned(),
            credentials,
            authorization: None,
        }
    }

    async fn send(&self, mut request: Request<Full<Bytes>>) -> Result<Response<Bytes>, RegistryError> {
        let host = request
            .uri()
            .authority()
            .map(ToString::to_string)
            .unwrap_or_default();
        let span = trace::open_outgoing_span(&mut request);
        let response = self.http.exchange(request, RESPONSE_TIMEOUT).await;
        let response = response.map_err(|error| RegistryError::exchange(error, &host));
        match &response {
            Ok(response) => span.set_status(response.status().as_u16()),
            Err(error) => span.mark_failed(ErrorChain(error)),
        }
        response
    }
}

impl Repository {
    /// Returns the host of the repository's registry.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Asks the registry whether the repository has the manifest with this digest.
    ///
    /// # Errors
    /// Fails if the registry's answer is neither yes nor no.
    pub async fn has_manifest(&mut self, digest: &str) -> Result<bool, RegistryError> {
        let response = self.request(Method::HEAD, "manifests", digest).await?;
        Ok(self.found(response)?.is_some())
    }

    /// Fetches the manifest with this digest, if the repository has it.
    ///
    /// # Errors
    /// Fails if the registry's answer is neither the manifest nor that there is none.
    pub async fn manifest(&mut self, digest: &str) -> Result<Option<Bytes>, RegistryError> {
        let response = self.request(Method::GET, "manifests", digest).await?;
        self.found(response)
    }

    /// Fetches the blob with this digest, if the repository has it. A redirect is not followed.
    ///
    /// # Errors
    /// Fails if the registry's answer is neither the blob nor that there is none.
    pub async fn blob(&mut self, digest: &str) -> Result<Option<Bytes>, RegistryError> {
        let response = self.request(Method::GET, "blobs", digest).await?;
        self.found(response)
    }

    fn found(&self, response: Response<Bytes>) -> Result<Option<Bytes>, RegistryError> {
        match response.status() {
            StatusCode::OK => Ok(Some(response.into_body())),
            StatusCode::NOT_FOUND => Ok(None),
            status => Err(RegistryError::Status {
                registry: self.host.clone(),
                status,
            }),
        }
    }

    /// Sends a request to the registry, and repeats it with authentication if the registry asks for it.
    async fn request(
        &mut self,
        method: Method,
        kind: &str,
        digest: &str,
    ) -> Result<Response<Bytes>, RegistryError> {
        let is_digest = digest
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b":+._-".contains(&byte));
        if !is_digest {
            return Err(RegistryError::Name {
                name: digest.to_owned(),
            });
        }
        let scheme = if self.client.insecure { "http" } else { "https" };
        let uri = parse_uri(format!(
            "{scheme}://{}/v2/{}/{kind}/{digest}",
            self.host, self.name
        ))?;
        let request = |authorization: Option<&HeaderValue>| {
            let mut request = Request::new(Full::default());
            *request.method_mut() = method.clone();
            *request.uri_mut() = uri.clone();
            request.headers_mut().insert(ACCEPT, MANIFEST_TYPES);
            if let Some(value) = authorization {
                request.headers_mut().insert(AUTHORIZATION, value.clone());
            }
            request
        };
        let response = self.client.send(request(self.authorization.as_ref())).await?;
        if response.status() != StatusCode::UNAUTHORIZED || self.authorization.is_some() {
            return Ok(response);
        }
        let authorization = self.authorize(&response).await?;
        let response = self.client.send(request(Some(&authorization))).await;
        self.authorization = Some(authorization);
        response
    }

    /// Answers the challenge in a response with status 401: returns the `Authorization` header, and may fetch
    /// a token.
    async fn authorize(&self, response: &Response<Bytes>) -> Result<HeaderValue, RegistryError> {
        let registry = || self.host.clone();
        let challenge = response
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .find_map(|value| Challenge::parse(value.to_str().ok()?));
        let text = match challenge {
            None => return Err(RegistryError::Challenge { registry: registry() }),
            Some(Challenge::Basic) => self
                .credentials
                .basic()
                .ok_or_else(|| RegistryError::NoCredentials { registry: registry() })?,
            Some(Challenge::Bearer { realm, service }) => {
                let realm = self
                    .client
                    .realms
                    .check(&self.host, &realm, self.client.insecure)?;
                format!("Bearer {}", self.token(&realm, service.as_deref()).await?)
            }
        };
        self.header(&text)
    }

    /// Fetches a token for pulling images from the token server at `realm`.
    async fn token(&self, realm: &Uri, service: Option<&str>) -> Result<String, RegistryError> {
        let mut query = format!("scope=repository:{}:pull", self.name);
        if let Some(service) = service {
            query = format!("{query}&service={}", encode(service));
        }
        let mut request = Request::new(Full::default());
        if let Some(token) = self.credentials.identity_token() {
            let form = format!(
                "grant_type=refresh_token&client_id={CLIENT_ID}&{query}&refresh_token={}",
                encode(token)
            );
            *request.method_mut() = Method::POST;
            *request.uri_mut() = realm.clone();
            *request.body_mut() = form.into();
            let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
            request.headers_mut().insert(CONTENT_TYPE, form_type);
        } else {
            let separator = if realm.query().is_some() { '&' } else { '?' };
            *request.uri_mut() = parse_uri(format!("{realm}{separator}{query}"))?;
        }
        if let Some(basic) = self.credentials.basic() {
            request.headers_mut().insert(AUTHORIZATION, self.header(&basic)?);
        }
        let response = self.client.send(request).await?;
        let document: Value = serde_json::from_slice(response.body()).unwrap_or_default();
        let token = ["token", "access_token"]
            .into_iter()
            .find_map(|key| document[key].as_str());
        token.map(str::to_owned).ok_or_else(|| RegistryError::Token {
            registry: self.host.clone(),
            status: response.status(),
        })
    }

    fn header(&self, text: &str) -> Result<HeaderValue, RegistryError> {
        let mut value = HeaderValue::from_str(text).map_err(|_| RegistryError::Credentials {
            registry: self.host.clone(),
        })?;
        value.set_sensitive(true);
        Ok(value)
    }
}

fn parse_uri(text: String) -> Result<Uri, RegistryError> {
    text.parse().map_err(|_| RegistryError::Name { name: text })
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

impl fmt::Debug for RegistryClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryClient")
            .field("insecure", &self.insecure)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository")
            .field("host", &self.host)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
