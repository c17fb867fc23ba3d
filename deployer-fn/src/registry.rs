//! Checks that a registry has an image, by digest and for the platform that functions run on.
//!
//! The lookup comes before anything is changed, with the credentials of a Docker `config.json`. Only an answer that
//! the manifest does not exist, or not for the platform, rejects the deployment. Any other failure does not: the node
//! may have other credentials, or another route to the registry.
//!
//! Protocol: <https://github.com/opencontainers/distribution-spec>; tokens:
//! <https://distribution.github.io/distribution/spec/auth/token/>.

mod challenge;
mod credentials;

use std::time::Duration;

use function_host::gateway::{Gateway, GatewayError};
use function_host::http::header::{ACCEPT, AUTHORIZATION, HeaderValue, LOCATION, WWW_AUTHENTICATE};
use function_host::http::{Request, Response, StatusCode, Uri};
use function_host::{Bytes, Secrets};
use http_body_util::Full;
use serde_json::Value;
use tracing::info;

use self::challenge::Challenge;
use self::credentials::Credentials;
use crate::percent;
use crate::request::PinnedImage;

const MANIFEST_TYPES: HeaderValue = HeaderValue::from_static(
    "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json",
);
/// The name of Docker Hub in image references, and the host of its API.
const DOCKER_HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");
/// The largest response in bytes: registries limit manifests to this.
const RESPONSE_MAX: usize = 4 * 1024 * 1024;
/// Time limit for one response. All requests for one image together have a limit of their own.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Looks images up in their registries.
#[derive(Clone, Debug)]
pub(crate) struct ImageLookup {
    secrets: Secrets,
    /// Whether registries speak plain HTTP.
    insecure: bool,
    /// `os/architecture` of the node.
    platform: String,
}

/// The result of a lookup.
#[derive(Debug, PartialEq, Eq)]
enum Presence {
    /// The registry has the image.
    Present,
    /// The registry does not have the image, or not for the platform, as this text says.
    Missing(String),
    /// The lookup failed, for this reason.
    Unknown(String),
}

impl ImageLookup {
    /// Makes a lookup with the credentials in `secrets`, for images of `platform`.
    pub(crate) fn new(secrets: Secrets, insecure: bool, platform: String) -> Self {
        Self {
            secrets,
            insecure,
            platform,
        }
    }

    /// Returns why the image certainly cannot be deployed, if so. `limit` is the time for all requests together.
    pub(crate) async fn objection(&self, image: &PinnedImage, limit: Duration) -> Option<String> {
        let looked_up = tokio::time::timeout(limit, self.look_up(image)).await;
        let presence =
            looked_up.unwrap_or_else(|_| Presence::Unknown("the registry did not answer in time".to_owned()));
        match presence {
            Presence::Present => None,
            Presence::Missing(reason) => Some(reason),
            Presence::Unknown(reason) => {
                info!(%image, reason, "could not check that the registry has the image");
                None
            }
        }
    }

    async fn look_up(&self, image: &PinnedImage) -> Presence {
        let (registry, name) = image.registry_and_path();
        let credentials = match credentials::find(&self.secrets, registry) {
            Ok(credentials) => credentials,
            Err(reason) => return Presence::Unknown(reason),
        };
        let repository = Repository {
            host: if registry == DOCKER_HUB.0 {
                DOCKER_HUB.1
            } else {
                registry
            },
            name,
            lookup: self,
            credentials,
        };
        repository.look_up(image).await.unwrap_or_else(Presence::Unknown)
    }

    /// Makes a client for one host. The gateway's credentials are not sent to it: the client adds them to `/system/`
    /// only.
    fn client(&self, host: &str) -> Result<Gateway, String> {
        let scheme = if self.insecure { "http" } else { "https" };
        let client = Gateway::new(&format!("{scheme}://{host}"), self.secrets.clone());
        let client = client.map_err(|error| description(&error).to_owned())?;
        Ok(client.with_body_limit(RESPONSE_MAX))
    }
}

/// One repository of a registry.
struct Repository<'a> {
    host: &'a str,
    name: &'a str,
    lookup: &'a ImageLookup,
    credentials: Option<Credentials>,
}

