//! What became of a deployment: the answer that the builder puts into its own result as `deployment`.

use std::time::Duration;

use serde::Serialize;

use crate::gateway::FunctionStatus;

/// What became of a deployment.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// The function's name.
    pub function: String,
    /// Where it runs; absent where neither the caller nor the provider said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The image that was to run.
    pub image: String,
    /// The image that the function had before; `null` where there was no function, or it is not known.
    pub previous_image: Option<String>,
    /// How it ended.
    pub status: Status,
    /// Whether the provider was asked to change anything.
    pub changed: bool,
    /// What the provider says of the function now; absent where that could not be learnt.
    #[serde(skip_serializing_if = "Running::is_unknown")]
    pub running: Running,
    /// Where the function is called.
    pub url: String,
    /// How long each step took.
    pub durations: Durations,
    /// Why it ended so, for people.
    pub reasons: Vec<String>,
    /// Whose doing it is that it did not end well.
    #[serde(skip)]
    pub fault: Option<Fault>,
}

/// How a deployment ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The image that was asked for runs and answers.
    Ready,
    /// Something may have been changed, and what was asked for does not run.
    Failed,
    /// Nothing was changed: it is not valid, not allowed, older than what runs, or the provider would not have it.
    Refused,
    /// It did not come to run. What was there before runs again; where there was nothing, there is nothing.
    RolledBack,
}

impl Status {
    /// In one word, as it is told.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::RolledBack => "rolled_back",
        }
    }
}

/// Whose doing a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The same hand-over would fail again.
    Caller,
    /// The gateway or the provider; the same hand-over may succeed later.
    Platform,
}

/// What is known of the function at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Running {
    /// Nothing.
    Unknown,
    /// There is no such function.
    Nothing,
    /// There is one.
    Function {
        /// The image that it has.
        image: String,
        /// How many replicas can be called.
        available_replicas: u64,
    },
}

impl Running {
    fn is_unknown(&self) -> bool {
        *self == Self::Unknown
    }
}

impl From<Option<&FunctionStatus>> for Running {
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

impl Serialize for Running {
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

/// How long each step took, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Durations {
    /// Reading what was there before.
    #[serde(serialize_with = "seconds")]
    pub check: Duration,
    /// Until the provider had answered the update or the creation.
    #[serde(serialize_with = "seconds")]
    pub apply: Duration,
    /// From there until the function answered, or was given up.
    #[serde(serialize_with = "seconds")]
    pub watch: Duration,
    /// Until what was there before ran again, or was given up.
    #[serde(serialize_with = "seconds")]
    pub restore: Duration,
    /// Waiting for another deployment of the same function.
    #[serde(serialize_with = "seconds")]
    pub queue: Duration,
    /// All of it.
    #[serde(serialize_with = "seconds")]
    pub total: Duration,
}

/// Milliseconds are as exact as this gets.
fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((duration.as_secs_f64() * 1000.0).round() / 1000.0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_outcome_is_written_as_the_builder_passes_it_on() {
        let mut outcome = Outcome {
            function: "hello".to_owned(),
            namespace: Some("openfaas-fn".to_owned()),
            image: "r/hello@sha256:2".to_owned(),
            previous_image: Some("r/hello@sha256:1".to_owned()),
            status: Status::Ready,
            changed: true,
            running: Running::Function {
                image: "r/hello@sha256:2".to_owned(),
                available_replicas: 1,
            },
            url: "http://gateway:8080/function/hello".to_owned(),
            durations: Durations {
                check: Duration::from_micros(12_345),
                ..Durations::default()
            },
            reasons: vec![],
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

        outcome.running = Running::Nothing;
        assert_eq!(serde_json::to_value(&outcome).unwrap()["running"], json!(null));
        outcome.running = Running::Unknown;
        assert!(
            !serde_json::to_value(&outcome)
                .unwrap()
                .as_object()
                .unwrap()
                .contains_key("running")
        );
    }
}
