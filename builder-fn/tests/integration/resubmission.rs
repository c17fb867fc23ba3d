//! Tests of queued builds that a shutdown interrupts: without records, they are submitted to their queue again.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bollard_buildkit_proto::moby::buildkit::v1::StatusResponse;
use builder_fn::slots::BuildSlots;
use crypto_box::SecretKey;
use function_host::Request;
use function_host::http::HeaderMap;
use function_host::signature::sign_body;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::builds::answer_statuses_holding_back_the_last;
use crate::captured_log::CapturedLog;
use crate::complete_or_panic;
use crate::daemon::{self, DaemonCalls, SolveCall};
use crate::gateway::{DRY_RUN_ACCEPTED_JSON, GatewayCall, ReceivedRequest, start_manual_gateway};
use crate::record_store::ask_until;
use crate::referenced_contexts::request_context_files_and_return_paths;
use crate::registry::FakeRegistry;
use crate::secrets::seal_secrets;
use crate::setting::{
    AnswerStatusAndBody, PAYLOAD_KEY, TestBuilder, build_request_with_signature, hmac_keys, request_tar_with,
    tar_with_files,
};

/// The time at which the gateway received the calls, in nanoseconds since 1970.
const SUBMISSION_TIME_NANOS: &str = "1790000000000000000";

/// A builder with a fake gateway, whose requests the test answers, and a fake daemon.
struct BuilderGatewayAndDaemon {
    builder: TestBuilder,
    calls: DaemonCalls,
    gateway_calls: mpsc::UnboundedReceiver<GatewayCall>,
}

impl BuilderGatewayAndDaemon {
    async fn new() -> Self {
        let (gateway, gateway_calls) = start_manual_gateway().await;
        let (daemon, mut calls) = daemon::start_fake_daemon();
        answer_statuses_holding_back_the_last(&mut calls, vec![StatusResponse::default()]).send_replace(true);
        Self {
            builder: TestBuilder::with_gateway(daemon, &format!("http://{gateway}")),
            calls,
            gateway_calls,
        }
    }

    async fn next_solve(&mut self) -> SolveCall {
        complete_or_panic(self.calls.solves.recv())
            .await
            .expect("a solve")
    }

    async fn next_gateway_call(&mut self) -> GatewayCall {
        complete_or_panic(self.gateway_calls.recv())
            .await
            .expect("a request")
    }
}

/// Returns a request as the queue delivers it.
fn queued_request(body: Vec<u8>) -> Request {
    let signature = sign_body(&hmac_keys(PAYLOAD_KEY), &body);
    let mut request = build_request_with_signature(body, Some(&signature));
    for time in [SUBMISSION_TIME_NANOS, "1790000000000000001"] {
        request
            .headers_mut()
            .append("x-start-time", time.parse().expect("header"));
    }
    let callback = "http://callback.example/result".parse().expect("header");
    request.headers_mut().insert("x-callback-url", callback);
    request
}

fn spawn_request_with_call_id(
    builder: &TestBuilder,
    id: &str,
    request: Request,
) -> JoinHandle<AnswerStatusAndBody> {
    let builder = builder.with_call_id(id);
    tokio::spawn(async move {
        AnswerStatusAndBody::from_json_response_or_text_of_429(builder.send_request(request).await).await
    })
}

/// Delivers a call that was submitted to the queue again to `builder`, as the queue does.
fn spawn_redelivery(builder: &TestBuilder, submitted: &ReceivedRequest) -> JoinHandle<AnswerStatusAndBody> {
    let mut request = build_request_with_signature(submitted.body().to_vec(), None);
    *request.headers_mut() = submitted.headers().clone();
    // The gateway adds a time when it accepts the call, and another one when it passes it on.
    for time in ["1790000000000000002", "1790000000000000003"] {
        request
            .headers_mut()
            .append("x-start-time", time.parse().expect("header"));
    }
    let id = header_text(submitted.headers(), "x-call-id").to_owned();
    spawn_request_with_call_id(builder, &id, request)
}

fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers[name].to_str().expect("text")
}

async fn await_answer(delivery: JoinHandle<AnswerStatusAndBody>) -> AnswerStatusAndBody {
    complete_or_panic(delivery).await.expect("no panic")
}

#[track_caller]
fn assert_submitted_again(answer: &AnswerStatusAndBody) {
    assert_eq!(answer.status, 429, "{}", answer.body);
    let text = answer.body.as_str().expect("a text");
    assert!(
        text.contains("has submitted the call to the queue again"),
        "{text}"
    );
}

#[tokio::test]
async fn running_waiting_and_late_builds_are_submitted_again_and_built_by_another_builder() {
    let mut fixture = BuilderGatewayAndDaemon::new().await;
    let slots = BuildSlots::new(1, Duration::from_secs(600), 16);
    let builder = fixture.builder.clone().with_slots(slots);
    let tar = |tag: &str| request_tar_with(json!({"image": format!("registry:5000/{tag}:1")}));
    let running = spawn_request_with_call_id(&builder, "running", queued_request(tar("running")));
    let mut solve = fixture.next_solve().await;
    let waiting = spawn_request_with_call_id(&builder, "waiting", queued_request(tar("waiting")));
    ask_until(&builder, "waiting", |asked| asked.body["state"] == "waiting").await;

    builder.begin_shutdown(Instant::now());
    let late = spawn_request_with_call_id(&builder, "late", queued_request(tar("late")));
    complete_or_panic(solve.reply.closed()).await;
    drop(solve);
    let (other_daemon, mut other_calls) = daemon::start_fake_daemon();
    answer_statuses_holding_back_the_last(&mut other_calls, vec![StatusResponse::default()])
        .send_replace(true);
    let other = TestBuilder::new(other_daemon);
    let mut ids = Vec::new();
    for _ in 0..3 {
        let call = fixture.next_gateway_call().await;
        let (head, body) = (call.request.headers(), call.request.body());
        assert_eq!(
            (call.request.method().as_str(), call.request.uri().path()),
            ("POST", "/async-function/builder-fn")
        );
        let id = header_text(head, "x-call-id").to_owned();
        assert_eq!(body, &tar(&id), "the body as it was sent");
        assert_eq!(
            header_text(head, "x-build-signature"),
            sign_body(&hmac_keys(PAYLOAD_KEY), body)
        );
        assert_eq!(
            head.get_all("x-start-time").iter().collect::<Vec<_>>(),
            [SUBMISSION_TIME_NANOS]
        );
        assert_eq!(
            header_text(head, "x-callback-url"),
            "http://callback.example/result"
        );
        let delivery = spawn_redelivery(&other, &call.request);
        call.answer(202, "");
        let solve = complete_or_panic(other_calls.solves.recv())
            .await
            .expect("a solve");
        solve.answer_with_digest("sha256:12");
        assert_eq!(await_answer(delivery).await.status, 200);
        ids.push(id);
    }
    ids.sort();
    assert_eq!(ids, ["late", "running", "waiting"]);
    for delivery in [running, waiting, late] {
        assert_submitted_again(&await_answer(delivery).await);
    }
    assert!(fixture.gateway_calls.try_recv().is_err(), "each once");
    assert!(
        fixture.calls.solves.try_recv().is_err(),
        "nothing more was begun here"
    );
}

#[tokio::test]
async fn a_build_that_ends_within_the_grace_period_is_not_submitted_again() {
    let mut fixture = BuilderGatewayAndDaemon::new().await;
    let running = spawn_request_with_call_id(
        &fixture.builder,
        "running",
        queued_request(request_tar_with(json!({}))),
    );
    let solve = fixture.next_solve().await;
    fixture
        .builder
        .begin_shutdown(Instant::now() + Duration::from_secs(3600));
    solve.answer_with_digest("sha256:12");
    assert_eq!(await_answer(running).await.status, 200);
    assert!(fixture.gateway_calls.try_recv().is_err());
}

