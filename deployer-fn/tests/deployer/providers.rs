//! Tests of rollouts with the answers of real providers. Status codes and bodies are those of faas-netes
//! (`pkg/handlers`), faasd 0.19 (`pkg/provider/handlers`) and faas-provider (`proxy/proxy.go`).

use std::time::Duration;

use deployer_fn::{DeploymentStatus as Status, Fault};
use serde_json::{Value, json};

use crate::fixtures::{
    NEW, OLD, assert_ended, deployed_state, expect_health, expect_post, expect_put, expect_read, hand_over,
    new_state, old_state, roll_out, roll_out_with, running_image,
};
use crate::script::{ALWAYS, expect};

const NO_DEPLOYMENT: &str =
    "unable update Deployment: hello.openfaas-fn, error: deployments.apps \"hello\" not found\n";
const NO_K8S_SECRET: &str =
    "unable update Deployment: hello.openfaas-fn, error: secrets \"api-key\" not found\n";
const NOT_PULLED: &str = "unable to pull image registry.example/hello: not found\n";
const NO_FAASD_SECRET: &str = "unable to find secret: api-key\n";
const NO_ENDPOINTS: &str = "No endpoints available for: hello.";

#[tokio::test(start_paused = true)]
async fn a_new_function_is_created_on_kubernetes() {
    let outcome = roll_out([
        expect_read().times(2).reply(404, ""),
        expect_put().reply(404, NO_DEPLOYMENT),
        expect_post().reply(202, ""),
        // faas-netes answers from a cache that lags behind.
        expect_read().reply(404, ""),
        expect_read().times(3).reply(200, new_state(0)),
        expect_read().reply(200, new_state(1)),
        expect_health().reply(503, NO_ENDPOINTS),
        expect_read().reply(200, new_state(1)),
        expect_health().reply(200, "OK"),
    ])
    .await;
    assert_ended(&outcome, Status::Ready, None, &[]);
    assert_eq!(outcome.previous_image, None);
    assert_eq!(outcome.running, running_image(NEW, 1));
    assert_eq!(outcome.namespace.as_deref(), Some("openfaas-fn"));
    assert!(outcome.changed);
    assert!(outcome.durations.watch > Duration::ZERO && outcome.durations.total >= outcome.durations.watch);
}

#[tokio::test(start_paused = true)]
async fn a_new_function_is_created_on_faasd() {
    let outcome = roll_out([
        expect_read().times(2).reply(404, ""),
        expect_put().reply(404, "service hello not found\n"),
        expect_post().reply(200, ""),
        expect_read().reply(200, new_state(1)),
        expect_health().reply(500, "Can't reach service for: hello."),
        expect_read().reply(200, new_state(1)),
        expect_health().reply(200, "OK"),
    ])
    .await;
    assert_ended(&outcome, Status::Ready, None, &[]);
}

#[tokio::test(start_paused = true)]
async fn an_update_carries_the_complete_specification_and_its_digest() {
    let outcome = roll_out([
        expect_read().times(2).reply(200, old_state(1)),
        expect_put()
            .check(|request| {
                let mut sent: Value = serde_json::from_slice(request.body()).unwrap();
                let annotations = sent["annotations"].as_object_mut().unwrap();
                annotations.retain(|name, _| {
                    !name.starts_with("slipway/version.") && !name.starts_with("slipway/last-good.")
                });
                let digest = hand_over().spec.digest();
                let expected = json!({
                    "service": "hello", "image": NEW, "envVars": {"A": "1", "slipway_version": digest},
                    "secrets": ["api-key"], "annotations": {"topic": "orders", "slipway/spec": digest,
                        "slipway/tag": "registry.example/hello:2", "slipway/call-id": "call-7"},
                    "readOnlyRootFilesystem": true
                });
                assert_eq!(sent, expected);
            })
            .reply(202, ""),
        expect_read().reply(200, old_state(1)),
        expect_read().reply(200, new_state(1)),
        expect_health().reply(200, "OK"),
    ])
    .await;
    assert_ended(&outcome, Status::Ready, None, &[]);
    assert_eq!(outcome.previous_image.as_deref(), Some(OLD));
}

#[tokio::test(start_paused = true)]
async fn a_repeated_delivery_changes_nothing() {
    let outcome = roll_out([
        expect_read().reply(200, new_state(1)),
        expect_read().reply(200, new_state(1)),
        expect_health().reply(200, "OK"),
    ])
    .await;
    assert_ended(&outcome, Status::Ready, None, &["nothing was changed"]);
    assert!(!outcome.changed);
    assert_eq!(outcome.previous_image.as_deref(), Some(NEW));
}

