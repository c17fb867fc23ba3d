//! The hand-over of a built image to the deployer: the image by digest, and the config's `deploy` and `probe`.
//!
//! It reaches the deployer in one of three ways ([`DeployVia`]). It is signed in each of them, and the deployer accepts it
//! from anybody who delivers it.

mod deployment;

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use function_host::ErrorChain;
use function_host::gateway::{Gateway, GatewayError};
use function_host::http::{Request, StatusCode, header};
use function_host::secret::{SecretError, Secrets};
use function_host::signature::{self, HmacKeys};
use http_body_util::Full;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};

pub(crate) use deployment::{Deployment, DeploymentStatus};

use crate::error::Error;

/// The secret that hand-overs are signed with.
pub(crate) const SECRET: &str = "deploy-secret";

/// The header with the signature.
const SIGNATURE_HEADER: &str = "x-deploy-signature";

/// The settings of the deployer.
#[derive(Clone, Debug)]
pub struct DeployerSettings {
    /// The deployer's name as a function, `NAME` or `NAME.NAMESPACE`.
    pub function: String,
    /// How hand-overs reach it.
    pub via: DeployVia,
    /// How long a deployment may take, until the new version is ready or the old one is restored.
    pub timeout: Duration,
}

/// How a hand-over reaches the deployer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeployVia {
    /// The builder calls the deployer and waits for the outcome.
    #[default]
    Function,
    /// The builder calls the deployer through the queue, and does not learn the outcome.
    AsyncFunction,
    /// The builder's answer contains the hand-over, and one of its headers the signature. The caller sends its request through
    /// the queue and names the deployer in `X-Callback-Url`; the queue-worker delivers the answer and its headers.
    Callback,
}

impl FromStr for DeployVia {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "function" => Ok(Self::Function),
            "async-function" => Ok(Self::AsyncFunction),
            "callback" => Ok(Self::Callback),
            _ => Err("should be function, async-function or callback"),
        }
    }
}

/// The deployer: a function behind the same gateway.
#[derive(Clone, Debug)]
pub struct Deployer {
    /// The gateway.
    pub gateway: Gateway,
    /// The secrets, of which `deploy-secret` is one.
    pub secrets: Secrets,
    /// The settings.
    pub settings: DeployerSettings,
}

impl Deployer {
    /// Reads the key, so that a builder without one fails before it builds.
    ///
    /// # Errors
    /// Fails if the secret is missing or unusable.
    pub(crate) fn signer(&self) -> Result<HandOverSigner<'_>, Error> {
        match self.secrets.read_secret(SECRET) {
            Ok(secret) => {
                let empty = || SecretError::Empty {
                    name: SECRET.to_owned(),
                };
                let key = HmacKeys::new(&secret).ok_or_else(|| Error::DeploySecret(empty()))?;
                Ok(HandOverSigner { deployer: self, key })
            }
            Err(SecretError::Missing { .. }) => Err(Error::NoDeploySecret { secret: SECRET }),
            Err(error) => Err(Error::DeploySecret(error)),
        }
    }
}

/// The document that the deployer gets.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HandOver<'a> {
    /// The image by digest. Its tags may name another image when it is pulled.
    pub(crate) image: &'a str,
    /// The image by tag, for people.
    pub(crate) tag: &'a str,
    /// The call id of the build request.
    pub(crate) call_id: &'a str,
    /// When the build ended.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub(crate) built_at: SystemTime,
    /// The config's `deploy`.
    pub(crate) deploy: &'a Map<String, Value>,
    /// The config's `probe`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) probe: Option<&'a Map<String, Value>>,
}

/// Signs hand-overs and sends them to the deployer.
#[derive(Debug)]
pub(crate) struct HandOverSigner<'a> {
    deployer: &'a Deployer,
    key: HmacKeys,
}

