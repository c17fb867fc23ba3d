//! `slipway rollback` with scripted answers.

use serde_json::{Value, json};

use crate::fake_builder::{BodyEnd, FakeBuilder, ScriptedAnswer, record_with_line};
use crate::project::Project;

const ROLLBACK_REQUEST_LINE: &str = "POST /functions/shop/rollback?id=r1";

fn begun_rollback_json() -> Value {
    json!({"id": "r1", "state": "deploying", "function": "shop.openfaas-fn", "rollback": {"to": "v1", "from": "v2"}})
}

/// The outcome of a rollback with this deployment.
fn rollback_outcome_json(status: &str, code: Option<u16>, deployment: &Value) -> Value {
    let mut outcome = json!({"image": "r.example/shop:1", "digest": "sha256:ab", "status": status, "deployment": deployment,
                             "rollback": {"to": "v1", "from": "v2"}});
    if let Some(code) = code {
        outcome["code"] = json!(code);
        outcome["error"] = json!("the version was not deployed again");
    }
    outcome
}

async fn run_rollback(server: &FakeBuilder, arguments: &[&str]) -> crate::project::FinishedCommand {
    let connection = ["--builder", &server.url, "--gateway", "http://gateway.example"];
    Project::empty()
        .run(&[&["rollback", "shop"], arguments, &connection[..]].concat())
        .await
}

#[tokio::test]
async fn a_rollback_ends_with_the_url_and_the_exit_status_of_its_deployment() {
    for (status, code, deployment, exit) in [
        ("success", None, json!({"status": "ready"}), 0),
        (
            "success",
            None,
            json!({"status": "unverified", "reasons": ["no header"]}),
            0,
        ),
        (
            "failed",
            Some(422),
            json!({"status": "rolled_back", "reasons": ["it exits"]}),
            3,
        ),
        (
            "failed",
            Some(422),
            json!({"status": "refused", "reasons": ["the secret \"key\" does not exist"]}),
            3,
        ),
        (
            "failed",
            Some(409),
            json!({"status": "superseded", "supersededBy": "v3"}),
            5,
        ),
        (
            "failed",
            Some(502),
            json!({"status": "failed", "reasons": ["no gateway"]}),
            4,
        ),
    ] {
        let log = [
            record_with_line(1, "v: T [rollback] shop.openfaas-fn to v1"),
            rollback_outcome_json(status, code, &deployment),
        ];
        let server = FakeBuilder::start(vec![
            (
                ROLLBACK_REQUEST_LINE,
                ScriptedAnswer::json(202, &begun_rollback_json()),
            ),
            (
                "GET /builds/r1/log?from=1",
                ScriptedAnswer::records(&log, BodyEnd::Complete),
            ),
        ])
        .await;
        let printed = run_rollback(&server, &["--id", "r1"]).await;
        assert_eq!(printed.code, Some(exit), "{deployment}: {printed:?}");
        assert!(printed.stderr.contains("rollback r1 to v1"), "{printed:?}");
        match exit {
            0 => assert_eq!(printed.stdout, "http://gateway.example/function/shop\n"),
            _ => {
                assert_eq!(printed.stdout, "");
                assert!(printed.stderr.contains("next:"), "{printed:?}");
                assert!(
                    !printed.stderr.contains("built, and"),
                    "nothing was built: {printed:?}"
                );
            }
        }
    }
}

#[tokio::test]
async fn with_strict_a_rollback_to_an_unverified_version_ends_as_not_deployed() {
    let deployment = json!({"status": "unverified", "reasons": ["no header"]});
    let server = FakeBuilder::start(vec![
        (
            ROLLBACK_REQUEST_LINE,
            ScriptedAnswer::json(202, &begun_rollback_json()),
        ),
        (
            "GET /builds/r1/log?from=1",
            ScriptedAnswer::records(
                &[rollback_outcome_json("success", None, &deployment)],
                BodyEnd::Complete,
            ),
        ),
    ])
    .await;
    assert_eq!(
        run_rollback(&server, &["--id", "r1", "--strict"]).await.code,
        Some(3)
    );
}

