//! Hands a built image over to the deployer, signed: the image by digest, the config's `deploy` and `probe`, the
//! tenant, the call and its times. Retries failures, and asks the deployer before a build by a dry run.
//!
//! It reaches the deployer in one of three ways ([`DeployVia`]). It is signed in each of them, and the deployer accepts
//! it from anybody who delivers it. Delivered again it changes nothing, so it is sent again when the gateway fails.

mod deployment;
mod document;
mod dry_run;
mod retry;

use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use function_host::ErrorChain;
use function_host::duration;
use function_host::gateway::{Gateway, GatewayError};
use function_host::http::{Request, StatusCode, header};
use function_host::secret::{SecretError, Secrets};
use function_host::signature::{self, HmacKeys};
use http_body_util::Full;
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;

use crate::error::Error;
pub(crate) use deployment::{DeploymentOutcome, DeploymentStatus, HandOverAndAnswerSigner};
pub(crate) use document::{DryRunDocument, HandOverDocument};
pub(crate) use dry_run::{DeployedVersion, DryRunOutcome};
pub(crate) use retry::RetriedFailures;
use retry::{Backoff, GatewayReply, describe_deployment_failed_by_platform, describe_transient_failure};

/// The name of the secret that hand-overs are signed with.
pub(crate) const DEPLOY_SECRET_NAME: &str = "deploy-secret";

/// The name of the header with the signature of a hand-over or a dry run.
const SIGNATURE_HEADER: &str = "x-deploy-signature";

/// The least time that must be left until the deadline of a hand-over for another attempt to be made.
const MIN_TIME_LEFT_FOR_ANOTHER_ATTEMPT: Duration = Duration::from_secs(1);

/// The settings for the hand-over to the deployer.
#[derive(Clone, Debug)]
pub struct HandOverSettings {
    /// The deployer's name as a function, `NAME` or `NAME.NAMESPACE`.
    pub function: String,
    /// The way in which hand-overs reach the deployer.
    pub via: DeployVia,
    /// The time limit of a hand-over with all its attempts. With `DeployVia::Function`, an attempt lasts until the new
    /// version is ready or the old one is restored; through the queue, until the call is queued.
    pub timeout: Duration,
    /// The time after the end of a build for which the deployer may accept its hand-over.
    pub hand_over_ttl: Duration,
}

/// The way in which a hand-over reaches the deployer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeployVia {
    /// The builder calls the deployer and waits for the outcome.
    #[default]
    Function,
    /// The builder calls the deployer through the queue, and does not learn the outcome.
    AsyncFunction,
    /// The builder's answer contains the hand-over, and one of its headers the signature. The caller sends its request
    /// through the queue and names the deployer in `X-Callback-Url`; the queue-worker delivers the answer and its
    /// headers.
    Callback,
}

impl FromStr for DeployVia {
    type Err = &'static str;

    /// Parses a value of the setting `deploy_via`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "function" => Ok(Self::Function),
            "async-function" => Ok(Self::AsyncFunction),
            "callback" => Ok(Self::Callback),
            _ => Err("should be function, async-function or callback"),
        }
    }
}

/// The deployer, a function behind the gateway, with what is needed to sign hand-overs and to send them to it.
#[derive(Clone, Debug)]
pub struct Deployer {
    /// The gateway through which the deployer is called.
    pub gateway: Gateway,
    /// The secrets, of which `deploy-secret` is one.
    pub secrets: Secrets,
    /// The settings for the hand-over.
    pub settings: HandOverSettings,
}

impl Deployer {
    /// Reads the key for hand-overs and returns a signer, so that a builder without the key fails before it
    /// builds.
    ///
    /// # Errors
    /// Fails if the secret is missing or unusable.
    pub(crate) fn signer(&self) -> Result<HandOverSigner<'_>, Error> {
        match self.secrets.read_secret(DEPLOY_SECRET_NAME) {
            Ok(secret) => {
                let empty = || SecretError::Empty {
                    name: DEPLOY_SECRET_NAME.to_owned(),
                };
                let key = HmacKeys::new(&secret).ok_or_else(|| Error::DeploySecret(empty()))?;
                Ok(HandOverSigner { deployer: self, key })
            }
            Err(SecretError::Missing { .. }) => Err(Error::NoDeploySecret {
                secret: DEPLOY_SECRET_NAME,
            }),
            Err(error) => Err(Error::DeploySecret(error)),
        }
    }
}

