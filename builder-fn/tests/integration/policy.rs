//! Tests of a builder with a policy: whose request it is, and what it may do.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use function_host::Body;
use function_host::http::Method;
use serde_json::{Value, json};

use crate::daemon;
use crate::gateway::start_gateway_answering_hand_overs;
use crate::hand_over::let_build_succeed;
use crate::secrets::seal_secrets;
use crate::setting::{
    AnswerStatusAndBody, PAYLOAD_KEY, TestBuilder, build_request_with_signature, request_tar_with,
    tar_with_files,
};

const ACME_KEY: &str = "the payload key of acme";
const GLOBEX_KEY: &str = "the payload key of globex";

fn policy_with_tenants() -> Value {
    json!({"tenants": {
        "acme": {
            "keys": ["acme-payload"], "push": ["registry:5000/acme/"], "functions": ["acme-*"], "secrets": ["acme-*"]
        },
        "globex": {"keys": ["globex-payload"], "push": ["registry:5000/globex/"]},
        "initech": {"keys": ["not-mounted"]}
    }})
}

fn with_policy_and_keys(setting: TestBuilder) -> TestBuilder {
    setting.write_secret("acme-payload", ACME_KEY);
    setting.write_secret("globex-payload", GLOBEX_KEY);
    setting.with_policy(&policy_with_tenants())
}

