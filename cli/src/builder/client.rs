//! Sends requests to builder-fn.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use function_host::http::request::Builder;
use function_host::http::{Method, Response, StatusCode};
use function_host::{ErrorChain, ExchangeError, HttpClient, OutgoingRequestBody, Secrets};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use serde_json::Value;

use super::request;
use super::{RecordStream, Route, SignedBody, SignedBuildRequest};
use crate::failure::Failure;
use crate::settings::ConnectionSettings;

/// The longest time until the answer to a question begins, and again until the body of any answer is read.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest time until the answer to a probe begins.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest time for an upload, until its answer begins.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// The size of the largest answer that is read as a whole, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The most characters of the builder's error that are shown.
const ERROR_CHARS_MAX: usize = 4096;

/// The most characters that are shown of an answer that is not the builder's.
const QUOTED_CHARS_MAX: usize = 300;

/// A client of builder-fn.
#[derive(Clone)]
pub(crate) struct BuilderClient {
    http: HttpClient,
    settings: Arc<ConnectionSettings>,
}

/// The reason why a request was not answered with success.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// No connection to the address of the builder or gateway could be made.
    #[error("could not connect to {url}: {reason}")]
    Connect {
        /// The URL of the request.
        url: String,
        /// The reason.
        reason: String,
    },
    /// The connection was lost, or the answer took too long, is too large or is not JSON.
    #[error("{url} gave no answer: {reason}")]
    Lost {
        /// The URL of the request.
        url: String,
        /// The reason.
        reason: String,
    },
    /// The answer is an error.
    #[error("{0}")]
    Refused(Refusal),
}

/// An answer that is an error: its status, and its body as far as it is the builder's.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{status} from {url}: {text}")]
pub(crate) struct Refusal {
    /// The URL of the request.
    pub(crate) url: String,
    /// The HTTP status.
    pub(crate) status: u16,
    /// The error, for people.
    pub(crate) text: String,
    /// The builder's answer, whose `status` is `failed`; an object with `status`, `error` and `code` if the body was
    /// something else.
    pub(crate) outcome: Value,
    /// Whether the body was an object with an error: what is in front of the builder answers otherwise.
    pub(crate) is_builders: bool,
}

impl BuilderClient {
    /// Creates a client.
    ///
    /// # Errors
    /// Fails if there are no certificate authorities on this machine to trust, and a URL begins with `https:`.
    pub(crate) fn new(settings: ConnectionSettings) -> Result<Self, Failure> {
        let urls = [Some(&settings.gateway), settings.builder.as_ref()];
        let needs_tls = urls.into_iter().flatten().any(|url| url.starts_with("https:"));
        let http = match needs_tls {
            // A folder without secrets: only the system's authorities are trusted.
            true => HttpClient::trusting_system_and_gateway_certificates(
                &Secrets::new(Path::new("/nonexistent")),
                None,
            ),
            false => HttpClient::trusting_no_certificate(None),
        };
        let http = http.map_err(|error| {
            Failure::usage(
                format!("could not set up TLS: {error}"),
                "install the package ca-certificates, or set SSL_CERT_FILE to a file with the authorities",
            )
        })?;
        Ok(Self {
            http,
            settings: Arc::new(settings),
        })
    }

    /// Returns the addresses and the key.
    pub(crate) fn settings(&self) -> &ConnectionSettings {
        &self.settings
    }

    /// Returns the URL of the page that an answer of the builder names: a URL, or a path that is relative to the
    /// builder.
    pub(crate) fn page_url(&self, route: Route, page_url_or_path: &str) -> String {
        match page_url_or_path.starts_with('/') {
            true => format!("{}{page_url_or_path}", request::base_url(&self.settings, route)),
            false => page_url_or_path.to_owned(),
        }
    }

    /// Returns whether requests by a route are not encrypted.
    pub(crate) fn is_plain_http(&self, route: Route) -> bool {
        request::base_url(&self.settings, route).starts_with("http:")
    }

    /// Checks that a builder answers by a route.
    ///
    /// # Errors
    /// Fails if none does, with the reason.
    pub(crate) async fn probe(&self, route: Route) -> Result<(), RequestError> {
        let request = request::probe_request(&self.settings, route);
        self.send_and_expect_success(request, empty_body(), PROBE_TIMEOUT)
            .await
            .map(|_| ())
    }

