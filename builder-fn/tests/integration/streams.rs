//! Tests of streamed answers to build requests.

use std::time::Duration;

use function_host::signature::sign_body;
use serde_json::{Value, json};
use tokio::time::Instant;
use tonic::Status;

use crate::gateway::{self, start_gateway_answering_hand_overs};
use crate::hand_over::let_build_succeed;
use crate::job::step_output_response;
use crate::setting::{
    AnswerStatusAndBody, TestBuilder, build_request_with_signature, hmac_keys, request_tar_with,
    tar_with_files,
};
use crate::{complete_or_panic, daemon};

const NDJSON_MEDIA_TYPE: &str = "application/x-ndjson";

#[tokio::test]
async fn records_follow_the_build_and_the_last_one_has_its_outcome() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let mut records = TestBuilder::new(daemon)
        .send_streamed_build(request_tar_with(json!({"surprise": 1})), NDJSON_MEDIA_TYPE)
        .await;

    let first = records
        .next_record_json()
        .await
        .expect("a record before the first event");
    assert_eq!(first["status"], "in_progress");
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    status
        .events
        .send(Ok(step_output_response("compiling\n")))
        .await
        .expect("listening");
    let mut lines = Vec::new();
    while !lines
        .iter()
        .any(|line: &Value| line == "l: 1970-01-01T00:00:00Z compiling")
    {
        let record = records
            .next_record_json()
            .await
            .expect("a record while the build runs");
        assert_eq!(record["status"], "in_progress");
        assert!(record["duration"].is_f64());
        lines.extend(record["log"].as_array().expect("lines").clone());
    }
    status
        .events
        .send(Ok(step_output_response("done\n")))
        .await
        .expect("listening");
    drop(status);
    solve.answer_with_digest("sha256:12");

    let (lines, mut last) = records.read_lines_and_terminal_record().await;
    assert_eq!(lines, ["l: 1970-01-01T00:00:00Z done"]);
    assert!(last["duration"].take().is_f64());
    assert!(
        last["warnings"][0]
            .as_str()
            .is_some_and(|warning| warning.contains("surprise"))
    );
    last["warnings"].take();
    let page = last["page"].take();
    assert!(
        page.as_str().is_some_and(|page| page.contains("?link=build.")),
        "{page}"
    );
    assert_eq!(
        last,
        json!({
            "image": "registry:5000/hello:1", "digest": "sha256:12", "status": "success", "page": null, "warnings": null,
            "duration": null,
        })
    );
}

#[tokio::test]
async fn an_event_stream_has_the_framing_that_browsers_read() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let mut records = TestBuilder::new(daemon)
        .send_streamed_build(request_tar_with(json!({})), "text/event-stream")
        .await;
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    drop(status);
    solve.answer_with_digest("sha256:12");

    let mut last = Value::Null;
    while let Some(bytes) = records.next_record_bytes().await {
        let data = bytes
            .strip_prefix(b"data: ")
            .and_then(|rest| rest.strip_suffix(b"\n\n"));
        last = serde_json::from_slice(data.expect("one event")).expect("JSON");
    }
    assert_eq!(last["status"], "success");
}

#[tokio::test]
async fn a_failing_build_and_a_lost_daemon_end_in_a_terminal_record() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let records = TestBuilder::new(daemon)
        .send_streamed_build(request_tar_with(json!({})), NDJSON_MEDIA_TYPE)
        .await;
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    status
        .events
        .send(Ok(step_output_response("error: no such crate\n")))
        .await
        .expect("listening");
    drop(status);
    solve.answer_with_error(Status::unknown("exit code: 101"));
    let (lines, last) = records.read_lines_and_terminal_record().await;
    assert_eq!(lines, ["l: 1970-01-01T00:00:00Z error: no such crate"]);
    assert_eq!(
        (&last["status"], &last["error"]),
        (&json!("failed"), &json!("exit code: 101"))
    );
    assert_eq!(last["image"], "registry:5000/hello:1");

    let (daemon, mut calls) = daemon::start_fake_daemon();
    let records = TestBuilder::new(daemon)
        .send_streamed_build(request_tar_with(json!({})), NDJSON_MEDIA_TYPE)
        .await;
    let (_solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    status
        .events
        .send(Ok(step_output_response("so far\n")))
        .await
        .expect("listening");
    status.events.reserve().await.expect("it was read");
    calls.cut_connections();
    let (_, last) = records.read_lines_and_terminal_record().await;
    assert_eq!(last["error"], "BuildKit was lost during the build");
}

