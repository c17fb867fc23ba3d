//! The outcome of a deployment: the response body, which the builder puts into its own result as `deployment`.

use std::time::Duration;

use serde::Serialize;

use crate::gateway::FunctionStatus;

/// The outcome of a deployment.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeploymentOutcome {
    /// The function's name.
    pub function: String,
    /// The function's namespace; absent if neither the caller nor the provider named one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The image that the hand-over wanted to deploy.
    pub image: String,
    /// The image that the function had before the deployment; `None` if there was no function, or it is not
    /// known.
    pub previous_image: Option<String>,
    /// The status with which the deployment ended.
    pub status: DeploymentStatus,
    /// Whether the deployment may have changed the function; `false` after an update that was rejected without effect.
    pub changed: bool,
    /// The function's state at the end of the deployment; absent if it is unknown.
    #[serde(skip_serializing_if = "RunningState::is_unknown")]
    pub running: RunningState,
    /// The function's URL for callers.
    pub url: String,
    /// The time that each step of the deployment took.
    pub durations: StepDurations,
    /// The reasons for the deployment's status, for people.
    pub reasons: Vec<String>,
    /// The newer build for which this deployment was rejected; `None` if there is none.
    #[serde(flatten)]
    pub superseded_by: Option<SuccessorCallId>,
    /// The party that has to act on a deployment that did not succeed; `None` if it is ready or unverified.
    #[serde(skip)]
    pub fault: Option<FaultyParty>,
}

/// A newer build of the same function, which supersedes a deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SuccessorCallId {
    /// The ID of the call that made the newer build, if it is known.
    #[serde(rename = "supersededBy", skip_serializing_if = "Option::is_none")]
    pub call_id: Option<String>,
}

/// The status with which a deployment ended, as it is reported to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeploymentStatus {
    /// The new image runs and answered its probe.
    Ready,
    /// The new image was applied and the function answers, but nothing proves that the new version answers.
    Unverified,
    /// The deployment failed, and it is not known that the new image or the previous version runs.
    Failed,
    /// The hand-over is not deployed: it is not valid or not allowed, the provider rejected it, or a newer build
    /// supersedes it. [`changed`](DeploymentOutcome::changed) is true if the function may have been changed before
    /// that.
    Refused,
    /// The new image does not run. The previous version runs again, or there is no function if there was none before.
    RolledBack,
}

impl DeploymentStatus {
    /// Returns the deployment's status as it is written in responses, metrics and traces.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Unverified => "unverified",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::RolledBack => "rolled_back",
        }
    }
}

/// The outcome of a dry run, which is its response body.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DryRunOutcome {
    /// Marks the response as that of a dry run; always true. A deployer that does not know dry runs answers
    /// without it.
    pub(crate) dry_run: bool,
    /// Whether the checked hand-over would be deployed.
    pub(crate) status: DryRunStatus,
    /// The reasons for the dry run's status, for people.
    pub(crate) reasons: Vec<String>,
    /// Warnings about fields of the hand-over that are ignored, or read in another way than they are written, and about
    /// secrets of which it is not known whether they exist.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) warnings: Vec<String>,
    /// The version that is deployed now, if it could be read and the caller may change the function.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) deployed: Option<DeployedImageAndCallId>,
}

/// The version of a function that is deployed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DeployedImageAndCallId {
    /// The image in the function's specification.
    pub(crate) image: String,
    /// The call that handed the version over, if Slipway deployed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) call_id: Option<String>,
}

/// The result of a dry run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DryRunStatus {
    /// The dry run found nothing against the hand-over.
    Accepted,
    /// The dry run found that the hand-over would be refused.
    Refused,
    /// The dry run could not be completed: the gateway did not answer all requests, or not in time.
    Failed,
}

/// The party that has to act on a deployment that did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultyParty {
    /// The caller has to act: the same hand-over would fail again.
    Caller,
    /// The operator of the gateway, the provider or the deployer has to act: the same hand-over may succeed later.
    Platform,
}

/// The state of the function at the end of a deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunningState {
    /// The function's state could not be read.
    Unknown,
    /// The function does not exist.
    Nothing,
    /// The function exists, though maybe without a replica that can be called.
    Function {
        /// The image in the function's specification.
        image: String,
        /// The number of the function's replicas that can be called.
        available_replicas: u64,
    },
}