impl Repository<'_> {
    async fn look_up(&self, image: &PinnedImage) -> Result<Presence, String> {
        let client = self.lookup.client(self.host)?;
        let path = format!("/v2/{}/manifests/{}", self.name, image.digest());
        let mut response = get(&client, &path, None).await?;
        let mut authorization = None;
        if response.status() == StatusCode::UNAUTHORIZED {
            authorization = Some(self.authorization(&response).await?);
            response = get(&client, &path, authorization.as_ref()).await?;
        }
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => {
                let reason = format!("the registry {} has no image {image}", self.host);
                return Ok(Presence::Missing(reason));
            }
            status => return Err(format!("the registry answered {status}")),
        }
        let manifest: Value = serde_json::from_slice(response.body())
            .map_err(|_| "the registry's answer is not a manifest".to_owned())?;
        let platforms = match manifest["manifests"].as_array() {
            Some(manifests) => manifests
                .iter()
                .map(|manifest| platform(&manifest["platform"]))
                .collect(),
            None => vec![
                self.platform_of(&client, &manifest, authorization.as_ref())
                    .await?,
            ],
        };
        let wanted = &self.lookup.platform;
        if platforms.is_empty() || platforms.contains(wanted) {
            return Ok(Presence::Present);
        }
        let reason = format!(
            "the image {image} is for {}, and functions run on {wanted}",
            platforms.join(", ")
        );
        Ok(Presence::Missing(reason))
    }

    /// Returns the platform of a single-platform image, which only the image's configuration has.
    async fn platform_of(
        &self,
        client: &Gateway,
        manifest: &Value,
        authorization: Option<&HeaderValue>,
    ) -> Result<String, String> {
        let digest = manifest["config"]["digest"]
            .as_str()
            .ok_or("the image's manifest has no configuration")?;
        let path = format!("/v2/{}/blobs/{digest}", self.name);
        let response = get(client, &path, authorization).await?;
        let config = match response.headers().get(LOCATION) {
            // The blob is on another host. The manifest shows that the image exists, and the platform is not worth a
            // request to a further host.
            Some(_) => return Ok(self.lookup.platform.clone()),
            None => serde_json::from_slice::<Value>(response.body()),
        };
        let config = config.map_err(|_| {
            format!(
                "the registry answered {} for the image's configuration",
                response.status()
            )
        })?;
        match platform(&config) {
            incomplete if incomplete.contains('?') => Ok(self.lookup.platform.clone()),
            complete => Ok(complete),
        }
    }

    /// Returns the `Authorization` header for the challenge in a response with status 401.
    async fn authorization(&self, response: &Response<Bytes>) -> Result<HeaderValue, String> {
        let challenges = response.headers().get_all(WWW_AUTHENTICATE).iter();
        let challenge = challenges
            .filter_map(|value| Challenge::parse(value.to_str().ok()?))
            .next();
        let text = match challenge {
            None => {
                return Err("the registry wants neither basic authentication nor a bearer token".to_owned());
            }
            Some(Challenge::Basic) => match &self.credentials {
                Some(credentials) => credentials.basic(),
                None => return Err("the registry wants credentials, and there are none for it".to_owned()),
            },
            Some(Challenge::Bearer { realm, service }) => {
                format!("Bearer {}", self.token(&realm, service.as_deref()).await?)
            }
        };
        let mut value = HeaderValue::from_str(&text)
            .map_err(|_| "the registry's credentials are not valid in a header".to_owned())?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// Fetches a token for pulling from the server at `realm`.
    async fn token(&self, realm: &str, service: Option<&str>) -> Result<String, String> {
        let invalid = || "the registry's token realm is not an address".to_owned();
        let realm: Uri = realm.parse().map_err(|_| invalid())?;
        let host = realm.authority().ok_or_else(invalid)?.as_str();
        // Credentials for a registry with TLS must not be sent in plain text.
        let secure = realm.scheme_str() == Some("https");
        if !secure && !self.lookup.insecure {
            return Err("the registry's token realm is not https".to_owned());
        }
        let client = ImageLookup {
            insecure: !secure,
            ..self.lookup.clone()
        }
        .client(host)?;
        let mut path = format!("{}?scope=repository:{}:pull", realm.path(), self.name);
        if let Some(service) = service {
            path = format!("{path}&service={}", percent::encode(service));
        }
        let basic = self.credentials.as_ref().map(Credentials::basic);
        let basic = basic.and_then(|text| HeaderValue::from_str(&text).ok());
        let response = get(&client, &path, basic.as_ref()).await?;
        let document: Value = serde_json::from_slice(response.body()).unwrap_or_default();
        let token = [&document["token"], &document["access_token"]];
        let token = token.into_iter().find_map(Value::as_str);
        token
            .map(str::to_owned)
            .ok_or_else(|| format!("the registry's token server answered {}", response.status()))
    }
}

async fn get(
    client: &Gateway,
    path: &str,
    authorization: Option<&HeaderValue>,
) -> Result<Response<Bytes>, String> {
    let uri = client.uri(path).map_err(|error| description(&error).to_owned())?;
    let mut request = Request::get(uri).header(ACCEPT, MANIFEST_TYPES);
    if let Some(value) = authorization {
        request = request.header(AUTHORIZATION, value);
    }
    let request = request.body(Full::default()).map_err(|error| error.to_string())?;
    client
        .send(request, RESPONSE_TIMEOUT)
        .await
        .map_err(|error| description(&error).to_owned())
}

/// Describes a failed request to a registry. The client's own texts speak of the gateway.
fn description(error: &GatewayError) -> &'static str {
    match error {
        GatewayError::Url | GatewayError::Path { .. } => "the registry's name is not valid in an address",
        GatewayError::Authority(_) => "the trusted certificates could not be read",
        GatewayError::Credentials(_) => "the registry's credentials could not be read",
        GatewayError::Connect { .. } => "could not reach the registry",
        GatewayError::Lost { .. } => "lost the connection to the registry",
        GatewayError::Timeout { .. } => "the registry did not answer in time",
        GatewayError::TooLarge { .. } => "the registry's answer is too large",
    }
}

/// Returns `os/architecture` of a JSON object with these fields; `?` for a missing one.
fn platform(object: &Value) -> String {
    let field = |key: &str| {
        object[key]
            .as_str()
            .filter(|text| !text.is_empty())
            .unwrap_or("?")
    };
    format!("{}/{}", field("os"), field("architecture"))
}

#[cfg(test)]
mod tests;
