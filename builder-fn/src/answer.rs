//! The answer to a build request: the one place where an outcome or an error becomes an HTTP status.
//!
//! The status tells a queue whether to retry: yes for 429, 502 and 507, no for all others. The body of a 429 is plain
//! text, and that of every other status the same JSON object. A streamed answer has status 200 whatever becomes of the
//! build, because clients read the body of no other one.

mod response;

use function_host::http::StatusCode;
use serde_json::Value;

use crate::build::BuildResult;
use crate::error::{Error, ErrorKind};
use crate::hand_over::{DeploymentStatus, HandOverAndAnswerSigner};
use crate::hint::{Hint, explain_deployment};
use crate::redact::SecretMask;
use crate::report::{Report, SuccessOrFailedStatus, Warnings};

pub(crate) use response::{
    StoredContextAnswer, error_response, json_value_response, method_not_allowed_response,
    not_found_response, public_key_response, stored_context_response, streamed_response,
    streamed_text_response, too_many_log_readers_response, unbuffered_response,
};

/// The fields of a deployer's answer in which secrets are not masked, because programs read them: words of a fixed set,
/// and names that the config has in clear text. A secret with the value `ready` must not change the status.
const UNMASKED_DEPLOYMENT_FIELDS: [&str; 8] = [
    "status",
    "function",
    "namespace",
    "image",
    "previousImage",
    "running",
    "url",
    "supersededBy",
];

/// The fields of an answer that do not depend on the build's outcome.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AnswerImageAndSeconds<'a> {
    /// The image's name as the caller wrote it, if the config could be read.
    pub(crate) image: Option<&'a str>,
    /// The seconds since the request arrived.
    pub(crate) seconds: f64,
}

/// The answer to a build request, before it is sent.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The answer's HTTP status, if the answer is not streamed.
    status: StatusCode,
    /// The answer's body. The build's log is added to it before the answer is sent as a whole.
    pub(crate) report: Report,
    /// Whether the connection is closed, because the rest of the request's body is not read.
    closes_connection: bool,
    /// The reason of an answer with status 429, which asks for the request again later; `None` for every other status.
    retry: Option<ReasonForTooManyRequests>,
    /// The hand-over that the answer's body is to contain. It is added after everything else was masked.
    enclosed: Option<HandOverAndAnswerSigner>,
}

/// The reason why a rejected request is to be sent again later.
#[derive(Clone, Copy, Debug)]
enum ReasonForTooManyRequests {
    /// All build slots are taken; with the limit on the builds that run at the same time.
    Busy { limit: usize },
    /// The builder cannot build now: another one can, or this one later. The error says why.
    Later,
}

impl Answer {
    /// Creates the answer for a request that produced an image: with status 200, unless the image was to be deployed
    /// and was not; then the deployment decides the status.
    pub(crate) fn from_built(mut built: BuildResult, fields: AnswerImageAndSeconds<'_>) -> Self {
        let (status, error) = match &built.deployment {
            None => (StatusCode::OK, None),
            Some(deployment) => {
                let status = match deployment.status {
                    DeploymentStatus::Ready | DeploymentStatus::Unverified | DeploymentStatus::Sent => {
                        StatusCode::OK
                    }
                    DeploymentStatus::Superseded => StatusCode::CONFLICT,
                    DeploymentStatus::Rejected => StatusCode::UNPROCESSABLE_ENTITY,
                    DeploymentStatus::Failed => StatusCode::BAD_GATEWAY,
                };
                let error = (status != StatusCode::OK).then(|| {
                    format!(
                        "the image was built and pushed, but not deployed: {}",
                        deployment.reasons_in_one_line()
                    )
                });
                (status, error)
            }
        };
        let hint = built.deployment.as_ref().filter(|_| error.is_some());
        let hint = hint.and_then(|deployment| explain_deployment(&deployment.answer));
        let hint = hint.map(Box::new);
        let deployment = built.deployment.as_mut();
        let superseded_by = deployment
            .as_ref()
            .and_then(|deployment| deployment.superseding_call_id());
        let superseded_by = superseded_by.map(str::to_owned);
        let enclosed = deployment.and_then(|deployment| deployment.enclosed.take());
        Self {
            status,
            report: Report {
                log: None,
                image: fields.image.map(str::to_owned),
                digest: built.digest,
                commit: built.commit,
                status: match error {
                    None => SuccessOrFailedStatus::Success,
                    Some(_) => SuccessOrFailedStatus::Failed,
                },
                error,
                code: (status != StatusCode::OK).then_some(status.as_u16()),
                hint,
                superseded_by,
                deployment: built.deployment.map(|deployment| deployment.answer),
                page: None,
                warnings: Warnings::default(),
                duration: fields.seconds,
            },
            closes_connection: false,
            retry: None,
            enclosed,
        }
    }

