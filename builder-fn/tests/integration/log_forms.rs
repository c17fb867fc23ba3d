//! Tests of the forms in which the log of a build is sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use builder_fn::buildkit::Daemon;
use function_host::http::Method;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::builds::{
    answer_statuses_holding_back_the_last, signed_bodyless_request, start_build_and_wait_for_solve,
    statuses_of_step_with_output_lines,
};
use crate::complete_or_panic;
use crate::daemon::{self, DaemonCalls};
use crate::setting::{CALL_ID, PAYLOAD_KEY, TestBuilder, request_tar_with};

/// Returns the content type of the log from the line `from_line` on in the form that `accept` asks for, and its text.
async fn content_type_and_text_of_log(
    builder: &TestBuilder,
    accept: &str,
    from_line: u64,
) -> (String, String) {
    let path = format!("/builds/{CALL_ID}/log?from={from_line}");
    let response = builder
        .send_request(signed_bodyless_request(PAYLOAD_KEY, Method::GET, &path, accept))
        .await;
    assert_eq!(response.status(), 200);
    let content_type = response.headers()["content-type"].to_str().expect("text");
    let content_type = content_type.to_owned();
    let body = complete_or_panic(response.into_body().collect())
        .await
        .expect("body");
    let text = String::from_utf8(body.to_bytes().to_vec()).expect("UTF-8");
    (content_type, text)
}

/// Parses a record, and returns its number with its line, or with `None` for the terminal record.
fn parse_record_number_and_log_line(json: &str) -> (u64, Option<String>) {
    let record: Value = serde_json::from_str(json).expect("JSON");
    let number = record["seq"].as_u64().expect("a number");
    match record["status"] == "in_progress" {
        true => (number, record["log"][0].as_str().map(str::to_owned)),
        false => (number, None),
    }
}

/// Counts the calls of the daemon's method `Status` from now on. The test receives them as before.
fn count_and_forward_status_calls(calls: &mut DaemonCalls) -> Arc<AtomicUsize> {
    let (counted, forwarded) = mpsc::unbounded_channel();
    let mut statuses = std::mem::replace(&mut calls.statuses, forwarded);
    let count = Arc::<AtomicUsize>::default();
    let counter = count.clone();
    tokio::spawn(async move {
        while let Some(call) = statuses.recv().await {
            counter.fetch_add(1, Ordering::SeqCst);
            if counted.send(call).is_err() {
                return;
            }
        }
    });
    count
}

#[tokio::test]
async fn a_log_has_the_same_lines_in_each_form_live_and_afterwards() {
    compare_forms_of_log(TestBuilder::new).await;
}

#[tokio::test]
async fn a_copied_log_has_the_same_lines_in_each_form_and_its_readers_cost_the_daemon_one_answer_a_builder() {
    let count = compare_forms_of_log(|daemon| TestBuilder::new(daemon).with_log_copies()).await;
    // One for the build itself, and one for the readers of each of the two builders.
    assert_eq!(count.load(Ordering::SeqCst), 3);
}

/// Compares the forms of a log that two builders send, live and afterwards, and counts the daemon's answers for it.
async fn compare_forms_of_log(start: impl Fn(Daemon) -> TestBuilder) -> Arc<AtomicUsize> {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = start(daemon.clone());
    let count = count_and_forward_status_calls(&mut calls);
    let ended =
        answer_statuses_holding_back_the_last(&mut calls, statuses_of_step_with_output_lines(100, "line"));
    let (build, solve) =
        start_build_and_wait_for_solve(&builder, &mut calls, request_tar_with(json!({}))).await;
    let live: Vec<_> = ["*/*", "application/x-ndjson", "text/event-stream"]
        .into_iter()
        .map(|accept| {
            let builder = builder.clone();
            tokio::spawn(async move { content_type_and_text_of_log(&builder, accept, 1).await })
        })
        .collect();
    ended.send_replace(true);
    solve.answer_with_digest("sha256:12");
    assert_eq!(complete_or_panic(build).await.expect("no panic").status, 200);
    let mut read = Vec::new();
    for reader in live {
        read.push(complete_or_panic(reader).await.expect("no panic"));
    }

    let other = start(daemon);
    for (asked, from) in [(&builder, 1), (&other, 1), (&other, 60)] {
        let mut forms = Vec::new();
        for accept in ["*/*", "application/x-ndjson", "text/event-stream"] {
            forms.push(content_type_and_text_of_log(asked, accept, from).await);
        }
        let [
            (plain_type, plain),
            (records_type, records),
            (events_type, events),
        ] = &forms[..]
        else {
            panic!("three forms");
        };
        assert_eq!(
            [plain_type.as_str(), records_type, events_type],
            [
                "text/plain; charset=utf-8",
                "application/x-ndjson",
                "text/event-stream"
            ]
        );
        let numbered: Vec<_> = records.lines().map(parse_record_number_and_log_line).collect();
        let of_events: Vec<_> = events
            .split_terminator("\n\n")
            .map(|event| parse_record_number_and_log_line(event.strip_prefix("data: ").expect("an event")))
            .collect();
        assert_eq!(of_events, numbered);
        let numbers: Vec<_> = numbered.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, (from..=103).collect::<Vec<_>>());
        let mut lines: Vec<_> = plain.lines().collect();
        let terminal: Value = serde_json::from_str(lines.pop().expect("a line")).expect("JSON");
        assert_eq!(
            (&terminal["status"], &terminal["seq"]),
            (&json!("success"), &json!(103))
        );
        let texts = numbered.iter().filter_map(|(_, line)| line.as_deref());
        assert!(texts.eq(lines), "{plain}");
        if from == 1 {
            let of_lines = |text: &str| text.matches("line ").count();
            for ((live_type, live), (later_type, later)) in read.iter().zip(&forms) {
                assert_eq!((live_type, of_lines(live)), (later_type, of_lines(later)));
            }
        }
    }
    count
}
