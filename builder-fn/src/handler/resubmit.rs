//! Submits queued calls to their queue again that the builder cannot finish before it ends, and that no record lets
//! another builder resume.
//!
//! The body is the one that came from the queue, which therefore accepts it. A tar of which the builder keeps no copy
//! is stored as a context, and a JSON request refers to it.

use std::time::Duration;

use bytes::Bytes;
use function_host::ErrorChain;
use function_host::gateway::GatewayError;
use function_host::http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use function_host::http::{HeaderMap, Method, Request, StatusCode};
use function_host::signature;
use http_body_util::Full;
use serde_json::{Map, Value, json};

use super::{BuildExchange, BuilderApi};
use crate::builds::RecordedDelivery;
use crate::error::Error;
use crate::remote_context::ContextError;
use crate::request::{BuildRequest, BuildSource, SIGNATURE_HEADER, START_TIME_HEADER, TENANT_HEADER};

/// The longest wait for the gateway to take a call back. The process ends two seconds after builds are interrupted.
const RESUBMISSION_TIMEOUT: Duration = Duration::from_millis(1500);

/// The pause before a call is submitted again after the gateway has failed.
const RESUBMISSION_RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The pause before a call is submitted again that arrived during the shutdown. Its queue may deliver it to this
/// builder once more, until the port is closed.
const PAUSE_IF_ARRIVED_DURING_SHUTDOWN: Duration = Duration::from_millis(500);

const CALL_ID_HEADER: HeaderName = HeaderName::from_static("x-call-id");

/// The header with the URL to which the queue posts the answer. The queue passes it on to the function.
const CALLBACK_URL_HEADER: HeaderName = HeaderName::from_static("x-callback-url");

/// The headers of a queued call with which it is submitted again.
#[derive(Clone, Debug)]
pub(super) struct ResubmissionHeaders(HeaderMap);

