//! Tests of supersession: newer builds of a function end older ones, in one builder and across builders of one daemon.

use std::time::{Duration, SystemTime};

use bollard_buildkit_proto::moby::buildkit::v1::SolveRequest;
use builder_fn::buildkit::Daemon;
use builder_fn::slots::BuildSlots;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::daemon::{self, DaemonCalls, HistoryBehaviour};
use crate::gateway::{self, start_gateway_answering_hand_overs};
use crate::setting::{AnswerStatusAndBody, TestBuilder, request_tar_with};

/// Creates a builder whose deployer accepts every hand-over.
async fn builder_with_ready_deployer(daemon: &Daemon) -> TestBuilder {
    let (address, _received) =
        start_gateway_answering_hand_overs(200, r#"{"function":"hello","status":"ready"}"#).await;
    let setting = TestBuilder::with_gateway(daemon.clone(), &format!("http://{address}"));
    setting.write_secret("deploy-secret", "deploy key\n");
    setting
}

/// Sends a build request that deploys `hello`, with `config_changes`, in a background task.
fn spawn_build_deploying_hello(
    setting: &TestBuilder,
    call_id: &str,
    config_changes: Value,
) -> JoinHandle<AnswerStatusAndBody> {
    let setting = setting.with_call_id(call_id);
    let mut config = json!({"deploy": {"service": "hello"}});
    for (key, value) in config_changes.as_object().expect("an object") {
        config[key] = value.clone();
    }
    tokio::spawn(async move { setting.send_signed_build(request_tar_with(config)).await })
}

/// Returns a solve request of another builder for `function`, submitted `submitted_in` after now.
fn solve_request_of_another_builder(call_id: &str, function: &str, submitted_in: Duration) -> SolveRequest {
    let submitted_at = jiff::Timestamp::try_from(SystemTime::now() + submitted_in).expect("a time");
    let attrs = [
        ("slipway.call-id", call_id.to_owned()),
        ("slipway.function", function.to_owned()),
        ("slipway.submitted-at", submitted_at.to_string()),
    ];
    SolveRequest {
        r#ref: format!("ref-of-{call_id}"),
        frontend_attrs: attrs.map(|(name, value)| (name.to_owned(), value)).into(),
        ..SolveRequest::default()
    }
}

async fn assert_superseded(answer: JoinHandle<AnswerStatusAndBody>, newer_call_id: &str) {
    let answer = answer.await.expect("no panic");
    assert_eq!(answer.status, 409, "{answer:?}");
    assert_eq!(answer.body["status"], "failed");
    assert_eq!(answer.body["supersededBy"], newer_call_id);
    let error = answer.body["error"].as_str().expect("text");
    let expected =
        format!("superseded by the build {newer_call_id} of function hello.openfaas-fn, submitted at 20");
    assert!(error.starts_with(&expected), "{error}");
}

/// Returns the time `seconds_ago` in the format of the config's `submittedAt`.
fn format_submission_time(seconds_ago: u64) -> String {
    let time = SystemTime::now() - Duration::from_secs(seconds_ago);
    jiff::Timestamp::try_from(time).expect("a time").to_string()
}

/// Waits until a builder listens to the fake daemon's history: for newer builds, and for requests to cancel its own.
async fn wait_for_supersession_and_cancellation_listeners(calls: &DaemonCalls) {
    while calls.history.listener_count() < 2 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_newer_build_cancels_the_solve_of_an_older_one_whichever_builder_runs_it() {
    for is_same_builder in [true, false] {
        let (daemon, mut calls) = daemon::start_fake_daemon();
        let first = builder_with_ready_deployer(&daemon).await;
        let second = match is_same_builder {
            true => first.clone(),
            false => builder_with_ready_deployer(&daemon).await,
        };
        let old = spawn_build_deploying_hello(&first, "old", json!({}));
        let (mut old_solve, _status, _session) = calls.wait_without_limit_for_build_calls().await;

        let new = spawn_build_deploying_hello(
            &second,
            "new",
            json!({"deploy": {"service": "hello", "namespace": "openfaas-fn"}}),
        );
        let (new_solve, status, _session) = calls.wait_without_limit_for_build_calls().await;

        assert_superseded(old, "new").await;
        old_solve.reply.closed().await;
        drop(status);
        new_solve.answer_with_digest("sha256:12");
        assert_eq!(new.await.expect("no panic").body["digest"], "sha256:12");
    }
}

#[tokio::test]
async fn a_newer_build_ends_an_older_one_that_waits_for_a_slot() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = builder_with_ready_deployer(&daemon)
        .await
        .with_slots(BuildSlots::new(1, Duration::from_secs(600), 8));
    let other = spawn_build_deploying_hello(&setting, "other", json!({"deploy": {"service": "other"}}));
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    let old = spawn_build_deploying_hello(&setting, "old", json!({}));

    // As another builder runs it.
    let request = solve_request_of_another_builder("new", "hello.openfaas-fn", Duration::from_secs(60));
    let _running = calls.history.record_start(&request).expect("a free reference");

    assert_superseded(old, "new").await;
    drop(status);
    solve.answer_with_digest("sha256:12");
    assert_eq!(other.await.expect("no panic").body["digest"], "sha256:12");
}

#[tokio::test]
async fn builds_that_are_not_deployed_or_are_of_another_function_or_namespace_go_on() {
    for (first, second) in [
        (json!({"deploy": null}), json!({})),
        (json!({}), json!({"deploy": null})),
        (json!({}), json!({"deploy": {"service": "other"}})),
        (
            json!({}),
            json!({"deploy": {"service": "hello", "namespace": "dev"}}),
        ),
    ] {
        let (daemon, mut calls) = daemon::start_fake_daemon();
        let setting = builder_with_ready_deployer(&daemon).await;
        let mut builds = Vec::new();
        for (call_id, config) in [("first", &first), ("second", &second)] {
            let build = spawn_build_deploying_hello(&setting, call_id, config.clone());
            builds.push((build, calls.wait_without_limit_for_build_calls().await));
        }
        wait_for_supersession_and_cancellation_listeners(&calls).await;

        for (build, (solve, status, _session)) in builds {
            drop(status);
            solve.answer_with_digest("sha256:12");
            let answer = build.await.expect("no panic");
            assert_eq!(answer.body["digest"], "sha256:12", "{first} {second} {answer:?}");
        }
    }
}

#[tokio::test]
async fn an_older_build_is_not_solved_once_a_newer_one_runs_or_has_succeeded() {
    for is_finished in [false, true] {
        let (daemon, mut calls) = daemon::start_fake_daemon();
        let request = solve_request_of_another_builder("new", "hello.openfaas-fn", Duration::from_secs(60));
        let recording = calls.history.record_start(&request).expect("a free reference");
        let _running = match is_finished {
            true => {
                recording.record_outcome(Ok("sha256:12"));
                None
            }
            false => Some(recording),
        };

        assert_superseded(
            spawn_build_deploying_hello(&builder_with_ready_deployer(&daemon).await, "old", json!({})),
            "new",
        )
        .await;
        assert!(calls.solves.try_recv().is_err(), "nothing is solved");
    }
}

#[tokio::test]
async fn a_failed_newer_build_supersedes_none() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let request = solve_request_of_another_builder("new", "hello.openfaas-fn", Duration::from_secs(60));
    let recording = calls.history.record_start(&request).expect("a free reference");
    recording.record_outcome(Err(&tonic::Status::unknown("exit code: 1")));
    let old = spawn_build_deploying_hello(&builder_with_ready_deployer(&daemon).await, "old", json!({}));

    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    drop(status);
    solve.answer_with_digest("sha256:12");
    assert_eq!(old.await.expect("no panic").body["digest"], "sha256:12");
}