#[tokio::test]
async fn a_rollback_whose_answer_is_lost_is_requested_again_under_its_id() {
    let server = FakeBuilder::start(vec![
        (
            ROLLBACK_REQUEST_LINE,
            ScriptedAnswer {
                status: 202,
                chunks: vec!["{".to_owned()],
                end: BodyEnd::Cut,
            },
        ),
        (
            ROLLBACK_REQUEST_LINE,
            ScriptedAnswer::json(202, &begun_rollback_json()),
        ),
        (
            "GET /builds/r1/log?from=1",
            ScriptedAnswer::records(
                &[rollback_outcome_json(
                    "success",
                    None,
                    &json!({"status": "ready"}),
                )],
                BodyEnd::Complete,
            ),
        ),
    ])
    .await;
    let printed = run_rollback(&server, &["--id", "r1"]).await;
    assert_eq!(printed.code, Some(0), "{printed:?}");
    assert_eq!(server.answers_left(), 0);
}

#[tokio::test]
async fn a_rollback_that_is_not_begun_says_what_to_do_next() {
    for (status, exit, next) in [
        (400, 2, "next:"),
        (401, 2, "payload-secret"),
        (403, 2, "choose another version"),
        (404, 2, "slipway rollback shop --list"),
        (409, 4, "wait for the other rollback"),
        (410, 3, "slipway rollback shop --list"),
        (429, 4, "in a moment"),
        (501, 2, "slipway up"),
        (502, 4, "slipway rollback shop v/1 --id r1 --gateway"),
    ] {
        let refusal = ScriptedAnswer::json(status, &json!({"status": "failed", "error": "the reason"}));
        let server =
            FakeBuilder::start(vec![("POST /functions/shop/rollback?id=r1&to=v%2F1", refusal)]).await;
        let printed = run_rollback(&server, &["v/1", "--id", "r1"]).await;
        assert_eq!(printed.code, Some(exit), "{status}: {printed:?}");
        assert!(
            printed.stderr.contains("the reason") && printed.stderr.contains(next),
            "{printed:?}"
        );
        assert_eq!(printed.stdout, "");
    }
}

#[tokio::test]
async fn the_versions_are_listed_as_a_table_or_as_the_builders_answer() {
    let answer = json!({"function": "shop.openfaas-fn", "versions": [
        {"id": "v2", "state": "ready", "submittedAt": "2026-12-01T10:00:00.5Z", "image": "r/shop:2", "digest": "sha256:0123456789abcdef",
         "current": true, "target": false},
        {"id": "v1", "state": "ready", "submittedAt": "2026-12-01T09:00:00Z", "image": "r/shop:1", "digest": "sha256:ab",
         "current": false, "target": true},
    ]});
    let path = "GET /functions/shop/versions";
    let server = FakeBuilder::start(vec![
        (path, ScriptedAnswer::json(200, &answer)),
        (path, ScriptedAnswer::json(200, &answer)),
    ])
    .await;
    let printed = run_rollback(&server, &["--list"]).await;
    assert_eq!(printed.code, Some(0), "{printed:?}");
    let lines: Vec<_> = printed.stdout.lines().collect();
    assert!(lines[0].starts_with("ID  STATE"), "{printed:?}");
    assert!(
        lines[1].contains("2026-12-01T10:00:00Z") && lines[1].ends_with("sha256:0123456789ab  current"),
        "{printed:?}"
    );
    assert!(lines[2].ends_with("the next rollback"), "{printed:?}");
    let printed = run_rollback(&server, &["--list", "--json"]).await;
    assert_eq!(
        serde_json::from_str::<Value>(&printed.stdout).expect("JSON"),
        answer
    );
    assert_eq!(
        run_rollback(&server, &["v1", "--list"]).await.code,
        Some(2),
        "nothing is listed and rolled back at once"
    );
}

#[tokio::test]
async fn rollback_with_json_prints_the_record_of_the_rollback() {
    let record = json!({"id": "r1", "state": "success", "rollback": {"to": "v1", "from": "v2"}});
    let server = FakeBuilder::start(vec![
        (
            ROLLBACK_REQUEST_LINE,
            ScriptedAnswer::json(202, &begun_rollback_json()),
        ),
        (
            "GET /builds/r1/log?from=1",
            ScriptedAnswer::records(
                &[rollback_outcome_json(
                    "success",
                    None,
                    &json!({"status": "ready"}),
                )],
                BodyEnd::Complete,
            ),
        ),
        ("GET /builds/r1", ScriptedAnswer::json(200, &record)),
    ])
    .await;
    let printed = run_rollback(&server, &["--id", "r1", "--json"]).await;
    assert_eq!(printed.code, Some(0), "{printed:?}");
    assert_eq!(
        serde_json::from_str::<Value>(&printed.stdout).expect("JSON"),
        record
    );
}
