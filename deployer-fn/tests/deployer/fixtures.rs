//! Shared by the tests of rollouts: a hand-over, the states of its function, and the requests of a rollout.

use std::time::Duration;

use deployer_fn::{
    Deadline, DeploymentStatus, Fault, FunctionSpec, HandOver, Outcome, PinnedImage, Probe, RolloutContext,
    RolloutHistory, Running, SPEC_ANNOTATION, SuccessorReceiver, Timeouts, rollout,
};
use function_host::Shutdown;
use serde_json::json;

use crate::script::{ExpectedCall, ScriptedGateway, expect};

pub(crate) const OLD: &str =
    "registry.example/hello@sha256:0000000000000000000000000000000000000000000000000000000000000000";
pub(crate) const NEW: &str =
    "registry.example/hello@sha256:1111111111111111111111111111111111111111111111111111111111111111";

pub(crate) const READY_TIMEOUT: Duration = Duration::from_secs(50);

pub(crate) fn hand_over() -> HandOver {
    HandOver {
        spec: FunctionSpec {
            service: "hello".to_owned(),
            image: PinnedImage::parse(NEW).unwrap(),
            namespace: None,
            env_process: None,
            env_vars: [("A".to_owned(), "1".to_owned())].into(),
            constraints: vec![],
            secrets: vec!["api-key".to_owned()],
            labels: Default::default(),
            annotations: [("topic".to_owned(), "orders".to_owned())].into(),
            limits: None,
            requests: None,
            read_only_root_filesystem: true,
        },
        tag: Some("registry.example/hello:2".to_owned()),
        call_id: Some("call-7".to_owned()),
        submitted_at: None,
        built_at: None,
        expires_at: None,
        probe: Probe::default(),
        warnings: vec![],
    }
}

/// Returns the JSON of the function's state before the rollout, with this number of available replicas.
pub(crate) fn old_state(available: u64) -> String {
    json!({"name": "hello", "image": OLD, "namespace": "openfaas-fn", "replicas": 1, "availableReplicas": available,
        "labels": {"faas_function": "hello"}, "annotations": {"prometheus.io.scrape": "false"}})
    .to_string()
}

/// Returns the JSON of the function's state after the rollout, with this number of available replicas.
pub(crate) fn new_state(available: u64) -> String {
    deployed_state(&hand_over().spec, available)
}

/// Returns the JSON of the state of a function with the new image and this specification.
pub(crate) fn deployed_state(spec: &FunctionSpec, available: u64) -> String {
    json!({"name": "hello", "image": NEW, "namespace": "openfaas-fn", "replicas": 1, "availableReplicas": available,
        "annotations": {SPEC_ANNOTATION: spec.digest(), "topic": "orders"}})
    .to_string()
}

pub(crate) fn expect_read() -> ExpectedCall {
    expect("GET /system/function/hello")
}

pub(crate) fn expect_put() -> ExpectedCall {
    expect("PUT /system/functions")
}

pub(crate) fn expect_post() -> ExpectedCall {
    expect("POST /system/functions")
}

pub(crate) fn expect_health() -> ExpectedCall {
    expect("GET /function/hello/_/health")
}

/// Rolls out the shared [`hand_over`] on a gateway that expects these calls.
pub(crate) async fn roll_out(calls: impl IntoIterator<Item = ExpectedCall>) -> Outcome {
    roll_out_with(&hand_over(), calls).await
}

/// Rolls out a hand-over on a gateway that expects these calls.
pub(crate) async fn roll_out_with(
    hand_over: &HandOver,
    calls: impl IntoIterator<Item = ExpectedCall>,
) -> Outcome {
    let (_trigger, shutdown) = Shutdown::new();
    let deadline = Deadline::new(READY_TIMEOUT, None, shutdown);
    let gateway = ScriptedGateway::new(calls);
    let url = "http://gateway:8080/function/hello".to_owned();
    let context = RolloutContext {
        transport: &gateway,
        timeouts: &Timeouts::default(),
        default_namespace: "openfaas-fn",
        history: &RolloutHistory::default(),
        succession: &SuccessorReceiver::none(),
    };
    let outcome = rollout(&context, hand_over, vec![], &deadline, url).await;
    gateway.finish();
    outcome
}

#[track_caller]
pub(crate) fn assert_ended(
    outcome: &Outcome,
    status: DeploymentStatus,
    fault: Option<Fault>,
    reasons: &[&str],
) {
    assert_eq!((outcome.status, outcome.fault), (status, fault), "{outcome:#?}");
    for reason in reasons {
        assert!(
            outcome.reasons.iter().any(|given| given.contains(reason)),
            "no reason contains {reason:?}: {outcome:#?}"
        );
    }
}

pub(crate) fn running_image(image: &str, available_replicas: u64) -> Running {
    Running::Function {
        image: image.to_owned(),
        available_replicas,
    }
}
