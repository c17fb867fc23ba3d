//! Tests of single use: if the age of requests is limited, a signed request is built by one call only, by any builder
//! and also after a restart.

use std::time::{Duration, SystemTime};

use builder_fn::buildkit::Daemon;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tonic::Status;

use crate::daemon;
use crate::referenced_contexts::{context_tar, send_json};
use crate::registry::digest_of;
use crate::setting::{AnswerStatusAndBody, TestBuilder, request_tar_with};
use crate::sources::ask_about_source;
use crate::web_server::{FakeWebServer, PageResponse};

fn builder_with_max_age(daemon: &Daemon) -> TestBuilder {
    TestBuilder::new(daemon.clone()).with_max_age_of_requests_with_submitted_at(Duration::from_secs(600))
}

/// Returns the tar of a request whose config has the time of signing.
fn tar_with_signing_time() -> Vec<u8> {
    let now = jiff::Timestamp::try_from(SystemTime::now()).expect("a time");
    request_tar_with(json!({"submittedAt": now.to_string()}))
}

fn spawn_build_as_call(setting: &TestBuilder, call_id: &str, tar: &[u8]) -> JoinHandle<AnswerStatusAndBody> {
    let (setting, tar) = (setting.with_call_id(call_id), tar.to_vec());
    tokio::spawn(async move { setting.send_signed_build(tar).await })
}

async fn assert_rejected_as_already_built(answer: JoinHandle<AnswerStatusAndBody>) {
    let answer = answer.await.expect("no panic");
    assert_eq!(answer.status, 409, "{answer:?}");
    assert_eq!(
        answer.body["error"],
        "this signed request was already built as call first; sign it again with a new submittedAt"
    );
    assert!(answer.body.get("supersededBy").is_none(), "{answer:?}");
}

#[tokio::test]
async fn while_a_request_is_built_another_call_is_rejected_and_a_redelivery_follows_the_build() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let request = tar_with_signing_time();
    let first = spawn_build_as_call(&builder_with_max_age(&daemon), "first", &request);
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;

    assert_rejected_as_already_built(spawn_build_as_call(
        &builder_with_max_age(&daemon),
        "second",
        &request,
    ))
    .await;
    let _rejected = (calls.statuses.recv().await, calls.next_session_call().await);

    let redelivery = spawn_build_as_call(&builder_with_max_age(&daemon), "first", &request);
    let followed = calls.statuses.recv().await.expect("a status");
    let ended = calls.next_session_call().await.ended_by_client;
    ended.await.expect("the redelivery follows");
    drop((status, followed));
    solve.answer_with_digest("sha256:12");
    for build in [first, redelivery] {
        let answer = build.await.expect("no panic");
        assert_eq!(
            (answer.status, &answer.body["digest"]),
            (200, &json!("sha256:12"))
        );
    }
}

#[tokio::test]
async fn a_request_that_was_built_is_rejected_for_another_call_also_by_a_builder_that_has_just_started() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let request = tar_with_signing_time();
    let first = spawn_build_as_call(&builder_with_max_age(&daemon), "first", &request);
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    drop(status);
    solve.answer_with_digest("sha256:12");
    assert_eq!(first.await.expect("no panic").status, 200);

    assert_rejected_as_already_built(spawn_build_as_call(
        &builder_with_max_age(&daemon),
        "second",
        &request,
    ))
    .await;

    let redelivery = spawn_build_as_call(&builder_with_max_age(&daemon), "first", &request);
    drop(calls.statuses.recv().await.expect("a status"));
    assert_eq!(redelivery.await.expect("no panic").body["digest"], "sha256:12");
    assert!(calls.solves.try_recv().is_err(), "nothing is solved again");
}

