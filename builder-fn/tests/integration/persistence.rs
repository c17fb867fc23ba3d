//! Tests of which builds outlive their caller (those of queued calls), and which are tried again (those that the
//! platform failed).

use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::StatusResponse;
use function_host::signature::sign_body;
use serde_json::json;
use tonic::Status;

use crate::builds::answer_statuses_holding_back_the_last;
use crate::complete_or_panic;
use crate::daemon;
use crate::setting::{
    AnswerStatusAndBody, PAYLOAD_KEY, TestBuilder, build_request_with_signature, hmac_keys, request_tar_with,
};

/// Sends a build as the gateway's queue does.
pub(crate) async fn deliver_queued_build(builder: &TestBuilder, tar: Vec<u8>) -> AnswerStatusAndBody {
    deliver_queued_build_signed_with(builder, PAYLOAD_KEY, tar).await
}

/// Sends a build that is signed with `key` as the gateway's queue does.
pub(crate) async fn deliver_queued_build_signed_with(
    builder: &TestBuilder,
    key: &str,
    tar: Vec<u8>,
) -> AnswerStatusAndBody {
    let signature = sign_body(&hmac_keys(key), &tar);
    let mut request = build_request_with_signature(tar, Some(&signature));
    for time in ["1790000000000000000", "1790000000000000001"] {
        let time = time.parse().expect("header");
        request.headers_mut().append("x-start-time", time);
    }
    AnswerStatusAndBody::from_json_response_or_text_of_429(builder.send_request(request).await).await
}

#[tokio::test]
async fn a_queued_build_goes_on_without_its_caller_and_a_redelivery_gets_its_result() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon);
    let statuses = answer_statuses_holding_back_the_last(&mut calls, vec![StatusResponse::default()]);
    statuses.send_replace(true);
    let tar = request_tar_with(json!({}));
    let (own, first) = (builder.clone(), tar.clone());
    let delivery = tokio::spawn(async move { deliver_queued_build(&own, first).await });
    let solve = complete_or_panic(calls.solves.recv()).await.expect("a solve");

    delivery.abort();
    delivery.await.expect_err("the caller has left");
    let (own, again) = (builder.clone(), tar);
    let redelivery = tokio::spawn(async move { deliver_queued_build(&own, again).await });
    // The daemon rejects the second solve itself, as its reference is taken.
    assert!(!solve.reply.is_closed(), "the first one goes on");
    solve.answer_with_digest("sha256:12");

    let answer = complete_or_panic(redelivery).await.expect("no panic");
    assert_eq!(
        (answer.status, &answer.body["digest"]),
        (200, &json!("sha256:12"))
    );
}

#[tokio::test]
async fn a_synchronous_build_ends_with_its_caller() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon);
    let _statuses = answer_statuses_holding_back_the_last(&mut calls, vec![StatusResponse::default()]);
    let delivery = tokio::spawn(async move { builder.send_signed_build(request_tar_with(json!({}))).await });
    let mut solve = complete_or_panic(calls.solves.recv()).await.expect("a solve");

    delivery.abort();

    complete_or_panic(solve.reply.closed()).await;
}

#[tokio::test]
async fn a_build_is_tried_again_after_failures_of_the_platform_and_its_log_says_so() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon).with_retry_time(Duration::from_secs(60));
    let statuses = answer_statuses_holding_back_the_last(&mut calls, vec![StatusResponse::default()]);
    statuses.send_replace(true);
    let build =
        tokio::spawn(async move { deliver_queued_build(&builder, request_tar_with(json!({}))).await });

    let solve = complete_or_panic(calls.solves.recv()).await.expect("a solve");
    solve.answer_with_error(Status::unavailable("the daemon shuts down"));
    let solve = complete_or_panic(calls.solves.recv())
        .await
        .expect("a second solve");
    solve.answer_with_digest("sha256:12");

    let answer = complete_or_panic(build).await.expect("no panic");
    assert_eq!(
        (answer.status, &answer.body["digest"]),
        (200, &json!("sha256:12"))
    );
    let log = answer.body["log"].to_string();
    assert!(
        log.contains("attempt 1 failed: BuildKit was lost during the build; the build is tried again"),
        "{log}"
    );
}

#[tokio::test]
async fn a_failing_step_is_not_tried_again() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon).with_retry_time(Duration::from_secs(60));
    let statuses = answer_statuses_holding_back_the_last(&mut calls, vec![StatusResponse::default()]);
    statuses.send_replace(true);
    let build =
        tokio::spawn(async move { deliver_queued_build(&builder, request_tar_with(json!({}))).await });

    let solve = complete_or_panic(calls.solves.recv()).await.expect("a solve");
    solve.answer_with_error(Status::unknown(
        "process \"make\" did not complete successfully: exit code: 2",
    ));

    assert_eq!(complete_or_panic(build).await.expect("no panic").status, 422);
    assert!(calls.solves.try_recv().is_err(), "no second solve");
}