#[tokio::test(start_paused = true)]
async fn the_same_image_with_another_environment_is_a_change() {
    let mut other = hand_over();
    other.spec.env_vars.clear();
    let outcome = roll_out([
        expect_read().times(2).reply(200, deployed_state(&other.spec, 1)),
        expect_put().reply(200, ""),
        expect_read().reply(200, new_state(1)),
        expect_health().reply(200, "OK"),
    ])
    .await;
    assert_ended(&outcome, Status::Ready, None, &[]);
    assert!(outcome.changed);
}

#[tokio::test(start_paused = true)]
async fn without_annotations_the_image_alone_is_compared() {
    let plain = json!({"name": "hello", "image": NEW, "replicas": 1, "availableReplicas": 1}).to_string();
    let outcome = roll_out([
        expect_read().times(2).reply(200, plain.clone()),
        expect_put().reply(200, ""),
        expect_read().reply(200, plain),
        expect_health().reply(200, "OK"),
    ])
    .await;
    assert_ended(&outcome, Status::Ready, None, &[]);
}

#[tokio::test(start_paused = true)]
async fn all_requests_carry_the_namespace() {
    let mut elsewhere = hand_over();
    elsewhere.spec.namespace = Some("team".to_owned());
    let state = deployed_state(&elsewhere.spec, 1);
    let outcome = roll_out_with(
        &elsewhere,
        [
            expect("GET /system/namespaces").reply(200, "[\"openfaas-fn\",\"team\"]"),
            expect("GET /system/function/hello?namespace=team")
                .times(2)
                .reply(404, ""),
            expect_put().reply(404, ""),
            expect_post().check(|request| {
                assert!(
                    request
                        .body()
                        .windows(18)
                        .any(|part| part == br#""namespace":"team""#)
                )
            }),
            expect("GET /system/function/hello?namespace=team").reply(200, state),
            expect("GET /function/hello.team/_/health").reply(200, "OK"),
        ],
    )
    .await;
    assert_ended(&outcome, Status::Ready, None, &[]);
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_kubernetes_does_not_have_is_refused_without_a_change() {
    let outcome = roll_out([
        expect_read().times(2).reply(200, old_state(1)),
        expect_put().reply(400, NO_K8S_SECRET),
        expect_read().reply(200, old_state(1)),
    ])
    .await;
    assert_ended(
        &outcome,
        Status::Refused,
        Some(Fault::Caller),
        &["secrets \"api-key\" not found"],
    );
    assert!(!outcome.changed);
    assert_eq!(outcome.running, running_image(OLD, 1));
}

#[tokio::test(start_paused = true)]
async fn a_creation_that_faasd_rejects_is_refused() {
    for text in [NOT_PULLED, NO_FAASD_SECRET] {
        let outcome = roll_out([
            expect_read().times(2).reply(404, ""),
            expect_put().reply(404, "service hello not found\n"),
            expect_post().reply(400, text),
            expect_read().reply(404, ""),
        ])
        .await;
        assert_ended(
            &outcome,
            Status::Refused,
            Some(Fault::Caller),
            &[text.trim(), "the function does not exist, as before"],
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_update_is_unverified_if_the_provider_is_not_known_to_replace_first() {
    for (status, info) in [
        (200, r#"{"provider":{"provider":"faas-netes"}}"#),
        (200, r#"{"provider":null}"#),
        (404, ""),
        (500, ""),
    ] {
        let outcome = roll_out([
            expect_read().times(2).reply(200, old_state(1)),
            expect_put().reply(202, ""),
            expect_read().reply(200, new_state(1)),
            expect_health().reply(200, "OK"),
            expect("GET /system/info").times(ALWAYS).reply(status, info),
        ])
        .await;
        assert_ended(&outcome, Status::Unverified, None, &["X-Slipway-Version"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_function_scaled_to_zero_is_probed() {
    let scaled_to_zero = new_state(0).replace("\"replicas\":1", "\"replicas\":0");
    let outcome = roll_out([
        expect_read().reply(200, scaled_to_zero.clone()),
        expect_read().reply(200, scaled_to_zero),
        expect_health().reply(200, "OK"),
    ])
    .await;
    assert_ended(&outcome, Status::Ready, None, &[]);
}
