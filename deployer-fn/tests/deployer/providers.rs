//! Tests of rollouts with the answers of real providers. Status codes and bodies are those of faas-netes
//! (`pkg/handlers`), faasd 0.19 (`pkg/provider/handlers`) and faas-provider (`proxy/proxy.go`).

use std::time::Duration;

use deployer_fn::{DeploymentStatus as Status, FaultyParty};
use serde_json::{Value, json};

use crate::fixtures::{
    NEW_IMAGE, OLD_IMAGE, assert_outcome, expect_create_request, expect_probe_request, expect_status_request,
    expect_update_request, hand_over_of_new_image, new_image_state_json, new_state_json, old_state_json,
    roll_out_hand_over_and_assert_calls, roll_out_new_image_and_assert_calls, running_state_of_image,
};
use crate::script::{ANY_NUMBER_OF_TIMES, expect_request};

/// The text of faas-netes for an update of a function that does not exist.
const NO_DEPLOYMENT_TEXT: &str =
    "unable update Deployment: hello.openfaas-fn, error: deployments.apps \"hello\" not found\n";
/// The text of faas-netes for an update with a secret that does not exist.
const NO_K8S_SECRET_TEXT: &str =
    "unable update Deployment: hello.openfaas-fn, error: secrets \"api-key\" not found\n";
/// The text of faasd for an image that does not exist.
const NOT_PULLED_TEXT: &str = "unable to pull image registry.example/hello: not found\n";
/// The text of faasd for a secret that does not exist.
const NO_FAASD_SECRET_TEXT: &str = "unable to find secret: api-key\n";
/// The text of the gateway on Kubernetes for a call of a function without available replicas.
const NO_ENDPOINTS_TEXT: &str = "No endpoints available for: hello.";

#[tokio::test(start_paused = true)]
async fn a_new_function_is_created_on_kubernetes() {
    let outcome = roll_out_new_image_and_assert_calls([
        expect_status_request().expected_times(2).answered_with(404, ""),
        expect_update_request().answered_with(404, NO_DEPLOYMENT_TEXT),
        expect_create_request().answered_with(202, ""),
        // faas-netes answers from a cache that lags behind.
        expect_status_request().answered_with(404, ""),
        expect_status_request()
            .expected_times(3)
            .answered_with(200, new_state_json(0)),
        expect_status_request().answered_with(200, new_state_json(1)),
        expect_probe_request().answered_with(503, NO_ENDPOINTS_TEXT),
        expect_status_request().answered_with(200, new_state_json(1)),
        expect_probe_request().answered_with(200, "OK"),
    ])
    .await;
    assert_outcome(&outcome, Status::Ready, None, &[]);
    assert_eq!(outcome.previous_image, None);
    assert_eq!(outcome.running, running_state_of_image(NEW_IMAGE, 1));
    assert_eq!(outcome.namespace.as_deref(), Some("openfaas-fn"));
    assert!(outcome.changed);
    assert!(outcome.durations.watch > Duration::ZERO && outcome.durations.total >= outcome.durations.watch);
}

#[tokio::test(start_paused = true)]
async fn a_new_function_is_created_on_faasd() {
    let outcome = roll_out_new_image_and_assert_calls([
        expect_status_request().expected_times(2).answered_with(404, ""),
        expect_update_request().answered_with(404, "service hello not found\n"),
        expect_create_request().answered_with(200, ""),
        expect_status_request().answered_with(200, new_state_json(1)),
        expect_probe_request().answered_with(500, "Can't reach service for: hello."),
        expect_status_request().answered_with(200, new_state_json(1)),
        expect_probe_request().answered_with(200, "OK"),
    ])
    .await;
    assert_outcome(&outcome, Status::Ready, None, &[]);
}

