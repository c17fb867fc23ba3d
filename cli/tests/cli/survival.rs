//! `slipway up` across lost connections and Ctrl-C.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;

use crate::fake_builder::{
    BodyEnd, FakeBuilder, ScriptedAnswer, outcome_of_running_function, record_with_line,
};
use crate::project::{Project, interrupt, read_until, wait_for_end};

#[tokio::test]
async fn a_cut_log_is_resumed_at_the_line_after_the_last_one() {
    let (first, second) = (
        [record_with_line(1, "l: T one"), record_with_line(2, "l: T two")],
        [record_with_line(3, "l: T three"), outcome_of_running_function()],
    );
    let project = Project::shop();
    let mut server = FakeBuilder::start(vec![(
        "POST /async-function/builder-fn",
        ScriptedAnswer::queued(),
    )])
    .await;
    let child = project.spawn(&["up", "--gateway", &server.url]);
    let id = server.next_call_id().await;
    let log = |from: u64| format!("GET /function/builder-fn/builds/{id}/log?from={from}");
    server.add_answer(&log(1), ScriptedAnswer::events(&first, BodyEnd::Cut));
    server.add_answer(
        &log(3),
        ScriptedAnswer::json(502, &json!({"status": "failed", "error": "a moment"})),
    );
    server.add_answer(&log(3), ScriptedAnswer::events(&second, BodyEnd::Complete));
    let printed = wait_for_end(child).await;
    assert_eq!(printed.code, Some(0), "{printed:?}");
    assert_eq!(server.answers_left(), 0);
    for text in ["one", "two", "three"] {
        assert_eq!(
            printed.stderr.matches(&format!("   {text}\n")).count(),
            1,
            "{text}: {printed:?}"
        );
    }
    assert!(printed.stderr.contains("connecting again"), "{printed:?}");
}

/// BuildKit and every builder that knew of the first attempt were killed together.
#[tokio::test]
async fn a_log_whose_numbers_begin_again_says_so_and_is_resumed_by_the_new_numbers() {
    let warning = "the build began again, and so do the numbers of its lines";
    let first = [
        record_with_line(1, "l: T lost"),
        record_with_line(2, "l: T lost too"),
        json!({"seq": 0, "log": [], "status": "in_progress", "warning": warning}),
        record_with_line(1, "l: T again"),
    ];
    let second = [record_with_line(2, "l: T at last"), outcome_of_running_function()];
    let mut server = FakeBuilder::start(vec![(
        "POST /async-function/builder-fn",
        ScriptedAnswer::queued(),
    )])
    .await;
    let project = Project::shop();
    let child = project.spawn(&["up", "--gateway", &server.url]);
    let id = server.next_call_id().await;
    let log = |from: u64| format!("GET /function/builder-fn/builds/{id}/log?from={from}");
    server.add_answer(&log(1), ScriptedAnswer::events(&first, BodyEnd::Cut));
    server.add_answer(&log(2), ScriptedAnswer::events(&second, BodyEnd::Complete));
    let printed = wait_for_end(child).await;
    assert_eq!(printed.code, Some(0), "{printed:?}");
    assert_eq!(server.answers_left(), 0);
    for text in [&format!("warning: {warning}"), "   again\n", "   at last\n"] {
        assert!(printed.stderr.contains(text), "{text}: {printed:?}");
    }
}

#[tokio::test]
async fn a_cut_answer_is_asked_for_again_as_the_same_build_and_no_line_is_shown_twice() {
    let record = |text: &str| json!({"log": [text], "status": "in_progress"});
    let mut server = FakeBuilder::start(vec![
        (
            "POST /build",
            ScriptedAnswer::records(&[record("l: T one")], BodyEnd::Cut),
        ),
        (
            "POST /build",
            ScriptedAnswer::records(
                &[
                    record("l: T one"),
                    record("l: T two"),
                    outcome_of_running_function(),
                ],
                BodyEnd::Complete,
            ),
        ),
    ])
    .await;
    let printed = Project::shop()
        .run(&["up", "--via", "builder", "--builder", &server.url])
        .await;
    assert_eq!(printed.code, Some(0), "{printed:?}");
    let (one, other) = (
        server.next_request_except_probes().await,
        server.next_request_except_probes().await,
    );
    assert_eq!(one.headers["x-call-id"], other.headers["x-call-id"]);
    assert_eq!(one.body, other.body);
    assert_eq!(printed.stderr.matches("   one\n").count(), 1, "{printed:?}");
}