#[tokio::test]
async fn a_request_whose_build_failed_is_built_again_for_the_same_call_only() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let request = tar_with_signing_time();
    let first = spawn_build_as_call(&builder_with_max_age(&daemon), "first", &request);
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    let reference = solve.request.r#ref.clone();
    drop(status);
    solve.answer_with_error(Status::unknown("exit code: 1"));
    assert_eq!(first.await.expect("no panic").status, 422);

    assert_rejected_as_already_built(spawn_build_as_call(
        &builder_with_max_age(&daemon),
        "second",
        &request,
    ))
    .await;

    let redelivery = spawn_build_as_call(&builder_with_max_age(&daemon), "first", &request);
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    assert_eq!(solve.request.r#ref, format!("{reference}-2"));
    drop(status);
    solve.answer_with_digest("sha256:12");
    assert_eq!(redelivery.await.expect("no panic").status, 200);
}

/// What the second call refers to may be gone, or not be readable any more; the result of the first is still not its
/// own.
#[tokio::test]
async fn a_request_whose_context_is_gone_is_rejected_for_another_call_than_the_one_that_built_it() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let server = FakeWebServer::start().await;
    let tar = context_tar();
    server.set_pages(
        "/a",
        [
            PageResponse::Content(tar.clone().into()),
            PageResponse::Status(404),
        ],
    );
    let now = jiff::Timestamp::try_from(SystemTime::now()).expect("a time");
    let by_url = json!({
        "image": "registry:5000/hello:1",
        "submittedAt": now.to_string(),
        "context": {"url": server.url("/a"), "sha256": &digest_of(&tar)["sha256:".len()..]},
    });
    let by_git = json!({
        "image": "registry:5000/hello:1",
        "submittedAt": now.to_string(),
        "context": {"git": {"repository": "https://git.example/app.git"}},
    });
    let builder =
        builder_with_max_age(&daemon).with_private_hosts_for_contexts_and_notifications(&server.host);
    let send = |call_id: &str, request: &Value| {
        let (builder, request) = (builder.with_call_id(call_id), request.clone());
        tokio::spawn(async move { send_json(&builder, &request).await })
    };
    for request in [&by_url, &by_git] {
        let first = send("first", request);
        if request == &by_git {
            let (_solve, session) = (calls.solves.recv().await, calls.next_session_call().await);
            let lookup = calls.lookups.recv().await.expect("a lookup");
            ask_about_source(&session, "git://git.example/app.git")
                .await
                .expect("an answer");
            lookup.answer_with_commit(None, "0123456789012345678901234567890123456789");
        }
        let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
        drop(status);
        solve.answer_with_digest("sha256:12");
        assert_eq!(first.await.expect("no panic").status, 200);

        for call_id in ["second", "first"] {
            let answer = send(call_id, request);
            if request == &by_git {
                let _calls = (calls.solves.recv().await, calls.next_session_call().await);
                let lookup = calls.lookups.recv().await.expect("a lookup");
                lookup.answer_with_error("failed to fetch remote");
            }
            match call_id {
                "second" => assert_rejected_as_already_built(answer).await,
                _ => {
                    drop(calls.statuses.recv().await.expect("a status"));
                    let answer = answer.await.expect("no panic");
                    assert_eq!(
                        (answer.status, &answer.body["digest"]),
                        (200, &json!("sha256:12"))
                    );
                }
            }
        }
    }
    assert!(calls.solves.try_recv().is_err(), "nothing is built again");
}

#[tokio::test]
async fn a_request_without_a_time_or_a_builder_without_max_age_builds_for_every_call() {
    let unlimited: fn(&Daemon) -> TestBuilder = |daemon| TestBuilder::new(daemon.clone());
    for (builder, request) in [
        (
            builder_with_max_age as fn(&Daemon) -> TestBuilder,
            request_tar_with(json!({})),
        ),
        (unlimited, tar_with_signing_time()),
    ] {
        let (daemon, mut calls) = daemon::start_fake_daemon();
        for call_id in ["first", "second"] {
            let build = spawn_build_as_call(&builder(&daemon), call_id, &request);
            let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
            drop(status);
            solve.answer_with_digest("sha256:12");
            assert_eq!(build.await.expect("no panic").status, 200);
        }
    }
}