#[tokio::test(start_paused = true)]
async fn an_update_carries_the_complete_specification_and_its_digest() {
    let outcome = roll_out_new_image_and_assert_calls([
        expect_status_request()
            .expected_times(2)
            .answered_with(200, old_state_json(1)),
        expect_update_request()
            .with_request_check(|request| {
                let mut sent: Value = serde_json::from_slice(request.body()).unwrap();
                let annotations = sent["annotations"].as_object_mut().unwrap();
                annotations.retain(|name, _| {
                    !name.starts_with("slipway/version.") && !name.starts_with("slipway/last-good.")
                });
                let digest = hand_over_of_new_image().spec.spec_digest();
                let expected = json!({
                    "service": "hello", "image": NEW_IMAGE, "envVars": {"A": "1", "slipway_version": digest},
                    "secrets": ["api-key"], "annotations": {"topic": "orders", "slipway/spec": digest,
                        "slipway/tag": "registry.example/hello:2", "slipway/call-id": "call-7"},
                    "readOnlyRootFilesystem": true
                });
                assert_eq!(sent, expected);
            })
            .answered_with(202, ""),
        expect_status_request().answered_with(200, old_state_json(1)),
        expect_status_request().answered_with(200, new_state_json(1)),
        expect_probe_request().answered_with(200, "OK"),
    ])
    .await;
    assert_outcome(&outcome, Status::Ready, None, &[]);
    assert_eq!(outcome.previous_image.as_deref(), Some(OLD_IMAGE));
}

#[tokio::test(start_paused = true)]
async fn a_repeated_delivery_changes_nothing() {
    let outcome = roll_out_new_image_and_assert_calls([
        expect_status_request().answered_with(200, new_state_json(1)),
        expect_status_request().answered_with(200, new_state_json(1)),
        expect_probe_request().answered_with(200, "OK"),
    ])
    .await;
    assert_outcome(&outcome, Status::Ready, None, &["nothing was changed"]);
    assert!(!outcome.changed);
    assert_eq!(outcome.previous_image.as_deref(), Some(NEW_IMAGE));
}

#[tokio::test(start_paused = true)]
async fn the_same_image_with_another_environment_is_a_change() {
    let mut other = hand_over_of_new_image();
    other.spec.env_vars.clear();
    let outcome = roll_out_new_image_and_assert_calls([
        expect_status_request()
            .expected_times(2)
            .answered_with(200, new_image_state_json(&other.spec, 1)),
        expect_update_request().answered_with(200, ""),
        expect_status_request().answered_with(200, new_state_json(1)),
        expect_probe_request().answered_with(200, "OK"),
    ])
    .await;
    assert_outcome(&outcome, Status::Ready, None, &[]);
    assert!(outcome.changed);
}

#[tokio::test(start_paused = true)]
async fn without_a_spec_annotation_the_update_is_sent_and_the_image_alone_shows_its_effect() {
    let plain =
        json!({"name": "hello", "image": NEW_IMAGE, "replicas": 1, "availableReplicas": 1}).to_string();
    let outcome = roll_out_new_image_and_assert_calls([
        expect_status_request()
            .expected_times(2)
            .answered_with(200, plain.clone()),
        expect_update_request().answered_with(200, ""),
        expect_status_request().answered_with(200, plain),
        expect_probe_request().answered_with(200, "OK"),
    ])
    .await;
    assert_outcome(&outcome, Status::Ready, None, &[]);
}