    /// Creates the answer for a request that failed. The kind of its error decides the status.
    pub(crate) fn from_error(error: &Error, fields: AnswerImageAndSeconds<'_>) -> Self {
        let kind = error.kind();
        let status = match kind {
            ErrorKind::Unauthorized => StatusCode::UNAUTHORIZED,
            ErrorKind::Invalid => StatusCode::BAD_REQUEST,
            ErrorKind::Forbidden => StatusCode::FORBIDDEN,
            ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorKind::BuildFailed | ErrorKind::DeploymentRejected => StatusCode::UNPROCESSABLE_ENTITY,
            ErrorKind::Superseded | ErrorKind::Cancelled | ErrorKind::Conflict => StatusCode::CONFLICT,
            ErrorKind::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
            ErrorKind::TooSlow => StatusCode::REQUEST_TIMEOUT,
            ErrorKind::Busy { .. } | ErrorKind::Displaced | ErrorKind::Draining | ErrorKind::HandedBack => {
                StatusCode::TOO_MANY_REQUESTS
            }
            ErrorKind::NotOffered => StatusCode::NOT_IMPLEMENTED,
            ErrorKind::Platform => StatusCode::BAD_GATEWAY,
        };
        let report = Report {
            code: Some(status.as_u16()),
            superseded_by: error.superseding_call_id().map(str::to_owned),
            deployment: error
                .refused_deployment()
                .map(|deployment| deployment.answer.clone()),
            hint: error
                .refused_deployment()
                .and_then(|deployment| explain_deployment(&deployment.answer))
                .map(Box::new),
            ..report_of_failure(error.to_string(), fields)
        };
        Self {
            status,
            report,
            closes_connection: matches!(
                kind,
                ErrorKind::TooLarge | ErrorKind::NoSpace | ErrorKind::TooSlow | ErrorKind::Displaced
            ),
            retry: match kind {
                ErrorKind::Busy { limit } => Some(ReasonForTooManyRequests::Busy { limit }),
                ErrorKind::Displaced | ErrorKind::Draining | ErrorKind::HandedBack => {
                    Some(ReasonForTooManyRequests::Later)
                }
                _ => None,
            },
            enclosed: None,
        }
    }

    /// Returns the body of the answer as a notification has it: without the hand-over that the queue-worker delivers.
    /// `None` for status 429, which is not the result of the request.
    pub(crate) fn notification_body_unless_too_many_requests(&self) -> Option<Vec<u8>> {
        self.retry.is_none().then(|| response::to_json_line(&self.report))
    }

    /// Returns the answer with the hint for its failure, unless it has one.
    #[must_use]
    pub(crate) fn with_hint_if_missing(mut self, hint: Option<Hint>) -> Self {
        self.report.hint = self.report.hint.or(hint.map(Box::new));
        self
    }

    /// Masks secrets in the answer's error and hint, and in the deployer's answer except
    /// [`UNMASKED_DEPLOYMENT_FIELDS`]. The log is not masked here: it is masked line by line, as it is written.
    #[must_use]
    pub(crate) fn with_secrets_masked_except_in_log_and_fixed_fields(mut self, mask: &SecretMask) -> Self {
        if let Some(error) = &mut self.report.error {
            *error = mask.mask_text(error).into_owned();
        }
        if let Some(hint) = &mut self.report.hint {
            hint.map_texts(|text| *text = mask.mask_text(text).into_owned());
        }
        if let Some(Value::Object(deployment)) = &mut self.report.deployment {
            let is_text = |key: &str| !UNMASKED_DEPLOYMENT_FIELDS.contains(&key);
            deployment
                .iter_mut()
                .filter(|(key, _)| is_text(key))
                .for_each(|(_, value)| mask.mask_json(value));
        }
        self
    }
}

/// Creates the report for a build that panicked.
pub(crate) fn report_of_panicked_build(call_id: &str, image: &str) -> Report {
    let fields = AnswerImageAndSeconds {
        image: Some(image),
        seconds: 0.0,
    };
    report_of_failure(format!("internal error, call id {call_id}"), fields)
}

/// Creates a report with status `failed`, this error, and neither log nor digest.
fn report_of_failure(error: String, fields: AnswerImageAndSeconds<'_>) -> Report {
    Report {
        log: None,
        image: fields.image.map(str::to_owned),
        digest: None,
        commit: None,
        status: SuccessOrFailedStatus::Failed,
        error: Some(error),
        code: None,
        hint: None,
        superseded_by: None,
        deployment: None,
        page: None,
        warnings: Warnings::default(),
        duration: fields.seconds,
    }
}

#[cfg(test)]
mod tests;
