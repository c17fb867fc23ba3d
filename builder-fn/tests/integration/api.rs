//! Tests of `POST /build`, from the bytes of a request to those of its answer.

use std::time::Duration;

use builder_fn::slots::BuildSlots;
use function_host::Body;
use function_host::http::Method;
use function_host::signature::sign_body;
use futures_util::StreamExt;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::time::Instant;
use tonic::Status;

use crate::gateway::start_gateway_answering_hand_overs;
use crate::job::step_output_response;
use crate::setting::{
    AnswerStatusAndBody, TestBuilder, build_request_with_signature, hmac_keys, request_tar_with,
    tar_with_files,
};
use crate::{complete_or_panic, daemon};

/// Sends a build request with `tar` in a background task.
fn spawn_build(setting: &TestBuilder, tar: Vec<u8>) -> tokio::task::JoinHandle<AnswerStatusAndBody> {
    let setting = setting.clone();
    tokio::spawn(async move { setting.send_signed_build(tar).await })
}

#[tokio::test]
async fn a_signed_tar_becomes_an_image_and_its_answer_has_digest_and_log() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::new(daemon);
    let answer = spawn_build(
        &setting,
        request_tar_with(json!({
            "buildArgs": {"SOURCE_DATE_EPOCH": "0"},
            "platforms": ["linux/amd64"],
            "target": "release",
            "labels": {"a": "b"},
            "tags": ["2"],
            "noCache": true,
            "surprise": 1
        })),
    );
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;

    let frontend = &solve.request.frontend_attrs;
    let exporter = &solve.request.exporters[0].attrs;
    for (attrs, name, value) in [
        (frontend, "filename", "Dockerfile"),
        (frontend, "build-arg:SOURCE_DATE_EPOCH", "0"),
        (frontend, "platform", "linux/amd64"),
        (frontend, "target", "release"),
        (frontend, "label:a", "b"),
        (frontend, "no-cache", ""),
        (exporter, "name", "registry:5000/hello:1,registry:5000/hello:2"),
        (exporter, "push", "true"),
        (exporter, "registry.insecure", "true"),
        (exporter, "rewrite-timestamp", "true"),
    ] {
        assert_eq!(attrs.get(name).map(String::as_str), Some(value), "{name}");
    }
    status
        .events
        .send(Ok(step_output_response("compiling\n")))
        .await
        .expect("listening");
    drop(status);
    solve.answer_with_digest("sha256:12");

    let AnswerStatusAndBody { status, body } = answer.await.expect("no panic");
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["status"], "success");
    assert_eq!(body["image"], "registry:5000/hello:1");
    assert_eq!(body["digest"], "sha256:12");
    assert!(body["duration"].is_f64());
    let lines: Vec<_> = body["log"]
        .as_array()
        .expect("a log")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert!(lines[0].contains("warning: key \"surprise\""), "{lines:?}");
    assert_eq!(lines[1], "l: 1970-01-01T00:00:00Z compiling");
}

#[tokio::test]
async fn skip_push_builds_without_pushing() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let answer = spawn_build(
        &TestBuilder::new(daemon),
        request_tar_with(json!({"skipPush": true})),
    );
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;

    assert_eq!(solve.request.exporters[0].attrs.get("push"), None);
    drop(status);
    solve.answer_with_digest("sha256:12");

    assert_eq!(answer.await.expect("no panic").status, 200);
}

#[tokio::test]
async fn a_request_that_is_not_signed_or_not_valid_never_reaches_buildkit() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::new(daemon);
    let good = request_tar_with(json!({}));
    let signed = |body: &[u8], name: &str| sign_body(&hmac_keys(name), body);
    let sealed = tar_with_files(&[
        (
            "com.openfaas.docker.config",
            br#"{"image": "registry:5000/hello:1"}"#,
        ),
        ("com.openfaas.secrets", b"version: v1"),
        ("context/Dockerfile", b"FROM scratch\n"),
    ]);

    for (body, signature, status, error) in [
        (good.clone(), None, 401, "not signed"),
        (
            good.clone(),
            Some("sha256=12".to_owned()),
            401,
            "should be sha256=",
        ),
        (
            good.clone(),
            Some(signed(&good, "another key")),
            401,
            "does not match",
        ),
        (
            good.clone(),
            Some(signed(b"another body", "payload key")),
            401,
            "does not match",
        ),
        (
            b"no tar".to_vec(),
            Some(signed(b"no tar", "payload key")),
            400,
            "",
        ),
        (
            sealed.clone(),
            Some(signed(&sealed, "payload key")),
            400,
            "no key for sealed secrets",
        ),
    ] {
        let answer = AnswerStatusAndBody::from_json_response_or_text_of_429(
            setting
                .send_request(build_request_with_signature(body, signature.as_deref()))
                .await,
        )
        .await;
        assert_eq!(answer.status, status, "{answer:?}");
        assert_eq!(answer.body["status"], "failed");
        assert!(
            answer.body["error"]
                .as_str()
                .is_some_and(|text| text.contains(error)),
            "{answer:?}"
        );
    }
    assert!(calls.solves.try_recv().is_err() && calls.sessions.try_recv().is_err());
}

