//! The versions of functions: what was handed over to the deployer, kept so that a rollback can hand it over again.

use std::fmt;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::hand_over::{DeploymentOutcome, DeploymentStatus};
use crate::request::time::format_rfc3339_nanos;

/// The number of versions of a function that can be chosen for a rollback.
pub(crate) const VERSIONS_KEPT_PER_FUNCTION: usize = 10;

/// A version of a function: the image and the specification that were handed over to the deployer.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FunctionVersion {
    /// The ID of the build or the rollback that handed the version over.
    pub(crate) id: String,
    /// The function, `NAME.NAMESPACE`.
    pub(crate) function: String,
    /// What is known of the version's deployment.
    pub(crate) state: VersionState,
    /// The time at which the version was handed in. It orders the versions of a function.
    pub(crate) submitted_at: SystemTime,
    /// The time at which the build of the image ended.
    pub(crate) built_at: SystemTime,
    /// The reference of the image by digest.
    pub(crate) image: String,
    /// The reference of the image by tag, for people.
    pub(crate) tag: String,
    /// The commit of the image's source, if it was built from a git repository.
    pub(crate) commit: Option<String>,
    /// The config's `deploy`: the function's specification.
    pub(crate) deploy: Map<String, Value>,
    /// The config's `probe`.
    pub(crate) probe: Option<Map<String, Value>>,
    /// What the version goes back to, if a rollback handed it over.
    pub(crate) rollback: Option<Rollback>,
}

/// The state of a version's deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum VersionState {
    /// The version was handed over, and the outcome is not recorded.
    Deploying,
    /// The version was ready.
    Ready,
    /// The version was applied, and nothing proved that it was the one that answered.
    Unverified,
    /// The version was sent to the deployer, and the outcome will not be known.
    Sent,
    /// The version was not deployed, or the one before it was restored.
    Failed,
}

impl VersionState {
    /// Returns what the outcome of a deployment says about its version; `None` if it does not say whether the version
    /// runs.
    pub(crate) fn of_deployment_if_certain(deployment: &DeploymentOutcome) -> Option<Self> {
        // Only the deployer knows that a version does not run. A hand-over that was lost may have deployed it.
        let is_certain = matches!(
            deployment.answer["status"].as_str(),
            Some("superseded" | "refused" | "rolled_back")
        );
        match deployment.status {
            DeploymentStatus::Ready => Some(Self::Ready),
            DeploymentStatus::Unverified => Some(Self::Unverified),
            DeploymentStatus::Sent => Some(Self::Sent),
            DeploymentStatus::Superseded | DeploymentStatus::Rejected | DeploymentStatus::Failed => {
                is_certain.then_some(Self::Failed)
            }
        }
    }
}

/// What a rollback replaces, and by what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rollback {
    /// The ID of the build whose version is deployed again.
    pub(crate) to: String,
    /// The ID of the version that was the newest one before the rollback.
    pub(crate) from: Option<String>,
}

/// The reason why no version can be chosen for a rollback. The texts are for the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoVersionToRollBackTo {
    /// No version of the function is recorded.
    #[error(
        "no version of {function} is recorded: it was never deployed by this key's tenant since this builder keeps versions, or \
         its name or namespace is wrong"
    )]
    Unknown {
        /// The function.
        function: String,
    },
    /// No version with the ID is kept.
    #[error("{function} has no version {id} among those that are kept; choose one of: {kept}")]
    NotKept {
        /// The function.
        function: String,
        /// The ID that the caller named.
        id: String,
        /// The IDs of the versions that are kept.
        kept: String,
    },
    /// No version before the current one is known to have worked.
    #[error(
        "{function} has no earlier version that is known to have worked; name one of those that are kept by its ID: {kept}"
    )]
    NoneEarlier {
        /// The function.
        function: String,
        /// The IDs of the versions that are kept.
        kept: String,
    },
}

impl FunctionVersion {
    /// Returns the ID of the build whose version this is: that of a rollback is the one that it went back to.
    fn rollback_target_or_own_id(&self) -> &str {
        self.rollback.as_ref().map_or(&self.id, |rollback| &rollback.to)
    }

