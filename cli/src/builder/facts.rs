//! What a build's record and its outcome say of the steps, the push and the parts of the deployment.

use serde::Serialize;
use serde_json::{Map, Value};

/// The parts of a deployment in the order in which they happen.
const DEPLOYMENT_PARTS: [&str; 4] = ["check", "apply", "watch", "restore"];

/// The facts about a build that has ended, as far as they are known.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct BuildFacts {
    /// The counts of the steps of the last attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) steps: Option<StepCounts>,
    /// The image that was pushed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pushed: Option<PushedDigestAndSeconds>,
    /// The seconds that each part of the deployment took, and the total.
    #[serde(rename = "deployment_seconds", skip_serializing_if = "Map::is_empty")]
    pub(crate) deployment: Map<String, Value>,
}

/// The counts of a build's steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct StepCounts {
    /// The steps whose results came from the cache.
    pub(crate) cached: u64,
    /// The steps that ran to their end.
    pub(crate) run: u64,
    /// The steps that did not end, because the build failed before.
    pub(crate) unfinished: u64,
}

/// An image in its registry.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct PushedDigestAndSeconds {
    /// The digest of the image.
    pub(crate) digest: String,
    /// The time of the step that exports and pushes the image, in seconds, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) seconds: Option<f64>,
}

impl BuildFacts {
    /// Returns the facts in an outcome or in the answer of `GET /builds/ID`.
    pub(crate) fn of_answer(answer: &Value) -> Self {
        let steps = &answer["steps"];
        let counts = steps["total"].as_u64().map(|total| {
            let number = |key: &str| steps[key].as_u64().unwrap_or_default();
            StepCounts {
                cached: number("cached"),
                run: number("completed").saturating_sub(number("cached")),
                unfinished: total.saturating_sub(number("completed")),
            }
        });
        let is_rollback = answer["rollback"].is_object();
        let digest = answer["digest"].as_str().filter(|_| !is_rollback);
        Self {
            steps: counts,
            pushed: digest.map(|digest| PushedDigestAndSeconds {
                digest: digest.to_owned(),
                seconds: None,
            }),
            deployment: answer["deployment"]["durations"]
                .as_object()
                .cloned()
                .unwrap_or_default(),
        }
    }

    /// Returns the facts, and those of another answer where these have none.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            steps: self.steps.or(other.steps),
            pushed: self.pushed.or(other.pushed),
            deployment: match self.deployment.is_empty() {
                true => other.deployment,
                false => self.deployment,
            },
        }
    }

    /// Returns the name and the seconds of each part of the deployment that took time, in the order in which they
    /// happen.
    pub(crate) fn deployment_parts(&self) -> Vec<(&str, f64)> {
        let mut parts: Vec<_> = self
            .deployment
            .iter()
            .filter_map(|(name, seconds)| Some((name.as_str(), seconds.as_f64()?)))
            .filter(|(name, seconds)| *name != "total" && *seconds > 0.0)
            .collect();
        let place = |name: &str| DEPLOYMENT_PARTS.iter().position(|part| *part == name);
        // Stable: parts of other deployers follow in their own order.
        parts.sort_by_key(|(name, _)| place(name).unwrap_or(DEPLOYMENT_PARTS.len()));
        parts
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn steps_are_cached_run_or_unfinished() {
        let facts = BuildFacts::of_answer(&json!({"steps": {"total": 13, "completed": 12, "cached": 9}}));
        let counts = StepCounts {
            cached: 9,
            run: 3,
            unfinished: 1,
        };
        assert_eq!(facts.steps, Some(counts));
        assert_eq!(BuildFacts::of_answer(&Value::Null), BuildFacts::default());
    }

    #[test]
    fn the_parts_of_a_deployment_are_in_their_order_without_the_total_and_parts_of_no_time() {
        let durations = json!({"apply": 0.2, "check": 0.1, "restore": 0.0, "total": 2.3, "watch": 2});
        let facts = BuildFacts::of_answer(&json!({"deployment": {"durations": durations}}));
        assert_eq!(
            facts.deployment_parts(),
            [("check", 0.1), ("apply", 0.2), ("watch", 2.0)]
        );
    }

    #[test]
    fn a_fact_of_the_first_answer_counts_and_the_others_are_added() {
        let outcome = BuildFacts::of_answer(&json!({"digest": "sha256:ab"}));
        let record = BuildFacts::of_answer(&json!({"digest": "sha256:cd", "steps": {"total": 1}}));
        let both = outcome.clone().or(record.clone());
        assert_eq!((both.pushed, both.steps), (outcome.pushed, record.steps));
    }
}
