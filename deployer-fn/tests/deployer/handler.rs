//! Tests of the deployer's handler: signed requests in, HTTP responses out, with a gateway on a loopback port.

use std::fs;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use deployer_fn::{Deployer, DeploymentMetrics, MAX_BODY_BYTES, SPEC_DIGEST_ANNOTATION, Settings};
use flate2::Compression;
use flate2::write::DeflateEncoder;
use function_host::env::SettingsParser;
use function_host::http::{Request, Response, StatusCode};
use function_host::policy::PolicyFile;
use function_host::prometheus::Registry;
use function_host::signature::{self, HmacKeys};
use function_host::{Body, Context, Gateway, Handler as _, ResponseBody, Secret, Secrets, Shutdown};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Notify, mpsc};

use crate::script::{ScriptedGateway, expect_request};

const IMAGE_REFERENCE: &str =
    "registry.example/hello@sha256:1111111111111111111111111111111111111111111111111111111111111111";

/// A deployer in the test's process, with the secrets and the gateway that its requests get.
pub(crate) struct TestDeployer {
    deployer: Deployer,
    context: Context,
    registry: Registry,
    secrets: TempDir,
}

pub(crate) fn test_deployer(gateway_url: &str) -> TestDeployer {
    test_deployer_with_secret_files(gateway_url, &[])
}

/// Creates a deployer with further secrets in `files`. One called `policy.json` is its policy.
pub(crate) fn test_deployer_with_secret_files(gateway_url: &str, files: &[(&str, &str)]) -> TestDeployer {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("deploy-secret", "k\n"),
        ("basic-auth-user", "admin"),
        ("basic-auth-password", "pw"),
    ]
    .iter()
    .chain(files)
    {
        fs::write(directory.path().join(name), text).unwrap();
    }
    let secrets = Secrets::new(directory.path());
    let gateway = Gateway::new(gateway_url, secrets.clone()).unwrap();
    let (_trigger, shutdown) = Shutdown::new();
    let none: [(&str, &str); 0] = [];
    let mut settings = Settings::read(&mut SettingsParser::new(&none));
    // Real time passes in these tests: reads are not retried.
    settings.timeouts.read_retries = Duration::ZERO;
    settings.timeouts.stay_up = Duration::ZERO;
    settings.check_image = false;
    let policy = directory.path().join("policy.json");
    settings.policy = policy.exists().then(|| PolicyFile::open(policy).unwrap());
    settings.token_mount_path = directory.path().join("tokens");
    let context = Context::new("call-1", secrets, gateway, shutdown);
    let registry = Registry::new();
    TestDeployer {
        deployer: Deployer::new(settings, DeploymentMetrics::new(&registry).unwrap()),
        context,
        registry,
        secrets: directory,
    }
}

impl TestDeployer {
    pub(crate) async fn post_body(&self, body: String, signature: Option<String>) -> (StatusCode, Value) {
        let mut request = Request::post("/").body(Body::from(body)).unwrap();
        if let Some(signature) = signature {
            request
                .headers_mut()
                .insert("X-Deploy-Signature", signature.parse().unwrap());
        }
        read_response(self.deployer.call(request, self.context.clone()).await.unwrap()).await
    }

    /// Returns the number of deployments that run or wait.
    fn deployments_in_progress(&self) -> usize {
        let families = self.registry.gather();
        let family = families
            .iter()
            .find(|family| family.name() == "slipway_deployments_in_progress");
        family.unwrap().get_metric()[0].get_gauge().get_value() as usize
    }

    pub(crate) async fn sign_and_post_hand_over(&self, document: &Value) -> (StatusCode, Value) {
        let body = document.to_string();
        let signature = sign_with_deploy_key(&body);
        self.post_body(body, Some(signature)).await
    }
}