#[tokio::test]
async fn a_body_above_the_limit_is_not_read_to_its_end() {
    let (daemon, _calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::new(daemon);
    let endless = tokio_stream::iter(std::iter::repeat_with(|| Ok(vec![0; 64 << 10].into())));
    let signature = sign_body(&hmac_keys("payload key"), b"");

    let response = setting
        .send_request(build_request_with_signature(
            Body::stream(endless),
            Some(&signature),
        ))
        .await;

    assert_eq!(response.headers()["connection"], "close");
    let answer = AnswerStatusAndBody::from_json_response_or_text_of_429(response).await;
    assert_eq!(answer.status, 413);
    assert!(
        answer.body["error"]
            .as_str()
            .expect("text")
            .contains("1048576 bytes"),
        "{answer:?}"
    );
}

#[tokio::test]
async fn a_failing_dockerfile_is_422_with_the_log_and_buildkits_error() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let answer = spawn_build(&TestBuilder::new(daemon), request_tar_with(json!({})));
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    status
        .events
        .send(Ok(step_output_response("error: no such crate\n")))
        .await
        .expect("listening");
    drop(status);
    solve.answer_with_error(Status::unknown(
        "process \"/bin/sh -c cargo build\" did not complete successfully: exit code: 101",
    ));

    let AnswerStatusAndBody { status, body } = answer.await.expect("no panic");

    assert_eq!(status, 422);
    assert_eq!(body["status"], "failed");
    assert_eq!(body["image"], "registry:5000/hello:1");
    assert_eq!(
        body["log"],
        json!(["l: 1970-01-01T00:00:00Z error: no such crate"])
    );
    let error = "process \"/bin/sh -c cargo build\" did not complete successfully: exit code: 101";
    assert_eq!(body["error"], error);
}

#[tokio::test]
async fn a_daemon_that_is_down_or_lost_is_502() {
    let nowhere = "unix:///nowhere/buildkitd.sock".parse().expect("address");
    let answer = TestBuilder::new(builder_fn::buildkit::Daemon::at(nowhere))
        .send_signed_build(request_tar_with(json!({})))
        .await;
    assert_eq!(answer.status, 502);
    assert_eq!(
        answer.body["error"],
        "BuildKit at unix:///nowhere/buildkitd.sock does not answer"
    );
    assert_eq!(answer.body["image"], "registry:5000/hello:1");

    let (daemon, mut calls) = daemon::start_fake_daemon();
    let answer = spawn_build(&TestBuilder::new(daemon), request_tar_with(json!({})));
    let (_solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    status
        .events
        .send(Ok(step_output_response("so far\n")))
        .await
        .expect("listening");
    status.events.reserve().await.expect("it was read");
    calls.cut_connections();
    let answer = answer.await.expect("no panic");
    assert_eq!(answer.status, 502);
    assert_eq!(answer.body["error"], "BuildKit was lost during the build");
}

#[tokio::test(start_paused = true)]
async fn a_build_that_exceeds_its_timeout_is_cancelled_and_422() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let answer = spawn_build(
        &TestBuilder::new(daemon),
        request_tar_with(json!({"timeout": "90s"})),
    );
    let (mut solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    let begun = Instant::now();

    let answer = answer.await.expect("no panic");

    assert_eq!(begun.elapsed().as_secs(), 90);
    assert_eq!(answer.status, 422);
    assert_eq!(answer.body["error"], "the build ran past its time limit of 1m30s");
    complete_or_panic(solve.reply.closed()).await;
    complete_or_panic(status.events.closed()).await;
}

#[tokio::test(start_paused = true)]
async fn a_build_that_a_shutdown_interrupts_is_answered_before_the_process_ends() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::new(daemon);
    let answer = spawn_build(&setting, request_tar_with(json!({})));
    let (mut solve, _status, _session) = calls.wait_without_limit_for_build_calls().await;
    let deadline = Instant::now() + Duration::from_secs(30);

    setting.begin_shutdown(deadline);
    let answer = answer.await.expect("no panic");

    assert!(Instant::now() < deadline);
    assert_eq!(answer.status, 502, "a queue retries");
    assert_eq!(
        answer.body["error"],
        "the builder is shutting down and ended the build; try again"
    );
    complete_or_panic(solve.reply.closed()).await;
}

