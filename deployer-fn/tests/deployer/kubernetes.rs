//! Tests of rollouts on Kubernetes whose deployer may read what Kubernetes knows: the functions do not name their
//! version in their answers, and the old version answers until the new one is up.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use deployer_fn::{
    DeploymentOutcome, DeploymentStatus as Status, FaultyParty, KubernetesError, KubernetesReader,
};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::fake::{FakeGateway, ProviderKind, behaviour_named_by_image_or_good};
use crate::scenarios::{SimulatedDeployer, answering_build_number, hand_over_of_build};

/// A Kubernetes API that shows the functions of a fake gateway. Clones share its state.
#[derive(Clone)]
struct FakeKubernetes {
    gateway: FakeGateway,
    state: Arc<Mutex<FakeKubernetesFaults>>,
}

/// What a test makes of the fake API.
#[derive(Default)]
struct FakeKubernetesFaults {
    /// The status of every answer in place of 200.
    error: Option<u16>,
    /// The time at which the new version's container ends, and is started again.
    restart_at: Option<Instant>,
    /// Whether the kubelet ends the new version's container, because its liveness probe fails.
    fails_liveness_probe: bool,
}

impl FakeKubernetes {
    fn new() -> Self {
        let gateway = FakeGateway::new(ProviderKind::Kubernetes).omit_versions_in_answers();
        Self {
            gateway,
            state: Arc::default(),
        }
    }

    fn object_at_path(&self, path: &str) -> Option<Value> {
        let (deployment, is_up, has_old) = self.gateway.deployment_is_up_and_old_one_runs("hello")?;
        let image = &deployment["image"];
        let (ready, old) = (u8::from(is_up), u8::from(has_old));
        let (kind, query) = path.split_once('?').unwrap_or((path, ""));
        match kind {
            "/apis/apps/v1/namespaces/openfaas-fn/deployments/hello" => Some(json!({
                "metadata": {"name": "hello", "uid": "d", "generation": 7,
                    "annotations": {"deployment.kubernetes.io/revision": "2"}},
                "spec": {"replicas": 1, "selector": {"matchLabels": {"faas_function": "hello"}},
                    "template": {"spec": {"containers": [{"name": "hello", "image": image}]}}},
                "status": {"observedGeneration": 7, "replicas": 1 + old, "updatedReplicas": 1,
                    "availableReplicas": ready.max(old)},
            })),
            "/apis/apps/v1/namespaces/openfaas-fn/replicasets" => {
                assert!(
                    query.starts_with("labelSelector=faas_function%3Dhello&"),
                    "{query}"
                );
                Some(json!({"items": [replica_set("old", "1"), replica_set("new", "2")]}))
            }
            "/api/v1/namespaces/openfaas-fn/pods" => {
                let restarts = self
                    .state
                    .lock()
                    .unwrap()
                    .restart_at
                    .is_some_and(|at| at <= Instant::now());
                let pods = [
                    pod("old", true, json!({"running": {}}), 9),
                    self.pod_of_new_version(image, is_up, restarts),
                ];
                Some(json!({"items": pods}))
            }
            "/api/v1/namespaces/openfaas-fn/pods/new-pod/log" => None,
            "/api/v1/namespaces/openfaas-fn/events" if self.state.lock().unwrap().fails_liveness_probe => {
                assert!(
                    query.starts_with("fieldSelector=involvedObject.uid%3Dnew-pod&"),
                    "{query}"
                );
                Some(json!({"items": [
                    {"metadata": {}, "involvedObject": {}, "type": "Warning", "lastTimestamp": "2026-01-01T00:00:02Z",
                        "message": "Liveness probe failed: connection refused"},
                    {"metadata": {}, "involvedObject": {}, "type": "Warning", "lastTimestamp": "2026-01-01T00:00:03Z",
                        "message": "Back-off restarting failed container"},
                ]}))
            }
            "/api/v1/namespaces/openfaas-fn/events" => Some(json!({"items": [
                {"metadata": {}, "involvedObject": {}, "type": "Warning", "lastTimestamp": "2026-01-01T00:00:02Z",
                    "message": "Readiness probe failed: connection refused"},
                {"metadata": {}, "involvedObject": {}, "type": "Normal", "lastTimestamp": "2026-01-01T00:00:03Z",
                    "message": "Started container"},
            ]})),
            other => {
                assert_eq!(other, "", "the deployer reads {path}");
                None
            }
        }
    }

    fn pod_of_new_version(&self, image: &Value, is_up: bool, restarted: bool) -> Value {
        let behaviour = behaviour_named_by_image_or_good(&json!({"image": image}));
        let state = match behaviour.as_str() {
            "missing" => {
                json!({"waiting": {"reason": "ErrImagePull", "message": "failed to resolve: not found"}})
            }
            "crash" => json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}),
            _ => json!({"running": {}}),
        };
        let mut pod = pod("new", is_up, state, u8::from(restarted));
        if self.state.lock().unwrap().fails_liveness_probe {
            let last = &mut pod["status"]["containerStatuses"][0]["lastState"];
            *last = json!({"terminated": {"exitCode": 143, "reason": "Error"}});
        }
        pod
    }
}

fn replica_set(name: &str, revision: &str) -> Value {
    json!({"metadata": {"name": name, "uid": name, "annotations": {"deployment.kubernetes.io/revision": revision},
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "hello", "uid": "d"}]}})
}