async fn read_response(response: Response<ResponseBody>) -> (StatusCode, Value) {
    let (head, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    (head.status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

fn sign_with_deploy_key(body: &str) -> String {
    signature::sign_body(&HmacKeys::new(&Secret::new("k")).unwrap(), body.as_bytes())
}

fn hand_over_json() -> Value {
    json!({"image": IMAGE_REFERENCE, "tag": "registry.example/hello:2", "deploy": {"service": "hello"}})
}

/// Returns the JSON of the function's state with a specification of this digest.
fn function_state_json(spec_digest: &str) -> String {
    json!({"name": "hello", "namespace": "openfaas-fn", "image": IMAGE_REFERENCE, "replicas": 1, "availableReplicas": 1,
        "annotations": {SPEC_DIGEST_ANNOTATION: spec_digest}})
    .to_string()
}

/// Returns a version in the packed form of its annotation.
fn packed_version(version: &Value) -> String {
    let mut deflate = DeflateEncoder::new(Vec::new(), Compression::default());
    deflate.write_all(version.to_string().as_bytes()).unwrap();
    STANDARD_NO_PAD.encode(deflate.finish().unwrap())
}

/// Returns the digest of the specification in the hand-over [`hand_over_json`].
fn spec_digest_of_hand_over() -> String {
    digest_of_spec(&format!(
        "{{\"service\":\"hello\",\"image\":\"{IMAGE_REFERENCE}\"}}"
    ))
}

pub(crate) fn digest_of_spec(spec: &str) -> String {
    use sha2::Digest as _;
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(spec)))
}

#[tokio::test]
async fn a_signed_hand_over_is_deployed_with_the_gateways_credentials() {
    let gateway = ScriptedGateway::new([
        expect_request("GET /system/function/hello")
            .with_request_check(|request| {
                assert_eq!(request.headers()["authorization"], "Basic YWRtaW46cHc=")
            })
            .answered_with(404, ""),
        expect_request("GET /system/function/hello").answered_with(404, ""),
        expect_request("PUT /system/functions")
            .with_request_check(|request| assert_eq!(request.headers()["content-type"], "application/json"))
            .answered_with(404, "service hello not found\n"),
        expect_request("POST /system/functions").answered_with(200, ""),
        expect_request("GET /system/function/hello")
            .answered_with(200, function_state_json(&spec_digest_of_hand_over())),
        expect_request("GET /function/hello/_/health")
            .with_request_check(|request| assert!(!request.headers().contains_key("authorization")))
            .answered_with(200, "OK"),
    ]);
    let url = gateway.serve_over_http().await;

    let (status, answer) = test_deployer(&url)
        .sign_and_post_hand_over(&hand_over_json())
        .await;

    gateway.assert_no_missing_or_unexpected_calls();
    assert_eq!(status, StatusCode::OK, "{answer:#}");
    assert_eq!(answer["status"], "ready");
    assert_eq!(answer["function"], "hello");
    assert_eq!(answer["namespace"], "openfaas-fn");
    assert_eq!(answer["image"], IMAGE_REFERENCE);
    assert_eq!(answer["previousImage"], Value::Null);
    assert_eq!(answer["url"], format!("{url}/function/hello"));
    assert!(answer["durations"]["total"].as_f64().is_some());
}

#[tokio::test]
async fn a_bearer_token_replaces_the_password_and_is_read_again() {
    let gateway = ScriptedGateway::new([
        expect_request("GET /system/function/hello")
            .with_request_check(|request| assert_eq!(request.headers()["authorization"], "Bearer one"))
            .answered_with(403, ""),
        expect_request("GET /system/function/hello")
            .with_request_check(|request| assert_eq!(request.headers()["authorization"], "Bearer two"))
            .answered_with(200, function_state_json(&spec_digest_of_hand_over())),
        expect_request("GET /system/function/hello")
            .answered_with(200, function_state_json(&spec_digest_of_hand_over())),
        expect_request("GET /function/hello/_/health")
            .with_request_check(|request| assert!(!request.headers().contains_key("authorization")))
            .answered_with(200, "OK"),
    ]);
    let deployer = test_deployer(&gateway.serve_over_http().await);
    let token = deployer.secrets.path().join("gateway-token");
    fs::write(&token, "one\n").unwrap();
    assert_eq!(
        deployer.sign_and_post_hand_over(&hand_over_json()).await.0,
        StatusCode::BAD_GATEWAY
    );
    fs::remove_file(&token).unwrap();
    fs::write(&token, "two\n").unwrap();
    assert_eq!(
        deployer.sign_and_post_hand_over(&hand_over_json()).await.0,
        StatusCode::OK
    );
    gateway.assert_no_missing_or_unexpected_calls();
}

#[tokio::test]
async fn an_exchanged_token_is_cached_unless_it_is_short_lived_until_the_gateway_rejects_it() {
    let exchange = |token: &'static str, seconds: u32| {
        expect_request("POST /oauth/token")
            .with_request_check(|request| {
                let form = std::str::from_utf8(request.body()).unwrap();
                assert_eq!(
                    form,
                    "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange\
                     &subject_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Aid_token&subject_token=of.the-pod"
                );
                assert!(!request.headers().contains_key("authorization"));
            })
            .answered_with(200, json!({"access_token": token, "expires_in": seconds}).to_string())
    };
    let authorized_with = |token: &'static str| {
        move |request: &Request<function_host::Bytes>| assert_eq!(request.headers()["authorization"], token)
    };
    let gateway = ScriptedGateway::new([
        // Expires too soon to be cached.
        exchange("one", 9),
        expect_request("GET /system/function/hello")
            .with_request_check(authorized_with("Bearer one"))
            .answered_with(200, function_state_json(&spec_digest_of_hand_over())),
        exchange("two", 3600),
        expect_request("GET /system/function/hello")
            .with_request_check(authorized_with("Bearer two"))
            .answered_with(200, function_state_json(&spec_digest_of_hand_over())),
        expect_request("GET /function/hello/_/health").answered_with(200, "OK"),
        // Cached until the gateway rejects it.
        expect_request("GET /system/function/hello")
            .with_request_check(authorized_with("Bearer two"))
            .answered_with(401, ""),
        // The gateway rejects the exchange, and the password is used.
        expect_request("POST /oauth/token")
            .answered_with(400, json!({"error": "invalid_request"}).to_string()),
        expect_request("GET /system/function/hello")
            .with_request_check(authorized_with("Basic YWRtaW46cHc="))
            .answered_with(401, ""),
    ]);
    let deployer = test_deployer(&gateway.serve_over_http().await);
    let directory = deployer.secrets.path().join("tokens");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("openfaas-token"), "of.the-pod\n").unwrap();
    assert_eq!(
        deployer.sign_and_post_hand_over(&hand_over_json()).await.0,
        StatusCode::OK
    );
    for _ in 0..2 {
        assert_eq!(
            deployer.sign_and_post_hand_over(&hand_over_json()).await.0,
            StatusCode::BAD_GATEWAY
        );
    }
    gateway.assert_no_missing_or_unexpected_calls();
}

