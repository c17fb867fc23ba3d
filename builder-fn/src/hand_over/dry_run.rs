//! The dry run: asks the deployer before the build whether the deployment could succeed.
//!
//! A wrong field, a policy or a missing secret then costs no build. Nothing depends on the answer otherwise: the deployer
//! checks the hand-over itself again, and a deployer that cannot be asked prevents no build.

use std::time::Duration;

use function_host::http::StatusCode;
use serde_json::Value;
use tokio::time::Instant;

use super::deployment::describe_foreign_answer;
use super::retry::{Backoff, describe_transient_failure};
use super::{DeployVia, DeploymentOutcome, DryRunDocument, HandOverSigner};

/// The timeout of one attempt at a dry run, unless `deploy_timeout` is shorter. A deployer that runs answers in well
/// under a second.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// The most attempts at a dry run. Only a transient failure is followed by another attempt.
const ATTEMPTS_MAX: usize = 2;

/// The outcome of a dry run.
#[derive(Debug)]
pub(crate) enum DryRunOutcome {
    /// The deployer found nothing that prevents the deployment.
    Accepted {
        /// The deployer's remarks on fields that it ignores or takes for misspelt.
        warnings: Vec<String>,
        /// The version that is deployed now, as far as the deployer says.
        deployed: Option<DeployedVersion>,
    },
    /// The deployer would refuse the hand-over.
    Refused(Box<DeploymentOutcome>),
    /// There are no dry runs: the setting `deploy_via` excludes calls of the deployer, or it answered as a release
    /// without dry runs does.
    Unsupported,
    /// The deployer gave no verdict: it could not be reached, failed, or answered something else.
    Unanswered {
        /// The reason why the deployer gave no verdict.
        reason: String,
    },
}

/// The version of a function that is deployed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeployedVersion {
    /// The image in the function's specification.
    pub(crate) image: String,
    /// The call that handed the version over, if Slipway deployed it.
    pub(crate) call_id: Option<String>,
}

impl DeployedVersion {
    /// Reads the version from the answer to a dry run.
    fn from_answer(answer: &Value) -> Option<Self> {
        let text = |key: &str| answer["deployed"][key].as_str().map(str::to_owned);
        Some(Self {
            image: text("image")?,
            call_id: text("callId"),
        })
    }
}

impl HandOverSigner<'_> {
    /// Asks the deployer whether it would accept the hand-over of an image, unless hand-overs go through callbacks.
    pub(crate) async fn ask_for_dry_run_unless_callback(
        &self,
        dry_run: &DryRunDocument<'_>,
    ) -> DryRunOutcome {
        let settings = &self.deployer.settings;
        if settings.via == DeployVia::Callback {
            return DryRunOutcome::Unsupported;
        }
        let message = self.sign_message("function", dry_run.call_id, dry_run);
        let mut backoff = Backoff::new();
        let mut attempt = 1;
        loop {
            let started = Instant::now();
            let result = self
                .send_once(&message, ATTEMPT_TIMEOUT.min(settings.timeout))
                .await;
            let seconds = started.elapsed().as_secs_f64();
            if let Some(reason) = describe_transient_failure(&result) {
                tracing::warn!(
                    deployer = settings.function,
                    attempt,
                    seconds,
                    reason,
                    "dry run failed"
                );
                if attempt < ATTEMPTS_MAX {
                    attempt += 1;
                    tokio::time::sleep(backoff.next_wait()).await;
                    continue;
                }
            }
            return match result {
                Ok((status, body)) => interpret_answer(status, &body),
                Err(error) => DryRunOutcome::Unanswered {
                    reason: error.to_string(),
                },
            };
        }
    }
}

/// Interprets the deployer's answer to a dry run.
fn interpret_answer(status: StatusCode, body: &[u8]) -> DryRunOutcome {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    let is_dry_run = answer["dryRun"] == true;
    match status {
        StatusCode::OK if is_dry_run => DryRunOutcome::Accepted {
            warnings: strings_of_list(&answer["warnings"]),
            deployed: DeployedVersion::from_answer(&answer),
        },
        StatusCode::BAD_REQUEST | StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY if is_dry_run => {
            DryRunOutcome::Refused(Box::new(DeploymentOutcome::from_answer(status, body)))
        }
        // A deployer from before dry runs misses the image.
        StatusCode::BAD_REQUEST if answer["status"] == "refused" => DryRunOutcome::Unsupported,
        _ => DryRunOutcome::Unanswered {
            reason: describe_foreign_answer(status, body),
        },
    }
}

/// Returns the strings in a JSON array, without its other elements; none if the value is not an array.
fn strings_of_list(list: &Value) -> Vec<String> {
    let texts = list.as_array().into_iter().flatten().filter_map(Value::as_str);
    texts.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpret_answer_accepts_and_refuses_only_answers_that_are_marked_as_dry_runs() {
        for (status, body, expected) in [
            (
                200,
                r#"{"dryRun":true,"status":"accepted","reasons":[]}"#,
                "accepted",
            ),
            (
                422,
                r#"{"dryRun":true,"status":"refused","reasons":["a"]}"#,
                "refused",
            ),
            (
                400,
                r#"{"dryRun":true,"status":"refused","reasons":["a"]}"#,
                "refused",
            ),
            (
                409,
                r#"{"dryRun":true,"status":"refused","reasons":["a"]}"#,
                "refused",
            ),
            (
                502,
                r#"{"dryRun":true,"status":"failed","reasons":["a"]}"#,
                "unanswered",
            ),
            (
                400,
                r#"{"status":"refused","reasons":["image is missing"]}"#,
                "unsupported",
            ),
            (
                401,
                r#"{"status":"refused","reasons":["wrong signature"]}"#,
                "unanswered",
            ),
            (200, r#"{"status":"ready"}"#, "unanswered"),
            (200, "", "unanswered"),
            (404, "error finding function", "unanswered"),
            (503, "", "unanswered"),
        ] {
            let status = StatusCode::from_u16(status).expect("status");
            let found = match interpret_answer(status, body.as_bytes()) {
                DryRunOutcome::Accepted { .. } => "accepted",
                DryRunOutcome::Refused(deployment) => {
                    assert_eq!(deployment.reasons_in_one_line(), "a");
                    "refused"
                }
                DryRunOutcome::Unsupported => "unsupported",
                DryRunOutcome::Unanswered { .. } => "unanswered",
            };
            assert_eq!(found, expected, "{status} {body}");
        }
    }
}
