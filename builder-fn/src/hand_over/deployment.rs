//! The outcome of a hand-over to the deployer.

use function_host::http::StatusCode;
use serde_json::{Value, json};

use super::{AnswerSigner, HandOverDocument};

/// The most characters that an error quotes of an answer that is not the deployer's.
const MAX_QUOTED_CHARS: usize = 300;

/// The outcome of a hand-over, or the refusal of a dry run: a status and the deployer's answer.
#[derive(Clone, Debug)]
pub(crate) struct DeploymentOutcome {
    /// The status, from the deployer's answer or from the failure to get one.
    pub(crate) status: DeploymentStatus,
    /// The deployer's answer for the caller. Without one, the builder makes JSON of the same form.
    pub(crate) answer: Value,
    /// The hand-over, if the builder's answer has to contain it.
    pub(crate) enclosed: Option<HandOverAndAnswerSigner>,
}

/// A hand-over that reaches the deployer as part of the builder's answer.
///
/// It is not part of the text that is masked: it is the caller's own configuration, and the deployer must get it
/// unchanged.
#[derive(Clone, Debug)]
pub(crate) struct HandOverAndAnswerSigner {
    /// The hand-over as JSON, as it stands in the builder's own answer: unmasked.
    pub(crate) document: Value,
    /// Signs the answer that contains the hand-over.
    pub(crate) signer: AnswerSigner,
}

/// The status of a deployment, as the builder knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeploymentStatus {
    /// The new version is ready.
    Ready,
    /// The new version was applied, and nothing proves that it is the one that answers.
    Unverified,
    /// The hand-over was sent, and the builder will not learn the outcome.
    Sent,
    /// A newer build of the function is deployed, or is about to be.
    Superseded,
    /// The deployment is invalid, or the new version does not work. Only the caller can fix it.
    Rejected,
    /// The deployer, the gateway or the provider failed. A retry may succeed.
    Failed,
}

impl DeploymentStatus {
    /// Returns the word for the status in log lines. The `status` in the deployer's answer may be another one.
    pub(crate) fn as_log_word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Unverified => "unverified",
            Self::Sent => "sent",
            Self::Superseded => "superseded",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
        }
    }
}

impl DeploymentOutcome {
    /// Interprets the answer to a hand-over or a dry run. An answer that is not the deployer's own counts as a failure.
    pub(super) fn from_answer(status: StatusCode, body: &[u8]) -> Self {
        let Some(answer) = parse_deployers_answer(body) else {
            return Self::failed(describe_foreign_answer(status, body));
        };
        let outcome = match status {
            StatusCode::OK if answer["status"] == "unverified" => DeploymentStatus::Unverified,
            StatusCode::OK => DeploymentStatus::Ready,
            StatusCode::CONFLICT => DeploymentStatus::Superseded,
            // All of a hand-over but the caller's `deploy` and `probe` is the builder's, and valid.
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => DeploymentStatus::Rejected,
            _ => DeploymentStatus::Failed,
        };
        Self {
            status: outcome,
            answer,
            enclosed: None,
        }
    }

    /// Creates the outcome of a hand-over that failed for `reason` without an answer of the deployer.
    pub(crate) fn failed(reason: String) -> Self {
        Self {
            status: DeploymentStatus::Failed,
            answer: json!({"status": "failed", "reasons": [reason]}),
            enclosed: None,
        }
    }

    /// Creates the refusal of a deployment that is not handed over, for `reason`.
    pub(crate) fn refused(reason: String) -> Self {
        Self {
            status: DeploymentStatus::Rejected,
            answer: json!({"status": "refused", "reasons": [reason]}),
            enclosed: None,
        }
    }

    /// Creates the outcome of a hand-over whose result the builder will not learn. `status` becomes the `status` in
    /// the JSON of its answer.
    pub(super) fn sent_with_unknown_result(status: &str, hand_over: &HandOverDocument<'_>) -> Self {
        let answer =
            json!({"function": hand_over.deploy.get("service"), "image": hand_over.image, "status": status});
        Self {
            status: DeploymentStatus::Sent,
            answer,
            enclosed: None,
        }
    }

    /// Returns the ID of the call with the newer build, if the deployer named it.
    pub(crate) fn superseding_call_id(&self) -> Option<&str> {
        self.answer["supersededBy"].as_str()
    }

    /// Returns the deployer's reasons on one line; its status if it gave no reasons.
    pub(crate) fn reasons_in_one_line(&self) -> String {
        let reasons: Vec<_> = self.answer["reasons"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        match reasons.is_empty() {
            false => reasons.join("; "),
            true => format!("it is {}", self.answer["status"].as_str().unwrap_or_default()),
        }
    }
}

/// Returns whether the body of an answer is the deployer's. The bodies of a gateway are no JSON objects with a
/// `status`.
pub(super) fn is_deployers_answer(body: &[u8]) -> bool {
    parse_deployers_answer(body).is_some()
}

/// Describes an answer that is not the deployer's, as part of a sentence.
pub(super) fn describe_foreign_answer(status: StatusCode, body: &[u8]) -> String {
    let body = String::from_utf8_lossy(body);
    let start: String = body.trim().chars().take(MAX_QUOTED_CHARS).collect();
    format!("the deployer answered {status} with {start:?}")
}

/// Parses an answer's body; returns `None` if it is not the deployer's.
fn parse_deployers_answer(body: &[u8]) -> Option<Value> {
    let answer: Value = serde_json::from_slice(body).ok()?;
    answer["status"].is_string().then_some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment_from_answer(status: u16, body: &str) -> DeploymentOutcome {
        DeploymentOutcome::from_answer(StatusCode::from_u16(status).expect("status"), body.as_bytes())
    }

    #[test]
    fn only_the_http_statuses_400_and_422_reject_a_deployment() {
        for (http, status) in [
            (200, DeploymentStatus::Ready),
            (409, DeploymentStatus::Superseded),
            (422, DeploymentStatus::Rejected),
            (400, DeploymentStatus::Rejected),
            (401, DeploymentStatus::Failed),
            (404, DeploymentStatus::Failed),
            (500, DeploymentStatus::Failed),
            (502, DeploymentStatus::Failed),
        ] {
            assert_eq!(
                deployment_from_answer(http, r#"{"status":"x"}"#).status,
                status,
                "{http}"
            );
        }
    }

    #[test]
    fn an_unverified_version_is_told_from_a_ready_one() {
        for (answer, status) in [
            (r#"{"status":"ready"}"#, DeploymentStatus::Ready),
            (r#"{"status":"unverified"}"#, DeploymentStatus::Unverified),
        ] {
            assert_eq!(deployment_from_answer(200, answer).status, status, "{answer}");
        }
    }

    #[test]
    fn an_answer_that_is_not_the_deployers_is_a_failure_whatever_its_status() {
        let deployment = deployment_from_answer(200, "<html>");

        assert_eq!(deployment.status, DeploymentStatus::Failed);
        assert_eq!(
            deployment.reasons_in_one_line(),
            "the deployer answered 200 OK with \"<html>\""
        );
    }

    #[test]
    fn a_reason_is_one_line_also_if_the_deployer_gave_several_or_none() {
        for (body, reason) in [
            (r#"{"status":"refused","reasons":["a","b"]}"#, "a; b"),
            (r#"{"status":"rolled_back"}"#, "it is rolled_back"),
        ] {
            assert_eq!(deployment_from_answer(422, body).reasons_in_one_line(), reason);
        }
    }
}
