//! The state of a version, by its Deployment, the ReplicaSets and the pods.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::pod;
use crate::outcome::FaultyParty;
use crate::request::names_same_image;
use crate::text::{self, as_bounded_line};

/// The annotation with which Kubernetes numbers the versions of a Deployment, at the Deployment and at its ReplicaSets.
const REVISION_ANNOTATION: &str = "deployment.kubernetes.io/revision";

/// Texts in the reason why no pod is created that say that it stays so. Others may pass, such as a webhook that
/// restarts.
const LASTING_CREATION_FAILURES: [&str; 2] = ["exceeded quota", "violates PodSecurity"];

/// The state of a version on Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum VersionState {
    /// The replicas that are wanted are available, and no other version has any.
    Complete(RestartCountsByPodUid),
    /// There is no such Deployment: the functions are somewhere else.
    Absent,
    /// The version is not complete, and may become so.
    Pending(Obstacle),
    /// The version does not become complete unless somebody changes it, or the cluster.
    Stuck(Obstacle),
}

/// The starts of a version's pods: the number of restarts of each pod, by its UID. If two are equal, nothing was
/// started between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RestartCountsByPodUid(BTreeMap<String, i64>);

/// What keeps a version from being complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Obstacle {
    /// What is wrong, for people.
    pub(crate) reason: String,
    /// Who has to act; `None` if that is not known.
    pub(crate) fault: Option<FaultyParty>,
}

/// The state of a version, and what to read to make its reason exact.
#[derive(Debug)]
pub(super) struct VersionStateAndDetailToRead {
    pub(super) state: VersionState,
    pub(super) detail: Option<DetailToRead>,
}

/// Something to read that makes a reason exact.
#[derive(Debug)]
pub(super) enum DetailToRead {
    /// The events of the pod with this UID.
    EventsOf { uid: String },
    /// The end of a container's log: of its present run, or of the one before it.
    LogOf {
        pod: String,
        container: String,
        previous: bool,
        /// The pod's UID, if the kubelet may have ended the container, because its liveness probe failed: the events
        /// then say more than the log.
        uid_if_probe_may_have_failed: Option<String>,
    },
}

impl Obstacle {
    /// Makes an obstacle of which it is not known who has to act.
    pub(super) fn of_unknown_fault(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            fault: None,
        }
    }
}

impl VersionState {
    /// Adds `detail`, if there is one, to the reason of a pending or stuck version.
    pub(super) fn with_detail_in_reason(mut self, detail: Option<&str>) -> Self {
        if let Self::Pending(obstacle) | Self::Stuck(obstacle) = &mut self {
            obstacle.reason =
                text::append_detail_after_semicolon(std::mem::take(&mut obstacle.reason), detail);
        }
        self
    }
}

/// The number of replicas that a version has to have to be complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WantedReplicas {
    /// As many as the Deployment wants: for a new version.
    All,
    /// One, if the Deployment wants any: for a version that has been good.
    One,
}

/// Returns the state of the version with this image. `sets` and `pods` have the labels of the Deployment's pods; those
/// of other owners are ignored.
pub(super) fn assess_version(
    deployment: &Deployment,
    sets: &[ReplicaSet],
    pods: &[Pod],
    image: &str,
    wanted: WantedReplicas,
) -> VersionStateAndDetailToRead {
    let pending = |reason: String| VersionStateAndDetailToRead {
        state: VersionState::Pending(Obstacle::of_unknown_fault(reason)),
        detail: None,
    };
    if let Some(reason) = reason_status_does_not_describe_version(deployment, image) {
        return pending(reason);
    }
    let spec = deployment.spec.as_ref();
    let status = deployment.status.clone().unwrap_or_default();
    let set = sets.iter().find(|set| {
        is_owned_by(&set.metadata, &deployment.metadata)
            && revision(&set.metadata).is_some()
            && revision(&set.metadata) == revision(&deployment.metadata)
    });
    let Some(set) = set else {
        return pending("Kubernetes has not begun to start the new version".to_owned());
    };
    let own = pods
        .iter()
        .filter(|pod| is_owned_by(&pod.metadata, &set.metadata) && is_alive(pod));
    let own: Vec<_> = own.collect();
    let desired = spec.and_then(|spec| spec.replicas).unwrap_or(1);
    let needed = match wanted {
        WantedReplicas::All => desired,
        WantedReplicas::One => desired.min(1),
    };
    let (all, updated) = (status.replicas.unwrap_or(0), status.updated_replicas.unwrap_or(0));
    let available = status.available_replicas.unwrap_or(0).min(updated);
    // Kubernetes itself says how many are available: it replaces a pod that has failed, and keeps its remains.
    if updated >= needed && available >= needed && all <= updated {
        let starts = own
            .iter()
            .filter_map(|pod| Some((pod.metadata.uid.clone()?, total_restarts(pod))));
        return VersionStateAndDetailToRead {
            state: VersionState::Complete(RestartCountsByPodUid(starts.collect())),
            detail: None,
        };
    }
    if let Some(failure) = assess_pod_creation_failure(&status) {
        return failure;
    }
    let unready = own.iter().filter(|pod| !is_ready(pod));
    // The one that is stuck explains more than the others.
    let assessments = unready.map(|pod| pod::assess_unready_pod(pod));
    let worst = assessments.min_by_key(|assessment| !matches!(assessment.state, VersionState::Stuck(_)));
    worst.unwrap_or_else(|| match available < needed {
        true => pending(format!(
            "{available} of {needed} replicas of the new version are available"
        )),
        false => pending(format!(
            "{} replicas of earlier versions still run",
            all - updated
        )),
    })
}

