//! A page that was sent before the log was read says so, and the lines follow.

use bollard_buildkit_proto::moby::buildkit::v1::{StatusResponse, Vertex, VertexLog};
use function_host::http::Method;
use serde_json::json;

use super::{
    ResponseToUnsignedRequest, build_successfully, open_in_browser, page_address_of,
    some_timestamp_after_start, statuses_with_step_output_cached_step_and_context,
};
use crate::builds::{answer_statuses_holding_back_the_last, ask};
use crate::complete_or_panic;
use crate::daemon::{self, DaemonCalls};
use crate::setting::{CALL_ID, TestBuilder, request_tar_with};

/// The most bytes of a visit over the wire, with what a page loads by itself.
const VISIT_BYTES_MAX: usize = 60_000;

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
        statuses_with_step_output_cached_step_and_context("[2/2] RUN make", &lines),
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
    let mut statuses = statuses_with_step_output_cached_step_and_context("[2/2] RUN make", &["x"]);
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
        statuses_with_step_output_cached_step_and_context("[2/2] RUN make", &["x"]),
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

/// Returns the statuses of a build of 30 steps that run at the same time and print lines in turn.
fn statuses_of_30_steps() -> Vec<StatusResponse> {
    let digest = |step: i64| format!("sha256:{step}");
    let step = |step: i64, completed| Vertex {
        digest: digest(step),
        name: format!("[stage-{step} {step}/30] RUN cargo build --release --package package-{step}"),
        started: some_timestamp_after_start(1),
        completed,
        ..Vertex::default()
    };
    let logs = (0..3000).map(|number| VertexLog {
        vertex: digest(number % 30),
        timestamp: some_timestamp_after_start(2 + number / 300),
        stream: 1,
        msg: format!("   Compiling crate-{number} v1.0.{number} (registry+https)\n").into(),
    });
    vec![
        StatusResponse {
            vertexes: (0..30).map(|number| step(number, None)).collect(),
            ..StatusResponse::default()
        },
        StatusResponse {
            logs: logs.collect(),
            ..StatusResponse::default()
        },
        StatusResponse {
            vertexes: (0..30)
                .map(|number| step(number, some_timestamp_after_start(20)))
                .collect(),
            ..StatusResponse::default()
        },
    ]
}

/// Returns the bytes of an answer over the wire.
fn bytes_over_the_wire(answer: &ResponseToUnsignedRequest) -> usize {
    let headers = answer.headers.iter();
    let headers = headers.map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
    "HTTP/1.1 200 OK\r\n\r\n".len() + headers.sum::<usize>() + answer.body.len()
}

/// Returns the address of the page that follows `page` at once in browsers without scripts.
fn noscript_refresh_address(page: &str) -> String {
    let (_, rest) = page
        .split_once(r#"<noscript><meta http-equiv="refresh" content="0; url="#)
        .unwrap_or_else(|| panic!("no page follows: {page}"));
    let (query, _) = rest.split_once('"').expect("an address");
    format!("/builds/{CALL_ID}{}", query.replace("&amp;", "&"))
}

#[tokio::test(start_paused = true)]
async fn a_page_whose_log_was_not_read_in_time_and_what_it_loads_take_at_most_60_kilobytes() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon);
    let address =
        page_address_of_failed_build_without_log_end(&builder, &mut calls, statuses_of_30_steps()).await;
    let first = open_in_browser(&builder, &address).await;
    assert!(first.body.contains(r#"id="load""#), "{}", first.body);
    let following = noscript_refresh_address(&first.body);
    assert!(following.contains("from=end&form=plain"), "{following}");
    for form in ["log", "plain"] {
        let following = following.replace("form=plain", &format!("form={form}"));
        let second = open_in_browser(&builder, &following).await;
        assert_eq!(second.status, 200);
        let bytes = [&first, &second].map(bytes_over_the_wire);
        assert!(
            bytes.iter().sum::<usize>() <= VISIT_BYTES_MAX,
            "{form}: {bytes:?}"
        );
        assert!(second.body.contains("crate-2999 "), "{}", second.body);
        assert!(
            !second.body.contains("http-equiv"),
            "nothing follows: {}",
            second.body
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_browser_without_scripts_is_refreshed_to_the_last_lines_of_a_finished_build() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon);
    let ended = answer_statuses_holding_back_the_last(
        &mut calls,
        statuses_with_step_output_cached_step_and_context("[2/2] RUN make", &["compiling", "done"]),
    );
    ended.send_replace(true);
    let answer = build_successfully(&builder, &mut calls).await;
    // From now on, the log has no end: what its last second has is passed on after a pause of a second.
    ended.send_replace(false);
    let first = open_in_browser(&builder, page_address_of(&answer.body))
        .await
        .body;
    assert!(!first.contains(">done<"), "{first}");
    let second = open_in_browser(&builder, &noscript_refresh_address(&first))
        .await
        .body;
    assert!(
        second.contains(">done<") && second.contains(">success<"),
        "{second}"
    );
}
