//! The forms `json` and `quiet` of the progress, in each command that has them.

use serde_json::{Value, json};
use tokio::io::BufReader;

use crate::fake_builder::{BodyEnd, FakeBuilder, ScriptedAnswer, outcome_of_running_function};
use crate::project::{Project, interrupt, read_until};

/// Parses each line as an event.
fn events(stderr: &str) -> Vec<Value> {
    let parse = |line: &str| serde_json::from_str(line).expect("JSON on each line");
    stderr.lines().map(parse).collect()
}

/// Starts a server with a rollback of the function shop.
async fn server_with_rollback() -> FakeBuilder {
    let begun = json!({"id": "r1", "state": "deploying", "rollback": {"to": "v1", "from": "v2"}});
    let mut outcome = outcome_of_running_function();
    outcome["rollback"] = begun["rollback"].clone();
    FakeBuilder::start(vec![
        (
            "POST /functions/shop/rollback?id=r1",
            ScriptedAnswer::json(202, &begun),
        ),
        (
            "GET /builds/r1/log?from=1",
            ScriptedAnswer::records(&[outcome], BodyEnd::Complete),
        ),
    ])
    .await
}

#[tokio::test]
async fn a_rollback_prints_events_with_json_and_only_its_url_with_quiet() {
    for (form, expected) in [("json", &["rollback_started", "running"][..]), ("quiet", &[])] {
        let server = server_with_rollback().await;
        let arguments = ["rollback", "shop", "--id", "r1", "--builder", &server.url];
        let printed = Project::empty()
            .run(&[&arguments[..], &["--progress", form]].concat())
            .await;
        assert_eq!(printed.code, Some(0), "{printed:?}");
        let events = events(&printed.stderr);
        let names: Vec<_> = events
            .iter()
            .filter_map(|event| event["event"].as_str())
            .collect();
        assert_eq!(names, expected);
        if let Some(started) = events.first() {
            let expected = json!({"event": "rollback_started", "id": "r1", "to": "v1", "function": "shop"});
            assert_eq!(*started, expected);
        }
        assert!(printed.stdout.ends_with("/function/shop\n"), "{printed:?}");
    }
}

#[tokio::test]
async fn an_error_of_up_dev_and_rollback_is_one_event_with_json_and_lines_otherwise() {
    let server = FakeBuilder::start(Vec::new()).await;
    for arguments in [
        &["up"][..],
        &["dev"],
        &["rollback", "shop", "--builder", &server.url],
        &["rollback", "shop", "--list", "--builder", &server.url],
    ] {
        let project = Project::empty();
        let run = async |form| project.run(&[arguments, &["--progress", form]].concat()).await;
        let printed = run("json").await;
        assert_eq!(printed.code, Some(2), "{printed:?}");
        let events = events(&printed.stderr);
        let [event] = &events[..] else {
            panic!("{printed:?}")
        };
        assert_eq!(
            (&event["event"], &event["code"]),
            (&json!("failed"), &json!(2)),
            "{event}"
        );
        assert!(
            event["next"].as_str().is_some_and(|next| !next.is_empty()),
            "{event}"
        );
        for form in ["plain", "quiet"] {
            let printed = run(form).await;
            let last = printed.stderr.lines().last().unwrap_or_default();
            assert!(
                printed.stderr.starts_with("slipway: ") && last.starts_with("next: "),
                "{form}: {printed:?}"
            );
        }
    }
}

#[tokio::test]
async fn everything_that_dev_says_is_an_event_with_json() {
    let records = [outcome_of_running_function()];
    let server = FakeBuilder::start(vec![(
        "POST /build",
        ScriptedAnswer::records(&records, BodyEnd::Complete),
    )])
    .await;
    let project = Project::shop();
    let arguments = ["dev", "--via", "builder", "--builder", &server.url];
    let mut child = project.spawn(&[&arguments[..], &["--progress", "json"]].concat());
    let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
    let mut printed = read_until(&mut stderr, "watching for changes").await;
    project.write("stack.yaml", "functions: [\n");
    printed.push_str(&read_until(&mut stderr, "watching for changes").await);
    interrupt(&child);
    assert_eq!(child.wait().await.expect("it ends").code(), Some(0));
    let events = events(&printed);
    let count = |name: &str| events.iter().filter(|event| event["event"] == name).count();
    assert_eq!((count("running"), count("failed")), (1, 1), "{printed}");
    let last = events.last().expect("an event");
    assert_eq!(
        (&last["event"], &last["function"]),
        (&json!("note"), &json!("slipway"))
    );
}

#[tokio::test]
async fn dev_says_only_its_errors_and_warnings_with_quiet() {
    let records = [outcome_of_running_function()];
    let mut server = FakeBuilder::start(vec![(
        "POST /build",
        ScriptedAnswer::records(&records, BodyEnd::Complete),
    )])
    .await;
    let project = Project::shop();
    let arguments = ["dev", "--via", "builder", "--builder", &server.url];
    let mut child = project.spawn(&[&arguments[..], &["--progress", "quiet"]].concat());
    let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
    let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
    server.next_request_except_probes().await;
    let mut url = String::new();
    tokio::io::AsyncBufReadExt::read_line(&mut stdout, &mut url)
        .await
        .expect("text");
    project.write("stack.yaml", "functions: [\n");
    let printed = read_until(&mut stderr, "next: ").await;
    interrupt(&child);
    assert_eq!(child.wait().await.expect("it ends").code(), Some(0));
    assert!(printed.starts_with("slipway: "), "{printed}");
    assert!(!printed.contains("watching"), "{printed}");
}
