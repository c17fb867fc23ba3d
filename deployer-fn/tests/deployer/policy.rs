//! Tests of a deployer with a policy: whose hand-over it is, and which functions it may change.

use std::sync::Arc;

use deployer_fn::{
    DeploymentOutcome, DeploymentStatus, HandOver, RolloutContext, RolloutDeadline, RolloutHistory,
    RunningState, SPEC_DIGEST_ANNOTATION, SuccessorReceiver, roll_out_hand_over,
};
use function_host::http::StatusCode;
use function_host::policy::Policy;
use function_host::signature::{HmacKeys, sign_body};
use function_host::{Secret, Shutdown};
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};

use crate::fixtures::{
    NEW_IMAGE, OLD_IMAGE, READY_TIMEOUT, expect_create_request, expect_probe_request, expect_status_request,
    expect_update_request, hand_over_of_new_image, new_state_json, timeouts_without_stay_up,
};
use crate::handler::{TestDeployer, digest_of_spec, test_deployer, test_deployer_with_secret_files};
use crate::script::{ANY_NUMBER_OF_TIMES, ExpectedCall, ScriptedGateway, expect_request};

/// A URL at which no gateway listens: a hand-over that passes the checks without the gateway is answered with 502.
const UNREACHABLE_GATEWAY_URL: &str = "http://127.0.0.1:9";

const ACME_DEPLOY_KEY: &str = "the deploy key of acme";

const POLICY_JSON: &str = r#"{"tenants": {
    "acme": {"keys": ["acme-payload"], "deployKeys": ["acme-deploy"], "push": ["registry.example/acme/"],
             "functions": ["acme-*"], "secrets": ["acme-*"], "maxMemory": "128Mi", "defaultMemory": "64Mi"},
    "globex": {"keys": ["globex-payload"], "deployKeys": ["globex-deploy"], "push": ["registry.example/globex/"]}
}}"#;

fn deployer_with_policy() -> TestDeployer {
    test_deployer_with_secret_files(
        UNREACHABLE_GATEWAY_URL,
        &[
            ("policy.json", POLICY_JSON),
            ("acme-deploy", ACME_DEPLOY_KEY),
            ("globex-deploy", "the deploy key of globex"),
        ],
    )
}

fn hand_over_json(repository: &str, tenant: Option<&str>, deploy: Value) -> Value {
    let image = format!("registry.example/{repository}@sha256:{}", "1".repeat(64));
    let mut document = json!({"image": image, "deploy": deploy});
    if let Some(tenant) = tenant {
        document["tenant"] = tenant.into();
    }
    document
}

async fn post_signed_with(deployer: &TestDeployer, key: &str, document: &Value) -> (StatusCode, Value) {
    let body = document.to_string();
    let signature = sign_body(&HmacKeys::new(&Secret::new(key)).unwrap(), body.as_bytes());
    deployer.post_body(body, Some(signature)).await
}

/// Asserts that a hand-over was refused with this status, with a reason for each of `reason_parts`.
#[track_caller]
fn assert_refused_with_exactly(answer: &(StatusCode, Value), status: StatusCode, reason_parts: &[&str]) {
    assert_eq!(answer.0, status, "{answer:?}");
    assert_eq!(answer.1["status"], "refused", "{answer:?}");
    let given = answer.1["reasons"].as_array().unwrap();
    for reason in reason_parts {
        let is_given = given.iter().any(|given| given.as_str().unwrap().contains(reason));
        assert!(is_given, "{reason:?}: {answer:?}");
    }
    assert_eq!(given.len(), reason_parts.len(), "{answer:?}");
}

#[tokio::test]
async fn the_rules_of_the_hand_overs_tenant_apply_and_no_others() {
    let deployer = deployer_with_policy();
    let deploy = json!({"service": "hello", "secrets": ["other"], "limits": {"memory": "1Gi"}});
    let answer = deployer
        .sign_and_post_hand_over(&hand_over_json("globex/hello", Some("acme"), deploy.clone()))
        .await;
    assert_refused_with_exactly(
        &answer,
        StatusCode::UNPROCESSABLE_ENTITY,
        &[
            "policy rule push of tenant acme does not allow \"registry.example/globex/hello\"",
            "policy rule functions of tenant acme does not allow \"hello\"",
            "policy rule secrets of tenant acme does not allow \"other\"",
            "policy rule maxMemory of tenant acme allows 128Mi, not 1Gi",
        ],
    );
    // The same is globex's to deploy. The next step, which asks the gateway, fails.
    let answer = deployer
        .sign_and_post_hand_over(&hand_over_json("globex/hello", Some("globex"), deploy))
        .await;
    assert_eq!(answer.0, StatusCode::BAD_GATEWAY, "{answer:?}");
}

