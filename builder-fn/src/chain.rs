//! The hand-over to the deployer: which image, by digest, and what was asked for.
//!
//! It goes to the deployer by one of three ways ([`Via`]). It is signed in each, and the deployer takes it from anybody who
//! brings it.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use function_host::ErrorChain;
use function_host::gateway::{Gateway, GatewayError};
use function_host::http::{Request, StatusCode, header};
use function_host::secret::{SecretError, Secrets};
use function_host::signature::{self, HmacKeys};
use http_body_util::Full;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::error::Error;

/// The secret that hand-overs are signed with.
pub const SECRET: &str = "deploy-secret";

/// The header with the signature.
const SIGNATURE: &str = "x-deploy-signature";

/// How to reach the deployer, which is a function behind the same gateway.
#[derive(Clone, Debug)]
pub struct Chain {
    /// The gateway.
    pub gateway: Gateway,
    /// Where the key is.
    pub secrets: Secrets,
    /// The function's name, `NAME` or `NAME.NAMESPACE`.
    pub deployer: String,
    /// By which way.
    pub via: Via,
    /// How long it may take until the new version answers, or the old one does again.
    pub timeout: Duration,
}

/// By which way a hand-over reaches the deployer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Via {
    /// It is called, and its outcome is waited for.
    #[default]
    Function,
    /// It is called through the queue: the outcome is not known here.
    AsyncFunction,
    /// The hand-over is part of this builder's answer, and the signature a header of it. Whoever called the builder through
    /// the queue names the deployer in `X-Callback-Url`, and the queue-worker brings it the answer with its headers.
    Callback,
}

impl FromStr for Via {
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

/// A chain that can be used: its key was read.
#[derive(Debug)]
pub struct Link<'a> {
    chain: &'a Chain,
    key: HmacKeys,
}

/// What was built and what is to become of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HandOver<'a> {
    /// The image by digest. Tags may have moved on by the time they are pulled.
    pub image: &'a str,
    /// The same by tag, for people.
    pub tag: &'a str,
    /// The call that built it.
    pub call_id: &'a str,
    /// When it was built, RFC 3339.
    #[serde(serialize_with = "rfc3339")]
    pub built_at: SystemTime,
    /// The function, as the caller asked for it.
    pub deploy: &'a Map<String, Value>,
    /// How it is to be asked whether it works, where the caller said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<&'a Map<String, Value>>,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Deployment {
    /// In one word.
    pub ending: Ending,
    /// What the deployer said, for the caller.
    pub answer: Value,
    /// What signs the whole answer of the builder, where the hand-over is part of it.
    pub seal: Option<Seal>,
}

/// Signs an answer that carries a hand-over.
#[derive(Clone, Debug)]
pub struct Seal(HmacKeys);

impl Seal {
    /// The header that goes with this body.
    pub fn header(&self, body: &[u8]) -> (header::HeaderName, String) {
        (
            header::HeaderName::from_static(SIGNATURE),
            signature::sign(&self.0, body),
        )
    }
}

impl PartialEq for Seal {
    /// There is one key: what is sealed tells two answers apart.
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

/// How a deployment ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The new version answers.
    Ready,
    /// It is on its way: what becomes of it is not known here.
    Sent,
    /// It was refused, or does not work: the caller's doing.
    Refused,
    /// The deployer, the gateway or the provider failed.
    Failed,
}

impl Chain {
    /// Reads the key, before anything is built.
    ///
    /// # Errors
    /// When this builder was not given one, or it cannot be read.
    pub fn link(&self) -> Result<Link<'_>, Error> {
        match self.secrets.read(SECRET) {
            Ok(secret) => {
                let empty = || SecretError::Empty {
                    name: SECRET.to_owned(),
                };
                let key = HmacKeys::new(&secret).ok_or_else(|| Error::DeploySecret(empty()))?;
                Ok(Link { chain: self, key })
            }
            Err(SecretError::Missing { .. }) => Err(Error::NoDeployment { secret: SECRET }),
            Err(error) => Err(Error::DeploySecret(error)),
        }
    }
}

