//! Tests of the log of a build whose daemon is killed in mid-build, and has no record of that attempt.

use std::time::Duration;

use function_host::ResponseBody;
use function_host::http::Method;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::builds::{
    answer_statuses_holding_back_the_last, ask, number_and_first_line_of_log_record, open_log,
    read_numbered_lines_and_terminal_record, start_build_and_wait_for_solve,
    statuses_of_step_with_output_lines,
};
use crate::complete_or_panic;
use crate::daemon::{self, DaemonCalls, SolveCall};
use crate::persistence::deliver_queued_build;
use crate::setting::{TestBuilder, request_tar_with};

/// The number of lines that the step of the build writes.
const LINE_COUNT: usize = 1000;

/// The distance between the numbers of the first lines of two attempts in a row.
const LINE_NUMBERS_PER_ATTEMPT: u64 = 1_000_000_000;

/// Reads a log until it has the last line of the step's output.
async fn read_until_last_output_line(log: &mut ResponseBody) -> Vec<u8> {
    let last_line = format!("line {}", LINE_COUNT - 1);
    let mut received = Vec::new();
    while !String::from_utf8_lossy(&received).contains(&last_line) {
        let frame = complete_or_panic(log.frame()).await.expect("a frame");
        received.extend_from_slice(&frame.expect("no error").into_data().expect("data"));
    }
    received
}

/// Reads the rest of a log, and returns the records of all of it.
async fn read_rest(log: ResponseBody, mut received: Vec<u8>) -> Vec<Value> {
    let rest = complete_or_panic(log.collect()).await.expect("body");
    received.extend_from_slice(&rest.to_bytes());
    let records = received.split_inclusive(|byte| *byte == b'\n');
    records
        .map(|record| serde_json::from_slice(record).expect("a record"))
        .collect()
}

/// Ends the daemon's build without a record, as if the daemon was killed and started again.
async fn kill_daemon_and_wait_until_solve_is_lost(calls: &DaemonCalls, solve: &mut SolveCall) {
    calls.history.lose_running_builds();
    calls.cut_connections();
    complete_or_panic(solve.reply.closed()).await;
}

/// Asserts that these are the lines of one whole attempt: the numbers from `first` on, and the output of the step.
fn assert_lines_of_attempt(lines: &[(u64, String)], first: u64) {
    let numbers = lines.iter().map(|(number, _)| *number);
    assert!(numbers.eq((first..).take(LINE_COUNT + 2)), "{}", lines.len());
    let output = lines.iter().filter_map(|(_, text)| text.split(" line ").nth(1));
    assert!(output.eq((0..LINE_COUNT).map(|number| number.to_string())));
}

#[tokio::test]
async fn after_a_daemon_is_killed_readers_get_each_line_of_the_rerun_once_under_greater_numbers() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon.clone()).with_retry_time(Duration::from_secs(60));
    let ended = answer_statuses_holding_back_the_last(
        &mut calls,
        statuses_of_step_with_output_lines(LINE_COUNT, "line"),
    );
    let own = builder.clone();
    let build = tokio::spawn(async move { deliver_queued_build(&own, request_tar_with(json!({}))).await });
    let mut lost = complete_or_panic(calls.solves.recv()).await.expect("a solve");
    let other = TestBuilder::new(daemon);
    let mut logs = Vec::new();
    for asked in [&builder, &other] {
        let mut log = open_log(asked, 1).await.into_body();
        let received = read_until_last_output_line(&mut log).await;
        logs.push((log, received));
    }
    kill_daemon_and_wait_until_solve_is_lost(&calls, &mut lost).await;
    let rerun = complete_or_panic(calls.solves.recv()).await.expect("a solve");
    assert_eq!(rerun.request.r#ref, lost.request.r#ref);
    ended.send_replace(true);
    rerun.answer_with_digest("sha256:12");
    assert_eq!(complete_or_panic(build).await.expect("no panic").status, 200);

    for (log, received) in logs {
        let mut records = read_rest(log, received).await;
        let terminal = records.pop().expect("a terminal record");
        assert_eq!(terminal["status"], "success", "{terminal}");
        assert_eq!(terminal["warnings"], Value::Null);
        let lines: Vec<_> = records
            .iter()
            .filter_map(number_and_first_line_of_log_record)
            .collect();
        let (before, after): (Vec<_>, Vec<_>) = lines
            .into_iter()
            .partition(|(number, _)| *number <= LINE_NUMBERS_PER_ATTEMPT);
        // The lost attempt has no end of its step.
        let numbers = before.iter().map(|(number, _)| *number);
        assert!(numbers.eq((1..).take(LINE_COUNT + 1)), "{}", before.len());
        assert_lines_of_attempt(&after, LINE_NUMBERS_PER_ATTEMPT + 1);
    }
    // Readers that were cut off in the lost attempt and in the rerun.
    for asked in [&builder, &other] {
        let answer = ask(asked, Method::GET, "/builds/call-1").await;
        assert_eq!(answer.body["attempts"], 2, "{}", answer.body);
        let (rest, terminal) = read_numbered_lines_and_terminal_record(asked, 500).await;
        assert_lines_of_attempt(&rest, LINE_NUMBERS_PER_ATTEMPT + 1);
        assert_eq!(terminal["warnings"], Value::Null);
        let (end, _) = read_numbered_lines_and_terminal_record(asked, LINE_NUMBERS_PER_ATTEMPT + 501).await;
        assert_eq!(end, rest[500..]);
    }
}

#[tokio::test]
async fn a_reader_is_told_that_numbers_begin_again_if_nobody_knows_of_the_lost_attempt() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon.clone());
    let ended = answer_statuses_holding_back_the_last(
        &mut calls,
        statuses_of_step_with_output_lines(LINE_COUNT, "line"),
    );
    let tar = request_tar_with(json!({}));
    let (build, mut lost) = start_build_and_wait_for_solve(&builder, &mut calls, tar.clone()).await;
    let reading = TestBuilder::new(daemon.clone());
    let mut log = open_log(&reading, 1).await.into_body();
    let received = read_until_last_output_line(&mut log).await;
    kill_daemon_and_wait_until_solve_is_lost(&calls, &mut lost).await;
    assert_ne!(complete_or_panic(build).await.expect("no panic").status, 200);
    // A builder that was started after that, and keeps no records.
    let next = TestBuilder::new(daemon);
    let (build, rerun) = start_build_and_wait_for_solve(&next, &mut calls, tar).await;
    ended.send_replace(true);
    rerun.answer_with_digest("sha256:12");
    assert_eq!(complete_or_panic(build).await.expect("no panic").status, 200);

    let records = read_rest(log, received).await;
    let notice = records.iter().position(|record| record["warning"].is_string());
    let (before, after) = records.split_at(notice.expect("a record that says so"));
    let lines_of = |records: &[Value]| {
        records
            .iter()
            .filter_map(number_and_first_line_of_log_record)
            .collect::<Vec<_>>()
    };
    let (terminal, after) = after.split_last().expect("a terminal record");
    assert_eq!(lines_of(before).len(), LINE_COUNT + 1);
    assert_lines_of_attempt(&lines_of(after), 1);
    assert_eq!(after[0]["seq"], 0);
    assert_eq!(terminal["status"], "success", "{terminal}");
    for (from, is_lost) in [(LINE_COUNT as u64 + 3, false), (5000, true)] {
        let (lines, terminal) = read_numbered_lines_and_terminal_record(&next, from).await;
        assert_eq!(lines, []);
        assert_eq!(terminal["warnings"].is_array(), is_lost, "{terminal}");
    }
}