/// Gives the queued build of `child` a log that stays open, and waits until its first line is shown. Returns the
/// build's ID, and the standard error of `child`.
async fn give_build_an_open_log_and_wait_for_its_line(
    server: &mut FakeBuilder,
    child: &mut Child,
) -> (String, BufReader<tokio::process::ChildStderr>) {
    let id = server.next_call_id().await;
    let log = format!("GET /function/builder-fn/builds/{id}/log?from=1");
    server.add_answer(
        &log,
        ScriptedAnswer::events(&[record_with_line(1, "l: T begun")], BodyEnd::Open),
    );
    let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
    read_until(&mut stderr, "begun").await;
    (id, stderr)
}

#[tokio::test]
async fn ctrl_c_leaves_a_queued_build_and_says_how_to_return_and_to_cancel() {
    let mut server = FakeBuilder::start(vec![(
        "POST /async-function/builder-fn",
        ScriptedAnswer::queued(),
    )])
    .await;
    let project = Project::shop();
    let mut child = project.spawn(&["up", "--gateway", &server.url]);
    let (id, mut stderr) = give_build_an_open_log_and_wait_for_its_line(&mut server, &mut child).await;
    interrupt(&child);
    let text = read_until(&mut stderr, "press Ctrl-C again").await;
    assert!(text.contains(&format!("slipway logs {id} -f")), "{text}");
    assert!(
        text.contains(&format!("slipway cancel {id} --gateway {}", server.url)),
        "the command leads to the same gateway: {text}"
    );
    assert_eq!(child.wait().await.expect("it ends").code(), Some(130));
}

#[tokio::test]
async fn a_second_ctrl_c_cancels_the_build() {
    let mut server = FakeBuilder::start(vec![(
        "POST /async-function/builder-fn",
        ScriptedAnswer::queued(),
    )])
    .await;
    let project = Project::shop();
    let mut child = project.spawn(&["up", "--gateway", &server.url]);
    let (id, mut stderr) = give_build_an_open_log_and_wait_for_its_line(&mut server, &mut child).await;
    let cancel = format!("DELETE /function/builder-fn/builds/{id}");
    server.add_answer(
        &cancel,
        ScriptedAnswer::json(200, &json!({"id": id, "state": "cancelled"})),
    );
    interrupt(&child);
    read_until(&mut stderr, "press Ctrl-C again").await;
    interrupt(&child);
    let text = read_until(&mut stderr, "next:").await;
    assert!(text.contains("cancelled"), "{text}");
    assert_eq!(child.wait().await.expect("it ends").code(), Some(5));
    assert_eq!(server.answers_left(), 0);
}

#[tokio::test]
async fn a_build_that_no_builder_accepts_is_given_up_after_the_time_that_the_command_line_says() {
    let server = FakeBuilder::start(vec![(
        "POST /async-function/builder-fn",
        ScriptedAnswer::queued(),
    )])
    .await;
    let printed = Project::shop()
        .run(&["up", "--gateway", &server.url, "--queue-timeout", "0"])
        .await;
    assert_eq!(printed.code, Some(4), "{printed:?}");
    assert!(printed.stderr.contains("--queue-timeout"), "{printed:?}");
}