#[tokio::test]
async fn a_builders_hand_over_is_refused_unless_its_tenant_is_in_the_deployers_policy() {
    let deployer = deployer_with_policy();
    let deploy = json!({"service": "acme-hello"});
    for (tenant, reason) in [
        (None, "tenant is missing"),
        (Some("umbrella"), "tenant is \"umbrella\""),
    ] {
        let answer = deployer
            .sign_and_post_hand_over(&hand_over_json("acme/hello", tenant, deploy.clone()))
            .await;
        assert_refused_with_exactly(&answer, StatusCode::BAD_REQUEST, &[reason]);
    }
    let without_policy = test_deployer(UNREACHABLE_GATEWAY_URL);
    let answer = without_policy
        .sign_and_post_hand_over(&hand_over_json("acme/hello", Some("acme"), deploy))
        .await;
    assert_refused_with_exactly(&answer, StatusCode::BAD_REQUEST, &["this deployer has no policy"]);
}

#[tokio::test]
async fn a_tenants_own_key_signs_for_that_tenant_only() {
    let deployer = deployer_with_policy();
    let deploy = json!({"service": "acme-hello"});
    let others = hand_over_json("globex/hello", Some("globex"), deploy.clone());
    let answer = post_signed_with(&deployer, ACME_DEPLOY_KEY, &others).await;
    assert_refused_with_exactly(
        &answer,
        StatusCode::BAD_REQUEST,
        &["tenant should be \"acme\", whose key signed the hand-over"],
    );
    // By digest, the image of another tenant is another tenant's still.
    let answer = post_signed_with(
        &deployer,
        ACME_DEPLOY_KEY,
        &hand_over_json("globex/hello", None, deploy.clone()),
    )
    .await;
    assert_refused_with_exactly(
        &answer,
        StatusCode::UNPROCESSABLE_ENTITY,
        &["rule push of tenant acme"],
    );
    let own = hand_over_json("acme/hello", None, deploy);
    let answer = post_signed_with(&deployer, ACME_DEPLOY_KEY, &own).await;
    assert_eq!(answer.0, StatusCode::BAD_GATEWAY, "{answer:?}");
    let answer = post_signed_with(&deployer, "another key", &own).await;
    assert_eq!(answer.0, StatusCode::UNAUTHORIZED, "{answer:?}");
}

#[tokio::test]
async fn a_key_of_two_tenants_signs_for_neither_and_a_one_byte_key_is_ignored() {
    let deployer = test_deployer_with_secret_files(
        UNREACHABLE_GATEWAY_URL,
        &[
            ("policy.json", POLICY_JSON),
            ("acme-deploy", "k"),
            ("globex-deploy", "x"),
        ],
    );
    let document = hand_over_json("globex/hello", Some("globex"), json!({"service": "hello"}));
    // A key of one byte is not fit for signatures, and is not read.
    let answer = deployer.sign_and_post_hand_over(&document).await;
    assert_eq!(answer.0, StatusCode::BAD_GATEWAY, "{answer:?}");

    let shared = "a key of both tenants";
    let deployer = test_deployer_with_secret_files(
        UNREACHABLE_GATEWAY_URL,
        &[
            ("policy.json", POLICY_JSON),
            ("acme-deploy", shared),
            ("globex-deploy", shared),
        ],
    );
    let answer = post_signed_with(&deployer, shared, &document).await;
    assert_eq!(answer.0, StatusCode::UNAUTHORIZED, "{answer:?}");
}

#[tokio::test]
async fn no_hand_over_takes_a_name_or_secret_of_the_platform() {
    let deploys = [
        json!({"service": "deployer-fn"}),
        json!({"service": "builder-fn", "namespace": "team"}),
        json!({"service": "acme-hello", "secrets": ["basic-auth-password"]}),
        json!({"service": "acme-hello", "annotations": {"com.openfaas.serviceaccount": "deployer-fn"}}),
        json!({"service": "acme-hello", "labels": {"faas_function": "deployer-fn"}}),
    ];
    for deploy in deploys {
        for (deployer, tenant) in [
            (test_deployer(UNREACHABLE_GATEWAY_URL), None),
            (deployer_with_policy(), Some("globex")),
        ] {
            let (status, body) = deployer
                .sign_and_post_hand_over(&hand_over_json("globex/hello", tenant, deploy.clone()))
                .await;
            assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{deploy}: {body}");
            let reasons = body["reasons"].to_string();
            assert!(reasons.contains("no policy allows"), "{deploy}: {reasons}");
        }
    }
    // A secret that another tenant's policy names.
    let deploy = json!({"service": "acme-hello", "secrets": ["acme-payload"]});
    let (_, body) = deployer_with_policy()
        .sign_and_post_hand_over(&hand_over_json("acme/hello", Some("acme"), deploy))
        .await;
    assert!(body["reasons"].to_string().contains("no policy allows"), "{body}");
}