/// The reason for which a call was not submitted again.
#[derive(Debug, thiserror::Error)]
enum ResubmissionError {
    #[error(
        "the builder keeps no copy of a body of {bytes} bytes, and stores no contexts; set contexts_repository, or send a \
         reference to the context"
    )]
    NoCopy { bytes: u64 },
    #[error("the context could not be stored")]
    Store(#[source] ContextError),
    #[error("the configuration or the sealed secrets are not text that a JSON request can have")]
    NotJson,
    #[error("the call ID is not valid in a header")]
    CallId,
    #[error("the gateway was not reached")]
    Gateway(#[source] GatewayError),
    #[error("the gateway answered {status}")]
    Status { status: StatusCode },
    #[error("the call was not submitted within {limit:?}")]
    Timeout { limit: Duration },
    #[error("the call did not come from a queue that it can be submitted to")]
    NotQueued,
}

impl ResubmissionHeaders {
    /// Selects the headers of a queued call with which it is submitted again. Of the times at which the gateway
    /// received the call, only the first remains, because it orders the builds of a function.
    pub(super) fn of_queued_call(headers: &HeaderMap) -> Self {
        let mut kept = HeaderMap::new();
        let names = [
            HeaderName::from_static(SIGNATURE_HEADER),
            HeaderName::from_static(TENANT_HEADER),
            CONTENT_TYPE,
            CALLBACK_URL_HEADER,
        ];
        for name in names {
            if let Some(value) = headers.get(&name) {
                kept.insert(name, value.clone());
            }
        }
        let submitted = headers.get(START_TIME_HEADER).map(HeaderValue::as_bytes);
        let first = submitted.and_then(|times| times.split(|byte| *byte == b',').next());
        if let Some(Ok(first)) = first.map(|first| HeaderValue::from_bytes(first.trim_ascii())) {
            kept.insert(HeaderName::from_static(START_TIME_HEADER), first);
        }
        Self(kept)
    }
}

impl BuilderApi {
    /// Returns whether the call can be submitted again: it came from a queue, and its body was kept, or its tar can be
    /// stored as a context.
    pub(super) fn is_resubmittable(&self, request: &BuildRequest, exchange: &BuildExchange) -> bool {
        let is_storable = request.config_copy.is_some() && self.builder.contexts.stores_contexts();
        exchange.resubmission_headers.is_some() && (request.body_copy.is_some() || is_storable)
    }

    /// Submits an interrupted call to its queue again, unless another delivery of it is in progress here, and returns
    /// the error that the delivery ends with. A call that cannot be submitted is logged.
    pub(super) async fn submit_again_returning_error_of_delivery(
        &self,
        request: &BuildRequest,
        accepted: &RecordedDelivery,
        exchange: &BuildExchange,
    ) -> Error {
        if accepted.leave_to_another_delivery_if_any() {
            return Error::SubmittedAgain;
        }
        let limit = RESUBMISSION_TIMEOUT;
        let submitted = tokio::time::timeout(
            limit,
            self.submit_to_queue_retrying_without_limit(request, exchange),
        )
        .await;
        let submitted = submitted.unwrap_or(Err(ResubmissionError::Timeout { limit }));
        let image = request.config.image_as_given.as_str();
        let (bytes, is_reference) = (request.body_bytes, request.body_copy.is_none());
        match submitted {
            Ok(()) => {
                tracing::info!(
                    image,
                    bytes,
                    is_reference,
                    "submitted an interrupted build to the queue again"
                );
                Error::SubmittedAgain
            }
            Err(error) => {
                tracing::error!(
                    image,
                    bytes,
                    error = %ErrorChain(&error),
                    "could not hand an interrupted build back: it is lost unless its queue delivers it again"
                );
                Error::Interrupted
            }
        }
    }

    /// Submits a call to its queue until the gateway accepts or rejects it.
    async fn submit_to_queue_retrying_without_limit(
        &self,
        request: &BuildRequest,
        exchange: &BuildExchange,
    ) -> Result<(), ResubmissionError> {
        let Some(ResubmissionHeaders(headers)) = &exchange.resubmission_headers else {
            return Err(ResubmissionError::NotQueued);
        };
        if exchange.arrived_during_shutdown {
            tokio::time::sleep(PAUSE_IF_ARRIVED_DURING_SHUTDOWN).await;
        }
        let mut headers = headers.clone();
        let call_id =
            HeaderValue::from_str(exchange.context.call_id()).map_err(|_| ResubmissionError::CallId)?;
        headers.insert(CALL_ID_HEADER, call_id);
        let body = match &request.body_copy {
            Some(body) => body.clone(),
            None => {
                self.store_context_and_make_json_request(request, &mut headers)
                    .await?
            }
        };
        let path = format!("/async-function/{}", self.own_function);
        let gateway = exchange.context.gateway();
        loop {
            let uri = gateway.uri_of_path(&path).map_err(ResubmissionError::Gateway)?;
            let mut message = Request::new(Full::new(body.clone()));
            *message.method_mut() = Method::POST;
            *message.uri_mut() = uri;
            *message.headers_mut() = headers.clone();
            let failure = match gateway.send(message, RESUBMISSION_TIMEOUT).await {
                Ok(response) if response.status() == StatusCode::ACCEPTED => return Ok(()),
                Ok(response) if response.status().is_client_error() => {
                    return Err(ResubmissionError::Status {
                        status: response.status(),
                    });
                }
                Ok(response) => ResubmissionError::Status {
                    status: response.status(),
                },
                Err(error) => ResubmissionError::Gateway(error),
            };
            tracing::warn!(error = %ErrorChain(&failure), "an interrupted build is submitted to the queue once more");
            tokio::time::sleep(RESUBMISSION_RETRY_PAUSE).await;
        }
    }

    /// Stores the tar of a request as a context, and returns a JSON request that refers to it. Sets the headers for it,
    /// the signature with the caller's key among them.
    async fn store_context_and_make_json_request(
        &self,
        request: &BuildRequest,
        headers: &mut HeaderMap,
    ) -> Result<Bytes, ResubmissionError> {
        let no_copy = ResubmissionError::NoCopy {
            bytes: request.body_bytes,
        };
        let (Some(config), BuildSource::Received(context)) = (&request.config_copy, &request.source) else {
            return Err(no_copy);
        };
        if !self.builder.contexts.stores_contexts() {
            return Err(no_copy);
        }
        let stored = self
            .builder
            .contexts
            .store(context.to_decompressed_storable_tar(), request.tenant())
            .await;
        let stored = stored.map_err(ResubmissionError::Store)?;
        let body = json_request_or_none_if_not_text(
            config,
            &stored.reference.to_string(),
            request.sealed_secrets.as_deref(),
        )
        .ok_or(ResubmissionError::NotJson)?;
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let signature_header = HeaderName::from_static(SIGNATURE_HEADER);
        headers.remove(&signature_header);
        if let Some(verified) = &request.signature {
            let signature = signature::sign_body(verified.keys_of_signers_secret(), &body);
            let signature = HeaderValue::from_str(&signature).map_err(|_| ResubmissionError::NotJson)?;
            headers.insert(signature_header, signature);
        }
        Ok(body)
    }
}

/// Returns a JSON request with this configuration, context and envelope of secrets; `None` if the configuration is not
/// a JSON object or the envelope is not text. The configuration's own `context` and `sealedSecrets` are left out: in a
/// tar, they had no effect.
fn json_request_or_none_if_not_text(
    config: &[u8],
    context_reference: &str,
    sealed_secrets: Option<&[u8]>,
) -> Option<Bytes> {
    let mut members: Map<String, Value> = serde_json::from_slice(config).ok()?;
    let is_own = |key: &str| {
        ["context", "sealedSecrets"]
            .iter()
            .any(|own| own.eq_ignore_ascii_case(key))
    };
    members.retain(|key, _| !is_own(key));
    members.insert("context".to_owned(), json!({ "oci": context_reference }));
    if let Some(envelope) = sealed_secrets {
        let envelope = std::str::from_utf8(envelope).ok()?;
        members.insert("sealedSecrets".to_owned(), json!(envelope));
    }
    serde_json::to_vec(&members).ok().map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resubmission_headers_keep_the_first_time_the_signature_and_the_callback_but_no_forwarding_header() {
        for (values, first) in [(&["17", "18"][..], "17"), (&[" 17 , 18"], "17")] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(START_TIME_HEADER, value.parse().unwrap());
            }
            headers.insert("x-build-signature", "sha256=00".parse().unwrap());
            headers.insert("x-callback-url", "http://callback.example/".parse().unwrap());
            headers.insert("x-forwarded-for", "10.0.0.1".parse().unwrap());
            let ResubmissionHeaders(kept) = ResubmissionHeaders::of_queued_call(&headers);
            let times: Vec<_> = kept.get_all(START_TIME_HEADER).iter().collect();
            assert_eq!(times, [first], "{values:?}");
            assert_eq!(kept["x-build-signature"], "sha256=00");
            assert_eq!(kept["x-callback-url"], "http://callback.example/");
            assert_eq!(kept.len(), 3);
        }
    }

    #[test]
    fn a_json_request_has_the_configuration_of_the_tar_and_refers_to_its_context() {
        let config =
            br#"{"image": "r.example/a", "buildArgs": {"A": "1"}, "Context": 1, "sealedsecrets": "x"}"#;
        let body =
            json_request_or_none_if_not_text(config, "r.example/contexts@sha256:12", Some(b"version: v1\n"))
                .unwrap();
        let expected = json!({
            "image": "r.example/a", "buildArgs": {"A": "1"},
            "context": {"oci": "r.example/contexts@sha256:12"}, "sealedSecrets": "version: v1\n",
        });
        assert_eq!(serde_json::from_slice::<Value>(&body).unwrap(), expected);
        assert_eq!(
            json_request_or_none_if_not_text(config, "r.example/contexts@sha256:12", Some(&[0xff])),
            None
        );
    }
}
