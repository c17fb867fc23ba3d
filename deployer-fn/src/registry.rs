//! Whether an image is there: its manifest, by digest, for the platform that functions run on.
//!
//! Asked of the registry before anything is changed, with the credentials at hand (a Docker `config.json`). A registry that
//! says that there is no such manifest is believed. Anything else that is not a clear answer speaks against nothing: the node
//! may have other credentials, or another way to the registry.
//!
//! Protocol: <https://github.com/opencontainers/distribution-spec>; tokens:
//! <https://distribution.github.io/distribution/spec/auth/token/>.

mod challenge;
mod logins;

use std::time::Duration;

use function_host::gateway::{Gateway, GatewayError};
use function_host::http::header::{ACCEPT, AUTHORIZATION, HeaderValue, LOCATION, WWW_AUTHENTICATE};
use function_host::http::{Request, Response, StatusCode, Uri};
use function_host::{Bytes, Secrets};
use http_body_util::Full;
use serde_json::Value;
use tracing::info;

use self::challenge::Challenge;
pub(crate) use self::challenge::escaped;
use self::logins::{Login, find};
use crate::request::PinnedImage;

/// The secret with the credentials: a Docker `config.json`. It is read anew for each question. It is not the builder's, so that
/// nobody who only deploys can push.
pub const CONFIG_SECRET: &str = "registry-pull-config";

const MANIFESTS: HeaderValue = HeaderValue::from_static(
    "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json",
);
/// Docker Hub is named otherwise than it is reached.
const DOCKER_HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");
/// How much is read of an answer, in bytes: what registries allow a manifest to have.
const ANSWER_MAX: usize = 4 * 1024 * 1024;

/// What can be asked of registries.
#[derive(Clone, Debug)]
pub struct Images {
    secrets: Secrets,
    /// Whether registries speak plain HTTP.
    insecure: bool,
    /// `os/architecture` of the node.
    platform: String,
}

/// What a registry says.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// It is there.
    There,
    /// It is not, or not for the platform.
    Missing(String),
    /// That cannot be told from here, for this reason.
    Unclear(String),
}

impl Images {
    /// Questions with the credentials in `secrets`, about images for `platform`.
    #[must_use]
    pub fn new(secrets: Secrets, insecure: bool, platform: String) -> Self {
        Self {
            secrets,
            insecure,
            platform,
        }
    }

    /// Why the image cannot be deployed, where that is certain. `limit` is for all of it.
    pub async fn objection(&self, image: &PinnedImage, limit: Duration) -> Option<String> {
        let asked = tokio::time::timeout(limit, self.ask(image)).await;
        let answer = asked.unwrap_or_else(|_| Answer::Unclear("it did not answer in time".to_owned()));
        match answer {
            Answer::There => None,
            Answer::Missing(reason) => Some(reason),
            Answer::Unclear(reason) => {
                info!(%image, reason, "whether the registry has the image is not known");
                None
            }
        }
    }

    async fn ask(&self, image: &PinnedImage) -> Answer {
        let (registry, repository) = image.registry_and_path();
        let login = match find(&self.secrets, registry) {
            Ok(login) => login,
            Err(reason) => return Answer::Unclear(reason),
        };
        let place = Place {
            host: if registry == DOCKER_HUB.0 {
                DOCKER_HUB.1
            } else {
                registry
            },
            repository,
            images: self,
            login,
        };
        place.manifest(image).await.unwrap_or_else(Answer::Unclear)
    }

    /// A client for one host. No secret of the gateway's goes along: that is only sent to `/system/` of a gateway.
    fn client(&self, host: &str) -> Result<Gateway, String> {
        let scheme = if self.insecure { "http" } else { "https" };
        let client = Gateway::new(&format!("{scheme}://{host}"), self.secrets.clone());
        let client = client.map_err(|error| told(&error).to_owned())?;
        Ok(client.with_body_limit(ANSWER_MAX))
    }
}

/// One repository.
struct Place<'a> {
    host: &'a str,
    repository: &'a str,
    images: &'a Images,
    login: Option<Login>,
}

