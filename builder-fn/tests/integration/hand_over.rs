//! Tests of hand-overs to the deployer, through a fake gateway on loopback.

use builder_fn::hand_over::DeployVia;
use function_host::signature::SignatureVerifier;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::daemon::{self, DaemonCalls};
use crate::gateway::{self, start_gateway_answering_hand_overs};
use crate::persistence::deliver_queued_build;
use crate::setting::{
    AnswerStatusAndBody, CALL_ID, TestBuilder, build_request_with_signature, hmac_keys, request_tar_with,
};

/// Sends a build request whose config has `deploy`, in a background task.
fn spawn_deployed_build(setting: &TestBuilder) -> JoinHandle<AnswerStatusAndBody> {
    let setting = setting.clone();
    let deploy = json!({"service": "hello", "envVars": {"A": "b"}});
    tokio::spawn(async move {
        setting
            .send_signed_build(request_tar_with(json!({"deploy": deploy})))
            .await
    })
}

/// Waits for the next build's calls at the fake daemon, and answers them with the digest `sha256:12`.
pub(crate) async fn let_build_succeed(calls: &mut DaemonCalls) {
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    drop(status);
    solve.answer_with_digest("sha256:12");
}

#[tokio::test]
async fn a_hand_over_names_the_image_by_digest_and_is_signed() {
    let (address, mut received) =
        start_gateway_answering_hand_overs(200, r#"{"function":"hello","status":"ready"}"#).await;
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::with_gateway(daemon, &format!("http://{address}"));
    setting.write_secret("deploy-secret", "deploy key\n");

    let answer = spawn_deployed_build(&setting);
    let_build_succeed(&mut calls).await;

    let answer = answer.await.expect("no panic");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(
        answer.body["deployment"],
        json!({"function": "hello", "status": "ready"})
    );
    assert_eq!(answer.body["status"], "success");
    let request = received.recv().await.expect("a hand-over");
    assert_eq!(
        (request.method().as_str(), request.uri().path()),
        ("POST", "/function/deployer-fn")
    );
    assert_eq!(request.headers()["x-call-id"], CALL_ID);
    let signature = request.headers()["x-deploy-signature"].to_str().expect("text");
    let mut verifier = SignatureVerifier::new(&hmac_keys("deploy key"), signature).expect("a signature");
    verifier.update(request.body());
    verifier.verify().expect("the right one");
    let mut body: Value = serde_json::from_slice(request.body()).expect("JSON");
    for time in ["submittedAt", "builtAt", "expiresAt"] {
        assert!(
            body[time].take().as_str().is_some_and(|time| time.ends_with('Z')),
            "{time}"
        );
    }
    assert_eq!(
        body,
        json!({
            "image": "registry:5000/hello@sha256:12",
            "tag": "registry:5000/hello:1",
            "callId": CALL_ID,
            "submittedAt": null,
            "builtAt": null,
            "expiresAt": null,
            "deploy": {"service": "hello", "envVars": {"A": "b"}}
        })
    );
}

#[tokio::test]
async fn a_delivery_without_a_time_of_its_own_has_the_time_of_the_first_delivery() {
    let (address, mut received) =
        start_gateway_answering_hand_overs(200, r#"{"function":"hello","status":"ready"}"#).await;
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::with_gateway(daemon, &format!("http://{address}"));
    setting.write_secret("deploy-secret", "deploy key\n");

    let first = spawn_deployed_build(&setting);
    let_build_succeed(&mut calls).await;
    assert_eq!(first.await.expect("no panic").status, 200);
    // BuildKit's history has the build, so that there is no second solve.
    assert_eq!(
        spawn_deployed_build(&setting).await.expect("no panic").status,
        200
    );

    let mut times = Vec::new();
    for _ in 0..2 {
        let request = received.recv().await.expect("a hand-over");
        let body: Value = serde_json::from_slice(request.body()).expect("JSON");
        times.push(body["submittedAt"].clone());
    }
    assert!(times[0].is_string());
    assert_eq!(times[0], times[1]);
}

#[tokio::test]
async fn a_failed_deployment_decides_the_status_and_the_answer_has_the_digest() {
    for (deployer, status) in [
        (409, 409),
        (422, 422),
        (400, 422),
        (401, 502),
        (502, 502),
        (404, 502),
    ] {
        let (address, _received) =
            start_gateway_answering_hand_overs(deployer, r#"{"status":"refused","reasons":["it crashed"]}"#)
                .await;
        let (daemon, mut calls) = daemon::start_fake_daemon();
        let setting = TestBuilder::with_gateway(daemon, &format!("http://{address}"));
        setting.write_secret("deploy-secret", "deploy key");

        let answer = spawn_deployed_build(&setting);
        let_build_succeed(&mut calls).await;

        let answer = answer.await.expect("no panic");
        assert_eq!(answer.status, status, "the deployer answered {deployer}");
        assert_eq!(answer.body["digest"], "sha256:12", "the image exists");
        assert_eq!(
            answer.body["error"],
            "the image was built and pushed, but not deployed: it crashed"
        );
    }
}

#[tokio::test]
async fn a_gateway_that_is_down_is_502_and_the_answer_has_the_digest() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::new(daemon);
    setting.write_secret("deploy-secret", "deploy key");

    let answer = spawn_deployed_build(&setting);
    let_build_succeed(&mut calls).await;

    let answer = answer.await.expect("no panic");
    assert_eq!(answer.status, 502);
    assert_eq!(answer.body["digest"], "sha256:12");
    assert_eq!(answer.body["deployment"]["status"], "failed");
    let error = answer.body["error"].as_str().expect("text");
    assert!(
        error.contains("could not reach the gateway for POST /function/deployer-fn"),
        "{error}"
    );
}

#[tokio::test]
async fn a_hand_over_through_the_queue_is_not_waited_for() {
    for (gateway_status, status, deployment) in [(202, 200, "queued"), (500, 502, "failed")] {
        let (address, mut received) = start_gateway_answering_hand_overs(gateway_status, "").await;
        let (daemon, mut calls) = daemon::start_fake_daemon();
        let setting = TestBuilder::with_gateway(daemon, &format!("http://{address}"))
            .with_deploy_via(DeployVia::AsyncFunction);
        setting.write_secret("deploy-secret", "deploy key");

        let answer = spawn_deployed_build(&setting);
        let_build_succeed(&mut calls).await;

        let answer = answer.await.expect("no panic");
        assert_eq!(answer.status, status, "{answer:?}");
        assert_eq!(answer.body["deployment"]["status"], deployment, "{answer:?}");
        let request = received.recv().await.expect("a hand-over");
        assert_eq!(request.uri().path(), "/async-function/deployer-fn");
        assert!(!request.headers().contains_key("x-callback-url"));
        assert!(request.headers().contains_key("x-deploy-signature"));
    }
}

#[tokio::test]
async fn with_deploy_via_callback_the_answer_contains_the_hand_over_and_is_signed() {
    let (address, mut received) = start_gateway_answering_hand_overs(200, "{}").await;
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting =
        TestBuilder::with_gateway(daemon, &format!("http://{address}")).with_deploy_via(DeployVia::Callback);
    setting.write_secret("deploy-secret", "deploy key");

    let config = json!({"deploy": {"service": "hello"}, "probe": {"path": "/works"}});
    let answer = tokio::spawn({
        let setting = setting.clone();
        async move { setting.send_signed_build_unread(request_tar_with(config)).await }
    });
    let_build_succeed(&mut calls).await;

    let (head, body) = answer.await.expect("no panic").into_parts();
    let body = body.collect().await.expect("body").to_bytes();
    assert_eq!(head.status, 200);
    let signature = head.headers["x-deploy-signature"].to_str().expect("text");
    let mut verifier = SignatureVerifier::new(&hmac_keys("deploy key"), signature).expect("a signature");
    verifier.update(&body);
    verifier.verify().expect("the right one");
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(body["status"], "success");
    assert_eq!(body["deployment"]["status"], "handed_over");
    let hand_over = &body["deployment"]["handOver"];
    assert_eq!(hand_over["image"], "registry:5000/hello@sha256:12");
    assert_eq!(hand_over["deploy"], json!({"service": "hello"}));
    assert_eq!(hand_over["probe"], json!({"path": "/works"}));
    assert!(
        received.try_recv().is_err(),
        "the builder does not call the deployer"
    );
}

#[tokio::test]
async fn with_deploy_via_callback_a_streamed_deployment_is_rejected_before_the_build() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::new(daemon).with_deploy_via(DeployVia::Callback);
    setting.write_secret("deploy-secret", "deploy key");
    let tar = request_tar_with(json!({"deploy": {"service": "hello"}}));
    let signature = function_host::signature::sign_body(&hmac_keys("payload key"), &tar);
    let mut request = build_request_with_signature(tar, Some(&signature));
    let accept = "application/x-ndjson".parse().expect("header");
    request.headers_mut().insert("accept", accept);

    let answer =
        AnswerStatusAndBody::from_json_response_or_text_of_429(setting.send_request(request).await).await;

    assert_eq!((answer.status, &answer.body["status"]), (200, &json!("failed")));
    let error = answer.body["error"].as_str().expect("text");
    assert!(error.contains("deploy_via=callback"), "{error}");
    assert!(calls.solves.try_recv().is_err());
}

#[tokio::test]
async fn a_build_that_fails_is_not_deployed() {
    let (address, mut received) = start_gateway_answering_hand_overs(200, "{}").await;
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::with_gateway(daemon, &format!("http://{address}"));
    setting.write_secret("deploy-secret", "deploy key");

    let answer = spawn_deployed_build(&setting);
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    drop(status);
    solve.answer_with_error(tonic::Status::unknown("exit code: 1"));

    assert_eq!(answer.await.expect("no panic").status, 422);
    assert!(received.try_recv().is_err());
}

#[tokio::test]
async fn a_builder_without_the_deploy_secret_rejects_deployments_before_the_build() {
    let (daemon, mut calls) = daemon::start_fake_daemon();

    let answer = spawn_deployed_build(&TestBuilder::new(daemon))
        .await
        .expect("no panic");

    assert_eq!(answer.status, 400);
    assert!(
        answer.body["error"]
            .as_str()
            .expect("text")
            .contains("deploy-secret"),
        "{answer:?}"
    );
    assert!(calls.solves.try_recv().is_err());
}

/// The gateway answers with every status that is worth a retry, and cuts a connection.
#[tokio::test]
async fn a_hand_over_that_the_gateway_fails_to_deliver_is_sent_again_unchanged() {
    let (address, mut received) = gateway::start_manual_gateway().await;
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::with_gateway(daemon, &format!("http://{address}"));
    setting.write_secret("deploy-secret", "deploy key");

    let answer = spawn_deployed_build(&setting);
    let dry_run = received.recv().await.expect("a dry run");
    dry_run.answer(200, gateway::DRY_RUN_ACCEPTED_JSON);
    let_build_succeed(&mut calls).await;
    let failures = [Some(503), Some(502), Some(504), Some(429), None];
    let mut bodies = Vec::new();
    for failure in failures {
        let call = received.recv().await.expect("a hand-over");
        bodies.push(call.body());
        match failure {
            Some(status) => call.answer(status, "upstream failed"),
            None => drop(call),
        }
    }
    let call = received.recv().await.expect("a hand-over");
    bodies.push(call.body());
    call.answer(200, r#"{"status":"ready"}"#);

    let answer = answer.await.expect("no panic");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(bodies.iter().all(|body| *body == bodies[0]), "{bodies:?}");
    let log = answer.body["log"].to_string();
    let notices = log
        .matches("warning: the hand-over failed and is sent again: ")
        .count();
    assert_eq!(notices, failures.len(), "{log}");
}

/// The queue does not try again, and what failed may be back a moment later.
#[tokio::test]
async fn a_queued_builds_deployment_that_the_platform_failed_is_tried_again() {
    let (address, mut received) = gateway::start_manual_gateway().await;
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::with_gateway(daemon, &format!("http://{address}"));
    setting.write_secret("deploy-secret", "deploy key");

    let own = setting.clone();
    let tar = request_tar_with(json!({"deploy": {"service": "hello"}}));
    let answer = tokio::spawn(async move { deliver_queued_build(&own, tar).await });
    let dry_run = received.recv().await.expect("a dry run");
    dry_run.answer(200, gateway::DRY_RUN_ACCEPTED_JSON);
    let_build_succeed(&mut calls).await;
    let first = received.recv().await.expect("a hand-over");
    let body = first.body();
    first.answer(
        502,
        r#"{"status":"rolled_back","reasons":["the registry is away"]}"#,
    );
    let second = received.recv().await.expect("a second hand-over");
    assert_eq!(second.body(), body);
    second.answer(200, r#"{"status":"ready"}"#);

    let answer = answer.await.expect("no panic");
    assert_eq!(answer.status, 200, "{answer:?}");
    let log = answer.body["log"].to_string();
    assert!(
        log.contains("warning: the hand-over failed and is sent again: the registry is away"),
        "{log}"
    );
}

#[tokio::test]
async fn a_hand_over_is_not_sent_again_after_the_deployers_own_failure_while_a_caller_waits() {
    let (address, mut received) =
        start_gateway_answering_hand_overs(502, r#"{"status":"failed","reasons":["x"]}"#).await;
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::with_gateway(daemon, &format!("http://{address}"));
    setting.write_secret("deploy-secret", "deploy key");

    let answer = spawn_deployed_build(&setting);
    let_build_succeed(&mut calls).await;

    assert_eq!(answer.await.expect("no panic").status, 502);
    received.recv().await.expect("a hand-over");
    assert!(received.try_recv().is_err());
}

#[tokio::test]
async fn a_deployer_that_deployed_a_newer_build_makes_the_answer_409_with_its_call() {
    let newer = r#"{"status":"refused","supersededBy":"call-2","reasons":["call-2 is newer"]}"#;
    let (address, _received) = start_gateway_answering_hand_overs(409, newer).await;
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::with_gateway(daemon, &format!("http://{address}"));
    setting.write_secret("deploy-secret", "deploy key");

    let answer = spawn_deployed_build(&setting);
    let_build_succeed(&mut calls).await;

    let answer = answer.await.expect("no panic");
    assert_eq!((answer.status, &answer.body["status"]), (409, &json!("failed")));
    assert_eq!(answer.body["supersededBy"], "call-2");
    assert_eq!(answer.body["digest"], "sha256:12", "the image exists");
}

#[tokio::test]
async fn an_unverified_version_is_a_success_that_says_so() {
    let unverified = r#"{"status":"unverified","reasons":["the old version may be what answers"]}"#;
    let (address, _received) = start_gateway_answering_hand_overs(200, unverified).await;
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::with_gateway(daemon, &format!("http://{address}"));
    setting.write_secret("deploy-secret", "deploy key");

    let answer = spawn_deployed_build(&setting);
    let_build_succeed(&mut calls).await;

    let answer = answer.await.expect("no panic");
    assert_eq!((answer.status, &answer.body["status"]), (200, &json!("success")));
    assert_eq!(answer.body["deployment"]["status"], "unverified");
    assert!(answer.body["error"].is_null());
}