#[tokio::test(start_paused = true)]
async fn state_reads_creation_and_probe_carry_the_functions_namespace() {
    let mut elsewhere = hand_over_of_new_image();
    elsewhere.spec.namespace = Some("team".to_owned());
    let state = new_image_state_json(&elsewhere.spec, 1);
    let outcome = roll_out_hand_over_and_assert_calls(
        &elsewhere,
        [
            expect_request("GET /system/namespaces").answered_with(200, "[\"openfaas-fn\",\"team\"]"),
            expect_request("GET /system/function/hello?namespace=team")
                .expected_times(2)
                .answered_with(404, ""),
            expect_update_request().answered_with(404, ""),
            expect_create_request().with_request_check(|request| {
                assert!(
                    request
                        .body()
                        .windows(18)
                        .any(|part| part == br#""namespace":"team""#)
                )
            }),
            expect_request("GET /system/function/hello?namespace=team").answered_with(200, state),
            expect_request("GET /function/hello.team/_/health").answered_with(200, "OK"),
        ],
    )
    .await;
    assert_outcome(&outcome, Status::Ready, None, &[]);
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_kubernetes_does_not_have_is_refused_without_a_change() {
    let outcome = roll_out_new_image_and_assert_calls([
        expect_status_request()
            .expected_times(2)
            .answered_with(200, old_state_json(1)),
        expect_update_request().answered_with(400, NO_K8S_SECRET_TEXT),
        expect_status_request().answered_with(200, old_state_json(1)),
    ])
    .await;
    assert_outcome(
        &outcome,
        Status::Refused,
        Some(FaultyParty::Caller),
        &["secrets \"api-key\" not found"],
    );
    assert!(!outcome.changed);
    assert_eq!(outcome.running, running_state_of_image(OLD_IMAGE, 1));
}

#[tokio::test(start_paused = true)]
async fn a_creation_that_faasd_rejects_is_refused() {
    for text in [NOT_PULLED_TEXT, NO_FAASD_SECRET_TEXT] {
        let outcome = roll_out_new_image_and_assert_calls([
            expect_status_request().expected_times(2).answered_with(404, ""),
            expect_update_request().answered_with(404, "service hello not found\n"),
            expect_create_request().answered_with(400, text),
            expect_status_request().answered_with(404, ""),
        ])
        .await;
        assert_outcome(
            &outcome,
            Status::Refused,
            Some(FaultyParty::Caller),
            &[text.trim(), "the function does not exist, as before"],
        );
    }
}

/// faasd answers 400 to a creation whenever it does not pull the image.
#[tokio::test(start_paused = true)]
async fn a_creation_whose_image_cannot_be_pulled_while_the_registry_is_away_is_tried_again() {
    let away = (
        400,
        "unable to pull image registry.example/hello: dial tcp 10.1.2.3:5000: connect: connection refused\n",
    );
    let attempt = |(status, text): (u16, &str)| {
        [
            expect_status_request().expected_times(2).answered_with(404, ""),
            expect_update_request().answered_with(404, "service hello not found\n"),
            expect_create_request().answered_with(status, text),
        ]
    };
    let ready = [
        expect_status_request().answered_with(200, new_state_json(1)),
        expect_probe_request().answered_with(200, "OK"),
    ];
    let calls = [away, (200, "")].into_iter().flat_map(attempt).chain(ready);
    let outcome = roll_out_new_image_and_assert_calls(calls).await;
    assert_outcome(&outcome, Status::Ready, None, &[]);

    let gone = expect_status_request()
        .expected_times(ANY_NUMBER_OF_TIMES)
        .answered_with(404, "");
    let outcome =
        roll_out_new_image_and_assert_calls([away; 3].into_iter().flat_map(attempt).chain([gone])).await;
    assert_outcome(
        &outcome,
        Status::RolledBack,
        Some(FaultyParty::Platform),
        &["connection refused"],
    );
}

#[tokio::test(start_paused = true)]
async fn an_update_is_unverified_if_the_provider_is_not_known_to_replace_before_it_answers() {
    for (status, info) in [
        (200, r#"{"provider":{"provider":"faas-netes"}}"#),
        (200, r#"{"provider":null}"#),
        (404, ""),
        (500, ""),
    ] {
        let outcome = roll_out_new_image_and_assert_calls([
            expect_status_request()
                .expected_times(2)
                .answered_with(200, old_state_json(1)),
            expect_update_request().answered_with(202, ""),
            expect_status_request().answered_with(200, new_state_json(1)),
            expect_probe_request().answered_with(200, "OK"),
            expect_request("GET /system/info")
                .expected_times(ANY_NUMBER_OF_TIMES)
                .answered_with(status, info),
        ])
        .await;
        assert_outcome(&outcome, Status::Unverified, None, &["X-Slipway-Version"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_function_scaled_to_zero_is_probed_to_start_it() {
    let scaled_to_zero = new_state_json(0).replace("\"replicas\":1", "\"replicas\":0");
    let outcome = roll_out_new_image_and_assert_calls([
        expect_status_request().answered_with(200, scaled_to_zero.clone()),
        expect_status_request().answered_with(200, scaled_to_zero),
        expect_probe_request().answered_with(200, "OK"),
    ])
    .await;
    assert_outcome(&outcome, Status::Ready, None, &[]);
}