#[tokio::test(start_paused = true)]
async fn a_builder_that_lost_the_history_finds_what_it_missed_when_it_reconnects() {
    for is_finished in [false, true] {
        let (daemon, mut calls) = daemon::start_fake_daemon();
        let old = spawn_build_deploying_hello(&builder_with_ready_deployer(&daemon).await, "old", json!({}));
        let _solve = calls.wait_without_limit_for_build_calls().await;
        wait_for_supersession_and_cancellation_listeners(&calls).await;

        calls.history.set_behaviour(HistoryBehaviour::Unimplemented);
        calls.history.disconnect_listeners();
        let request = solve_request_of_another_builder("new", "hello.openfaas-fn", Duration::from_secs(60));
        let recording = calls.history.record_start(&request).expect("a free reference");
        let _running = match is_finished {
            true => {
                recording.record_outcome(Ok("sha256:12"));
                None
            }
            false => Some(recording),
        };
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!old.is_finished(), "nothing is known of the newer build");

        calls.history.set_behaviour(HistoryBehaviour::Kept);
        assert_superseded(old, "new").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_history_that_fails_or_never_answers_prevents_no_build() {
    for behaviour in [HistoryBehaviour::Unimplemented, HistoryBehaviour::Silent] {
        let (daemon, mut calls) = daemon::start_fake_daemon();
        calls.history.set_behaviour(behaviour);
        let build =
            spawn_build_deploying_hello(&builder_with_ready_deployer(&daemon).await, "call", json!({}));

        let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
        drop(status);
        solve.answer_with_digest("sha256:12");

        assert_eq!(
            build.await.expect("no panic").body["digest"],
            "sha256:12",
            "{behaviour:?}"
        );
    }
}

#[tokio::test]
async fn a_build_whose_hand_over_was_sent_ends_with_the_deployers_answer_despite_a_newer_build() {
    let (address, mut received) = gateway::start_manual_gateway().await;
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::with_gateway(daemon, &format!("http://{address}"));
    setting.write_secret("deploy-secret", "deploy key\n");
    let old = spawn_build_deploying_hello(&setting, "old", json!({}));
    received
        .recv()
        .await
        .expect("a dry run")
        .answer(200, gateway::DRY_RUN_ACCEPTED_JSON);
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    drop(status);
    solve.answer_with_digest("sha256:12");
    let hand_over = received.recv().await.expect("a hand-over");

    let new = spawn_build_deploying_hello(&setting, "new", json!({}));
    received
        .recv()
        .await
        .expect("a dry run")
        .answer(200, gateway::DRY_RUN_ACCEPTED_JSON);
    let (new_solve, ..) = calls.wait_without_limit_for_build_calls().await;
    hand_over.answer(502, r#"{"status":"failed","reasons":["a test"]}"#);

    let answer = old.await.expect("no panic");
    assert_eq!(answer.status, 502, "{answer:?}");
    assert_eq!(answer.body["digest"], "sha256:12");
    drop(new_solve);
    new.abort();
}

#[tokio::test]
async fn deliveries_of_one_call_do_not_supersede_each_other() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let first = spawn_build_deploying_hello(&builder_with_ready_deployer(&daemon).await, "call", json!({}));
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    let second = spawn_build_deploying_hello(&builder_with_ready_deployer(&daemon).await, "call", json!({}));
    // The daemon has refused the second solve once its session has ended.
    let _followed = calls.statuses.recv().await.expect("a status");
    let ended = calls.next_session_call().await.ended_by_client;
    ended.await.expect("the client ends the session");

    drop((status, _followed));
    solve.answer_with_digest("sha256:12");

    for build in [first, second] {
        let answer = build.await.expect("no panic");
        assert_eq!(answer.body["digest"], "sha256:12", "{answer:?}");
    }
}

#[tokio::test]
async fn a_solve_carries_its_call_and_function_for_other_builders() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let build = spawn_build_deploying_hello(&builder_with_ready_deployer(&daemon).await, "call", json!({}));
    let (solve, ..) = calls.wait_without_limit_for_build_calls().await;

    let attrs = &solve.request.frontend_attrs;
    assert_eq!(attrs["slipway.call-id"], "call");
    assert_eq!(attrs["slipway.function"], "hello.openfaas-fn");
    assert_eq!(attrs["slipway.signature"].len(), 64);
    attrs["slipway.submitted-at"]
        .parse::<jiff::Timestamp>()
        .expect("RFC 3339");
    build.abort();

    let build = spawn_build_deploying_hello(
        &builder_with_ready_deployer(&daemon).await,
        "call-2",
        json!({"deploy": null}),
    );
    let (solve, ..) = calls.wait_without_limit_for_build_calls().await;
    assert!(!solve.request.frontend_attrs.contains_key("slipway.function"));
    build.abort();
}