#[tokio::test]
async fn a_rejected_dry_run_says_that_it_is_one() {
    let deployer = deployer_with_policy();
    let document = json!({
        "dryRun": true, "tag": "registry.example/acme/hello:1", "tenant": "acme", "deploy": {"service": "hello"}
    });
    let answer = deployer.sign_and_post_hand_over(&document).await;
    assert_refused_with_exactly(
        &answer,
        StatusCode::UNPROCESSABLE_ENTITY,
        &["policy rule functions of tenant acme"],
    );
    assert_eq!(answer.1["dryRun"], true);
}

/// A newer build of a function ends the rollout of an older one. Another tenant's is no build of this function.
#[tokio::test]
async fn a_rollout_does_not_yield_to_a_hand_over_of_another_tenant() {
    let (reached, mut events) = mpsc::unbounded_channel();
    let asked = reached.clone();
    let gate = Arc::new(Notify::new());
    let image = format!("registry.example/acme/hello@sha256:{}", "1".repeat(64));
    let state = |replicas: u64| {
        let spec = format!(
            "{{\"service\":\"acme-hello\",\"image\":\"{image}\",\"limits\":{{\"memory\":\"64Mi\"}}}}"
        );
        json!({"name": "acme-hello", "namespace": "openfaas-fn", "image": image, "replicas": 1,
            "availableReplicas": replicas,
            "annotations": {SPEC_DIGEST_ANNOTATION: digest_of_spec(&spec), "slipway/tenant": "acme"}})
        .to_string()
    };
    let function = || expect_request("GET /system/function/acme-hello");
    let gateway = ScriptedGateway::new([
        function().expected_times(3).answered_with(404, ""),
        expect_request("PUT /system/functions").answered_with(404, ""),
        expect_request("POST /system/functions").answered_with(202, ""),
        // Globex's hand-over arrives during this request, and asks whose function it is.
        function()
            .with_request_check(move |_| reached.send(()).unwrap())
            .answered_after(&gate)
            .answered_with(200, state(0)),
        function()
            .with_request_check(move |_| asked.send(()).unwrap())
            .answered_with(200, state(0)),
        function().answered_with(200, state(1)),
        expect_request("GET /function/acme-hello/_/health").answered_with(200, "OK"),
        // Globex's turn.
        function().answered_with(200, state(1)),
    ]);
    let deployer = Arc::new(test_deployer_with_secret_files(
        &gateway.serve_over_http().await,
        &[("policy.json", POLICY_JSON)],
    ));
    let post = |repository: &str, tenant: &str, second: u32| {
        let deployer = Arc::clone(&deployer);
        let mut document = hand_over_json(repository, Some(tenant), json!({"service": "acme-hello"}));
        document["submittedAt"] = format!("2026-03-01T12:00:0{second}Z").into();
        tokio::spawn(async move { deployer.sign_and_post_hand_over(&document).await })
    };
    let acme = post("acme/hello", "acme", 1);
    events.recv().await.unwrap();
    let globex = post("globex/hello", "globex", 2);
    events.recv().await.unwrap();
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    gate.notify_one();
    let (status, answer) = acme.await.unwrap();
    assert_eq!(status, StatusCode::OK, "{answer:#}");
    assert_refused_with_exactly(
        &globex.await.unwrap(),
        StatusCode::UNPROCESSABLE_ENTITY,
        &["belongs to another tenant than globex"],
    );
    gateway.assert_no_missing_or_unexpected_calls();
}

