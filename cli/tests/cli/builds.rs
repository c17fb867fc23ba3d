//! `slipway builds`, `status`, `logs`, `open` and `cancel` with scripted answers.

use serde_json::{Value, json};

use crate::fake_builder::{
    BodyEnd, FakeBuilder, ScriptedAnswer, outcome_of_running_function, record_with_line,
};
use crate::project::Project;

#[tokio::test]
async fn builds_are_listed_as_a_table_or_as_the_builders_answer() {
    let answer = json!({"builds": [{"id": "a", "state": "success", "submittedAt": "2026-12-01T10:00:00Z", "image": "r/a:1"}]});
    let path = "GET /function/builder-fn/builds?limit=5&function=shop&state=success";
    let server = FakeBuilder::start(vec![
        (path, ScriptedAnswer::json(200, &answer)),
        (path, ScriptedAnswer::json(200, &answer)),
    ])
    .await;
    let arguments = [
        "builds",
        "--gateway",
        &server.url,
        "--limit",
        "5",
        "--function",
        "shop",
        "--state",
        "success",
    ];
    let printed = Project::empty().run(&arguments).await;
    assert_eq!(printed.code, Some(0), "{printed:?}");
    assert!(printed.stdout.starts_with("ID  STATE"), "{printed:?}");
    let printed = Project::empty()
        .run(&[&arguments[..], &["--json"]].concat())
        .await;
    assert_eq!(
        serde_json::from_str::<Value>(&printed.stdout).expect("JSON"),
        answer
    );
}

#[tokio::test]
async fn questions_go_to_the_builder_itself_if_it_is_named_and_an_unknown_build_is_a_usage_error() {
    let build = json!({"id": "a/b", "state": "cancelled", "attempts": 1});
    let server = FakeBuilder::start(vec![
        ("GET /builds/a%2Fb", ScriptedAnswer::json(200, &build)),
        ("DELETE /builds/a%2Fb", ScriptedAnswer::json(200, &build)),
    ])
    .await;
    for command in ["status", "cancel"] {
        let printed = Project::empty()
            .run(&[command, "a/b", "--builder", &server.url])
            .await;
        assert_eq!(
            (printed.code, printed.stdout.as_str()),
            (Some(0), "id: a/b\nstate: cancelled\nattempts: 1\n"),
            "{printed:?}"
        );
    }
    let printed = Project::empty()
        .run(&["status", "other", "--builder", &server.url])
        .await;
    assert_eq!(printed.code, Some(2), "{printed:?}");
    let next = format!("next: find its ID: slipway builds --builder {}\n", server.url);
    assert!(printed.stderr.ends_with(&next), "{printed:?}");
}

#[tokio::test]
async fn the_log_of_a_function_is_that_of_its_newest_build() {
    let build = json!({"id": "newest", "state": "success", "attempts": 1});
    let records = [
        record_with_line(1, "v: T [1/1] RUN make"),
        record_with_line(2, "l: T hello"),
        outcome_of_running_function(),
    ];
    let server = FakeBuilder::start(vec![
        (
            "GET /builds?function=shop&limit=1",
            ScriptedAnswer::json(200, &json!({"builds": [build]})),
        ),
        (
            "GET /builds/newest/log?from=1",
            ScriptedAnswer::records(&records, BodyEnd::Complete),
        ),
    ])
    .await;
    let printed = Project::empty()
        .run(&["logs", "shop", "--builder", &server.url])
        .await;
    assert_eq!(
        (printed.code, printed.stdout.as_str()),
        (Some(0), "=> [1/1] RUN make\n   hello\n"),
        "{printed:?}"
    );
}

#[tokio::test]
async fn following_a_failed_build_ends_with_its_exit_status_and_error() {
    let build = json!({"id": "a", "state": "running", "attempts": 1});
    let failed = json!({"status": "failed", "error": "exit code: 3", "code": 422});
    let server = FakeBuilder::start(vec![
        ("GET /builds/a", ScriptedAnswer::json(200, &build)),
        (
            "GET /builds/a/log?from=1",
            ScriptedAnswer::records(&[record_with_line(1, "l: T hello"), failed], BodyEnd::Complete),
        ),
    ])
    .await;
    let printed = Project::empty()
        .run(&["logs", "a", "-f", "--builder", &server.url])
        .await;
    assert_eq!(printed.code, Some(1), "{printed:?}");
    assert!(
        printed.stderr.contains("exit code: 3") && printed.stderr.contains("next:"),
        "{printed:?}"
    );
}