impl Link<'_> {
    /// Hands over, and waits for the outcome where there is one to be waited for. A deployer that cannot be reached is an
    /// outcome too: the image is there.
    pub async fn hand_over(&self, hand_over: &HandOver<'_>) -> Deployment {
        let route = match self.chain.via {
            Via::Function => "function",
            Via::AsyncFunction => "async-function",
            Via::Callback => return self.hand_back(hand_over),
        };
        match self.send(route, hand_over).await {
            Ok((StatusCode::ACCEPTED, _)) if self.chain.via == Via::AsyncFunction => {
                Deployment::sent("queued", hand_over)
            }
            Ok((status, body)) => Deployment::from_answer(status, &body),
            Err(error) => {
                tracing::error!(error = %ErrorChain(&error), "the deployer did not answer");
                Deployment::failed(error.to_string())
            }
        }
    }

    fn hand_back(&self, hand_over: &HandOver<'_>) -> Deployment {
        let mut deployment = Deployment::sent("handed_over", hand_over);
        deployment.answer["handOver"] = json!(hand_over);
        deployment.seal = Some(Seal(self.key.clone()));
        deployment
    }

    async fn send(
        &self,
        route: &str,
        hand_over: &HandOver<'_>,
    ) -> Result<(StatusCode, Vec<u8>), GatewayError> {
        let path = format!("/{route}/{}", self.chain.deployer);
        // Maps with text keys and plain values: this cannot fail. Were it to, the deployer would refuse what is left.
        let body = serde_json::to_vec(hand_over).unwrap_or_default();
        let mut request = Request::post(self.chain.gateway.uri(&path)?)
            .header(header::CONTENT_TYPE, "application/json")
            .header(SIGNATURE, signature::sign(&self.key, &body));
        // A call id that is no header's content is left out; it is in the body as well.
        if let Ok(call_id) = header::HeaderValue::from_str(hand_over.call_id) {
            request = request.header("x-call-id", call_id);
        }
        let refused = |_| GatewayError::Path { path: path.clone() };
        let request = request.body(Full::from(body)).map_err(refused)?;
        let response = self.chain.gateway.send(request, self.chain.timeout).await?;
        Ok((response.status(), response.into_body().to_vec()))
    }
}

impl Deployment {
    fn from_answer(status: StatusCode, body: &[u8]) -> Self {
        let ending = match status {
            StatusCode::OK => Ending::Ready,
            // A hand-over that the deployer cannot read has a `deploy` that it cannot read: the rest is ours, and right.
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => Ending::Refused,
            _ => Ending::Failed,
        };
        match serde_json::from_slice(body) {
            Ok(answer @ Value::Object(_)) => Self {
                ending,
                answer,
                seal: None,
            },
            _ => Self::failed(format!(
                "the deployer answered {status} with {:?}",
                String::from_utf8_lossy(body)
                    .trim()
                    .chars()
                    .take(300)
                    .collect::<String>()
            )),
        }
    }

    /// One that failed before the deployer could say anything.
    pub fn failed(reason: String) -> Self {
        Self {
            ending: Ending::Failed,
            answer: json!({"status": "failed", "reasons": [reason]}),
            seal: None,
        }
    }

    fn sent(status: &str, hand_over: &HandOver<'_>) -> Self {
        let answer =
            json!({"function": hand_over.deploy.get("service"), "image": hand_over.image, "status": status});
        Self {
            ending: Ending::Sent,
            answer,
            seal: None,
        }
    }

    /// Why, in one line.
    pub fn reason(&self) -> String {
        let reasons: Vec<_> = self.answer["reasons"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        match (reasons.is_empty(), self.answer["status"].as_str()) {
            (false, _) => reasons.join("; "),
            (true, Some(status)) => format!("it is {status}"),
            (true, None) => "the deployer gave no reason".into(),
        }
    }
}

fn rfc3339<S: serde::Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_millis(*time))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: u16, body: &str) -> Deployment {
        Deployment::from_answer(StatusCode::from_u16(status).expect("status"), body.as_bytes())
    }

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
    fn the_deployers_status_says_whose_doing_a_failure_is() {
        for (status, ending) in [
            (200, Ending::Ready),
            (422, Ending::Refused),
            (400, Ending::Refused),
            (401, Ending::Failed),
            (404, Ending::Failed),
            (500, Ending::Failed),
            (502, Ending::Failed),
        ] {
            assert_eq!(answered(status, r#"{"status":"x"}"#).ending, ending, "{status}");
        }
    }

    #[test]
    fn an_answer_that_is_no_deployers_is_a_failure_whatever_its_status() {
        let deployment = answered(200, "<html>");

        assert_eq!(deployment.ending, Ending::Failed);
        assert_eq!(
            deployment.reason(),
            "the deployer answered 200 OK with \"<html>\""
        );
    }

    #[test]
    fn reasons_are_told_in_one_line() {
        assert_eq!(
            answered(422, r#"{"status":"refused","reasons":["a","b"]}"#).reason(),
            "a; b"
        );
        assert_eq!(
            answered(422, r#"{"status":"rolled_back"}"#).reason(),
            "it is rolled_back"
        );
    }

    #[test]
    fn a_builder_without_the_secret_says_so_before_it_builds() {
        let folder = tempfile::tempdir().expect("folder");
        let secrets = Secrets::new(folder.path());
        let gateway = Gateway::new("http://gateway:8080", secrets.clone()).expect("gateway");
        let chain = Chain {
            gateway,
            secrets,
            deployer: "deployer-fn".into(),
            via: Via::Function,
            timeout: Duration::from_secs(1),
        };

        assert!(matches!(chain.link(), Err(Error::NoDeployment { .. })));
        std::fs::write(folder.path().join(SECRET), "\n").expect("write");
        assert!(matches!(chain.link(), Err(Error::DeploySecret(_))));
        std::fs::write(folder.path().join(SECRET), "key\n").expect("write");
        assert!(chain.link().is_ok());
    }
}
