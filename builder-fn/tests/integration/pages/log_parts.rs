//! A page that was sent before the log was read says so, and the lines follow.

use bollard_buildkit_proto::moby::buildkit::v1::StatusResponse;
use function_host::http::Method;
use serde_json::json;

use super::{open_in_browser, page_address_of, statuses_with_step_and_output};
use crate::builds::{answer_statuses_holding_back_the_last, ask};
use crate::complete_or_panic;
use crate::daemon::{self, DaemonCalls};
use crate::setting::{CALL_ID, TestBuilder, request_tar_with};

/// Fails a build with these statuses, of which later readers do not get the last one. Returns the address of its page.
async fn page_address_of_failed_build_without_log_end(
    builder: &TestBuilder,
    calls: &mut DaemonCalls,
    statuses: Vec<StatusResponse>,
) -> String {
    let ended = answer_statuses_holding_back_the_last(calls, statuses);
    ended.send_replace(true);
    let own = builder.clone();
    let build = tokio::spawn(async move { own.send_signed_build(request_tar_with(json!({}))).await });
    let solve = complete_or_panic(calls.solves.recv()).await.expect("a solve");
    solve.answer_with_error(tonic::Status::unknown("it failed"));
    let answer = complete_or_panic(build).await.expect("no panic");
    assert_eq!(answer.status, 422);
    ended.send_replace(false);
    page_address_of(&answer.body).to_owned()
}

#[tokio::test(start_paused = true)]
async fn the_page_of_a_failed_build_says_that_its_log_was_not_read_to_its_end_in_time() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon);
    let lines: Vec<_> = (0..1000).map(|number| format!("line {number}")).collect();
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    let address = page_address_of_failed_build_without_log_end(
        &builder,
        &mut calls,
        statuses_with_step_and_output("[2/2] RUN make", &lines),
    )
    .await;
    let page = open_in_browser(&builder, &address).await.body;
    assert!(
        page.contains(r#"id="load""#) && page.contains("from=end#log"),
        "{page}"
    );
    assert!(!page.contains(">This is the end of the log"), "{page}");
    // The part that the address names is waited for longer.
    let end = open_in_browser(&builder, &format!("{address}&from=end"))
        .await
        .body;
    assert!(end.contains(">line 999<") && !end.contains(">line 0<"), "{end}");
    assert!(end.contains("these are the last lines so far"), "{end}");
}

#[tokio::test(start_paused = true)]
async fn the_page_of_a_build_whose_log_was_not_read_does_not_say_that_it_has_no_lines() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon);
    let mut statuses = statuses_with_step_and_output("[2/2] RUN make", &["x"]);
    let last = statuses.pop().expect("a response");
    let address = page_address_of_failed_build_without_log_end(&builder, &mut calls, vec![last]).await;
    let page = open_in_browser(&builder, &address).await.body;
    assert!(
        page.contains("The log is not read yet") && page.contains(r#"id="load""#),
        "{page}"
    );
    assert!(
        !page.contains("There are no lines") && !page.contains(">This is the end"),
        "{page}"
    );
}

#[tokio::test]
async fn the_page_of_a_running_build_reloads_itself_in_browsers_without_scripts() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon);
    let ended = answer_statuses_holding_back_the_last(
        &mut calls,
        statuses_with_step_and_output("[2/2] RUN make", &["x"]),
    );
    let own = builder.clone();
    let build = tokio::spawn(async move { own.send_signed_build(request_tar_with(json!({}))).await });
    let solve = complete_or_panic(calls.solves.recv()).await.expect("a solve");
    let asked = ask(&builder, Method::GET, &format!("/builds/{CALL_ID}"))
        .await
        .body;
    let page = open_in_browser(&builder, page_address_of(&asked)).await.body;
    assert!(
        page.contains("<noscript><meta http-equiv=\"refresh\"") && page.contains("data-live"),
        "{page}"
    );
    ended.send_replace(true);
    solve.answer_with_digest("sha256:12");
    complete_or_panic(build).await.expect("no panic");
}
