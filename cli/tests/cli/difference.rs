//! `slipway diff` with scripted answers.

use serde_json::{Value, json};

use crate::fake_builder::{FakeBuilder, ScriptedAnswer};
use crate::project::Project;

fn difference_answer_json() -> Value {
    json!({
        "a": {"id": "v1", "state": "success", "seconds": 9.0, "submittedAt": "2026-12-01T10:00:00Z", "imageBytes": 1000},
        "b": {"id": "v2", "state": "success", "seconds": 4.5, "submittedAt": "2026-12-01T11:00:00Z", "imageBytes": null},
        "firstMiss": {"step": "[2/3] COPY src ./", "seconds": 0.25, "causes": [
            {"kind": "file", "path": "src/a\u{1b}[31m.js", "change": "changed", "more": 1},
            {"kind": "argument", "name": "VERSION", "change": "added"},
        ]},
        "files": {"changed": ["src/a.js", "src/b.js"], "added": [], "removed": ["old"], "unknown": 0, "cut": false},
        "arguments": {"changed": [], "added": ["VERSION"], "removed": []},
        "options": {"target": {"a": null, "b": "small"}},
        "bases": [{"image": "r/base:1", "a": "sha256:0123456789abcdef", "b": "sha256:ab"}],
        "steps": [
            {"name": "[internal] load build context", "a": {"cached": false, "seconds": 0.01}, "b": {"cached": false, "seconds": 0.02}},
            {"name": "[2/3] COPY src ./", "a": {"cached": true, "seconds": 0.0}, "b": {"cached": false, "seconds": 0.25}},
            {"name": "[3/3] RUN make", "a": {"cached": false, "seconds": 3.0, "failed": true}, "b": null},
        ],
        "context": {"a": null, "b": null},
        "notes": ["a note"],
    })
}

async fn run_diff(server: &FakeBuilder, arguments: &[&str]) -> crate::project::FinishedCommand {
    Project::empty()
        .run(&[&["diff", "v1", "v/2"], arguments, &["--builder", &server.url]].concat())
        .await
}

#[tokio::test]
async fn the_first_step_without_its_cache_its_causes_the_times_and_the_sizes_are_shown() {
    let server = FakeBuilder::start(vec![(
        "GET /builds/v1/diff/v%2F2",
        ScriptedAnswer::json(200, &difference_answer_json()),
    )])
    .await;
    let printed = run_diff(&server, &[]).await;
    assert_eq!(printed.code, Some(0), "{printed:?}");
    for line in [
        "first step without its cache: [2/3] COPY src ./ (0.25 s)",
        "  because src/a.js was changed, and 1 more",
        "  because the build argument VERSION was added",
        "  ~ src/a.js",
        "  - old",
        "  + VERSION",
        "target: - -> small",
        "base image r/base:1: sha256:0123456789ab -> sha256:ab",
        "               cached  0.25 s  [2/3] COPY src ./",
        "  failed after 3.00 s       -  [3/3] RUN make",
        "image, compressed: 1000 bytes -> unknown",
        "note: a note",
    ] {
        assert!(
            printed.stdout.lines().any(|shown| shown == line),
            "{line:?} in {}",
            printed.stdout
        );
    }
    assert!(!printed.stdout.contains("[internal]"), "{printed:?}");
}

#[tokio::test]
async fn diff_with_json_prints_the_builders_answer() {
    let server = FakeBuilder::start(vec![(
        "GET /builds/v1/diff/v%2F2",
        ScriptedAnswer::json(200, &difference_answer_json()),
    )])
    .await;
    let printed = run_diff(&server, &["--json"]).await;
    assert_eq!(printed.code, Some(0), "{printed:?}");
    assert_eq!(
        serde_json::from_str::<Value>(&printed.stdout).expect("JSON"),
        difference_answer_json()
    );
}

#[tokio::test]
async fn builds_that_cannot_be_compared_say_what_to_do_next() {
    for (status, code, next) in [
        (400, 2, "slipway builds --builder"),
        (404, 2, "slipway builds --builder"),
        (409, 2, "slipway logs v/2 -f --builder"),
        (501, 2, "records_repository"),
        (401, 2, "payload-secret"),
        (502, 4, "next:"),
    ] {
        let refusal = ScriptedAnswer::json(status, &json!({"status": "failed", "error": "the reason"}));
        let server = FakeBuilder::start(vec![("GET /builds/v1/diff/v%2F2", refusal)]).await;
        let printed = run_diff(&server, &[]).await;
        assert_eq!(printed.code, Some(code), "{status}: {printed:?}");
        assert!(
            printed.stderr.contains("the reason") && printed.stderr.contains(next),
            "{printed:?}"
        );
    }
}