#[tokio::test]
async fn a_hand_over_that_the_builder_did_not_sign_is_unauthorized() {
    let gateway = ScriptedGateway::new([]);
    let deployer = test_deployer(&gateway.serve_over_http().await);
    let body = hand_over_json().to_string();
    for signature in [
        None,
        Some("sha256=00".to_owned()),
        Some(sign_with_deploy_key("another body")),
        Some(String::new()),
    ] {
        let (status, answer) = deployer.post_body(body.clone(), signature).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{answer}");
        assert_eq!(answer["status"], "refused");
    }
    gateway.assert_no_missing_or_unexpected_calls();
}

#[tokio::test]
async fn an_invalid_hand_over_is_rejected_with_all_problems_and_a_too_large_one_with_413() {
    let gateway = ScriptedGateway::new([]);
    let deployer = test_deployer(&gateway.serve_over_http().await);

    let (status, answer) = deployer
        .sign_and_post_hand_over(&json!({"image": "hello:1.0", "deploy": {"service": "-", "x": 1}}))
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(answer["reasons"].as_array().unwrap().len(), 3, "{answer:#}");

    let body = "not JSON".to_owned();
    let signature = sign_with_deploy_key(&body);
    assert_eq!(
        deployer.post_body(body, Some(signature)).await.0,
        StatusCode::BAD_REQUEST
    );

    let body = " ".repeat(MAX_BODY_BYTES + 1);
    let signature = sign_with_deploy_key(&body);
    assert_eq!(
        deployer.post_body(body, Some(signature)).await.0,
        StatusCode::PAYLOAD_TOO_LARGE
    );
    gateway.assert_no_missing_or_unexpected_calls();
}