#[tokio::test(start_paused = true)]
async fn a_timeout_and_a_shutdown_end_in_a_terminal_record() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::new(daemon);
    let records = setting
        .send_streamed_build(request_tar_with(json!({"timeout": "90s"})), NDJSON_MEDIA_TYPE)
        .await;
    let (mut solve, _status, _session) = calls.wait_without_limit_for_build_calls().await;
    let (lines, last) = records.read_lines_and_terminal_record().await;
    assert_eq!(last["error"], "the build ran past its time limit of 1m30s");
    assert_eq!(lines, [""; 0]);
    complete_or_panic(solve.reply.closed()).await;

    let records = setting
        .send_streamed_build(request_tar_with(json!({})), NDJSON_MEDIA_TYPE)
        .await;
    let (mut solve, _status, _session) = calls.wait_without_limit_for_build_calls().await;
    let deadline = Instant::now() + Duration::from_secs(30);
    setting.begin_shutdown(deadline);
    let (_, last) = records.read_lines_and_terminal_record().await;
    assert!(Instant::now() < deadline);
    assert_eq!(
        last["error"],
        "the builder is shutting down and ended the build; try again"
    );
    complete_or_panic(solve.reply.closed()).await;
}

#[tokio::test]
async fn errors_before_the_signature_is_verified_keep_their_status_and_later_ones_are_streamed() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::new(daemon);
    let request = |body: Vec<u8>, signature: Option<&str>| {
        let mut request = build_request_with_signature(body, signature);
        let accept = NDJSON_MEDIA_TYPE.parse().expect("header");
        request.headers_mut().insert("accept", accept);
        request
    };
    let good = request_tar_with(json!({}));
    let wrong = sign_body(&hmac_keys("another key"), &good);
    for signature in [None, Some("sha256=12"), Some(&wrong)] {
        let answer = AnswerStatusAndBody::from_json_response_or_text_of_429(
            setting.send_request(request(good.clone(), signature)).await,
        )
        .await;
        assert_eq!((answer.status, &answer.body["status"]), (401, &json!("failed")));
    }
    let large = vec![0; 2 << 20];
    let signature = sign_body(&hmac_keys("payload key"), &large);
    let answer = AnswerStatusAndBody::from_json_response_or_text_of_429(
        setting.send_request(request(large, Some(&signature))).await,
    )
    .await;
    assert_eq!(answer.status, 413);

    let expired = request_tar_with(json!({"notAfter": "2020-01-01T00:00:00Z"}));
    let no_config = tar_with_files(&[("context/Dockerfile", b"FROM scratch\n")]);
    for (body, error) in [
        (b"no tar".to_vec(), "tar"),
        (no_config, "com.openfaas.docker.config"),
        (request_tar_with(json!({"image": "no reference"})), "image"),
        (request_tar_with(json!({"dockerfile": "other"})), "context/other"),
        (expired, "notAfter"),
    ] {
        let (lines, last) = setting
            .send_streamed_build(body, NDJSON_MEDIA_TYPE)
            .await
            .read_lines_and_terminal_record()
            .await;
        assert_eq!((lines.len(), &last["status"]), (0, &json!("failed")));
        assert!(
            last["error"].as_str().is_some_and(|text| text.contains(error)),
            "{last}"
        );
    }
    assert!(calls.solves.try_recv().is_err());
}

