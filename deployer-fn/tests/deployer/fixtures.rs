//! Shared by the tests of rollouts: a hand-over, the states of its function, and the requests of a rollout.

use std::time::Duration;

use deployer_fn::{
    DeploymentOutcome, DeploymentStatus, FaultyParty, FunctionSpec, HandOver, PinnedImage, ReadinessProbe,
    RolloutContext, RolloutDeadline, RolloutHistory, RolloutPartTimeouts, RunningState,
    SPEC_DIGEST_ANNOTATION, SuccessorReceiver, roll_out_hand_over,
};
use function_host::Shutdown;
use serde_json::json;

use crate::script::{ExpectedCall, ScriptedGateway, expect_request};

/// The image of the function before the rollout.
pub(crate) const OLD_IMAGE: &str =
    "registry.example/hello@sha256:0000000000000000000000000000000000000000000000000000000000000000";
/// The image in the hand-over.
pub(crate) const NEW_IMAGE: &str =
    "registry.example/hello@sha256:1111111111111111111111111111111111111111111111111111111111111111";

/// The timeout of a rollout on a scripted gateway in memory.
pub(crate) const READY_TIMEOUT: Duration = Duration::from_secs(50);

/// Returns a valid hand-over of the new image, for the function `hello`.
pub(crate) fn hand_over_of_new_image() -> HandOver {
    HandOver {
        spec: FunctionSpec {
            service: "hello".to_owned(),
            image: PinnedImage::parse_pinned(NEW_IMAGE).unwrap(),
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
        tenant: None,
        call_id: Some("call-7".to_owned()),
        submitted_at: None,
        built_at: None,
        expires_at: None,
        probe: ReadinessProbe::default(),
        warnings: vec![],
    }
}

/// Returns the JSON of the function's state before the rollout, with this number of available replicas.
pub(crate) fn old_state_json(available: u64) -> String {
    json!({"name": "hello", "image": OLD_IMAGE, "namespace": "openfaas-fn", "replicas": 1, "availableReplicas": available,
        "labels": {"faas_function": "hello"}, "annotations": {"prometheus.io.scrape": "false"}})
    .to_string()
}

/// Returns the JSON of the function's state after the rollout, with this number of available replicas.
pub(crate) fn new_state_json(available: u64) -> String {
    new_image_state_json(&hand_over_of_new_image().spec, available)
}

/// Returns the JSON of the state of a function with the new image and this specification.
pub(crate) fn new_image_state_json(spec: &FunctionSpec, available: u64) -> String {
    json!({"name": "hello", "image": NEW_IMAGE, "namespace": "openfaas-fn", "replicas": 1, "availableReplicas": available,
        "annotations": {SPEC_DIGEST_ANNOTATION: spec.spec_digest(), "topic": "orders"}})
    .to_string()
}

pub(crate) fn expect_status_request() -> ExpectedCall {
    expect_request("GET /system/function/hello")
}

pub(crate) fn expect_update_request() -> ExpectedCall {
    expect_request("PUT /system/functions")
}

pub(crate) fn expect_create_request() -> ExpectedCall {
    expect_request("POST /system/functions")
}

pub(crate) fn expect_probe_request() -> ExpectedCall {
    expect_request("GET /function/hello/_/health")
}

/// Rolls out the shared [`hand_over_of_new_image`] on a gateway that expects these calls.
pub(crate) async fn roll_out_new_image_and_assert_calls(
    calls: impl IntoIterator<Item = ExpectedCall>,
) -> DeploymentOutcome {
    roll_out_hand_over_and_assert_calls(&hand_over_of_new_image(), calls).await
}

/// Returns timeouts with which a version is ready once it answers: the scripts of calls end there.
pub(crate) fn timeouts_without_stay_up() -> RolloutPartTimeouts {
    RolloutPartTimeouts {
        stay_up: Duration::ZERO,
        ..RolloutPartTimeouts::default()
    }
}

/// Rolls out a hand-over on a gateway that expects these calls.
pub(crate) async fn roll_out_hand_over_and_assert_calls(
    hand_over: &HandOver,
    calls: impl IntoIterator<Item = ExpectedCall>,
) -> DeploymentOutcome {
    let (_trigger, shutdown) = Shutdown::new();
    let deadline = RolloutDeadline::new(READY_TIMEOUT, None, shutdown);
    let gateway = ScriptedGateway::new(calls);
    let url = "http://gateway:8080/function/hello".to_owned();
    let context = RolloutContext {
        transport: &gateway,
        kubernetes: None,
        timeouts: &timeouts_without_stay_up(),
        default_namespace: "openfaas-fn",
        history: &RolloutHistory::default(),
        tenant: None,
        succession: &SuccessorReceiver::without_successor(),
    };
    let outcome = roll_out_hand_over(&context, hand_over, vec![], &deadline, url).await;
    gateway.assert_no_missing_or_unexpected_calls();
    outcome
}

/// Asserts the status and the fault of an outcome, and that each of `reason_parts` is a part of one of its reasons.
#[track_caller]
pub(crate) fn assert_outcome(
    outcome: &DeploymentOutcome,
    status: DeploymentStatus,
    fault: Option<FaultyParty>,
    reason_parts: &[&str],
) {
    assert_eq!((outcome.status, outcome.fault), (status, fault), "{outcome:#?}");
    for reason in reason_parts {
        assert!(
            outcome.reasons.iter().any(|given| given.contains(reason)),
            "no reason contains {reason:?}: {outcome:#?}"
        );
    }
}

pub(crate) fn running_state_of_image(image: &str, available_replicas: u64) -> RunningState {
    RunningState::Function {
        image: image.to_owned(),
        available_replicas,
    }
}