/// The newer one arrives while the older one's version starts.
#[tokio::test]
async fn a_newer_hand_over_takes_the_place_of_an_older_one_that_is_not_ready() {
    let (reached, mut events) = mpsc::unbounded_channel();
    let gate = Arc::new(Notify::new());
    let mut newer = hand_over_json();
    newer["callId"] = "call-2".into();
    newer["submittedAt"] = "2026-03-01T12:00:02Z".into();
    newer["deploy"]["envVars"] = json!({"A": "1"});
    let newer_digest = digest_of_spec(&format!(
        "{{\"service\":\"hello\",\"image\":\"{IMAGE_REFERENCE}\",\"envVars\":{{\"A\":\"1\"}}}}"
    ));
    let starting = function_state_json(&spec_digest_of_hand_over())
        .replace("\"availableReplicas\":1", "\"availableReplicas\":0");
    let function = || expect_request("GET /system/function/hello");
    let gateway = ScriptedGateway::new([
        function().expected_times(2).answered_with(404, ""),
        expect_request("PUT /system/functions").answered_with(404, ""),
        expect_request("POST /system/functions").answered_with(202, ""),
        // The newer one arrives during this request.
        function()
            .with_request_check(move |_| reached.send(()).unwrap())
            .answered_after(&gate)
            .answered_with(200, starting.clone()),
        // Checked by the newer one, and read again before it is applied.
        function().expected_times(2).answered_with(200, starting),
        expect_request("PUT /system/functions").answered_with(202, ""),
        function().answered_with(200, function_state_json(&newer_digest)),
        expect_request("GET /function/hello/_/health").answered_with(200, "OK"),
    ]);
    let deployer = Arc::new(test_deployer(&gateway.serve_over_http().await));
    let older = tokio::spawn({
        let deployer = Arc::clone(&deployer);
        let mut older = hand_over_json();
        older["submittedAt"] = "2026-03-01T12:00:01Z".into();
        async move { deployer.sign_and_post_hand_over(&older).await }
    });
    events.recv().await.unwrap();
    let newer = tokio::spawn({
        let deployer = Arc::clone(&deployer);
        async move { deployer.sign_and_post_hand_over(&newer).await }
    });
    while deployer.deployments_in_progress() < 2 {
        tokio::task::yield_now().await;
    }
    gate.notify_one();
    let (status, answer) = older.await.unwrap();
    assert_eq!(status, StatusCode::CONFLICT, "{answer:#}");
    assert_eq!(
        (&answer["status"], &answer["supersededBy"]),
        (&json!("refused"), &json!("call-2"))
    );
    let (status, answer) = newer.await.unwrap();
    assert_eq!(status, StatusCode::OK, "{answer:#}");
    gateway.assert_no_missing_or_unexpected_calls();
}

/// The status differs from that of a hand-over that was never deployable; queues retry neither.
#[tokio::test]
async fn a_build_older_than_the_deployed_one_is_answered_with_409() {
    let newer = json!({"deployment": {"service": "hello", "image": IMAGE_REFERENCE}, "mark": "sha256:00", "callId": "call-8",
        "submittedAt": "2026-03-01T12:00:01Z", "builtAt": "2026-03-01T12:00:02Z"});
    let gateway = ScriptedGateway::new([expect_request("GET /system/function/hello").answered_with(
        200,
        json!({"name": "hello", "image": IMAGE_REFERENCE, "replicas": 1, "availableReplicas": 1,
            "annotations": {SPEC_DIGEST_ANNOTATION: "sha256:00", "slipway/version.0": packed_version(&newer)}})
        .to_string(),
    )]);
    let mut older = hand_over_json();
    older["submittedAt"] = "2026-03-01T12:00:00Z".into();
    older["builtAt"] = "2026-03-01T12:01:00Z".into();
    let (status, answer) = test_deployer(&gateway.serve_over_http().await)
        .sign_and_post_hand_over(&older)
        .await;
    gateway.assert_no_missing_or_unexpected_calls();
    assert_eq!(status, StatusCode::CONFLICT, "{answer:#}");
    assert_eq!(answer["status"], "refused");
    assert_eq!(answer["supersededBy"], "call-8");
    let reason = answer["reasons"][0].as_str().unwrap();
    assert!(
        reason.contains("submitted at 2026-03-01T12:00:01.000Z by the call call-8"),
        "{reason}"
    );
}