#[tokio::test]
async fn cancel_exits_with_1_if_the_build_ends_by_itself_in_the_meantime() {
    for (end, code) in [("cancelled", 0), ("success", 1), ("failed", 1)] {
        let build = |state: &str| json!({"id": "a", "state": state, "attempts": 1});
        let server = FakeBuilder::start(vec![
            ("DELETE /builds/a", ScriptedAnswer::json(202, &build("running"))),
            ("GET /builds/a", ScriptedAnswer::json(200, &build("running"))),
            ("GET /builds/a", ScriptedAnswer::json(200, &build(end))),
        ])
        .await;
        let printed = Project::empty()
            .run(&["cancel", "a", "--builder", &server.url])
            .await;
        assert_eq!(printed.code, Some(code), "{end}: {printed:?}");
        assert!(printed.stdout.contains(&format!("state: {end}")), "{printed:?}");
    }
}

#[tokio::test]
async fn logs_follows_a_build_by_id_before_any_builder_has_accepted_it() {
    let id = "5f0c7a52-6f4b-4f5e-9d0c-1f2e3d4c5b6a";
    let log = format!("GET /builds/{id}/log?from=1");
    let nothing = json!({"status": "failed", "error": "no builder has accepted it"});
    let server = FakeBuilder::start(vec![
        (
            &format!("GET /builds?function={id}&limit=1"),
            ScriptedAnswer::json(200, &json!({"builds": []})),
        ),
        (&log, ScriptedAnswer::json(404, &nothing)),
        (
            &log,
            ScriptedAnswer::records(
                &[record_with_line(1, "l: T hello"), outcome_of_running_function()],
                BodyEnd::Complete,
            ),
        ),
    ])
    .await;
    let printed = Project::empty()
        .run(&["logs", id, "-f", "--builder", &server.url])
        .await;
    assert_eq!(printed.code, Some(0), "{printed:?}");
    assert!(printed.stderr.contains("hello"), "{printed:?}");
}

#[tokio::test]
async fn questions_go_to_the_gateway_of_the_stack_file() {
    let path = "GET /function/builder-fn/builds?limit=20";
    let server = FakeBuilder::start(vec![(path, ScriptedAnswer::json(200, &json!({"builds": []})))]).await;
    let project = Project::empty();
    project.write(
        "stack.yaml",
        format!(
            "provider:\n  gateway: {}\nfunctions:\n  shop:\n    lang: x\n",
            server.url
        ),
    );
    assert_eq!(project.run(&["builds"]).await.code, Some(0));
    assert_eq!(server.answers_left(), 0);
}

#[tokio::test]
async fn the_address_of_a_page_is_printed_as_browsers_reach_it_and_nothing_else() {
    let page = |page: &str| {
        ScriptedAnswer::json(
            200,
            &json!({"id": "a/b", "state": "running", "attempts": 1, "page": page}),
        )
    };
    let list = ScriptedAnswer::json(200, &json!({"builds": [], "page": "/builds?link=builds.1..ab"}));
    let server = FakeBuilder::start(vec![
        ("GET /builds/a%2Fb", page("/builds/a%2Fb?link=build.1..ab")),
        (
            "GET /function/builder-fn/builds/a%2Fb",
            page("/builds/a%2Fb?link=build.1..ab"),
        ),
        (
            "GET /builds/c",
            page("https://builds.example/builds/c?link=build.1..ab"),
        ),
        ("GET /builds?limit=1", list),
    ])
    .await;
    let url = &server.url;
    for (arguments, expected) in [
        (
            vec!["open", "a/b", "--builder", url],
            format!("{url}/builds/a%2Fb?link=build.1..ab\n"),
        ),
        (
            vec!["open", "a/b", "--gateway", url],
            format!("{url}/function/builder-fn/builds/a%2Fb?link=build.1..ab\n"),
        ),
        (
            vec!["open", "c", "--builder", url],
            "https://builds.example/builds/c?link=build.1..ab\n".to_owned(),
        ),
        (
            vec!["open", "--json", "--builder", url],
            format!("{}\n", json!({"page": format!("{url}/builds?link=builds.1..ab")})),
        ),
    ] {
        let printed = Project::empty().run(&arguments).await;
        assert_eq!(
            (printed.code, printed.stdout),
            (Some(0), expected),
            "{}",
            printed.stderr
        );
    }
    let printed = Project::empty().run(&["open", "unknown", "--builder", url]).await;
    assert_eq!(
        (printed.code, printed.stdout.as_str()),
        (Some(2), ""),
        "{printed:?}"
    );
}