#[tokio::test]
async fn two_ctrl_c_cancel_a_build_by_the_builders_own_address() {
    let begun = [json!({"log": ["l: T begun"], "status": "in_progress"})];
    let mut server = FakeBuilder::start(vec![(
        "POST /build",
        ScriptedAnswer::records(&begun, BodyEnd::Open),
    )])
    .await;
    let project = Project::shop();
    let mut child = project.spawn(&["up", "--via", "builder", "--builder", &server.url]);
    let id = server.next_call_id().await;
    let cancelled = json!({"id": id, "state": "cancelled", "error": "cancelled"});
    server.add_answer(
        &format!("DELETE /builds/{id}"),
        ScriptedAnswer::json(200, &cancelled),
    );
    let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
    read_until(&mut stderr, "begun").await;
    interrupt(&child);
    read_until(&mut stderr, "ends with the connection").await;
    interrupt(&child);
    assert_eq!(child.wait().await.expect("it ends").code(), Some(5));
    assert_eq!(server.answers_left(), 0);
}

#[tokio::test]
async fn a_ctrl_c_long_after_another_is_the_first_of_two_again_and_the_build_goes_on() {
    let begun = [json!({"log": ["l: T begun"], "status": "in_progress"})];
    for (via, build, answer) in [
        (
            "builder",
            "POST /build",
            ScriptedAnswer::records(&begun, BodyEnd::Open),
        ),
        (
            "gateway",
            "POST /function/builder-fn",
            ScriptedAnswer::events(&begun, BodyEnd::Open),
        ),
    ] {
        let mut server = FakeBuilder::start(vec![(build, answer)]).await;
        let project = Project::shop();
        let mut child = project.spawn(&[
            "up",
            "--via",
            via,
            "--builder",
            &server.url,
            "--gateway",
            &server.url,
        ]);
        let id = server.next_call_id().await;
        let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        read_until(&mut stderr, "begun").await;
        for _ in ["first", "after the time for a second one"] {
            interrupt(&child);
            read_until(&mut stderr, "ends with the connection").await;
            let text = read_until(&mut stderr, "the build goes on").await;
            assert!(!text.contains("cancelling"), "{via}: {text}");
        }
        // Now two in time: the command has followed the build all along.
        let cancelled = json!({"id": id, "state": "cancelled", "error": "cancelled"});
        let base = build.trim_start_matches("POST ").trim_end_matches("/build");
        server.add_answer(
            &format!("DELETE {base}/builds/{id}"),
            ScriptedAnswer::json(200, &cancelled),
        );
        interrupt(&child);
        read_until(&mut stderr, "ends with the connection").await;
        interrupt(&child);
        assert_eq!(child.wait().await.expect("it ends").code(), Some(5), "{via}");
        assert_eq!(server.answers_left(), 0);
    }
}

#[tokio::test]
async fn ctrl_c_before_the_request_is_answered_ends_the_command_and_says_that_the_build_may_go_on() {
    for (via, request) in [
        ("queue", "POST /async-function/builder-fn"),
        ("gateway", "POST /function/builder-fn"),
    ] {
        let mut server = FakeBuilder::start(vec![(request, ScriptedAnswer::never())]).await;
        let project = Project::shop();
        let child = project.spawn(&["up", "--via", via, "--gateway", &server.url]);
        server.next_call_id().await;
        interrupt(&child);
        let printed = wait_for_end(child).await;
        assert_eq!(
            (printed.code, printed.stdout.as_str()),
            (Some(130), ""),
            "{via}: {printed:?}"
        );
        let list = format!("its build goes on: slipway builds --gateway {}", server.url);
        assert!(printed.stderr.contains(&list), "{via}: {printed:?}");
    }
}