#[tokio::test(start_paused = true)]
async fn history_listeners_end_within_a_minute_after_the_last_build() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let build = spawn_build_deploying_hello(&builder_with_ready_deployer(&daemon).await, "call", json!({}));
    let (mut solve, ..) = calls.wait_without_limit_for_build_calls().await;
    wait_for_supersession_and_cancellation_listeners(&calls).await;

    build.abort();
    solve.reply.closed().await;

    let begun = tokio::time::Instant::now();
    while calls.history.listener_count() > 0 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn builds_that_follow_each_other_make_the_daemon_decode_its_records_once() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = builder_with_ready_deployer(&daemon).await;
    let request = solve_request_of_another_builder("other", "other.openfaas-fn", Duration::ZERO);
    let recording = calls.history.record_start(&request).expect("a free reference");
    recording.record_outcome(Ok("sha256:12"));
    for (call_id, service) in [("first", "hello"), ("second", "hello"), ("third", "other")] {
        let build = spawn_build_deploying_hello(&builder, call_id, json!({"deploy": {"service": service}}));
        let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
        drop(status);
        solve.answer_with_digest("sha256:12");
        assert_eq!(build.await.expect("no panic").body["digest"], "sha256:12");
        assert_eq!(
            calls.history.count_of_records_daemon_decoded(),
            1,
            "after the {call_id} build"
        );
    }
}