/// Returns why Kubernetes does not create the pods; `None` if it does.
fn assess_pod_creation_failure(status: &DeploymentStatus) -> Option<VersionStateAndDetailToRead> {
    let mut conditions = status.conditions.iter().flatten();
    let failure =
        conditions.find(|condition| condition.type_ == "ReplicaFailure" && condition.status == "True")?;
    let message = as_bounded_line(failure.message.as_deref().unwrap_or_default());
    let lasts = LASTING_CREATION_FAILURES
        .iter()
        .any(|text| message.contains(text));
    let obstacle = Obstacle::of_platform(format!("Kubernetes does not create the pods: {message}"));
    Some(VersionStateAndDetailToRead {
        state: match lasts {
            true => VersionState::Stuck(obstacle),
            false => VersionState::Pending(obstacle),
        },
        detail: None,
    })
}

/// Returns why the Deployment's status does not describe the version yet; `None` if it does.
fn reason_status_does_not_describe_version(deployment: &Deployment, image: &str) -> Option<String> {
    let (metadata, status) = (&deployment.metadata, deployment.status.as_ref());
    if metadata.deletion_timestamp.is_some() {
        return Some("the Deployment is being deleted".to_owned());
    }
    let pod = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.template.spec.as_ref());
    let containers = pod.map(|pod| pod.containers.as_slice()).unwrap_or_default();
    let images = || {
        containers
            .iter()
            .filter_map(|container| container.image.as_deref())
    };
    if !images().any(|other| names_same_image(image, other)) {
        let images: Vec<_> = images().map(as_bounded_line).collect();
        return Some(format!("the Deployment has another image: {}", images.join(", ")));
    }
    if deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true) {
        return Some("the Deployment is paused".to_owned());
    }
    let observed = status.and_then(|status| status.observed_generation);
    (observed < metadata.generation).then(|| "Kubernetes has not read the new specification yet".to_owned())
}

fn is_owned_by(metadata: &ObjectMeta, owner: &ObjectMeta) -> bool {
    let mut owners = metadata.owner_references.iter().flatten();
    owner
        .uid
        .as_ref()
        .is_some_and(|uid| owners.any(|reference| reference.uid == *uid))
}

fn revision(metadata: &ObjectMeta) -> Option<&String> {
    metadata.annotations.as_ref()?.get(REVISION_ANNOTATION)
}