impl Place<'_> {
    async fn manifest(&self, image: &PinnedImage) -> Result<Answer, String> {
        let client = self.images.client(self.host)?;
        let path = format!("/v2/{}/manifests/{}", self.repository, image.digest());
        let mut answer = get(&client, &path, None).await?;
        let mut authorization = None;
        if answer.status() == StatusCode::UNAUTHORIZED {
            authorization = Some(self.authorize(&answer).await?);
            answer = get(&client, &path, authorization.as_ref()).await?;
        }
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => {
                let reason = format!("the registry {} has no image {image}", self.host);
                return Ok(Answer::Missing(reason));
            }
            status => return Err(format!("it answered {status}")),
        }
        let manifest: Value = serde_json::from_slice(answer.body())
            .map_err(|_| "it answered with something that is no manifest".to_owned())?;
        let platforms = match manifest["manifests"].as_array() {
            Some(manifests) => manifests
                .iter()
                .map(|manifest| platform(&manifest["platform"]))
                .collect(),
            None => vec![self.built_for(&client, &manifest, authorization.as_ref()).await?],
        };
        let wanted = &self.images.platform;
        if platforms.is_empty() || platforms.contains(wanted) {
            return Ok(Answer::There);
        }
        let reason = format!(
            "the image {image} is for {}, and functions run on {wanted}",
            platforms.join(", ")
        );
        Ok(Answer::Missing(reason))
    }

    /// The platform of a single image, which only its configuration has.
    async fn built_for(
        &self,
        client: &Gateway,
        manifest: &Value,
        authorization: Option<&HeaderValue>,
    ) -> Result<String, String> {
        let digest = manifest["config"]["digest"]
            .as_str()
            .ok_or("its manifest has no configuration")?;
        let path = format!("/v2/{}/blobs/{digest}", self.repository);
        let answer = get(client, &path, authorization).await?;
        let config = match answer.headers().get(LOCATION) {
            // Kept elsewhere: whoever has the manifest has the rest, and the platform is not worth another host.
            Some(_) => return Ok(self.images.platform.clone()),
            None => serde_json::from_slice::<Value>(answer.body()),
        };
        let config =
            config.map_err(|_| format!("it answered {} for the image's configuration", answer.status()))?;
        match platform(&config) {
            incomplete if incomplete.contains('?') => Ok(self.images.platform.clone()),
            complete => Ok(complete),
        }
    }

    /// What the registry asks for in an answer of 401.
    async fn authorize(&self, answer: &Response<Bytes>) -> Result<HeaderValue, String> {
        let challenges = answer.headers().get_all(WWW_AUTHENTICATE).iter();
        let challenge = challenges
            .filter_map(|value| Challenge::parse(value.to_str().ok()?))
            .next();
        let text = match challenge {
            None => return Err("it wants credentials of a kind that is not known here".to_owned()),
            Some(Challenge::Basic) => match &self.login {
                Some(login) => login.basic(),
                None => return Err("it wants credentials, and there are none for it".to_owned()),
            },
            Some(Challenge::Bearer { realm, service }) => {
                format!("Bearer {}", self.token(&realm, service.as_deref()).await?)
            }
        };
        let mut value =
            HeaderValue::from_str(&text).map_err(|_| "its credentials are no header".to_owned())?;
        value.set_sensitive(true);
        Ok(value)
    }

    async fn token(&self, realm: &str, service: Option<&str>) -> Result<String, String> {
        let wrong = || "it names a place for tokens that is no address".to_owned();
        let realm: Uri = realm.parse().map_err(|_| wrong())?;
        let host = realm.authority().ok_or_else(wrong)?.as_str();
        // A registry with TLS must not send credentials to where there is none.
        let secure = realm.scheme_str() == Some("https");
        if !secure && !self.images.insecure {
            return Err("it wants credentials in plain text".to_owned());
        }
        let client = Images {
            insecure: !secure,
            ..self.images.clone()
        }
        .client(host)?;
        let mut path = format!("{}?scope=repository:{}:pull", realm.path(), self.repository);
        if let Some(service) = service {
            path = format!("{path}&service={}", escaped(service));
        }
        let basic = self.login.as_ref().map(Login::basic);
        let basic = basic.and_then(|text| HeaderValue::from_str(&text).ok());
        let answer = get(&client, &path, basic.as_ref()).await?;
        let document: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
        let token = [&document["token"], &document["access_token"]];
        let token = token.into_iter().find_map(Value::as_str);
        token
            .map(str::to_owned)
            .ok_or_else(|| format!("its token server answered {}", answer.status()))
    }
}

async fn get(
    client: &Gateway,
    path: &str,
    authorization: Option<&HeaderValue>,
) -> Result<Response<Bytes>, String> {
    /// How long one answer may take; all of them together have a limit of their own.
    const ANSWER: Duration = Duration::from_secs(10);
    let uri = client.uri(path).map_err(|error| told(&error).to_owned())?;
    let mut request = Request::get(uri).header(ACCEPT, MANIFESTS);
    if let Some(value) = authorization {
        request = request.header(AUTHORIZATION, value);
    }
    let request = request.body(Full::default()).map_err(|error| error.to_string())?;
    client
        .send(request, ANSWER)
        .await
        .map_err(|error| told(&error).to_owned())
}

/// What went wrong. The client's own words are about a gateway.
fn told(error: &GatewayError) -> &'static str {
    match error {
        GatewayError::Url | GatewayError::Path { .. } => "its name makes no address",
        GatewayError::Authority(_) => "there is no certificate to trust it by",
        GatewayError::Credentials(_) => "its credentials cannot be read",
        GatewayError::Connect { .. } => "it could not be reached",
        GatewayError::Lost { .. } => "the connection to it was lost",
        GatewayError::Timeout { .. } => "it did not answer in time",
        GatewayError::TooLarge { .. } => "its answer is too large",
    }
}

/// `os/architecture`; with a `?` for what is not said.
fn platform(said: &Value) -> String {
    let word = |key: &str| said[key].as_str().filter(|word| !word.is_empty()).unwrap_or("?");
    format!("{}/{}", word("os"), word("architecture"))
}

#[cfg(test)]
mod tests;