#[tokio::test]
async fn a_rejection_names_every_violated_rule_and_comes_before_the_daemon_is_asked() {
    let (daemon, calls) = daemon::start_fake_daemon();
    let setting = with_policy_and_keys(TestBuilder::new(daemon));
    // A call of the daemon would wait forever.
    drop(calls);

    let config = json!({
        "image": "registry:5000/globex/hello:1",
        "deploy": {"service": "hello", "secrets": ["globex-key", "deploy-secret"]}
    });
    let answer = setting
        .send_build_signed_with(ACME_KEY, None, request_tar_with(config))
        .await;

    assert_eq!(answer.status, 403, "{answer:?}");
    assert_eq!(answer.body["status"], "failed");
    let error = answer.body["error"].as_str().expect("text");
    for expected in [
        "policy rule push of tenant acme does not allow \"registry:5000/globex/hello\"",
        "policy rule functions of tenant acme does not allow \"hello\"",
        "policy rule secrets of tenant acme does not allow \"globex-key\"",
        "no policy allows a function to use the secret \"deploy-secret\"",
    ] {
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[tokio::test]
async fn only_the_keys_of_tenants_sign_builds() {
    let (daemon, _calls) = daemon::start_fake_daemon();
    let setting = with_policy_and_keys(TestBuilder::new(daemon));
    let rejected = request_tar_with(json!({"image": "registry:5000/another/hello"}));
    for (key, tenant, status) in [
        // The first two are known, and stopped by their rules.
        (ACME_KEY, None, 403),
        (GLOBEX_KEY, Some("globex"), 403),
        (GLOBEX_KEY, Some("acme"), 401),
        (GLOBEX_KEY, Some("nobody"), 401),
        (GLOBEX_KEY, Some("initech"), 401),
        (GLOBEX_KEY, Some(""), 401),
        (PAYLOAD_KEY, None, 401),
    ] {
        let answer = setting
            .send_build_signed_with(key, tenant, rejected.clone())
            .await;
        assert_eq!(answer.status, status, "{key} {tenant:?}: {answer:?}");
    }
}

#[tokio::test]
async fn a_hand_over_names_the_tenant_that_signed_the_build() {
    let (address, mut received) =
        start_gateway_answering_hand_overs(200, r#"{"function":"acme-hello","status":"ready"}"#).await;
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = with_policy_and_keys(TestBuilder::with_gateway(daemon, &format!("http://{address}")));
    setting.write_secret("deploy-secret", "deploy key\n");
    let building = tokio::spawn({
        let setting = setting.clone();
        let config = json!({
            "image": "registry:5000/acme/hello:1", "deploy": {"service": "acme-hello", "secrets": ["acme-key"]}
        });
        async move {
            setting
                .send_build_signed_with(ACME_KEY, None, request_tar_with(config))
                .await
        }
    });
    let_build_succeed(&mut calls).await;

    let answer = building.await.expect("no panic");
    assert_eq!(answer.status, 200, "{answer:?}");
    let request = received.recv().await.expect("a hand-over");
    let body: Value = serde_json::from_slice(request.body()).expect("JSON");
    assert_eq!(body["tenant"], "acme");
}

#[tokio::test]
async fn a_changed_policy_applies_to_the_next_request() {
    let (daemon, _calls) = daemon::start_fake_daemon();
    let setting = with_policy_and_keys(TestBuilder::new(daemon));
    let config = request_tar_with(json!({"image": "registry:5000/another/hello"}));
    assert_eq!(
        setting
            .send_build_signed_with(ACME_KEY, None, config.clone())
            .await
            .status,
        403
    );
    setting.write_secret(
        "policy.json",
        r#"{"tenants": {"globex": {"keys": ["globex-payload"]}}}"#,
    );
    assert_eq!(
        setting
            .send_build_signed_with(ACME_KEY, None, config)
            .await
            .status,
        401
    );
}

/// Without a policy there is one tenant, and the platform's own names are reserved.
#[tokio::test]
async fn without_a_policy_no_function_takes_a_name_or_secret_of_the_platform() {
    let (daemon, _calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::new(daemon);
    for deploy in [
        json!({"service": "deployer-fn"}),
        json!({"service": "builder-fn", "namespace": "team"}),
        json!({"service": "deployer-fn.openfaas-fn"}),
        json!({"service": "hello", "secrets": ["basic-auth-password"]}),
        json!({"service": "hello", "secrets": ["deploy-secret", "payload-secret", "registry-config"]}),
        json!({"service": "hello", "annotations": {"com.openfaas.serviceaccount": "deployer-fn"}}),
    ] {
        let answer = setting
            .send_signed_build(request_tar_with(json!({ "deploy": deploy })))
            .await;
        assert_eq!(answer.status, 403, "{deploy}: {answer:?}");
        let error = answer.body["error"].as_str().expect("text");
        assert!(error.starts_with("no policy allows"), "{error}");
    }
}

/// Requests the public key for build secrets of a tenant.
async fn request_public_key_for_tenant(setting: &TestBuilder, tenant: &str) -> AnswerStatusAndBody {
    let mut request = build_request_with_signature(Body::empty(), None);
    *request.method_mut() = Method::GET;
    *request.uri_mut() = "/publickey".parse().expect("path");
    request
        .headers_mut()
        .insert("x-slipway-tenant", tenant.parse().expect("header"));
    AnswerStatusAndBody::from_json_response_or_text_of_429(setting.send_request(request).await).await
}

#[tokio::test]
async fn secrets_sealed_to_the_key_of_a_tenant_are_opened_for_its_builds_only() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = with_policy_and_keys(TestBuilder::new(daemon)).with_seal_key(&STANDARD.encode([7; 32]));
    let [acme, globex] = [
        request_public_key_for_tenant(&setting, "acme").await,
        request_public_key_for_tenant(&setting, "globex").await,
    ];
    assert_eq!((acme.status, globex.status), (200, 200));
    assert_ne!(acme.body, globex.body);
    // The answer does not depend on whether the policy has a tenant of this name.
    assert_eq!(
        request_public_key_for_tenant(&setting, "nobody").await.status,
        200
    );
    assert_eq!(
        request_public_key_for_tenant(&setting, "No tenant").await.status,
        404
    );

    let key = STANDARD
        .decode(acme.body["public_key"].as_str().expect("a key"))
        .expect("base64");
    let envelope = seal_secrets(&key, &[("token", "hunter2")]);
    let tar = |tenant: &str| {
        let config = json!({ "image": format!("registry:5000/{tenant}/hello:1") }).to_string();
        tar_with_files(&[
            ("context/Dockerfile", b"FROM scratch\n"),
            ("com.openfaas.docker.config", config.as_bytes()),
            ("com.openfaas.secrets", envelope.as_bytes()),
        ])
    };
    let stolen = setting
        .send_build_signed_with(GLOBEX_KEY, None, tar("globex"))
        .await;
    assert_eq!(stolen.status, 400, "{stolen:?}");
    assert!(calls.solves.try_recv().is_err());

    let own = tar("acme");
    let answer = tokio::spawn(async move { setting.send_build_signed_with(ACME_KEY, None, own).await });
    let_build_succeed(&mut calls).await;
    let answer = answer.await.expect("no panic");
    assert_eq!(answer.status, 200, "{answer:?}");
}