/// Rolls out a hand-over of the tenant on a gateway that expects these calls.
async fn roll_out_as_tenant_and_assert_calls(
    tenant: &str,
    hand_over: HandOver,
    calls: impl IntoIterator<Item = ExpectedCall>,
) -> DeploymentOutcome {
    let policy = r#"{"tenants": {"acme": {"keys": ["a"]}, "adopter": {"keys": ["b"], "adopt": true}}}"#;
    let policy = Policy::parse(policy).unwrap();
    let (_trigger, shutdown) = Shutdown::new();
    let deadline = RolloutDeadline::new(READY_TIMEOUT, None, shutdown);
    let gateway = ScriptedGateway::new(calls);
    let hand_over = HandOver {
        tenant: Some(tenant.to_owned()),
        ..hand_over
    };
    let context = RolloutContext {
        transport: &gateway,
        kubernetes: None,
        timeouts: &timeouts_without_stay_up(),
        default_namespace: "openfaas-fn",
        history: &RolloutHistory::default(),
        tenant: policy.tenant(tenant).map(|tenant| &**tenant),
        succession: &SuccessorReceiver::without_successor(),
    };
    let outcome = roll_out_hand_over(&context, &hand_over, vec![], &deadline, String::new()).await;
    gateway.assert_no_missing_or_unexpected_calls();
    outcome
}

fn function_state_json(annotations: Value) -> String {
    json!({"name": "hello", "image": OLD_IMAGE, "namespace": "openfaas-fn", "replicas": 1, "availableReplicas": 1,
        "annotations": annotations})
    .to_string()
}

#[tokio::test(start_paused = true)]
async fn a_function_of_another_tenant_or_of_none_is_not_changed_and_its_state_is_not_revealed() {
    for (tenant, annotations) in [
        (
            "acme",
            json!({"slipway/tenant": "adopter", SPEC_DIGEST_ANNOTATION: "sha256:1"}),
        ),
        (
            "adopter",
            json!({"slipway/tenant": "acme", SPEC_DIGEST_ANNOTATION: "sha256:1"}),
        ),
        // Slipway did not deploy it, or did so without a policy, and this tenant lists no names.
        ("acme", json!({"topic": "orders"})),
        ("acme", json!({SPEC_DIGEST_ANNOTATION: "sha256:1"})),
        ("acme", json!({})),
    ] {
        let state = function_state_json(annotations.clone());
        let calls = [expect_status_request().answered_with(200, state)];
        let outcome = roll_out_as_tenant_and_assert_calls(tenant, hand_over_of_new_image(), calls).await;
        assert_eq!(
            outcome.status,
            DeploymentStatus::Refused,
            "{annotations}: {outcome:?}"
        );
        assert_eq!(outcome.previous_image, None);
        assert_eq!(outcome.running, RunningState::Unknown);
        assert!(!format!("{outcome:?}").contains(OLD_IMAGE), "{outcome:?}");
    }
}

/// The specification may be the same as that of the deployed function: nothing would be changed, and yet it is refused.
#[tokio::test(start_paused = true)]
async fn a_specification_equal_to_that_of_another_tenants_function_is_refused() {
    let spec = hand_over_of_new_image().spec;
    let annotations = json!({"slipway/tenant": "adopter", SPEC_DIGEST_ANNOTATION: spec.spec_digest()});
    let state = function_state_json(annotations).replace(OLD_IMAGE, NEW_IMAGE);
    let calls = [expect_status_request().answered_with(200, state)];
    let outcome = roll_out_as_tenant_and_assert_calls("acme", hand_over_of_new_image(), calls).await;
    assert_eq!(outcome.status, DeploymentStatus::Refused, "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn a_new_function_belongs_to_its_tenant() {
    let mut hand_over = hand_over_of_new_image();
    hand_over.spec.secrets.clear();
    let digest = hand_over.spec.spec_digest();
    let deployed = new_state_json(1).replace(&hand_over_of_new_image().spec.spec_digest(), &digest);
    let outcome = roll_out_as_tenant_and_assert_calls(
        "acme",
        hand_over,
        [
            expect_status_request().expected_times(2).answered_with(404, ""),
            expect_update_request().answered_with(404, ""),
            expect_create_request()
                .with_request_check(|request| {
                    let body: Value = serde_json::from_slice(request.body()).unwrap();
                    assert_eq!(body["annotations"]["slipway/tenant"], "acme");
                })
                .answered_with(202, ""),
            expect_status_request()
                .expected_times(ANY_NUMBER_OF_TIMES)
                .answered_with(200, deployed),
            expect_probe_request()
                .expected_times(ANY_NUMBER_OF_TIMES)
                .answered_with(200, ""),
        ],
    )
    .await;
    assert_eq!(outcome.status, DeploymentStatus::Ready, "{outcome:?}");
}