#[tokio::test]
async fn a_builder_that_is_shutting_down_starts_no_build() {
    let (daemon, _calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::new(daemon);
    setting.begin_shutdown(Instant::now() + Duration::from_secs(30));

    let rejected = setting.send_signed_build(request_tar_with(json!({}))).await;

    assert_eq!(rejected.status, 429, "another builder may accept it");
    assert!(
        rejected.body.to_string().contains("is shutting down"),
        "{}",
        rejected.body
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_a_slot_and_is_429_when_none_becomes_free_in_time() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::new(daemon).with_slots(BuildSlots::new(1, Duration::from_secs(60), 1));
    let first = spawn_build(&setting, request_tar_with(json!({})));
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    let begun = Instant::now();
    let second = spawn_build(&setting, request_tar_with(json!({"noCache": true})));
    setting.wait_until_slots_and_queue_are_full().await;

    let rejected = setting
        .send_request(build_request_with_signature(Body::empty(), None))
        .await;
    assert_eq!(
        rejected.status(),
        429,
        "one builds, one waits, and a third is rejected"
    );
    let second = second.await.expect("no panic");
    assert_eq!((second.status, begun.elapsed().as_secs()), (429, 60));

    let third = spawn_build(&setting, request_tar_with(json!({"noCache": true})));
    setting.wait_until_slots_and_queue_are_full().await;
    drop(status);
    solve.answer_with_digest("sha256:12");
    assert_eq!(first.await.expect("no panic").status, 200);
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    drop(status);
    solve.answer_with_digest("sha256:34");
    assert_eq!(third.await.expect("no panic").status, 200);
}

#[tokio::test]
async fn a_request_whose_signature_is_not_verified_takes_no_slot() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::new(daemon).with_slots(BuildSlots::new(1, Duration::ZERO, 0));
    let body = request_tar_with(json!({}));
    let signature = sign_body(&hmac_keys("another key of the caller"), &body);
    let mut unverified = Vec::new();
    for _ in 0..5 {
        let half = body[..body.len() / 2].to_vec();
        let pieces = futures_util::stream::iter([Ok(half.into())]);
        let body = Body::stream(pieces.chain(futures_util::stream::pending()));
        let (setting, request) = (
            setting.clone(),
            build_request_with_signature(body, Some(&signature)),
        );
        unverified.push(tokio::spawn(async move { setting.send_request(request).await }));
        tokio::task::yield_now().await;
    }
    let wrong = setting
        .send_request(build_request_with_signature(body.clone(), Some(&signature)))
        .await;
    assert_eq!(wrong.status(), 401);

    let first = spawn_build(&setting, body);
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;

    assert_eq!(
        setting
            .send_request(build_request_with_signature(Body::empty(), None))
            .await
            .status(),
        429
    );
    drop(status);
    solve.answer_with_digest("sha256:12");
    assert_eq!(first.await.expect("no panic").status, 200);
    assert!(unverified.iter().all(|unverified| !unverified.is_finished()));
}

#[tokio::test]
async fn a_streamed_build_that_finds_no_slot_after_its_body_was_received_is_429_in_plain_text() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::new(daemon).with_slots(BuildSlots::new(1, Duration::ZERO, 0));
    let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
    let body = request_tar_with(json!({"noCache": true}));
    let signature = sign_body(&hmac_keys(crate::setting::PAYLOAD_KEY), &body);
    // The last piece arrives only once the slot is taken.
    let end = futures_util::stream::once(async move {
        let _ = receiver.await;
        Ok(body.into())
    });
    let mut request = build_request_with_signature(Body::stream(end), Some(&signature));
    let accept = "application/x-ndjson".parse().expect("header");
    request.headers_mut().insert("accept", accept);
    let late = tokio::spawn({
        let setting = setting.clone();
        async move { setting.send_request(request).await }
    });
    tokio::task::yield_now().await;
    let first = spawn_build(&setting, request_tar_with(json!({})));
    let _held = calls.wait_without_limit_for_build_calls().await;

    drop(sender);
    let rejected = late.await.expect("no panic");

    assert_eq!(rejected.status(), 429);
    let text = BodyExt::collect(rejected.into_body()).await.expect("a body");
    assert_eq!(
        text.to_bytes(),
        "Concurrent request limit exceeded. Max concurrent requests: 1\n"
    );
    first.abort();
}

#[tokio::test]
async fn a_build_is_cancelled_when_its_caller_disconnects() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let answer = spawn_build(&TestBuilder::new(daemon), request_tar_with(json!({})));
    let (mut solve, status, session) = calls.wait_without_limit_for_build_calls().await;

    answer.abort();

    complete_or_panic(solve.reply.closed()).await;
    complete_or_panic(status.events.closed()).await;
    complete_or_panic(session.ended_by_client)
        .await
        .expect("the client ends the session");
}

