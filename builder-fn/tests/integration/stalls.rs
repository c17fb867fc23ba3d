//! Tests of streamed builds that stall: each ends in a terminal record before the host or the process ends it.

use std::any::Any;
use std::time::Duration;

use builder_fn::slots::BuildSlots;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::hand_over::let_build_succeed;
use crate::setting::{TestBuilder, request_tar_with};
use crate::{daemon, gateway};

const NDJSON_MEDIA_TYPE: &str = "application/x-ndjson";

/// The time until the deadline of the call, or until the end of the process.
const TIME_TO_DEADLINE: Duration = Duration::from_secs(600);

/// The step at which a stalled build waits for another party.
#[derive(Clone, Copy, Debug, PartialEq)]
enum StalledStep {
    DryRun,
    Slot,
    Connection,
    Solve,
    LogAfterSolve,
    HandOver,
    Retries,
}

/// Runs a streamed build that stalls at a step, and returns its terminal record.
async fn run_stalled_build_to_terminal_record(stall: StalledStep, ends_by_shutdown: bool) -> Value {
    let (address, mut received) = gateway::start_manual_gateway().await;
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::with_gateway(
        match stall {
            StalledStep::Connection => daemon::never_connecting_daemon(),
            _ => daemon,
        },
        &format!("http://{address}"),
    )
    .with_deploy_timeout(TIME_TO_DEADLINE * 2)
    .with_slots(BuildSlots::new(1, TIME_TO_DEADLINE * 2, 1));
    setting.write_secret("deploy-secret", "deploy key\n");
    // What must not be dropped while the build stalls.
    let mut held: Vec<Box<dyn Any>> = Vec::new();
    if stall == StalledStep::Slot {
        held.push(Box::new(
            setting
                .send_streamed_build(request_tar_with(json!({})), NDJSON_MEDIA_TYPE)
                .await,
        ));
        held.push(Box::new(calls.wait_without_limit_for_build_calls().await));
    }
    let end = Instant::now() + TIME_TO_DEADLINE;
    let limited = match ends_by_shutdown {
        true => setting.clone(),
        false => setting.clone().with_deadline(end),
    };
    let config = json!({"deploy": {"service": "hello"}, "noCache": true});
    let records = limited
        .send_streamed_build(request_tar_with(config), NDJSON_MEDIA_TYPE)
        .await;
    let dry_run = received.recv().await.expect("a dry run");
    match stall {
        StalledStep::DryRun => held.push(Box::new(dry_run)),
        _ => dry_run.answer(200, gateway::DRY_RUN_ACCEPTED_JSON),
    }
    match stall {
        StalledStep::DryRun | StalledStep::Slot | StalledStep::Connection => {}
        StalledStep::Solve => held.push(Box::new(calls.wait_without_limit_for_build_calls().await)),
        StalledStep::LogAfterSolve => {
            let (solve, status, session) = calls.wait_without_limit_for_build_calls().await;
            solve.answer_with_digest("sha256:12");
            held.push(Box::new((status, session)));
        }
        StalledStep::HandOver => {
            let_build_succeed(&mut calls).await;
            held.push(Box::new(received.recv().await));
        }
        StalledStep::Retries => {
            let_build_succeed(&mut calls).await;
            received.recv().await.expect("a hand-over").answer(503, "");
        }
    }
    // From here on, time passes while everything waits.
    tokio::time::pause();
    if ends_by_shutdown {
        setting.begin_shutdown(end);
    }
    let (_, last) = records.read_lines_and_terminal_record().await;
    assert!(Instant::now() < end, "{stall:?}");
    last
}

#[tokio::test]
async fn every_stalled_build_ends_in_a_terminal_record_before_the_call_or_the_process_ends() {
    for stall in [
        StalledStep::DryRun,
        StalledStep::Slot,
        StalledStep::Connection,
        StalledStep::Solve,
        StalledStep::LogAfterSolve,
        StalledStep::HandOver,
        StalledStep::Retries,
    ] {
        for is_shutdown in [false, true] {
            let last = run_stalled_build_to_terminal_record(stall, is_shutdown).await;
            assert_eq!(last["status"], "failed", "{stall:?}, shutdown: {is_shutdown}");
            assert!(last["error"].is_string(), "{stall:?}, shutdown: {is_shutdown}");
            tokio::time::resume();
        }
    }
}