    /// Returns whether two versions would be deployed as the same image with the same specification.
    fn is_same_deployment(&self, other: &Self) -> bool {
        (&self.image, &self.deploy, &self.probe) == (&other.image, &other.deploy, &other.probe)
    }

    /// Returns the version that a rollback to this one, which replaces `current`, deploys under the ID `id`.
    pub(crate) fn as_rollback(&self, id: &str, current: &Self, now: SystemTime) -> Self {
        // A caller's clock may be ahead of this one, and the rollback was handed in after the current version all the
        // same.
        let after_current = current.submitted_at + std::time::Duration::from_nanos(1);
        Self {
            id: id.to_owned(),
            state: VersionState::Deploying,
            submitted_at: now.max(after_current),
            rollback: Some(Rollback {
                to: self.rollback_target_or_own_id().to_owned(),
                from: Some(current.id.clone()),
            }),
            ..self.clone()
        }
    }

    /// Returns the digest of the image, `sha256:…`, or an empty text if it is named without one.
    pub(crate) fn digest_or_empty(&self) -> &str {
        self.image.split_once('@').map_or("", |(_, digest)| digest)
    }

    /// Converts the version to JSON for its owner, without its specification.
    pub(crate) fn to_json(&self) -> Value {
        let mut version = json!({
            "id": self.id,
            "state": self.state,
            "submittedAt": format_rfc3339_nanos(self.submitted_at),
            "image": self.tag,
            "digest": self.digest_or_empty(),
        });
        if let Some(commit) = &self.commit {
            version["commit"] = json!(commit);
        }
        if let Some(rollback) = &self.rollback {
            version["rollback"] = json!(rollback);
        }
        version
    }
}

impl fmt::Debug for FunctionVersion {
    /// Formats the version without its specification, whose environment variables often hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FunctionVersion")
            .field("id", &self.id)
            .field("function", &self.function)
            .field("state", &self.state)
            .field("image", &self.image)
            .finish_non_exhaustive()
    }
}

