//! The outcome of a hand-over.

use function_host::http::StatusCode;
use serde_json::{Value, json};

use super::{AnswerSigner, HandOver};

/// Characters of the longest answer that is repeated in an error because it is not the deployer's.
const MAX_REPEATED: usize = 300;

/// What became of a hand-over.
#[derive(Clone, Debug)]
pub(crate) struct Deployment {
    /// The outcome.
    pub(crate) status: DeploymentStatus,
    /// The deployer's answer, for the caller.
    pub(crate) answer: Value,
    /// Signs the builder's answer, if that contains the hand-over.
    pub(crate) signer: Option<AnswerSigner>,
}

/// The outcome of a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeploymentStatus {
    /// The new version is ready.
    Ready,
    /// The hand-over was sent, and its outcome will not be known here.
    Sent,
    /// The deployment is invalid, or the new version does not work. Only the caller can fix it.
    Rejected,
    /// The deployer, the gateway or the provider failed. A retry may succeed.
    Failed,
}

impl DeploymentStatus {
    /// Returns the status as a field of a log line.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Sent => "sent",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
        }
    }
}

impl Deployment {
    /// Interprets the answer of the deployer, or of a gateway that could not reach it.
    pub(super) fn from_answer(status: StatusCode, body: &[u8]) -> Self {
        let outcome = match status {
            StatusCode::OK => DeploymentStatus::Ready,
            // All of a hand-over but the caller's `deploy` and `probe` is the builder's, and valid.
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => DeploymentStatus::Rejected,
            _ => DeploymentStatus::Failed,
        };
        match serde_json::from_slice(body) {
            Ok(answer @ Value::Object(_)) => Self {
                status: outcome,
                answer,
                signer: None,
            },
            _ => {
                let body = String::from_utf8_lossy(body);
                let start: String = body.trim().chars().take(MAX_REPEATED).collect();
                Self::failed(format!("the deployer answered {status} with {start:?}"))
            }
        }
    }

    /// Creates the outcome of a hand-over that got no answer.
    pub(crate) fn failed(reason: String) -> Self {
        Self {
            status: DeploymentStatus::Failed,
            answer: json!({"status": "failed", "reasons": [reason]}),
            signer: None,
        }
    }

    /// Creates the outcome of a hand-over whose outcome will not be known here.
    pub(super) fn sent(status: &str, hand_over: &HandOver<'_>) -> Self {
        let answer =
            json!({"function": hand_over.deploy.get("service"), "image": hand_over.image, "status": status});
        Self {
            status: DeploymentStatus::Sent,
            answer,
            signer: None,
        }
    }

    /// Returns the deployer's reasons on one line; its status if it gave none.
    pub(crate) fn reason(&self) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: u16, body: &str) -> Deployment {
        Deployment::from_answer(StatusCode::from_u16(status).expect("status"), body.as_bytes())
    }

    #[test]
    fn the_http_status_tells_the_callers_mistakes_from_the_platforms_failures() {
        for (http, status) in [
            (200, DeploymentStatus::Ready),
            (422, DeploymentStatus::Rejected),
            (400, DeploymentStatus::Rejected),
            (401, DeploymentStatus::Failed),
            (404, DeploymentStatus::Failed),
            (500, DeploymentStatus::Failed),
            (502, DeploymentStatus::Failed),
        ] {
            assert_eq!(answered(http, r#"{"status":"x"}"#).status, status, "{http}");
        }
    }

    #[test]
    fn an_answer_that_is_not_the_deployers_is_a_failure_whatever_its_status() {
        let deployment = answered(200, "<html>");

        assert_eq!(deployment.status, DeploymentStatus::Failed);
        assert_eq!(
            deployment.reason(),
            "the deployer answered 200 OK with \"<html>\""
        );
    }

    #[test]
    fn a_reason_is_one_line_also_if_the_deployer_gave_several_or_none() {
        for (body, reason) in [
            (r#"{"status":"refused","reasons":["a","b"]}"#, "a; b"),
            (r#"{"status":"rolled_back"}"#, "it is rolled_back"),
            ("{}", "the deployer gave no reason"),
        ] {
            assert_eq!(answered(422, body).reason(), reason);
        }
    }
}