#[tokio::test]
async fn deliveries_of_one_call_have_the_same_reference_in_buildkit_only_if_their_bodies_are_the_same() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    // Otherwise the second delivery would find the record of the first.
    calls
        .history
        .set_behaviour(daemon::HistoryBehaviour::Unimplemented);
    let setting = TestBuilder::new(daemon);
    let mut references = Vec::new();
    for changes in [json!({}), json!({}), json!({"noCache": true})] {
        let answer = spawn_build(&setting, request_tar_with(changes));
        let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
        references.push(solve.request.r#ref.clone());
        drop(status);
        solve.answer_with_digest("sha256:12");
        assert_eq!(answer.await.expect("no panic").status, 200);
    }

    assert_eq!(references[0], references[1]);
    assert_ne!(references[0], references[2]);
}

#[tokio::test]
async fn a_control_character_that_buildkit_cannot_transfer_is_the_callers_and_is_located() {
    let config = br#"{"image": "registry:5000/hello:1"}"#;
    for (header, file, line) in [
        ("exclude-patterns", "context/.dockerignore", 2),
        ("followpaths", "context/Dockerfile", 3),
    ] {
        let (daemon, mut calls) = daemon::start_fake_daemon();
        let body = tar_with_files(&[
            ("com.openfaas.docker.config", config),
            (
                "context/Dockerfile",
                b"FROM scratch\nCOPY\ta /\nCOPY [\"a\\tb\", \"/\"]\n",
            ),
            ("context/.dockerignore", b"\ta\t\nb\tc\n"),
        ]);
        let answer = spawn_build(&TestBuilder::new(daemon), body);
        let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
        drop(status);
        solve.answer_with_error(Status::internal(format!(
            "header key \"{header}\" contains value with non-printable ASCII characters"
        )));

        let answer = answer.await.expect("no panic");
        assert_eq!(answer.status, 422, "{answer:?}");
        let error = answer.body["error"].as_str().expect("text");
        assert!(error.starts_with(&format!("{file}:{line}: ")), "{error}");
    }
}

#[tokio::test]
async fn other_paths_and_methods_are_404_and_405_and_name_the_right_ones() {
    let (daemon, _calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::new(daemon);
    for (method, path, status, error) in [
        (Method::GET, "/build", 405, "only POST is served here"),
        (Method::GET, "/", 405, "only POST is served here"),
        (Method::POST, "/publickey", 405, "only GET is served here"),
        (
            Method::GET,
            "/publickey",
            404,
            "this builder has no key for sealed secrets (build_secrets_private_key_path)",
        ),
        (
            Method::GET,
            "/elsewhere",
            404,
            "nothing is here; builds are sent to POST /build, and GET /builds/ID asks about one",
        ),
        (Method::DELETE, "/builds", 405, "only GET is served here"),
        (
            Method::PUT,
            "/builds/call-1",
            405,
            "only GET, DELETE is served here",
        ),
    ] {
        let mut request = build_request_with_signature(Body::empty(), None);
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().expect("path");
        let answer =
            AnswerStatusAndBody::from_json_response_or_text_of_429(setting.send_request(request).await).await;
        assert_eq!(
            (answer.status, &answer.body["error"]),
            (status, &json!(error)),
            "{path}"
        );
    }
}

/// The secret is repeated by a warning, by BuildKit's events and by the deployer's answer.
#[tokio::test]
async fn the_value_of_a_secret_is_masked_wherever_an_answer_repeats_text() {
    let recorded: Value =
        serde_json::from_str(include_str!("../../../tests/clients/recorded/secrets.json")).expect("JSON");
    let envelope = recorded["sealed"].as_str().expect("an envelope");
    let config = r#"{"image": "registry:5000/hello:1", "s3cr3t": 1, "deploy": {"service": "s3cr3t"}}"#;
    let body = tar_with_files(&[
        ("com.openfaas.docker.config", config.as_bytes()),
        ("com.openfaas.secrets", envelope.as_bytes()),
        ("context/Dockerfile", b"FROM scratch\n"),
    ]);
    let answer = r#"{"status": "failed", "reasons": ["it logged s3cr3t"]}"#;
    let (address, _received) = start_gateway_answering_hand_overs(502, answer).await;
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::with_gateway(daemon, &format!("http://{address}"))
        .with_seal_key(recorded["private_key"].as_str().expect("a key"));
    setting.write_secret("deploy-secret", "deploy key");

    let answer = spawn_build(&setting, body);
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    status
        .events
        .send(Ok(step_output_response("s3cr3t in the output\n")))
        .await
        .expect("listening");
    drop(status);
    solve.answer_with_digest("sha256:12");

    let AnswerStatusAndBody { status, body } = answer.await.expect("no panic");
    assert_eq!(status, 502, "{body}");
    assert_eq!(body["log"].as_array().map(Vec::len), Some(4), "{body}");
    assert_eq!(body["deployment"]["reasons"][0], "it logged ***");
    assert!(!body.to_string().contains("s3cr3t"), "{body}");
}
