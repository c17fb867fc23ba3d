//! What the tests of rollouts share: one hand-over, what a provider says of its function, and the calls of a rollout.

use std::time::Duration;

use deployer_fn::outcome::{Fault, Outcome, Running, Status};
use deployer_fn::request::{FunctionSpec, HandOver, PinnedImage, Probe, SPEC_ANNOTATION};
use deployer_fn::rollout::{Deadline, Ground, Limits, Memory, rollout};
use function_host::Shutdown;
use serde_json::json;

use crate::script::{Call, Script, expect};

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
        built_at: None,
        probe: Probe::default(),
        unknown: vec![],
    }
}

/// What a provider says of the function before and after.
pub(crate) fn old(available: u64) -> String {
    json!({"name": "hello", "image": OLD, "namespace": "openfaas-fn", "replicas": 1, "availableReplicas": available,
        "labels": {"faas_function": "hello"}, "annotations": {"prometheus.io.scrape": "false"}})
    .to_string()
}

pub(crate) fn new(available: u64) -> String {
    marked(&hand_over().spec, available)
}

pub(crate) fn marked(spec: &FunctionSpec, available: u64) -> String {
    json!({"name": "hello", "image": NEW, "namespace": "openfaas-fn", "replicas": 1, "availableReplicas": available,
        "annotations": {SPEC_ANNOTATION: spec.digest(), "topic": "orders"}})
    .to_string()
}

pub(crate) fn read() -> Call {
    expect("GET /system/function/hello")
}

pub(crate) fn put() -> Call {
    expect("PUT /system/functions")
}

pub(crate) fn post() -> Call {
    expect("POST /system/functions")
}

pub(crate) fn health() -> Call {
    expect("GET /function/hello/_/health")
}

pub(crate) async fn run(calls: impl IntoIterator<Item = Call>) -> Outcome {
    run_with(&hand_over(), calls).await
}

pub(crate) async fn run_with(hand_over: &HandOver, calls: impl IntoIterator<Item = Call>) -> Outcome {
    let (_trigger, shutdown) = Shutdown::new();
    let deadline = Deadline::new(READY_TIMEOUT, None, shutdown);
    let script = Script::new(calls);
    let url = "http://gateway:8080/function/hello".to_owned();
    let ground = Ground {
        transport: &script,
        limits: &Limits::default(),
        memory: &Memory::default(),
    };
    let outcome = rollout(&ground, hand_over, vec![], &deadline, url).await;
    script.finish();
    outcome
}

#[track_caller]
pub(crate) fn assert_ended(outcome: &Outcome, status: Status, fault: Option<Fault>, reasons: &[&str]) {
    assert_eq!((outcome.status, outcome.fault), (status, fault), "{outcome:#?}");
    for reason in reasons {
        assert!(
            outcome.reasons.iter().any(|given| given.contains(reason)),
            "{reason:?} is not in {outcome:#?}"
        );
    }
}

pub(crate) fn running(image: &str, available_replicas: u64) -> Running {
    Running::Function {
        image: image.to_owned(),
        available_replicas,
    }
}