impl RunningState {
    fn is_unknown(&self) -> bool {
        *self == Self::Unknown
    }
}

impl From<Option<&FunctionStatus>> for RunningState {
    fn from(status: Option<&FunctionStatus>) -> Self {
        match status {
            None => Self::Nothing,
            Some(status) => Self::Function {
                image: status.image.clone(),
                available_replicas: status.available_replicas,
            },
        }
    }
}

impl Serialize for RunningState {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Function<'a> {
            image: &'a str,
            available_replicas: u64,
        }
        match self {
            Self::Unknown | Self::Nothing => serializer.serialize_none(),
            Self::Function {
                image,
                available_replicas,
            } => Function {
                image,
                available_replicas: *available_replicas,
            }
            .serialize(serializer),
        }
    }
}

/// The time that each step of a deployment took; in seconds in JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct StepDurations {
    /// The time for reading the previous state and checking the hand-over against it.
    #[serde(serialize_with = "serialize_as_seconds")]
    pub check: Duration,
    /// The time until the provider answered the update or the creation, with all attempts.
    #[serde(serialize_with = "serialize_as_seconds")]
    pub apply: Duration,
    /// The time for which the new version was watched: until it answered its probe, was superseded or not taken, or the
    /// timeout.
    #[serde(serialize_with = "serialize_as_seconds")]
    pub watch: Duration,
    /// The time for restoring the previous version, or until the timeout.
    #[serde(serialize_with = "serialize_as_seconds")]
    pub restore: Duration,
    /// The time for which the deployment waited for another one of the same function.
    #[serde(serialize_with = "serialize_as_seconds")]
    pub queue: Duration,
    /// The time of all steps of the deployment except `queue`.
    #[serde(serialize_with = "serialize_as_seconds")]
    pub total: Duration,
}

/// Serializes a duration as seconds, rounded to milliseconds.
fn serialize_as_seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((duration.as_secs_f64() * 1000.0).round() / 1000.0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_outcome_has_the_documented_json() {
        let mut outcome = DeploymentOutcome {
            function: "hello".to_owned(),
            namespace: Some("openfaas-fn".to_owned()),
            image: "r/hello@sha256:2".to_owned(),
            previous_image: Some("r/hello@sha256:1".to_owned()),
            status: DeploymentStatus::Ready,
            changed: true,
            running: RunningState::Function {
                image: "r/hello@sha256:2".to_owned(),
                available_replicas: 1,
            },
            url: "http://gateway:8080/function/hello".to_owned(),
            durations: StepDurations {
                check: Duration::from_micros(12_345),
                ..StepDurations::default()
            },
            reasons: vec![],
            superseded_by: None,
            fault: None,
        };
        assert_eq!(
            serde_json::to_value(&outcome).unwrap(),
            json!({
                "function": "hello", "namespace": "openfaas-fn", "image": "r/hello@sha256:2",
                "previousImage": "r/hello@sha256:1", "status": "ready", "changed": true,
                "running": {"image": "r/hello@sha256:2", "availableReplicas": 1},
                "url": "http://gateway:8080/function/hello",
                "durations": {"check": 0.012, "apply": 0.0, "watch": 0.0, "restore": 0.0, "queue": 0.0, "total": 0.0}, "reasons": []
            })
        );

        outcome.superseded_by = Some(SuccessorCallId { call_id: None });
        assert_eq!(serde_json::to_value(&outcome).unwrap().get("supersededBy"), None);
        let call_id = Some("call-8".to_owned());
        outcome.superseded_by = Some(SuccessorCallId { call_id });
        assert_eq!(
            serde_json::to_value(&outcome).unwrap()["supersededBy"],
            json!("call-8")
        );

        outcome.running = RunningState::Nothing;
        assert_eq!(serde_json::to_value(&outcome).unwrap()["running"], json!(null));
        outcome.running = RunningState::Unknown;
        assert!(
            !serde_json::to_value(&outcome)
                .unwrap()
                .as_object()
                .unwrap()
                .contains_key("running")
        );
    }
}