fn pod(replica_set: &str, is_ready: bool, state: Value, restarts: u8) -> Value {
    let status = if is_ready { "True" } else { "False" };
    let last = match state.get("waiting") {
        Some(_) => json!({"terminated": {"exitCode": 3, "reason": "Error"}}),
        None => json!({}),
    };
    json!({
        "metadata": {"name": format!("{replica_set}-pod"), "uid": format!("{replica_set}-pod"),
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": replica_set, "uid": replica_set}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": status}],
            "containerStatuses": [{"name": "hello", "image": "the image", "imageID": "", "ready": is_ready,
                "restartCount": restarts, "state": state,
                "lastState": last}]},
    })
}

impl KubernetesReader for FakeKubernetes {
    fn read<'a>(
        &'a self,
        path: String,
    ) -> Pin<Box<dyn Future<Output = Result<Option<Bytes>, KubernetesError>> + Send + 'a>> {
        let error = self.state.lock().unwrap().error;
        let answer = match error {
            Some(status) => Err(KubernetesError::Status { path, status }),
            None if path.contains("/pods/new-pod/log?") => {
                assert!(
                    path.contains("container=hello&previous=true&tailLines="),
                    "{path}"
                );
                Ok(Some(Bytes::from_static(b"Traceback\nValueError: no port\n")))
            }
            None => Ok(self
                .object_at_path(&path)
                .map(|value| Bytes::from(value.to_string()))),
        };
        Box::pin(async { answer })
    }
}

/// Deploys build 1, which is good, and then build 2 with this behaviour; returns the outcome of build 2, and how long
/// it took.
async fn deploy_good_build_1_then_build_2(
    kubernetes: &FakeKubernetes,
    behaviour: &str,
) -> (DeploymentOutcome, Duration) {
    let process = SimulatedDeployer::start_with_kubernetes(kubernetes.clone());
    let first = process
        .deploy(&kubernetes.gateway, &hand_over_of_build(1, "good"))
        .await;
    assert_eq!(first.status, Status::Ready, "{first:#?}");
    let begun = Instant::now();
    let outcome = process
        .deploy(&kubernetes.gateway, &hand_over_of_build(2, behaviour))
        .await;
    (outcome, begun.elapsed())
}

#[tokio::test(start_paused = true)]
async fn an_update_whose_answers_name_no_version_is_ready_if_kubernetes_can_be_read() {
    let kubernetes = FakeKubernetes::new();
    let (outcome, _) = deploy_good_build_1_then_build_2(&kubernetes, "good").await;
    assert_eq!(outcome.status, Status::Ready, "{outcome:#?}");
    assert_eq!(answering_build_number(&kubernetes.gateway), Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_version_that_does_not_start_is_rolled_back_with_kubernetes_reason_although_the_old_one_answers() {
    for (behaviour, reason, within) in [
        (
            "missing",
            "the image the image cannot be pulled: failed to resolve: not found",
            15,
        ),
        (
            "crash",
            "the container ended with exit code 3, and was started 1 times",
            15,
        ),
        ("crash", "its log ends with: Traceback | ValueError: no port", 15),
        (
            "silent",
            "the pod runs and is not ready; Readiness probe failed: connection refused",
            90,
        ),
    ] {
        let kubernetes = FakeKubernetes::new();
        let (outcome, took) = deploy_good_build_1_then_build_2(&kubernetes, behaviour).await;
        assert_eq!(
            (outcome.status, outcome.fault),
            (Status::RolledBack, Some(FaultyParty::Caller)),
            "{outcome:#?}"
        );
        let reasons = outcome.reasons.join("; ");
        assert!(reasons.contains(reason), "{reasons}");
        assert!(took < Duration::from_secs(within), "{behaviour}: {took:?}");
        assert_eq!(
            answering_build_number(&kubernetes.gateway),
            Some(1),
            "{behaviour}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_failure_of_a_liveness_probe_is_the_reason_in_place_of_the_log_of_the_container_that_it_ends() {
    let kubernetes = FakeKubernetes::new();
    kubernetes.state.lock().unwrap().fails_liveness_probe = true;
    let (outcome, _) = deploy_good_build_1_then_build_2(&kubernetes, "crash").await;
    assert_eq!(outcome.status, Status::RolledBack, "{outcome:#?}");
    let reasons = outcome.reasons.join("; ");
    let expected = "the container ended with exit code 143, signal 15, and was started 1 times; \
                    Liveness probe failed: connection refused";
    assert!(reasons.contains(expected), "{reasons}");
    assert!(!reasons.contains("Traceback"), "{reasons}");
}

#[tokio::test(start_paused = true)]
async fn a_restart_begins_the_settling_time_again() {
    let kubernetes = FakeKubernetes::new();
    let process = SimulatedDeployer::start_with_kubernetes(kubernetes.clone());
    process
        .deploy(&kubernetes.gateway, &hand_over_of_build(1, "good"))
        .await;
    let begun = Instant::now();
    kubernetes.state.lock().unwrap().restart_at = Some(begun + Duration::from_secs(3));
    let outcome = process
        .deploy(&kubernetes.gateway, &hand_over_of_build(2, "good"))
        .await;
    // It was started again, and has stayed up since.
    assert_eq!(outcome.status, Status::Ready, "{outcome:#?}");
    assert!(begun.elapsed() >= Duration::from_secs(8), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_update_is_unverified_if_kubernetes_may_not_be_read() {
    let kubernetes = FakeKubernetes::new();
    kubernetes.state.lock().unwrap().error = Some(403);
    let (outcome, _) = deploy_good_build_1_then_build_2(&kubernetes, "crash").await;
    assert_eq!(outcome.status, Status::Unverified, "{outcome:#?}");
    let reasons = outcome.reasons.join("; ");
    assert!(reasons.contains("deployments/hello with 403"), "{reasons}");
}