/// Signs hand-overs and dry runs, and sends them to the deployer.
#[derive(Debug)]
pub(crate) struct HandOverSigner<'a> {
    deployer: &'a Deployer,
    key: HmacKeys,
}

/// A signed document on its way to the deployer.
#[derive(Debug)]
struct SignedMessage<'a> {
    path: String,
    call_id: &'a str,
    body: Bytes,
    signature: String,
}

impl HandOverSigner<'_> {
    /// Hands an image over, and waits for the outcome if the deployer is called directly. With `deploy_via=callback`,
    /// sends nothing, and returns the hand-over for the builder's own answer.
    ///
    /// Sends the hand-over again after the `retried` failures; `on_retry` gets the reason for every attempt that failed
    /// and is followed by another one.
    ///
    /// A deployer that cannot be reached is an outcome too, and not an error: the image exists.
    pub(crate) async fn hand_over_or_enclose_for_callback(
        &self,
        hand_over: &HandOverDocument<'_>,
        retried: RetriedFailures,
        on_retry: impl FnMut(&str) + Send,
    ) -> DeploymentOutcome {
        let settings = &self.deployer.settings;
        let route = match settings.via {
            DeployVia::Function => "function",
            DeployVia::AsyncFunction => "async-function",
            DeployVia::Callback => return self.enclose_for_signed_answer(hand_over),
        };
        let message = self.sign_message(route, hand_over.call_id, hand_over);
        let (result, attempts) = self
            .send_until_final_or_timeout_and_count_attempts(&message, retried, on_retry)
            .await;
        let reason = match result {
            Ok((StatusCode::ACCEPTED, _)) if settings.via == DeployVia::AsyncFunction => {
                return DeploymentOutcome::sent_with_unknown_result("queued", hand_over);
            }
            Ok((status, body)) if deployment::is_deployers_answer(&body) => {
                return DeploymentOutcome::from_answer(status, &body);
            }
            Ok((status, body)) => deployment::describe_foreign_answer(status, &body),
            Err(error) => {
                tracing::error!(deployer = settings.function, error = %ErrorChain(&error), "hand-over failed");
                error.to_string()
            }
        };
        DeploymentOutcome::failed(match attempts {
            1 => reason,
            _ => format!(
                "{reason}; the hand-over was tried {attempts} times within {}",
                duration::format_duration(settings.timeout)
            ),
        })
    }

    /// Returns the time after the end of a build for which the deployer may accept its hand-over.
    pub(crate) fn hand_over_ttl(&self) -> Duration {
        self.deployer.settings.hand_over_ttl
    }

    /// Sends nothing, and returns a deployment that encloses the hand-over for the builder's own answer.
    fn enclose_for_signed_answer(&self, hand_over: &HandOverDocument<'_>) -> DeploymentOutcome {
        let mut deployment = DeploymentOutcome::sent_with_unknown_result("handed_over", hand_over);
        deployment.enclosed = Some(HandOverAndAnswerSigner {
            document: json!(hand_over),
            signer: AnswerSigner(self.key.clone()),
        });
        deployment
    }

    /// Sends a message to the deployer, again after every one of the `retried` failures while `deploy_timeout` leaves
    /// time for another attempt. Returns the last result, and the number of attempts.
    async fn send_until_final_or_timeout_and_count_attempts(
        &self,
        message: &SignedMessage<'_>,
        retried: RetriedFailures,
        mut on_retry: impl FnMut(&str) + Send,
    ) -> (Result<GatewayReply, GatewayError>, usize) {
        let settings = &self.deployer.settings;
        let deadline = Instant::now() + settings.timeout;
        let (mut backoff, mut deployment_backoff) = (Backoff::new(), Backoff::after_failed_deployments());
        let mut attempt = 1;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let result = self.send_once(message, left).await;
            let failed_deployment = || {
                describe_deployment_failed_by_platform(&result)
                    .filter(|_| retried == RetriedFailures::DeliveryAndPlatform)
            };
            let (reason, wait) = match describe_transient_failure(&result) {
                Some(reason) => (reason, backoff.next_wait()),
                None => match failed_deployment() {
                    Some(reason) => (reason, deployment_backoff.next_wait()),
                    None => return (result, attempt),
                },
            };
            if Instant::now() + wait + MIN_TIME_LEFT_FOR_ANOTHER_ATTEMPT >= deadline {
                return (result, attempt);
            }
            tracing::warn!(
                deployer = settings.function,
                attempt,
                ?wait,
                reason,
                "hand-over is retried"
            );
            on_retry(&reason);
            tokio::time::sleep(wait).await;
            attempt += 1;
        }
    }

    /// Signs a document for the deployer, and returns the message with it.
    fn sign_message<'a>(
        &self,
        route: &str,
        call_id: &'a str,
        document: &impl Serialize,
    ) -> SignedMessage<'a> {
        // Maps with text keys and plain values: this cannot fail. The deployer would reject an empty body.
        let body = serde_json::to_vec(document).unwrap_or_default();
        SignedMessage {
            path: format!("/{route}/{}", self.deployer.settings.function),
            call_id,
            signature: signature::sign_body(&self.key, &body),
            body: body.into(),
        }
    }

    /// Sends a message to the deployer once.
    async fn send_once(
        &self,
        message: &SignedMessage<'_>,
        timeout: Duration,
    ) -> Result<GatewayReply, GatewayError> {
        let gateway = &self.deployer.gateway;
        let mut request = Request::post(gateway.uri_of_path(&message.path)?)
            .header(header::CONTENT_TYPE, "application/json")
            .header(SIGNATURE_HEADER, &message.signature);
        // A call id that no header can contain is left out here. The body has it as well.
        if let Ok(call_id) = header::HeaderValue::from_str(message.call_id) {
            request = request.header("x-call-id", call_id);
        }
        let invalid = |_| GatewayError::Path {
            path: message.path.clone(),
        };
        let request = request.body(Full::new(message.body.clone())).map_err(invalid)?;
        let response = gateway.send(request, timeout).await?;
        Ok((response.status(), response.into_body().to_vec()))
    }
}