    /// Sends a build request, and returns the ID of the call and, unless the route is the queue, the stream of the
    /// build's records. `on_total_bytes_sent` gets the number of bytes that were sent so far.
    ///
    /// # Errors
    /// Fails if the request is refused or lost.
    pub(crate) async fn submit(
        &self,
        route: Route,
        submission: &SignedBuildRequest,
        on_total_bytes_sent: impl FnMut(u64) + Send + 'static,
    ) -> Result<SubmittedBuild, RequestError> {
        let request = request::build_request(&self.settings, route, submission);
        let body = submission.body.body.clone().into_upload(on_total_bytes_sent);
        let response = self
            .send_and_expect_success(request, body, UPLOAD_TIMEOUT)
            .await?;
        let call_id = response
            .headers()
            .get("X-Call-Id")
            .and_then(|id| id.to_str().ok());
        let call_id = call_id.unwrap_or(&submission.call_id).to_owned();
        Ok(SubmittedBuild {
            call_id,
            records: (route != Route::Queue).then(|| RecordStream::new(response.into_body())),
        })
    }

    /// Stores a context, and returns the reference to it.
    ///
    /// # Errors
    /// Fails if the request is refused or lost.
    pub(crate) async fn store_context_and_return_reference(
        &self,
        route: Route,
        body: SignedBody,
        on_total_bytes_sent: impl FnMut(u64) + Send + 'static,
    ) -> Result<Value, RequestError> {
        let request = request::store_context_request(&self.settings, route, &body.signature);
        let answer = self
            .send_and_read_json(
                request,
                body.body.into_upload(on_total_bytes_sent),
                UPLOAD_TIMEOUT,
            )
            .await?;
        Ok(answer["context"].clone())
    }

    /// Asks for the public key that build secrets are sealed to.
    ///
    /// # Errors
    /// Fails if the request is refused or lost.
    pub(crate) async fn ask_for_public_key(&self, route: Route) -> Result<Value, RequestError> {
        let request = request::public_key_request(&self.settings, route);
        self.send_and_read_json(request, empty_body(), QUESTION_TIMEOUT)
            .await
    }

    /// Sends a signed request about builds or versions, without a body, and returns the answer.
    ///
    /// # Errors
    /// Fails if the request is refused or lost.
    pub(crate) async fn ask(&self, route: Route, method: Method, path: &str) -> Result<Value, RequestError> {
        let request = request::bodyless_request(&self.settings, route, method, path, SystemTime::now());
        self.send_and_read_json(request, empty_body(), QUESTION_TIMEOUT)
            .await
    }

    /// Opens the log of a build at the line with the number `from_line`.
    ///
    /// # Errors
    /// Fails if the request is refused or lost.
    pub(crate) async fn open_log(
        &self,
        route: Route,
        id: &str,
        from_line: u64,
    ) -> Result<RecordStream, RequestError> {
        let request = request::log_request(&self.settings, route, id, from_line, SystemTime::now());
        let response = self
            .send_and_expect_success(request, empty_body(), QUESTION_TIMEOUT)
            .await?;
        Ok(RecordStream::new(response.into_body()))
    }

    /// Sends a request, and reads its answer as JSON.
    async fn send_and_read_json(
        &self,
        request: Builder,
        body: OutgoingRequestBody,
        timeout: Duration,
    ) -> Result<Value, RequestError> {
        let url = request.uri_ref().map(ToString::to_string).unwrap_or_default();
        let response = self.send_and_expect_success(request, body, timeout).await?;
        let bytes = read_body(response).await.map_err(|reason| RequestError::Lost {
            url: url.clone(),
            reason,
        })?;
        serde_json::from_slice(&bytes).map_err(|error| RequestError::Lost {
            url,
            reason: format!("the answer is not JSON: {error}"),
        })
    }