impl HandOverSigner<'_> {
    /// Hands an image over, and waits for the outcome if the deployer is called directly.
    ///
    /// A deployer that cannot be reached is an outcome too, and not an error: the image exists.
    pub(crate) async fn hand_over(&self, hand_over: &HandOver<'_>) -> Deployment {
        let settings = &self.deployer.settings;
        let route = match settings.via {
            DeployVia::Function => "function",
            DeployVia::AsyncFunction => "async-function",
            DeployVia::Callback => return self.hand_back(hand_over),
        };
        match self.send(route, hand_over).await {
            Ok((StatusCode::ACCEPTED, _)) if settings.via == DeployVia::AsyncFunction => {
                Deployment::sent("queued", hand_over)
            }
            Ok((status, body)) => Deployment::from_answer(status, &body),
            Err(error) => {
                tracing::error!(deployer = settings.function, error = %ErrorChain(&error), "hand-over failed");
                Deployment::failed(error.to_string())
            }
        }
    }

    /// Makes the hand-over part of the builder's own answer.
    fn hand_back(&self, hand_over: &HandOver<'_>) -> Deployment {
        let mut deployment = Deployment::sent("handed_over", hand_over);
        deployment.answer["handOver"] = json!(hand_over);
        deployment.signer = Some(AnswerSigner(self.key.clone()));
        deployment
    }

    async fn send(
        &self,
        route: &str,
        hand_over: &HandOver<'_>,
    ) -> Result<(StatusCode, Vec<u8>), GatewayError> {
        let Deployer {
            gateway, settings, ..
        } = self.deployer;
        let path = format!("/{route}/{}", settings.function);
        // Maps with text keys and plain values: this cannot fail. The deployer would reject an empty body.
        let body = serde_json::to_vec(hand_over).unwrap_or_default();
        let mut request = Request::post(gateway.uri(&path)?)
            .header(header::CONTENT_TYPE, "application/json")
            .header(SIGNATURE_HEADER, signature::sign(&self.key, &body));
        // A call id that no header can contain is left out here. The body has it as well.
        if let Ok(call_id) = header::HeaderValue::from_str(hand_over.call_id) {
            request = request.header("x-call-id", call_id);
        }
        let invalid = |_| GatewayError::Path { path: path.clone() };
        let request = request.body(Full::from(body)).map_err(invalid)?;
        let response = gateway.send(request, settings.timeout).await?;
        Ok((response.status(), response.into_body().to_vec()))
    }
}

/// Signs an answer that contains a hand-over.
#[derive(Clone, Debug)]
pub(crate) struct AnswerSigner(HmacKeys);

impl AnswerSigner {
    /// Returns the header with the signature of `body`.
    pub(crate) fn header(&self, body: &[u8]) -> (header::HeaderName, String) {
        (
            header::HeaderName::from_static(SIGNATURE_HEADER),
            signature::sign(&self.0, body),
        )
    }
}

/// Serializes a time as RFC 3339 in milliseconds. Times that RFC 3339 cannot express become 1970.
fn serialize_rfc3339<S: serde::Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let time = Timestamp::try_from(*time).unwrap_or(Timestamp::UNIX_EPOCH);
    serializer.collect_str(&format_args!("{time:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hand_over_has_the_fields_that_the_deployer_reads() {
        let deploy = json!({"service": "hello"});
        let hand_over = HandOver {
            image: "registry/hello@sha256:12",
            tag: "registry/hello:1",
            call_id: "id",
            built_at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_323_045_500),
            deploy: deploy.as_object().expect("object"),
            probe: None,
        };

        assert_eq!(
            serde_json::to_value(hand_over).expect("JSON"),
            json!({
                "image": "registry/hello@sha256:12",
                "tag": "registry/hello:1",
                "callId": "id",
                "builtAt": "2026-01-02T03:04:05.500Z",
                "deploy": {"service": "hello"}
            })
        );
    }

    #[test]
    fn a_builder_without_the_secret_fails_before_it_builds() {
        let folder = tempfile::tempdir().expect("folder");
        let secrets = Secrets::new(folder.path());
        let gateway = Gateway::new("http://gateway:8080", secrets.clone()).expect("gateway");
        let deployer = Deployer {
            gateway,
            secrets,
            settings: DeployerSettings {
                function: "deployer-fn".into(),
                via: DeployVia::Function,
                timeout: Duration::from_secs(1),
            },
        };

        assert!(matches!(deployer.signer(), Err(Error::NoDeploySecret { .. })));
        std::fs::write(folder.path().join(SECRET), "\n").expect("write");
        assert!(matches!(deployer.signer(), Err(Error::DeploySecret(_))));
        std::fs::write(folder.path().join(SECRET), "key\n").expect("write");
        assert!(deployer.signer().is_ok());
    }
}
