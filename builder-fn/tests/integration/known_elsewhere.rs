//! Tests of questions about builds of other builders: the daemon decodes its whole history only for a build that nobody
//! else knows.

use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::BuildHistoryRecord;
use builder_fn::buildkit::Daemon;
use function_host::http::Method;
use serde_json::json;

use crate::builds::{
    answer_statuses_holding_back_the_last, ask, read_numbered_lines_and_terminal_record,
    start_build_and_wait_for_solve, statuses_of_step_with_output_lines,
};
use crate::complete_or_panic;
use crate::daemon::{self, DaemonCalls, HistoryBehaviour};
use crate::hand_over::let_build_succeed;
use crate::persistence::deliver_queued_build;
use crate::record_store::{ask_until, record_repository_of};
use crate::registry::FakeRegistry;
use crate::setting::{CALL_ID, TestBuilder, request_tar_with};

/// The path of questions about the build.
fn build_path() -> String {
    format!("/builds/{CALL_ID}")
}

/// Starts a daemon with three records of other builds in its history.
fn start_daemon_with_three_records() -> (Daemon, DaemonCalls) {
    let (daemon, calls) = daemon::start_fake_daemon();
    for number in 0..3 {
        let record = BuildHistoryRecord {
            r#ref: format!("record-{number}"),
            ..BuildHistoryRecord::default()
        };
        calls.history.add_finished_build(record, Ok("sha256:00"));
    }
    (daemon, calls)
}

#[tokio::test]
async fn a_build_that_another_builder_runs_is_shown_and_cancelled_without_decoding_the_history() {
    let registry = FakeRegistry::start().await;
    for has_store in [false, true] {
        let (daemon, mut calls) = start_daemon_with_three_records();
        let new_builder = || {
            let builder = TestBuilder::new(daemon.clone());
            match has_store {
                true => builder.with_record_store(&record_repository_of(&registry)),
                false => builder,
            }
        };
        let _ended =
            answer_statuses_holding_back_the_last(&mut calls, statuses_of_step_with_output_lines(3, "line"));
        let (build, mut solve) =
            start_build_and_wait_for_solve(&new_builder(), &mut calls, request_tar_with(json!({}))).await;

        let answer = ask(&new_builder(), Method::GET, &build_path()).await;
        assert_eq!((answer.status, &answer.body["state"]), (200, &json!("running")));
        let other = new_builder();
        let cancelling = tokio::spawn(async move { ask(&other, Method::DELETE, &build_path()).await });
        let marker = complete_or_panic(calls.solves.recv()).await.expect("a marker");
        complete_or_panic(solve.reply.closed()).await;
        marker
            .reply
            .send(Err(tonic::Status::unknown("nothing to solve")))
            .expect("it waits");
        let answer = complete_or_panic(cancelling).await.expect("no panic");
        assert_eq!(
            (answer.status, &answer.body["state"]),
            (200, &json!("cancelled")),
            "{}",
            answer.body
        );
        assert_eq!(complete_or_panic(build).await.expect("no panic").status, 409);
        assert_eq!(
            calls.history.count_of_records_daemon_decoded(),
            0,
            "records: {has_store}"
        );
    }
}

#[tokio::test]
async fn a_build_with_a_stored_record_is_shown_with_its_log_without_decoding_the_history() {
    let registry = FakeRegistry::start().await;
    let (daemon, mut calls) = start_daemon_with_three_records();
    let new_builder = || TestBuilder::new(daemon.clone()).with_record_store(&record_repository_of(&registry));
    let builder = new_builder();
    let build =
        tokio::spawn(async move { deliver_queued_build(&builder, request_tar_with(json!({}))).await });
    let_build_succeed(&mut calls).await;
    assert_eq!(complete_or_panic(build).await.expect("no panic").status, 200);
    let ended =
        answer_statuses_holding_back_the_last(&mut calls, statuses_of_step_with_output_lines(3, "line"));
    ended.send_replace(true);

    let later = new_builder();
    // The end is written in the background.
    let answer = ask_until(&later, CALL_ID, |answer| answer.body["state"] == "success").await;
    assert_eq!(answer.body["steps"]["total"], 0, "{}", answer.body);
    let (lines, terminal) = read_numbered_lines_and_terminal_record(&new_builder(), 1).await;
    assert_eq!((lines.len(), &terminal["status"]), (5, &json!("success")));
    assert_eq!(calls.history.count_of_records_daemon_decoded(), 0);
}

#[tokio::test]
async fn the_history_is_searched_once_for_a_build_that_nothing_else_knows() {
    let (daemon, mut calls) = start_daemon_with_three_records();
    let builder = TestBuilder::new(daemon.clone());
    let build = tokio::spawn(async move { builder.send_signed_build(request_tar_with(json!({}))).await });
    let_build_succeed(&mut calls).await;
    assert_eq!(complete_or_panic(build).await.expect("no panic").status, 200);

    let later = TestBuilder::new(daemon);
    for _ in 0..2 {
        let answer = ask(&later, Method::GET, &build_path()).await;
        assert_eq!((answer.status, &answer.body["state"]), (200, &json!("success")));
        assert_eq!(
            calls.history.count_of_records_daemon_decoded(),
            4,
            "the build's record is the fourth"
        );
    }
}

#[tokio::test]
async fn a_build_query_waits_20_seconds_for_the_history_and_a_cancellation_then_needs_no_search() {
    let (daemon, mut calls) = start_daemon_with_three_records();
    let builder = TestBuilder::new(daemon.clone());
    let build = tokio::spawn(async move { builder.send_signed_build(request_tar_with(json!({}))).await });
    let_build_succeed(&mut calls).await;
    assert_eq!(complete_or_panic(build).await.expect("no panic").status, 200);
    calls
        .history
        .set_behaviour(HistoryBehaviour::SlowToDecode(Duration::from_secs(20)));
    tokio::time::pause();

    let later = TestBuilder::new(daemon);
    let began = tokio::time::Instant::now();
    let answer = ask(&later, Method::GET, &build_path()).await;
    assert_eq!(
        (answer.status, &answer.body["state"]),
        (200, &json!("success")),
        "{}",
        answer.body
    );
    assert!(began.elapsed() >= Duration::from_secs(20), "it was searched");
    let began = tokio::time::Instant::now();
    let answer = ask(&later, Method::DELETE, &build_path()).await;
    assert_eq!(answer.status, 409, "{}", answer.body);
    assert!(began.elapsed() < Duration::from_secs(1), "its reference is known");
}