#[tokio::test]
async fn a_log_that_is_followed_as_records_is_resumed_at_the_line_after_the_last_one() {
    let build = json!({"id": "a", "state": "running", "attempts": 1});
    let failed = json!({"status": "failed", "error": "exit code: 3", "code": 422});
    let log = |from: u64| format!("GET /builds/a/log?from={from}");
    let server = FakeBuilder::start(vec![
        ("GET /builds/a", ScriptedAnswer::json(200, &build)),
        (
            &log(1),
            ScriptedAnswer::records(
                &[record_with_line(1, "l: T one"), record_with_line(2, "l: T two")],
                BodyEnd::Cut,
            ),
        ),
        (
            &log(3),
            ScriptedAnswer::json(502, &json!({"status": "failed", "error": "a moment"})),
        ),
        (
            &log(3),
            ScriptedAnswer::records(
                &[record_with_line(3, "l: T three"), failed.clone()],
                BodyEnd::Complete,
            ),
        ),
    ])
    .await;
    let printed = Project::empty()
        .run(&["logs", "a", "-f", "--json", "--builder", &server.url])
        .await;
    assert_eq!(printed.code, Some(1), "{printed:?}");
    let records: Vec<Value> = printed
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let record = |seq: u64, text: &str| json!({"seq": seq, "log": [text], "status": "in_progress"});
    assert_eq!(
        records,
        [
            record(1, "l: T one"),
            record(2, "l: T two"),
            record(3, "l: T three"),
            failed
        ]
    );
    assert_eq!(server.answers_left(), 0);
    assert!(printed.stderr.contains("connecting again"), "{printed:?}");
}

#[tokio::test]
async fn an_error_of_a_question_says_how_to_ask_again_and_never_to_build_again() {
    let no = |text: &str| json!({"status": "failed", "error": text});
    for (request, status, answer, arguments, code, next) in [
        (
            "GET /builds?limit=5000",
            400,
            no("limit should be from 1 to 1000"),
            &["builds", "--limit", "5000"][..],
            2,
            "correct what the error names; slipway builds --help describes the options",
        ),
        (
            "GET /builds/a",
            403,
            no("another tenant's"),
            &["status", "a"],
            2,
            "the key of the tenant",
        ),
        (
            "GET /builds/a",
            429,
            no("busy"),
            &["open", "a"],
            4,
            "slipway open a --builder",
        ),
        (
            "GET /builds/a",
            502,
            no("lost"),
            &["logs", "a"],
            4,
            "slipway logs a --builder",
        ),
        (
            "DELETE /builds/a",
            409,
            no("it has ended"),
            &["cancel", "a"],
            1,
            "slipway status a --builder",
        ),
        (
            "DELETE /builds/a",
            503,
            no("a moment"),
            &["cancel", "a"],
            4,
            "slipway cancel a --builder",
        ),
        (
            "DELETE /builds/a",
            200,
            json!({"id": "a", "state": "failed"}),
            &["cancel", "a"],
            1,
            "slipway logs a --builder",
        ),
        (
            "GET /builds/a",
            200,
            json!({"id": "a", "state": "failed"}),
            &["open", "a"],
            4,
            "slipway logs a --builder",
        ),
        (
            "GET /builds/a/diff/b",
            409,
            no("the build a has not ended"),
            &["diff", "a", "b"],
            2,
            "slipway logs a -f --builder",
        ),
        (
            "POST /functions/shop/rollback?id=r",
            429,
            no("busy"),
            &["rollback", "shop", "--id", "r"],
            4,
            "slipway rollback shop --id r --builder",
        ),
        // An odd answer of what is in front of the builder.
        (
            "GET /builds/a",
            502,
            json!({"status": "success"}),
            &["status", "a"],
            4,
            "slipway status a --builder",
        ),
    ] {
        let server = FakeBuilder::start(vec![(request, ScriptedAnswer::json(status, &answer))]).await;
        let arguments = [arguments, &["--builder", &server.url]].concat();
        let printed = Project::empty().run(&arguments).await;
        assert_eq!(printed.code, Some(code), "{arguments:?}: {printed:?}");
        let last = printed.stderr.lines().last().unwrap_or_default();
        assert!(
            last.starts_with("next: ") && last.contains(next),
            "{arguments:?}: {printed:?}"
        );
        assert!(!last.contains("slipway up"), "{arguments:?}: {printed:?}");
    }
}