#[tokio::test]
async fn a_build_submitted_two_hours_ago_is_superseded_by_a_finished_one_submitted_an_hour_ago() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = builder_with_ready_deployer(&daemon).await;
    // It supersedes builds that were submitted more than an hour ago.
    let hour_ago = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(3600);
    let mut request = solve_request_of_another_builder("newer", "old.openfaas-fn", Duration::ZERO);
    let submitted_at = ("slipway.submitted-at".to_owned(), hour_ago.to_string());
    request.frontend_attrs.extend([submitted_at]);
    let recording = calls.history.record_start(&request).expect("a free reference");
    recording.record_outcome(Ok("sha256:12"));
    let running = spawn_build_deploying_hello(&builder, "running", json!({}));
    let _running_calls = calls.wait_without_limit_for_build_calls().await;

    let changes = json!({"deploy": {"service": "old"}, "submittedAt": format_submission_time(7200)});
    let old = spawn_build_deploying_hello(&builder, "old", changes)
        .await
        .expect("no panic");

    assert_eq!(
        (old.status, &old.body["supersededBy"]),
        (409, &json!("newer")),
        "{old:?}"
    );
    running.abort();
}

#[tokio::test]
async fn a_config_with_supersede_false_neither_supersedes_nor_is_superseded() {
    for (first, second) in [(true, false), (false, true)] {
        let (daemon, mut calls) = daemon::start_fake_daemon();
        let setting = builder_with_ready_deployer(&daemon).await;
        let mut builds = Vec::new();
        for (call_id, supersede) in [("first", first), ("second", second)] {
            let build = spawn_build_deploying_hello(&setting, call_id, json!({"supersede": supersede}));
            builds.push((build, calls.wait_without_limit_for_build_calls().await));
        }
        wait_for_supersession_and_cancellation_listeners(&calls).await;

        for (build, (solve, status, _session)) in builds {
            drop(status);
            solve.answer_with_digest("sha256:12");
            assert_eq!(build.await.expect("no panic").status, 200);
        }
    }
}

#[tokio::test]
async fn builds_are_ordered_by_the_time_of_their_submission_and_not_of_their_arrival() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let new = spawn_build_deploying_hello(
        &builder_with_ready_deployer(&daemon).await,
        "new",
        json!({"submittedAt": format_submission_time(10)}),
    );
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;

    let old = spawn_build_deploying_hello(
        &builder_with_ready_deployer(&daemon).await,
        "old",
        json!({"submittedAt": format_submission_time(20)}),
    );
    assert_superseded(old, "new").await;

    drop(status);
    solve.answer_with_digest("sha256:12");
    assert_eq!(new.await.expect("no panic").status, 200);
    // Also after a restart of both builders.
    let older = spawn_build_deploying_hello(
        &builder_with_ready_deployer(&daemon).await,
        "older",
        json!({"submittedAt": format_submission_time(30)}),
    );
    assert_superseded(older, "new").await;
}

