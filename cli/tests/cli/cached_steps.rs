//! Cached steps, as `slipway up` and `slipway logs` show them.

use serde_json::{Value, json};

use crate::fake_builder::{
    BodyEnd, FakeBuilder, ScriptedAnswer, outcome_of_running_function, record_with_line,
};
use crate::project::{Project, wait_for_end};
use crate::pseudo_terminal::spawn_on_terminal;

/// The ID of the build whose log is asked for.
const BUILD_ID: &str = "0b2f1e6c-6d0e-4f0a-8f67-3d1f5c0f7a11";

/// The records of a streamed answer, in which cached steps have lines.
fn streamed_records() -> Vec<Value> {
    let lines = [
        "v: T [1/3] FROM r.example/base:1",
        "v: T [1/3] FROM r.example/base:1 0.00s",
        "v: T [2/3] RUN make 0.00s",
        "v: T [3/3] COPY a b",
    ];
    vec![
        json!({"log": lines, "status": "in_progress", "duration": 0.1,
               "cached": ["[1/3] FROM r.example/base:1", "[2/3] RUN make"]}),
        json!({"log": ["v: T [3/3] COPY a b 0.00s"], "status": "in_progress", "duration": 0.2}),
        outcome_of_running_function(),
    ]
}

/// The records of a build's log, in which most cached steps have no lines.
fn log_records() -> Vec<Value> {
    let cached =
        |seq: u64, name: &str| json!({"seq": seq, "log": [], "status": "in_progress", "cached": [name]});
    vec![
        cached(0, "[1/3] FROM r.example/base:1"),
        cached(0, "[2/3] RUN make"),
        record_with_line(1, "v: T [3/3] COPY a b"),
        record_with_line(2, "v: T [3/3] COPY a b 0.00s"),
        outcome_of_running_function(),
    ]
}

/// Creates a server that streams the answer to a build request and the log of a queued one.
async fn server_with_cached_steps(is_queued: bool) -> FakeBuilder {
    match is_queued {
        false => {
            FakeBuilder::start(vec![(
                "POST /build",
                ScriptedAnswer::records(&streamed_records(), BodyEnd::Complete),
            )])
            .await
        }
        true => {
            FakeBuilder::start(vec![(
                "POST /async-function/builder-fn",
                ScriptedAnswer::queued(),
            )])
            .await
        }
    }
}

/// Runs `slipway up` in a form by a route, and returns what it prints on the standard error.
async fn run_up(form: &str, is_queued: bool) -> String {
    let mut server = server_with_cached_steps(is_queued).await;
    let project = Project::shop();
    let route: &[&str] = match is_queued {
        true => &["up", "--gateway", &server.url],
        false => &["up", "--via", "builder", "--builder", &server.url],
    };
    let child = project.spawn(&[route, &["--progress", form]].concat());
    if is_queued {
        let id = server.next_call_id().await;
        // Cut after the cached steps: the first of them comes again.
        let (cut, mut rest) = (&log_records()[..3], log_records().split_off(3));
        rest.insert(0, log_records().swap_remove(1));
        let log = |from: u64| format!("GET /function/builder-fn/builds/{id}/log?from={from}");
        server.add_answer(&log(2), ScriptedAnswer::events(&rest, BodyEnd::Complete));
        server.add_answer(&log(1), ScriptedAnswer::events(cut, BodyEnd::Cut));
    }
    let printed = wait_for_end(child).await;
    assert_eq!(printed.code, Some(0), "{printed:?}");
    printed.stderr
}

#[tokio::test]
async fn a_cached_step_is_marked_in_lines_and_others_have_their_time_by_every_route() {
    for is_queued in [false, true] {
        let printed = run_up("plain", is_queued).await;
        let steps: Vec<_> = printed
            .lines()
            .filter(|line| line.starts_with("shop: =>"))
            .collect();
        assert_eq!(
            steps,
            [
                "shop: => CACHED [1/3] FROM r.example/base:1",
                "shop: => CACHED [2/3] RUN make",
                "shop: => [3/3] COPY a b",
                "shop: => [3/3] COPY a b 0.0 s",
            ],
            "{printed}"
        );
    }
}

#[tokio::test]
async fn a_cached_step_is_marked_in_events_by_every_route() {
    for is_queued in [false, true] {
        let printed = run_up("json", is_queued).await;
        let events = printed
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let mut ended: Vec<_> = events
            .filter(|event| event["event"] == "step_ended")
            .map(|event| json!([event["name"], event["cached"]]))
            .collect();
        // A step without a line may be named again after a lost connection.
        ended.sort_by_key(Value::to_string);
        ended.dedup();
        assert_eq!(
            ended,
            [
                json!(["[1/3] FROM r.example/base:1", true]),
                json!(["[2/3] RUN make", true]),
                json!(["[3/3] COPY a b", null]),
            ],
            "{printed}"
        );
    }
}

#[tokio::test]
async fn a_cached_step_leaves_one_marked_line_on_a_terminal_while_another_one_runs() {
    let mut server = server_with_cached_steps(true).await;
    let project = Project::shop();
    let mut command = project.command(&["up", "--gateway", &server.url]);
    command.env("TERM", "xterm");
    let (child, mut terminal) = spawn_on_terminal(&mut command);
    let id = server.next_call_id().await;
    let log = |from: u64| format!("GET /function/builder-fn/builds/{id}/log?from={from}");
    server.add_answer(&log(1), ScriptedAnswer::events(&log_records()[..3], BodyEnd::Cut));
    let screen = terminal
        .wait_for_screen(|screen| {
            let has = |text: &str| screen.iter().any(|line| line.contains(text));
            has("[3/3] COPY a b ")
        })
        .await;
    for line in [
        " => CACHED [1/3] FROM r.example/base:1",
        " => CACHED [2/3] RUN make",
    ] {
        let count = screen.iter().filter(|shown| *shown == line).count();
        assert_eq!(count, 1, "{screen:#?}");
    }
    server.add_answer(
        &log(2),
        ScriptedAnswer::events(&log_records()[3..], BodyEnd::Complete),
    );
    terminal.wait_for_last_screen().await;
    assert_eq!(wait_for_end(child).await.code, Some(0));
}

#[tokio::test]
async fn a_log_names_cached_steps_in_lines_and_in_records() {
    let build = json!({"id": BUILD_ID, "state": "success"});
    let path = format!("GET /builds/{BUILD_ID}");
    let log = format!("GET /builds/{BUILD_ID}/log?from=1");
    for is_json in [false, true] {
        let server = FakeBuilder::start(vec![
            (path.as_str(), ScriptedAnswer::json(200, &build)),
            (
                log.as_str(),
                ScriptedAnswer::records(&log_records(), BodyEnd::Complete),
            ),
        ])
        .await;
        let arguments = ["logs", BUILD_ID, "--builder", &server.url];
        let form: &[&str] = if is_json { &["--json"] } else { &[] };
        let printed = Project::shop().run(&[&arguments[..], form].concat()).await;
        assert_eq!(printed.code, Some(0), "{printed:?}");
        let first = printed.stdout.lines().next().unwrap_or_default();
        match is_json {
            false => assert_eq!(first, "=> CACHED [1/3] FROM r.example/base:1"),
            true => assert_eq!(
                serde_json::from_str::<Value>(first).expect("JSON"),
                json!({"seq": 0, "log": [], "status": "in_progress", "cached": ["[1/3] FROM r.example/base:1"]})
            ),
        }
    }
}