#[tokio::test]
async fn a_deployment_is_in_the_log_and_in_the_terminal_record() {
    for (status, answer, outcome) in [
        (200, r#"{"function":"hello","status":"ready"}"#, "success"),
        (422, r#"{"status":"refused","reasons":["it crashed"]}"#, "failed"),
    ] {
        let (address, _received) = start_gateway_answering_hand_overs(status, answer).await;
        let (daemon, mut calls) = daemon::start_fake_daemon();
        let setting = TestBuilder::with_gateway(daemon, &format!("http://{address}"));
        setting.write_secret("deploy-secret", "deploy key\n");
        let records = setting
            .send_streamed_build(
                request_tar_with(json!({"deploy": {"service": "hello"}})),
                NDJSON_MEDIA_TYPE,
            )
            .await;
        let_build_succeed(&mut calls).await;

        let (lines, last) = records.read_lines_and_terminal_record().await;

        assert_eq!(last["status"], outcome);
        assert_eq!(
            last["deployment"],
            serde_json::from_str::<Value>(answer).expect("JSON")
        );
        let error = "the image was built and pushed, but not deployed: it crashed";
        assert_eq!(last["error"] == error, outcome == "failed");
        assert!(
            lines[0].starts_with("v: ") && lines[0].ends_with("Z [deploy] hello"),
            "{lines:?}"
        );
        assert!(
            lines[1].contains("Z [deploy] hello ") && lines[1].ends_with('s'),
            "{lines:?}"
        );
    }
}

#[tokio::test]
async fn a_shutdown_during_a_deployment_ends_in_a_terminal_record() {
    let (address, mut received) = gateway::start_manual_gateway().await;
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::with_gateway(daemon, &format!("http://{address}"));
    setting.write_secret("deploy-secret", "deploy key\n");
    let records = setting
        .send_streamed_build(
            request_tar_with(json!({"deploy": {"service": "hello"}})),
            NDJSON_MEDIA_TYPE,
        )
        .await;
    received
        .recv()
        .await
        .expect("a dry run")
        .answer(200, gateway::DRY_RUN_ACCEPTED_JSON);
    let_build_succeed(&mut calls).await;
    // The gateway accepts the request and never answers.
    let _hand_over = received.recv().await.expect("a hand-over");

    // The time that is reserved for the answer: the deployment is ended immediately.
    setting.begin_shutdown(Instant::now() + Duration::from_secs(2));

    let (_, last) = records.read_lines_and_terminal_record().await;
    assert_eq!(last["status"], "failed");
    assert_eq!(last["digest"], "sha256:12", "the image exists");
    assert_eq!(last["deployment"]["status"], "failed");
    assert!(
        last["error"]
            .as_str()
            .is_some_and(|text| text.contains("shutting down")),
        "{last}"
    );
}

#[tokio::test]
async fn a_build_is_cancelled_when_the_reader_disconnects() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let mut records = TestBuilder::new(daemon)
        .send_streamed_build(request_tar_with(json!({})), NDJSON_MEDIA_TYPE)
        .await;
    records.next_record_json().await.expect("a record");
    let (mut solve, status, session) = calls.wait_without_limit_for_build_calls().await;

    drop(records);

    complete_or_panic(solve.reply.closed()).await;
    complete_or_panic(status.events.closed()).await;
    complete_or_panic(session.ended_by_client)
        .await
        .expect("the client ends the session");
}

#[tokio::test]
async fn a_reader_that_does_not_read_blocks_no_build_and_costs_little_memory() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::new(daemon);
    let records = setting
        .send_streamed_build(request_tar_with(json!({})), NDJSON_MEDIA_TYPE)
        .await;
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    for block in 0..50 {
        let text: String = (0..10_000).map(|line| format!("{block} {line}\n")).collect();
        status
            .events
            .send(Ok(step_output_response(&text)))
            .await
            .expect("it is taken");
    }
    drop(status);
    solve.answer_with_digest("sha256:12");
    let (lines, last) = records.read_lines_and_terminal_record().await;

    assert_eq!(last["status"], "success");
    let held: usize = lines.iter().map(String::len).sum();
    // The lines that wait, and the end of the log above its limit.
    assert!(held < (256 << 10) + (256 << 10), "{held} bytes");
    let notices: Vec<_> = lines.iter().filter(|line| line.contains('…')).collect();
    assert_eq!(notices.len(), 3, "{notices:?}");
    assert!(
        notices[0].contains("lines dropped: they were not read in time"),
        "{notices:?}"
    );
    assert!(notices[1].contains("a log may have 1048576 bytes"), "{notices:?}");
    assert!(notices[2].contains("lines left out"), "{notices:?}");
    assert_eq!(
        lines.last().map(String::as_str),
        Some("l: 1970-01-01T00:00:00Z 49 9999")
    );
}