    /// Sends a request, and returns the response if its status is a success.
    async fn send_and_expect_success(
        &self,
        request: Builder,
        body: OutgoingRequestBody,
        timeout: Duration,
    ) -> Result<Response<Incoming>, RequestError> {
        let url = request.uri_ref().map(ToString::to_string).unwrap_or_default();
        let lost = |reason: String| RequestError::Lost {
            url: url.clone(),
            reason,
        };
        let request = request.body(body).map_err(|error| lost(error.to_string()))?;
        let response = match self.http.send(request, timeout).await {
            Ok(response) => response,
            Err(ExchangeError::Connect(error)) => {
                return Err(RequestError::Connect {
                    url,
                    reason: ErrorChain(&*error).to_string(),
                });
            }
            Err(ExchangeError::Timeout(timeout)) => {
                return Err(lost(format!("nothing came within {} s", timeout.as_secs())));
            }
            Err(ExchangeError::Lost(error)) => return Err(lost(ErrorChain(&*error).to_string())),
            Err(ExchangeError::Denied(denied)) => return Err(lost(denied.to_string())),
            Err(ExchangeError::TooLarge(limit)) => {
                return Err(lost(format!("the answer has more than {limit} bytes")));
            }
        };
        match response.status() {
            status if status.is_success() => Ok(response),
            status => {
                let body = read_body(response).await.unwrap_or_default();
                Err(RequestError::Refused(Refusal::from_answer(url, status, &body)))
            }
        }
    }
}

/// The answer to a build request that was accepted.
pub(crate) struct SubmittedBuild {
    /// The ID of the call, which names the build.
    pub(crate) call_id: String,
    /// The records of the build; `None` if it was queued.
    pub(crate) records: Option<RecordStream>,
}

impl Refusal {
    pub(super) fn from_answer(url: String, status: StatusCode, body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let outcome: Option<Value> = serde_json::from_slice(body).ok();
        let mut outcome = outcome.filter(Value::is_object).unwrap_or_default();
        let is_builders = outcome["error"].is_string();
        let text = match outcome["error"].as_str() {
            Some(error) => error.chars().take(ERROR_CHARS_MAX).collect(),
            None => {
                let start: String = text.trim().chars().take(QUOTED_CHARS_MAX).collect();
                match start.is_empty() {
                    true => "the answer is empty".to_owned(),
                    false => start,
                }
            }
        };
        // Whatever the body says, the request was not answered with success.
        outcome["status"] = "failed".into();
        if outcome["state"] == "success" {
            outcome["state"] = Value::Null;
        }
        outcome["error"] = text.as_str().into();
        outcome["code"] = status.as_u16().into();
        Self {
            url,
            status: status.as_u16(),
            text,
            outcome,
            is_builders,
        }
    }
}

/// Reads a response's body.
async fn read_body(response: Response<Incoming>) -> Result<Bytes, String> {
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
    let read = tokio::time::timeout(QUESTION_TIMEOUT, body.collect()).await;
    match read {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) => Err(ErrorChain(&*error).to_string()),
        Err(_) => Err(format!(
            "the rest of it did not come within {} s",
            QUESTION_TIMEOUT.as_secs()
        )),
    }
}

fn empty_body() -> OutgoingRequestBody {
    Full::new(Bytes::new())
        .map_err(|never| match never {})
        .boxed_unsync()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::builder::{CallerContext, Verdict};

    #[test]
    fn an_answer_that_is_not_the_builders_is_quoted_and_has_its_status_as_code() {
        let refusal = |status, body: &str| Refusal::from_answer("u".into(), status, body.as_bytes());
        let plain = refusal(StatusCode::BAD_GATEWAY, "no upstream\n");
        assert_eq!(
            (plain.text.as_str(), &plain.outcome["code"]),
            ("no upstream", &json!(502))
        );
        let own = refusal(StatusCode::FORBIDDEN, r#"{"status":"failed","error":"a rule"}"#);
        assert_eq!((own.text.as_str(), &own.outcome["code"]), ("a rule", &json!(403)));
        assert_eq!((plain.is_builders, own.is_builders), (false, true));
        assert_eq!(refusal(StatusCode::NOT_FOUND, "").text, "the answer is empty");
    }

    #[test]
    fn an_error_whose_body_says_success_is_a_failure_with_a_next_step() {
        for body in [r#"{"status":"success"}"#, r#"{"state":"success","error":"odd"}"#] {
            let refusal = Refusal::from_answer("u".into(), StatusCode::BAD_GATEWAY, body.as_bytes());
            let verdict = Verdict::of_outcome(&refusal.outcome, &CallerContext::default());
            assert_eq!(verdict.status.code(), 4, "{verdict:?}");
            assert!(verdict.next.is_some_and(|next| !next.is_empty()), "{body}");
        }
    }
}