/// Chooses the version that a rollback of `function` deploys among its `versions`, of which the first is the newest:
/// the one with the ID `wanted_id`, or the last one before the current version that is known to have worked.
///
/// A rollback that follows another one goes further back: what a rollback has left is not chosen again.
///
/// # Errors
/// Fails if there is no such version.
pub(crate) fn choose_version<'a>(
    function: &str,
    versions: &'a [FunctionVersion],
    wanted_id: Option<&str>,
) -> Result<&'a FunctionVersion, NoVersionToRollBackTo> {
    let function = function.to_owned();
    let kept = || {
        let ids: Vec<_> = versions.iter().map(|version| version.id.as_str()).collect();
        ids.join(", ")
    };
    let Some(current) = versions.first() else {
        return Err(NoVersionToRollBackTo::Unknown { function });
    };
    if let Some(id) = wanted_id {
        let found = versions.iter().find(|version| version.id == id);
        return found.ok_or_else(|| NoVersionToRollBackTo::NotKept {
            function,
            id: id.to_owned(),
            kept: kept(),
        });
    }
    // Behind the version that the current one is: nothing, if that is not kept any more.
    let origin = versions
        .iter()
        .position(|version| version.id == current.rollback_target_or_own_id());
    let earlier = versions
        .get(origin.unwrap_or(versions.len()) + 1..)
        .unwrap_or_default();
    let find = |state| {
        let mut earlier = earlier.iter();
        earlier.find(|version| version.state == state && !version.is_same_deployment(current))
    };
    find(VersionState::Ready)
        .or_else(|| find(VersionState::Unverified))
        .ok_or_else(|| NoVersionToRollBackTo::NoneEarlier {
            function,
            kept: kept(),
        })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;

    /// Returns the version of the build `id`, which was handed in `seconds` after 1970.
    pub(crate) fn version(id: &str, seconds: u64, state: VersionState) -> FunctionVersion {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        FunctionVersion {
            id: id.into(),
            function: "hello.openfaas-fn".into(),
            state,
            submitted_at: at,
            built_at: at,
            image: format!("r.example/hello@sha256:{id}"),
            tag: "r.example/hello:1".into(),
            commit: None,
            deploy: Map::from_iter([("service".to_owned(), json!("hello"))]),
            probe: None,
            rollback: None,
        }
    }

    fn chosen(versions: &[FunctionVersion], wanted: Option<&str>) -> Option<String> {
        let chosen = choose_version("hello.openfaas-fn", versions, wanted);
        chosen.ok().map(|version| version.id.clone())
    }

    #[test]
    fn a_rollback_goes_to_the_last_version_before_the_current_one_that_worked() {
        use VersionState::{Deploying, Ready, Sent, Unverified};
        for (states, expected) in [
            (&[Ready, Ready][..], Some("v1")),
            (&[Deploying, Ready], Some("v1")),
            (&[Ready, Sent, Unverified, Ready], Some("v3")),
            (&[Ready, Deploying, Unverified], Some("v2")),
            (&[Ready, Sent], None),
            (&[Ready], None),
            (&[], None),
        ] {
            let versions: Vec<_> = (0..)
                .zip(states)
                .map(|(at, state)| version(&format!("v{at}"), 100 - at, *state))
                .collect();
            assert_eq!(chosen(&versions, None).as_deref(), expected, "{states:?}");
        }
    }

    #[test]
    fn a_second_rollback_goes_further_back_and_not_to_what_the_first_one_left() {
        let [third, second, first] = ["v3", "v2", "v1"].map(|id| version(id, 1, VersionState::Ready));
        let now = SystemTime::now();
        let mut rolled_back = second.as_rollback("r1", &third, now);
        rolled_back.state = VersionState::Ready;
        let versions = [rolled_back.clone(), third.clone(), second.clone(), first.clone()];
        assert_eq!(chosen(&versions, None).as_deref(), Some("v1"));

        let mut again = first.as_rollback("r2", &rolled_back, now);
        again.state = VersionState::Ready;
        let versions = [again, rolled_back.clone(), third.clone(), second, first];
        assert_eq!(chosen(&versions, None), None);
        assert_eq!(chosen(&versions, Some("v3")).as_deref(), Some("v3"));
        assert_eq!(
            chosen(&[rolled_back, third], None),
            None,
            "where it went is not kept"
        );
    }

    #[test]
    fn a_version_that_is_deployed_as_the_current_one_is_not_chosen_for_a_rollback() {
        let same = |id: &str| FunctionVersion {
            image: "r.example/hello@sha256:ab".into(),
            ..version(id, 1, VersionState::Ready)
        };
        let versions = [same("v3"), same("v2"), version("v1", 1, VersionState::Ready)];
        assert_eq!(chosen(&versions, None).as_deref(), Some("v1"));
    }

    #[test]
    fn a_rollback_is_newer_than_what_it_replaces_whatever_the_clocks_say() {
        let current = version("v2", 2_000, VersionState::Ready);
        let target = version("v1", 1_000, VersionState::Ready);
        for seconds in [1_900, 2_000, 2_100] {
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            let rollback = target.as_rollback("r", &current, now);
            assert!(rollback.submitted_at > current.submitted_at && rollback.submitted_at >= now);
        }
    }

    #[test]
    fn an_unknown_version_is_refused_with_those_that_are_kept() {
        let versions = [
            version("v2", 2, VersionState::Ready),
            version("v1", 1, VersionState::Ready),
        ];
        let error = choose_version("hello.openfaas-fn", &versions, Some("v9"));
        let text = error.expect_err("it is not kept").to_string();
        assert_eq!(
            text,
            "hello.openfaas-fn has no version v9 among those that are kept; choose one of: v2, v1"
        );
    }

    #[test]
    fn no_value_of_a_specification_is_shown() {
        let mut shown = version("v1", 1, VersionState::Ready);
        shown.deploy = Map::from_iter([("envVars".to_owned(), json!({"KEY": "hunter2"}))]);
        assert!(!format!("{shown:?}{}", shown.to_json()).contains("hunter2"));
    }
}