#[tokio::test]
async fn a_hand_over_that_expired_or_is_ahead_of_the_clock_is_refused() {
    for (field, value, problem) in [
        (
            "submittedAt",
            "2999-01-01T00:00:00Z",
            "submittedAt is 2999-01-01T00:00:00.000Z, more than 5 minutes ahead",
        ),
        (
            "expiresAt",
            "2026-01-01T00:00:00Z",
            "the hand-over expired at 2026-01-01T00:00:00.000Z",
        ),
    ] {
        let gateway =
            ScriptedGateway::new([expect_request("GET /system/function/hello").answered_with(404, "")]);
        let mut wrong = hand_over_json();
        wrong[field] = value.into();
        let (status, answer) = test_deployer(&gateway.serve_over_http().await)
            .sign_and_post_hand_over(&wrong)
            .await;
        gateway.assert_no_missing_or_unexpected_calls();
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer:#}");
        assert_eq!(answer["status"], "refused");
        let reason = answer["reasons"][0].as_str().unwrap();
        assert!(reason.starts_with(problem), "{reason}");
    }
}

fn dry_run_json(deploy: Value) -> Value {
    json!({"dryRun": true, "tag": "registry.example/hello:2", "deploy": deploy})
}

#[tokio::test]
async fn an_accepted_dry_run_reads_namespaces_secrets_and_function_and_changes_nothing() {
    let gateway = ScriptedGateway::new([
        expect_request("GET /system/namespaces").answered_with(200, r#"["openfaas-fn","team"]"#),
        expect_request("GET /system/secrets?namespace=team").answered_with(200, r#"[{"name":"api-key"}]"#),
        expect_request("GET /system/function/hello?namespace=team").answered_with(404, ""),
    ]);
    let (status, answer) = test_deployer(&gateway.serve_over_http().await)
        .sign_and_post_hand_over(&dry_run_json(
            json!({"service": "hello", "namespace": "team", "secrets": ["api-key"],
            "network": "func_functions"}),
        ))
        .await;
    gateway.assert_no_missing_or_unexpected_calls();
    assert_eq!(status, StatusCode::OK, "{answer:#}");
    let warning = "deploy.network is ignored: gateways have not used it since Docker Swarm";
    assert_eq!(
        answer,
        json!({"dryRun": true, "status": "accepted", "reasons": [], "warnings": [warning]})
    );
}

#[tokio::test]
async fn a_dry_run_reports_what_would_be_refused() {
    let secrets = || expect_request("GET /system/secrets").answered_with(200, r#"[{"name":"api-key"}]"#);
    let function = || expect_request("GET /system/function/hello").answered_with(404, "");
    for (document, calls, reasons) in [
        // Of a wrong field, nothing is asked.
        (
            dry_run_json(json!({"service": "1st", "envVars": {"A=B": ""}, "registryAuth": "x"})),
            vec![],
            vec!["deploy.service", "deploy.registryAuth", "deploy.envVars"],
        ),
        (
            json!({"dryRun": true, "probe": {"path": "x"}, "deploy": {"service": "hello"}}),
            vec![],
            vec!["probe.path must be a path"],
        ),
        (
            dry_run_json(json!({"service": "hello", "secrets": ["api-key", "other"]})),
            vec![secrets(), function()],
            vec!["the secret \"other\" does not exist"],
        ),
        (
            dry_run_json(json!({"service": "hello", "namespace": "elsewhere"})),
            vec![expect_request("GET /system/namespaces").answered_with(200, r#"["openfaas-fn"]"#)],
            vec!["the namespace \"elsewhere\" does not exist"],
        ),
        (
            json!({"dryRun": true, "submittedAt": "2999-01-01T00:00:00Z", "deploy": {"service": "hello"}}),
            vec![function()],
            vec!["submittedAt is"],
        ),
    ] {
        let gateway = ScriptedGateway::new(calls);
        let (status, answer) = test_deployer(&gateway.serve_over_http().await)
            .sign_and_post_hand_over(&document)
            .await;
        gateway.assert_no_missing_or_unexpected_calls();
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer:#}");
        assert_eq!(answer["dryRun"], true);
        assert_eq!(answer["status"], "refused");
        let given = answer["reasons"].as_array().unwrap();
        assert_eq!(given.len(), reasons.len(), "{answer:#}");
        for (given, reason) in given.iter().zip(reasons) {
            assert!(given.as_str().unwrap().starts_with(reason), "{answer:#}");
        }
    }
}

#[tokio::test]
async fn a_dry_run_accepts_an_unlisted_secret_with_a_warning_on_faas_netes_or_an_unknown_provider() {
    // It lists only secrets with its label, and kubectl sets none.
    for info in [r#"{"provider":{"provider":"faas-netes-ce"}}"#, "{}"] {
        let gateway = ScriptedGateway::new([
            expect_request("GET /system/secrets").answered_with(200, r#"[{"name":"api-key"}]"#),
            expect_request("GET /system/info").answered_with(200, info),
            expect_request("GET /system/function/hello").answered_with(404, ""),
        ]);
        let (status, answer) = test_deployer(&gateway.serve_over_http().await)
            .sign_and_post_hand_over(&dry_run_json(
                json!({"service": "hello", "secrets": ["api-key", "other"]}),
            ))
            .await;
        gateway.assert_no_missing_or_unexpected_calls();
        assert_eq!(status, StatusCode::OK, "{answer:#}");
        assert_eq!(answer["status"], "accepted");
        let warnings = answer["warnings"].as_array().unwrap();
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].as_str().unwrap().contains("the secret \"other\""));
    }
}

#[tokio::test]
async fn a_dry_run_warns_of_every_secret_if_the_provider_cannot_list_secrets() {
    let gateway = ScriptedGateway::new([
        expect_request("GET /system/secrets").answered_with(404, ""),
        expect_request("GET /system/function/hello").answered_with(404, ""),
    ]);
    let (status, answer) = test_deployer(&gateway.serve_over_http().await)
        .sign_and_post_hand_over(&dry_run_json(
            json!({"service": "hello", "secrets": ["api-key", "other"]}),
        ))
        .await;
    gateway.assert_no_missing_or_unexpected_calls();
    assert_eq!(status, StatusCode::OK, "{answer:#}");
    assert_eq!(answer["status"], "accepted");
    let warnings = answer["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 2, "{answer:#}");
    for (warning, secret) in warnings.iter().zip(["\"api-key\"", "\"other\""]) {
        assert!(warning.as_str().unwrap().contains(secret), "{answer:#}");
    }
}

#[tokio::test]
async fn a_dry_run_that_loses_the_gateways_answer_is_neither_accepted_nor_refused() {
    let gateway = ScriptedGateway::new([expect_request("GET /system/function/hello").with_lost_answer()]);
    let (status, answer) = test_deployer(&gateway.serve_over_http().await)
        .sign_and_post_hand_over(&dry_run_json(json!({"service": "hello"})))
        .await;
    gateway.assert_no_missing_or_unexpected_calls();
    assert_eq!(status, StatusCode::BAD_GATEWAY, "{answer:#}");
    assert_eq!(answer["status"], "failed");
    let reason = answer["reasons"][0].as_str().unwrap();
    assert!(reason.contains("lost the connection"), "{reason}");
}

#[tokio::test]
async fn a_dry_run_without_a_gateway_is_neither_accepted_nor_refused() {
    let (status, answer) = test_deployer("http://127.0.0.1:1")
        .sign_and_post_hand_over(&dry_run_json(json!({"service": "hello"})))
        .await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    assert_eq!(
        (&answer["dryRun"], &answer["status"]),
        (&json!(true), &json!("failed"))
    );
}

#[tokio::test]
async fn a_dry_run_waits_for_no_deployment_of_the_function() {
    let (reached, mut events) = mpsc::unbounded_channel();
    let gateway = ScriptedGateway::new([
        expect_request("GET /system/function/hello")
            .with_request_check(move |_| reached.send(()).unwrap())
            .never_answered(),
        expect_request("GET /system/function/hello").answered_with(404, ""),
    ]);
    let deployer = Arc::new(test_deployer(&gateway.serve_over_http().await));
    let deployment = tokio::spawn({
        let deployer = Arc::clone(&deployer);
        async move { deployer.sign_and_post_hand_over(&hand_over_json()).await }
    });
    events.recv().await.unwrap();
    let (status, answer) = deployer
        .sign_and_post_hand_over(&dry_run_json(json!({"service": "hello"})))
        .await;
    deployment.abort();
    gateway.assert_no_missing_or_unexpected_calls();
    assert_eq!(status, StatusCode::OK, "{answer:#}");
}

#[tokio::test]
async fn only_post_requests_to_the_root_path_are_accepted() {
    let deployer = test_deployer("http://127.0.0.1:1");
    let send = async |request: Request<Body>| {
        deployer
            .deployer
            .call(request, deployer.context.clone())
            .await
            .unwrap()
    };
    let response = send(Request::get("/").body(Body::empty()).unwrap()).await;
    assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(response.headers()["allow"], "POST");
    assert_eq!(
        send(Request::post("/x").body(Body::empty()).unwrap())
            .await
            .status(),
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn without_a_signing_key_no_hand_over_is_accepted() {
    let deployer = test_deployer("http://127.0.0.1:1");
    fs::write(deployer.secrets.path().join("deploy-secret"), "\n").unwrap();
    let (status, answer) = deployer.sign_and_post_hand_over(&hand_over_json()).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    fs::remove_file(deployer.secrets.path().join("deploy-secret")).unwrap();
    assert_eq!(
        deployer.sign_and_post_hand_over(&hand_over_json()).await.0,
        StatusCode::INTERNAL_SERVER_ERROR
    );
    assert!(
        answer["reasons"][0].as_str().unwrap().contains("deploy-secret"),
        "{answer:#}"
    );
}

#[tokio::test]
async fn an_unreachable_gateway_gives_a_status_that_is_retried() {
    let (status, answer) = test_deployer("http://127.0.0.1:1")
        .sign_and_post_hand_over(&hand_over_json())
        .await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    assert_eq!(answer["status"], "failed");
    assert_eq!(answer["changed"], false);
}

#[tokio::test]
async fn a_rejection_by_the_provider_gives_a_status_that_is_not_retried() {
    let gateway = ScriptedGateway::new([
        expect_request("GET /system/function/hello").answered_with(404, ""),
        expect_request("GET /system/function/hello").answered_with(404, ""),
        expect_request("PUT /system/functions").answered_with(404, ""),
        expect_request("POST /system/functions").answered_with(400, "unable to find secret: x\n"),
        expect_request("GET /system/function/hello").answered_with(404, ""),
    ]);
    let (status, answer) = test_deployer(&gateway.serve_over_http().await)
        .sign_and_post_hand_over(&hand_over_json())
        .await;
    gateway.assert_no_missing_or_unexpected_calls();
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(answer["status"], "refused");
    assert_eq!(answer["running"], Value::Null);
}

#[tokio::test]
async fn a_rollout_continues_when_its_caller_disconnects() {
    let (reached, mut events) = mpsc::unbounded_channel();
    let probed = reached.clone();
    let gateway = ScriptedGateway::new([
        expect_request("GET /system/function/hello")
            .with_request_check(move |_| reached.send("read").unwrap())
            .answered_with(404, ""),
        expect_request("GET /system/function/hello").answered_with(404, ""),
        expect_request("PUT /system/functions").answered_with(202, ""),
        expect_request("GET /system/function/hello")
            .answered_with(200, function_state_json(&spec_digest_of_hand_over())),
        expect_request("GET /function/hello/_/health")
            .with_request_check(move |_| probed.send("probed").unwrap())
            .answered_with(200, "OK"),
    ]);
    let deployer = Arc::new(test_deployer(&gateway.serve_over_http().await));
    let caller = tokio::spawn({
        let deployer = Arc::clone(&deployer);
        async move { deployer.sign_and_post_hand_over(&hand_over_json()).await }
    });
    assert_eq!(events.recv().await, Some("read"));
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());

    let probed = tokio::time::timeout(Duration::from_secs(30), events.recv())
        .await
        .unwrap();
    assert_eq!(probed, Some("probed"));
    gateway.assert_no_missing_or_unexpected_calls();
}