/// Signs an answer that contains a hand-over, which a queue-worker posts to the deployer.
#[derive(Clone, Debug)]
pub(crate) struct AnswerSigner(HmacKeys);

impl AnswerSigner {
    /// Returns the name and the value of the header with the signature of the answer's `body`.
    pub(crate) fn signature_header(&self, body: &[u8]) -> (header::HeaderName, String) {
        (
            header::HeaderName::from_static(SIGNATURE_HEADER),
            signature::sign_body(&self.0, body),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hand_over_is_signed_only_with_a_secret_that_exists_and_is_not_empty() {
        let folder = tempfile::tempdir().expect("folder");
        let secrets = Secrets::new(folder.path());
        let gateway = Gateway::new("http://gateway:8080", secrets.clone()).expect("gateway");
        let deployer = Deployer {
            gateway,
            secrets,
            settings: HandOverSettings {
                function: "deployer-fn".into(),
                via: DeployVia::Function,
                timeout: Duration::from_secs(1),
                hand_over_ttl: Duration::from_secs(1),
            },
        };

        assert!(matches!(deployer.signer(), Err(Error::NoDeploySecret { .. })));
        std::fs::write(folder.path().join(DEPLOY_SECRET_NAME), "\n").expect("write");
        assert!(matches!(deployer.signer(), Err(Error::DeploySecret(_))));
        std::fs::write(folder.path().join(DEPLOY_SECRET_NAME), "key\n").expect("write");
        assert!(deployer.signer().is_ok());
    }
}