#[tokio::test]
async fn a_streamed_answer_ends_with_a_record_that_names_the_newer_build() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = builder_with_ready_deployer(&daemon).await;
    let config = json!({"deploy": {"service": "hello"}});
    let records = setting
        .with_call_id("old")
        .send_streamed_build(request_tar_with(config), "application/x-ndjson")
        .await;
    let _old = calls.wait_without_limit_for_build_calls().await;
    let new = spawn_build_deploying_hello(&setting, "new", json!({"noCache": true}));

    let (_, last) = records.read_lines_and_terminal_record().await;
    assert_eq!(
        (&last["status"], &last["supersededBy"]),
        (&json!("failed"), &json!("new"))
    );
    new.abort();
}

/// A generated step of a supersession test: a build arrives at a builder, or the running build ends, with or without
/// success.
#[derive(Clone, Copy, Debug)]
enum BuildArrivalOrEndStep {
    Arrive { builder: usize, seconds_ago: u64 },
    End { succeeds: bool },
}

fn generate_steps() -> impl Strategy<Value = Vec<BuildArrivalOrEndStep>> {
    let arrive = (0..2_usize, 1..1000_u64)
        .prop_map(|(builder, seconds_ago)| BuildArrivalOrEndStep::Arrive { builder, seconds_ago });
    let end = any::<bool>().prop_map(|succeeds| BuildArrivalOrEndStep::End { succeeds });
    prop::collection::vec(prop_oneof![4 => arrive, 1 => end], 1..10)
}

/// Runs generated steps on two builders of one daemon, and checks that no build outlives a newer one.
async fn run_steps_and_check_supersession(steps: Vec<BuildArrivalOrEndStep>) {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builders = [
        builder_with_ready_deployer(&daemon).await,
        builder_with_ready_deployer(&daemon).await,
    ];
    let mut times = std::collections::HashSet::new();
    // The call ids and ages of the builds that succeeded, and of the one that runs.
    let mut succeeded: Vec<(String, u64)> = Vec::new();
    let mut running: Option<(String, u64, JoinHandle<AnswerStatusAndBody>, _)> = None;
    for (at, step) in steps.into_iter().enumerate() {
        match step {
            BuildArrivalOrEndStep::Arrive { seconds_ago, .. } if !times.insert(seconds_ago) => {}
            BuildArrivalOrEndStep::Arrive { builder, seconds_ago } => {
                let call_id = at.to_string();
                let build = spawn_build_deploying_hello(
                    &builders[builder],
                    &call_id,
                    json!({"submittedAt": format_submission_time(seconds_ago)}),
                );
                let newer = running.as_ref().map(|(id, ago, ..)| (id.clone(), *ago));
                let newer = newer.into_iter().chain(succeeded.clone());
                let newer: Vec<_> = newer.filter(|(_, ago)| *ago < seconds_ago).collect();
                if !newer.is_empty() {
                    let answer = build.await.expect("no panic");
                    assert_eq!(answer.status, 409, "{answer:?}");
                    let by = answer.body["supersededBy"].as_str().expect("a call id");
                    assert!(newer.iter().any(|(id, _)| id == by), "{by} of {newer:?}");
                    continue;
                }
                let mut call = calls.wait_without_limit_for_build_calls().await;
                // One that began before its builder had heard of the newer build, and was superseded.
                while call.0.request.frontend_attrs["slipway.call-id"] != call_id {
                    call = calls.wait_without_limit_for_build_calls().await;
                }
                if let Some((_, _, old, _)) = running.replace((call_id.clone(), seconds_ago, build, call)) {
                    assert_superseded(old, &call_id).await;
                }
            }
            BuildArrivalOrEndStep::End { succeeds } => {
                let Some((call_id, seconds_ago, build, (solve, status, _session))) = running.take() else {
                    continue;
                };
                drop(status);
                match succeeds {
                    true => solve.answer_with_digest("sha256:12"),
                    false => solve.answer_with_error(tonic::Status::unknown("exit code: 1")),
                }
                let answer = build.await.expect("no panic");
                assert_eq!(answer.status, if succeeds { 200 } else { 422 }, "{answer:?}");
                if succeeds {
                    succeeded.push((call_id, seconds_ago));
                }
            }
        }
    }
    if let Some((_, _, build, _)) = running {
        build.abort();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn an_older_build_never_outlives_a_newer_one_whichever_builder_runs_them(steps in generate_steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(run_steps_and_check_supersession(steps));
    }
}
