//! What `slipway up` shows at the end of a build of its steps, its push and its deployment.

use serde_json::{Value, json};

use crate::fake_builder::{BodyEnd, FakeBuilder, ScriptedAnswer, record_with_line};
use crate::project::{FinishedCommand, Project, wait_for_end};

/// Runs `slipway up` through the queue, with this outcome of the build and this answer to the question for its record.
/// Returns also how many of these answers were not asked for.
async fn run_up(form: &str, outcome: &Value, record: ScriptedAnswer) -> (FinishedCommand, usize) {
    let mut server = FakeBuilder::start(vec![(
        "POST /async-function/builder-fn",
        ScriptedAnswer::queued(),
    )])
    .await;
    let project = Project::shop();
    let child = project.spawn(&["up", "--gateway", &server.url, "--progress", form]);
    let id = server.next_call_id().await;
    let build = format!("GET /function/builder-fn/builds/{id}");
    server.add_answer(&build, record);
    let records = [
        record_with_line(1, "v: T exporting to image 1.20s"),
        outcome.clone(),
    ];
    server.add_answer(
        &format!("{build}/log?from=1"),
        ScriptedAnswer::events(&records, BodyEnd::Complete),
    );
    let printed = wait_for_end(child).await;
    (printed, server.answers_left())
}

fn record() -> ScriptedAnswer {
    ScriptedAnswer::json(
        200,
        &json!({
            "state": "success", "digest": "sha256:ab", "steps": {"total": 13, "completed": 12, "cached": 9},
            "deployment": {"status": "ready", "durations": {"apply": 0.25, "check": 0.5, "restore": 0.0, "total": 0.75}},
        }),
    )
}

fn success() -> Value {
    json!({"status": "success", "image": "r.example/shop:1", "digest": "sha256:ab", "deployment": {"status": "ready"}})
}

#[tokio::test]
async fn the_end_of_a_build_shows_its_steps_its_push_and_the_parts_of_its_deployment() {
    for (outcome, code) in [
        (success(), 0),
        (
            json!({"status": "failed", "error": "why", "code": 422, "digest": "sha256:ab",
                   "deployment": {"status": "rolled_back", "reasons": ["it exits"]}}),
            3,
        ),
    ] {
        let (printed, left) = run_up("plain", &outcome, record()).await;
        assert_eq!((printed.code, left), (Some(code), 0), "{printed:?}");
        let facts = "shop: steps: 9 cached, 3 run, 1 not finished\n\
                     shop: pushed: sha256:ab, exported and sent in 1.2 s\n\
                     shop: deployment: check 0.50 s\n\
                     shop: deployment: apply 0.25 s\n";
        assert!(printed.stderr.contains(facts), "{printed:?}");
    }
}

#[tokio::test]
async fn the_last_event_has_what_the_record_says_of_a_build() {
    let (printed, _) = run_up("json", &success(), record()).await;
    let last: Value = serde_json::from_str(printed.stderr.lines().last().unwrap_or_default()).expect("JSON");
    assert_eq!(last["event"], "running");
    assert_eq!(last["steps"], json!({"cached": 9, "run": 3, "unfinished": 1}));
    assert_eq!(last["pushed"], json!({"digest": "sha256:ab", "seconds": 1.2}));
    assert_eq!(
        last["deployment_seconds"],
        json!({"apply": 0.25, "check": 0.5, "restore": 0.0, "total": 0.75})
    );
}

#[tokio::test]
async fn a_build_whose_record_cannot_be_read_ends_as_it_would_otherwise() {
    for answer in [
        ScriptedAnswer::json(502, &json!({"status": "failed", "error": "a moment"})),
        ScriptedAnswer::json(200, &json!("nonsense")),
        // The answer never comes to its end.
        ScriptedAnswer {
            status: 200,
            chunks: vec!["{".to_owned()],
            end: BodyEnd::Open,
        },
    ] {
        let (printed, left) = run_up("plain", &success(), answer).await;
        assert_eq!((printed.code, left), (Some(0), 0), "{printed:?}");
        assert!(printed.stderr.contains("shop: running"), "{printed:?}");
        assert!(!printed.stderr.contains("steps:"), "{printed:?}");
    }
}

#[tokio::test]
async fn with_quiet_the_record_is_not_asked_for() {
    let (printed, left) = run_up("quiet", &success(), record()).await;
    assert_eq!((printed.code, left), (Some(0), 1), "{printed:?}");
    assert_eq!(printed.stderr, "");
}