/// Returns whether the pod is not being deleted, and has not ended: Kubernetes keeps the remains of pods that were
/// evicted.
fn is_alive(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Failed" | "Succeeded"))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn total_restarts(pod: &Pod) -> i64 {
    let containers = pod
        .status
        .iter()
        .flat_map(|status| status.container_statuses.iter().flatten());
    containers
        .map(|container| i64::from(container.restart_count))
        .sum()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const IMAGE: &str = "registry.example/hello:1";

    /// Returns a Deployment of two replicas that is complete, its ReplicaSets, and its pods.
    fn complete_version_objects() -> Value {
        let pod = |name: &str, set: &str| {
            json!({"metadata": {"name": name, "uid": name, "ownerReferences": owner_reference_list("ReplicaSet", set)},
                "spec": {"containers": [{"name": "hello", "resources": {"limits": {"memory": "64Mi"}}}]},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
                    "containerStatuses": [{"name": "hello", "image": IMAGE, "imageID": "", "ready": true,
                        "restartCount": 2, "state": {"running": {}}}]}})
        };
        let set = |name: &str, revision: &str| {
            json!({"metadata": {"name": name, "uid": name, "ownerReferences": owner_reference_list("Deployment", "d"),
                "annotations": {REVISION_ANNOTATION: revision}}})
        };
        json!({
            "deployment": {
                "metadata": {"uid": "d", "generation": 3, "annotations": {REVISION_ANNOTATION: "5"}},
                "spec": {"replicas": 2, "selector": {"matchLabels": {}},
                    "template": {"spec": {"containers": [{"name": "hello", "image": IMAGE}]}}},
                "status": {"observedGeneration": 3, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}},
            "sets": [set("old", "4"), set("new", "5")],
            "pods": [pod("a", "new"), pod("b", "new")],
        })
    }

    fn owner_reference_list(kind: &str, uid: &str) -> Value {
        json!([{"apiVersion": "v1", "kind": kind, "name": uid, "uid": uid}])
    }

    /// Returns the assessment of a complete version after `changes`: values, by JSON pointers.
    fn assess_complete_version_after(changes: &[(&str, Value)]) -> VersionStateAndDetailToRead {
        assess_complete_version_with(changes, WantedReplicas::All)
    }

    fn assess_complete_version_with(
        changes: &[(&str, Value)],
        wanted: WantedReplicas,
    ) -> VersionStateAndDetailToRead {
        let mut version = complete_version_objects();
        for (pointer, value) in changes {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            match version.pointer_mut(parent).unwrap() {
                Value::Array(items) => items[key.parse::<usize>().unwrap()] = value.clone(),
                parent => parent[key] = value.clone(),
            }
        }
        let take = |key: &str| version[key].clone();
        let deployment = serde_json::from_value(take("deployment")).unwrap();
        let sets: Vec<ReplicaSet> = serde_json::from_value(take("sets")).unwrap();
        let pods: Vec<Pod> = serde_json::from_value(take("pods")).unwrap();
        assess_version(&deployment, &sets, &pods, IMAGE, wanted)
    }

    #[test]
    fn a_version_with_all_replicas_and_no_others_is_complete() {
        let VersionState::Complete(starts) = assess_complete_version_after(&[]).state else {
            panic!("it is not complete");
        };
        assert_eq!(starts.0, [("a".to_owned(), 2), ("b".to_owned(), 2)].into());
        let scaled_to_zero = [
            ("/deployment/spec/replicas", json!(0)),
            ("/deployment/status", json!({"observedGeneration": 3})),
            ("/pods", json!([])),
        ];
        assert_eq!(
            assess_complete_version_after(&scaled_to_zero).state,
            VersionState::Complete(RestartCountsByPodUid::default())
        );
    }

    #[test]
    fn a_version_is_incomplete_for_the_reason_that_kubernetes_gives() {
        let unready = (
            "/pods/1/status/conditions",
            json!([{"type": "Ready", "status": "False"}]),
        );
        let one = ("/deployment/status/availableReplicas", json!(1));
        let container = "/pods/1/status/containerStatuses/0";
        let waiting = |reason: &str, message: &str| {
            let status = json!({"name": "hello", "image": IMAGE, "imageID": "", "ready": false, "restartCount": 4,
                "state": {"waiting": {"reason": reason, "message": message}},
                "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}});
            vec![one.clone(), unready.clone(), (container, status)]
        };
        let (caller, platform) = (Some(FaultyParty::Caller), Some(FaultyParty::Platform));
        for (changes, is_stuck, fault, reason) in [
            (
                vec![("/deployment/status/observedGeneration", json!(2))],
                false,
                None,
                "Kubernetes has not read the new specification yet",
            ),
            (
                vec![(
                    "/deployment/spec/template/spec/containers/0/image",
                    json!("other:1"),
                )],
                false,
                None,
                "the Deployment has another image: other:1",
            ),
            (
                vec![("/sets/1/metadata/annotations", json!({}))],
                false,
                None,
                "Kubernetes has not begun to start the new version",
            ),
            (
                vec![("/deployment/status/replicas", json!(3))],
                false,
                None,
                "1 replicas of earlier versions still run",
            ),
            (
                vec![("/deployment/status/availableReplicas", json!(1))],
                false,
                None,
                "1 of 2 replicas of the new version are available",
            ),
            (
                vec![
                    one.clone(),
                    (
                        "/deployment/status/conditions",
                        json!([{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: small"}]),
                    ),
                ],
                true,
                platform,
                "Kubernetes does not create the pods: exceeded quota: small",
            ),
            (
                vec![
                    one.clone(),
                    (
                        "/pods/1/status",
                        json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                            "message": "0/1 nodes are available: 1 Insufficient cpu."}]}),
                    ),
                ],
                false,
                platform,
                "no node takes the pod: 0/1 nodes are available: 1 Insufficient cpu.",
            ),
            (
                waiting(
                    "ImagePullBackOff",
                    "Back-off pulling image: ErrImagePull: manifest unknown",
                ),
                true,
                caller,
                "the image registry.example/hello:1 cannot be pulled: Back-off pulling image: ErrImagePull: manifest unknown",
            ),
            (
                waiting(
                    "ErrImagePull",
                    "dial tcp 10.0.0.1:5000: connect: connection refused",
                ),
                false,
                platform,
                "cannot be pulled: dial tcp 10.0.0.1:5000: connect: connection refused",
            ),
            (
                waiting(
                    "ErrImagePull",
                    "Head \"http://r/v2/denied-list/manifests/1\": EOF",
                ),
                false,
                platform,
                "cannot be pulled: Head",
            ),
            (
                waiting("ErrImagePull", "pull access denied for r/hello"),
                true,
                platform,
                "cannot be pulled: pull access denied for r/hello",
            ),
            (
                waiting(
                    "CreateContainerConfigError",
                    "failed to sync secret cache: timed out",
                ),
                false,
                None,
                "the container waits: CreateContainerConfigError: failed to sync secret cache: timed out",
            ),
            (
                waiting(
                    "RunContainerError",
                    "exec: \"serve\": executable file not found in $PATH",
                ),
                true,
                caller,
                "the container cannot be started: RunContainerError: exec: \"serve\": executable file not found",
            ),
            (
                waiting("CreateContainerConfigError", "secret \"key\" not found"),
                true,
                caller,
                "the container cannot be started: CreateContainerConfigError: secret \"key\" not found",
            ),
            (
                waiting("CrashLoopBackOff", "back-off 40s"),
                true,
                caller,
                "the container was ended because it needed more memory than its limit of 64Mi, and was started 5 times",
            ),
            (
                vec![
                    one.clone(),
                    unready.clone(),
                    (
                        container,
                        json!({"name": "hello", "image": IMAGE, "imageID": "", "ready": false, "restartCount": 1,
                            "state": {"terminated": {"exitCode": 3, "message": "no port"}}}),
                    ),
                ],
                true,
                caller,
                "the container ended with exit code 3 (no port), and was started 2 times",
            ),
        ] {
            let (stuck, obstacle) = match assess_complete_version_after(&changes).state {
                VersionState::Stuck(obstacle) => (true, obstacle),
                VersionState::Pending(obstacle) => (false, obstacle),
                complete => panic!("{reason}: {complete:?}"),
            };
            assert_eq!((stuck, obstacle.fault), (is_stuck, fault), "{reason}");
            assert!(obstacle.reason.contains(reason), "{:?}", obstacle.reason);
        }
    }

    #[test]
    fn a_version_that_has_been_good_needs_one_replica() {
        let one_of_two = [("/deployment/status/availableReplicas", json!(1))];
        let state = |wanted| assess_complete_version_with(&one_of_two, wanted).state;
        assert!(matches!(state(WantedReplicas::One), VersionState::Complete(_)));
        assert!(matches!(state(WantedReplicas::All), VersionState::Pending(_)));
    }

    #[test]
    fn the_remains_of_a_pod_that_was_replaced_do_not_count() {
        let evicted = json!({"phase": "Failed", "reason": "Evicted",
            "containerStatuses": [{"name": "hello", "image": IMAGE, "imageID": "", "ready": false, "restartCount": 1,
                "state": {"terminated": {"exitCode": 137}}}]});
        let remains = ("/pods/1/status", evicted);
        let state = assess_complete_version_after(std::slice::from_ref(&remains)).state;
        assert!(matches!(state, VersionState::Complete(_)), "{state:?}");
        let replacing = [remains, ("/deployment/status/availableReplicas", json!(1))];
        let VersionState::Pending(obstacle) = assess_complete_version_after(&replacing).state else {
            panic!("the remains are a crash loop");
        };
        assert_eq!(
            obstacle.reason,
            "1 of 2 replicas of the new version are available"
        );
    }

    #[test]
    fn a_pod_of_another_replica_set_and_one_that_is_being_deleted_do_not_count() {
        let unready = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]});
        for other in [
            (
                "/pods/1/metadata/ownerReferences",
                owner_reference_list("ReplicaSet", "old"),
            ),
            (
                "/pods/1/metadata/deletionTimestamp",
                json!("2026-01-01T00:00:00Z"),
            ),
        ] {
            let state = assess_complete_version_after(&[("/pods/1/status", unready.clone()), other]).state;
            assert!(matches!(state, VersionState::Complete(_)), "{state:?}");
        }
    }
}