#[tokio::test]
async fn a_log_that_ends_without_the_outcome_of_the_deployment_is_followed_by_asking_for_it() {
    let mut server = FakeBuilder::start(vec![(
        "POST /async-function/builder-fn",
        ScriptedAnswer::queued(),
    )])
    .await;
    let project = Project::shop();
    let child = project.spawn(&["up", "--gateway", &server.url]);
    let id = server.next_call_id().await;
    let unknown =
        json!({"seq": 1, "status": "failed", "error": "what became of its deployment is not known"});
    let build = format!("GET /function/builder-fn/builds/{id}");
    server.add_answer(
        &build,
        ScriptedAnswer::json(200, &json!({"id": id, "state": "deploying"})),
    );
    let mut running = outcome_of_running_function();
    running["state"] = json!("success");
    server.add_answer(&build, ScriptedAnswer::json(200, &running));
    server.add_answer(
        &format!("{build}/log?from=1"),
        ScriptedAnswer::events(&[unknown], BodyEnd::Complete),
    );
    let printed = wait_for_end(child).await;
    assert_eq!(printed.code, Some(0), "{printed:?}");
    assert!(printed.stdout.ends_with("/function/shop\n"), "{printed:?}");
}

#[tokio::test]
async fn dev_is_quiet_while_nothing_changes_and_builds_again_what_was_saved() {
    let records = [outcome_of_running_function()];
    let mut server = FakeBuilder::start(vec![
        (
            "POST /build",
            ScriptedAnswer::records(&records, BodyEnd::Complete),
        ),
        (
            "POST /build",
            ScriptedAnswer::records(&records, BodyEnd::Complete),
        ),
    ])
    .await;
    let project = Project::shop();
    let mut child = project.spawn(&["dev", "--via", "builder", "--builder", &server.url]);
    let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
    server.next_request_except_probes().await;
    read_until(&mut stderr, "watching for changes").await;
    let mut line = String::new();
    let quiet = tokio::time::timeout(Duration::from_secs(1), stderr.read_line(&mut line)).await;
    assert!(quiet.is_err(), "it reacts to its own reading: {line}");
    project.write("shop/Dockerfile", "FROM scratch\nLABEL changed=1\n");
    server.next_request_except_probes().await;
    read_until(&mut stderr, "watching for changes").await;
    interrupt(&child);
    assert_eq!(child.wait().await.expect("it ends").code(), Some(0));
}

#[tokio::test]
async fn dev_cancels_the_queued_build_under_way_when_a_newer_change_is_saved() {
    let queued = || ("POST /async-function/builder-fn", ScriptedAnswer::queued());
    let mut server = FakeBuilder::start(vec![queued(), queued()]).await;
    let project = Project::shop();
    let mut child = project.spawn(&["dev", "--gateway", &server.url]);
    let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
    let first = server.next_call_id().await;
    let log = |id: &str, from: u64| format!("GET /function/builder-fn/builds/{id}/log?from={from}");
    let running = [record_with_line(1, "v: T [1/1] RUN make")];
    server.add_answer(&log(&first, 1), ScriptedAnswer::events(&running, BodyEnd::Open));
    read_until(&mut stderr, "RUN make").await;
    // Until a builder has accepted the call, none knows the build.
    let cancel = format!("DELETE /function/builder-fn/builds/{first}");
    let unknown = json!({"status": "failed", "error": "no such build"});
    server.add_answer(&cancel, ScriptedAnswer::json(404, &unknown));
    server.add_answer(
        &cancel,
        ScriptedAnswer::json(202, &json!({"id": first, "state": "running"})),
    );
    project.write("shop/main.txt", "newer");
    read_until(&mut stderr, "a new build replaces the one under way").await;
    let second = loop {
        let request = server.next_request_except_probes().await;
        // Questions have no call ID.
        if let Some(id) = request.headers.get("x-call-id") {
            break id.to_str().expect("text").to_owned();
        }
    };
    assert_ne!(second, first);
    // The second build ends once the first one was cancelled.
    let cancelled = async {
        while server.answers_left() > 0 {
            server.next_request_except_probes().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), cancelled)
        .await
        .expect("the first build is cancelled");
    server.add_answer(
        &log(&second, 1),
        ScriptedAnswer::events(&[outcome_of_running_function()], BodyEnd::Complete),
    );
    read_until(&mut stderr, "watching for changes").await;
    interrupt(&child);
    assert_eq!(child.wait().await.expect("it ends").code(), Some(0));
}