#[tokio::test]
async fn two_deliveries_of_an_interrupted_call_are_submitted_again_once() {
    let mut fixture = BuilderGatewayAndDaemon::new().await;
    let builder = fixture
        .builder
        .clone()
        .with_slots(BuildSlots::new(2, Duration::ZERO, 0));
    let tar = request_tar_with(json!({}));
    let first = spawn_request_with_call_id(&builder, "twice", queued_request(tar.clone()));
    let _solve = fixture.next_solve().await;
    let second = spawn_request_with_call_id(&builder, "twice", queued_request(tar));
    complete_or_panic(builder.wait_until_slots_and_queue_are_full()).await;
    builder.begin_shutdown(Instant::now());
    fixture.next_gateway_call().await.answer(202, "");
    for delivery in [first, second] {
        assert_submitted_again(&await_answer(delivery).await);
    }
    assert!(fixture.gateway_calls.try_recv().is_err());
}

#[tokio::test]
async fn a_call_is_submitted_until_the_gateway_accepts_it() {
    let mut fixture = BuilderGatewayAndDaemon::new().await;
    let running = spawn_request_with_call_id(
        &fixture.builder,
        "running",
        queued_request(request_tar_with(json!({}))),
    );
    let _solve = fixture.next_solve().await;
    fixture.builder.begin_shutdown(Instant::now());
    // A connection that breaks off, and a queue that cannot be reached.
    drop(fixture.next_gateway_call().await);
    fixture
        .next_gateway_call()
        .await
        .answer(500, "nats: no connection");
    fixture.next_gateway_call().await.answer(202, "");
    assert_submitted_again(&await_answer(running).await);
}

/// The deployer deploys an image once, however often it is handed over.
#[tokio::test]
async fn a_build_whose_deployment_is_interrupted_is_submitted_again() {
    let mut fixture = BuilderGatewayAndDaemon::new().await;
    fixture
        .builder
        .write_secret("deploy-secret", "the key of the deployer\n");
    let tar = request_tar_with(json!({"deploy": {"service": "hello"}}));
    let running = spawn_request_with_call_id(&fixture.builder, "running", queued_request(tar.clone()));
    fixture
        .next_gateway_call()
        .await
        .answer(200, DRY_RUN_ACCEPTED_JSON);
    fixture.next_solve().await.answer_with_digest("sha256:12");
    let hand_over = fixture.next_gateway_call().await;
    assert_eq!(hand_over.request.uri().path(), "/function/deployer-fn");
    fixture.builder.begin_shutdown(Instant::now());
    let again = fixture.next_gateway_call().await;
    assert_eq!(again.request.uri().path(), "/async-function/builder-fn");
    assert_eq!(again.request.body(), &tar);
    again.answer(202, "");
    assert_submitted_again(&await_answer(running).await);
}

#[tokio::test]
async fn a_tar_that_is_too_large_for_a_copy_is_stored_and_submitted_again_by_reference() {
    let mut fixture = BuilderGatewayAndDaemon::new().await;
    let registry = FakeRegistry::start().await;
    let repository = format!("{}/slipway/contexts", registry.host);
    let with_settings = |builder: TestBuilder| {
        let builder = builder.with_private_hosts_for_contexts_and_notifications(&registry.host);
        builder
            .with_stored_contexts(&repository, false)
            .with_seal_key(&STANDARD.encode([7; 32]))
    };
    let builder = with_settings(fixture.builder.clone()).without_body_copies();
    let public_key = SecretKey::from([7; 32]).public_key();
    let envelope = seal_secrets(public_key.as_bytes(), &[("pip_token", "hunter2")]);
    let config = json!({"image": "registry:5000/hello:1", "labels": {"by": "tar"}}).to_string();
    let tar = tar_with_files(&[
        ("com.openfaas.docker.config", config.as_bytes()),
        ("com.openfaas.secrets", envelope.as_bytes()),
        ("context/Dockerfile", b"FROM scratch\n"),
        ("context/a", b"a"),
    ]);
    let running = spawn_request_with_call_id(&builder, "large", queued_request(tar));
    let _solve = fixture.next_solve().await;
    builder.begin_shutdown(Instant::now());
    let call = fixture.next_gateway_call().await;
    let head = call.request.headers();
    assert_eq!(header_text(head, "content-type"), "application/json");
    let body: Value = serde_json::from_slice(call.request.body()).expect("JSON");
    assert_eq!(body["sealedSecrets"], envelope);
    let reference = body["context"]["oci"].as_str().expect("a reference");
    assert!(
        reference.starts_with(&format!("{repository}@sha256:")),
        "{reference}"
    );

    let (daemon, mut calls) = daemon::start_fake_daemon();
    let other = with_settings(TestBuilder::new(daemon));
    let delivery = spawn_redelivery(&other, &call.request);
    call.answer(202, "");
    assert_submitted_again(&await_answer(running).await);
    let (solve, status, session) = calls.wait_without_limit_for_build_calls().await;
    assert_eq!(solve.request.frontend_attrs["label:by"], "tar");
    assert_eq!(solve.request.frontend_attrs["slipway.call-id"], "large");
    let files = complete_or_panic(request_context_files_and_return_paths(&session)).await;
    assert!(files.iter().any(|path| path == "a"), "{files:?}");
    solve.answer_with_digest("sha256:12");
    drop(status);
    assert_eq!(await_answer(delivery).await.status, 200);
}

#[tokio::test]
async fn a_call_that_cannot_be_submitted_again_is_answered_502_and_the_reason_is_logged() {
    for (keeps_copies, reply, expected) in [
        (false, None, "set contexts_repository, or send a reference"),
        (true, Some(400), "the gateway answered 400"),
    ] {
        let (log, _capturing) = CapturedLog::begin();
        let mut fixture = BuilderGatewayAndDaemon::new().await;
        let builder = match keeps_copies {
            true => fixture.builder.clone(),
            false => fixture.builder.clone().without_body_copies(),
        };
        let running =
            spawn_request_with_call_id(&builder, "lost", queued_request(request_tar_with(json!({}))));
        let _solve = fixture.next_solve().await;
        builder.begin_shutdown(Instant::now());
        if let Some(status) = reply {
            fixture.next_gateway_call().await.answer(status, "");
        }
        assert_eq!(await_answer(running).await.status, 502);
        assert!(fixture.gateway_calls.try_recv().is_err());
        let text = log.text();
        assert!(
            text.contains("could not hand an interrupted build back") && text.contains(expected),
            "{text}"
        );

        let late = await_answer(spawn_request_with_call_id(
            &builder,
            "late",
            queued_request(request_tar_with(json!({}))),
        ))
        .await;
        let is_rejected = late.status == 429 && late.body.to_string().contains("starts no more builds");
        assert_eq!(is_rejected, !keeps_copies, "{}", late.body);
    }
}

#[tokio::test]
async fn a_synchronous_call_is_not_submitted_again() {
    let mut fixture = BuilderGatewayAndDaemon::new().await;
    let signature = |tar: &[u8]| sign_body(&hmac_keys(PAYLOAD_KEY), tar);
    let tar = request_tar_with(json!({"tags": ["2"]}));
    let synchronous = build_request_with_signature(tar.clone(), Some(&signature(&tar)));
    let synchronous = spawn_request_with_call_id(&fixture.builder, "synchronous", synchronous);
    let _solve = fixture.next_solve().await;
    fixture.builder.begin_shutdown(Instant::now());
    assert_eq!(await_answer(synchronous).await.status, 502);
    assert!(fixture.gateway_calls.try_recv().is_err());
}
