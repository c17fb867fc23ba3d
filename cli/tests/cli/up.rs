//! `slipway up` with scripted answers: what it sends, what it prints, and how it exits.

use std::io::Read as _;

use serde_json::{Value, json};

use crate::fake_builder::{
    BodyEnd, FakeBuilder, ScriptedAnswer, outcome_of_running_function, record_with_line,
};
use crate::project::Project;

#[tokio::test]
async fn each_outcome_has_its_exit_status_and_each_failure_its_next_step() {
    let failed = |code: u64| json!({"status": "failed", "error": "why", "code": code, "duration": 1.0});
    let deployment = |status: &str, code: u64| {
        json!({"status": "failed", "error": "why", "code": code, "duration": 1.0,
               "deployment": {"status": status, "reasons": ["the reason"]}})
    };
    for (outcome, arguments, code) in [
        (outcome_of_running_function(), &[][..], 0),
        (failed(422), &[], 1),
        (failed(400), &[], 2),
        (deployment("rolled_back", 422), &[], 3),
        (deployment("refused", 422), &[], 3),
        (
            json!({"status": "success", "deployment": {"status": "unverified", "reasons": ["unsure"]}}),
            &["--strict"],
            3,
        ),
        (
            json!({"status": "success", "deployment": {"status": "unverified", "reasons": ["unsure"]}}),
            &[],
            0,
        ),
        (failed(502), &[], 4),
        (
            json!({"status": "failed", "error": "newer", "code": 409, "supersededBy": "the-newer-one"}),
            &[],
            5,
        ),
        (
            json!({"status": "failed", "error": "cancelled", "code": 409}),
            &[],
            5,
        ),
    ] {
        let records = [
            json!({"log": ["v: T [1/1] RUN make"], "status": "in_progress"}),
            outcome.clone(),
        ];
        let server = FakeBuilder::start(vec![(
            "POST /build",
            ScriptedAnswer::records(&records, BodyEnd::Complete),
        )])
        .await;
        let project = Project::shop();
        let common = [
            "up",
            "--via",
            "builder",
            "--builder",
            &server.url,
            "--gateway",
            "http://g.example",
        ];
        let printed = project.run(&[&common[..], arguments].concat()).await;
        assert_eq!(printed.code, Some(code), "{outcome}: {printed:?}");
        match code {
            0 => assert_eq!(printed.stdout, "http://g.example/function/shop\n"),
            _ => {
                assert_eq!(printed.stdout, "", "{outcome}");
                assert!(printed.stderr.contains("next: "), "{outcome}: {printed:?}");
            }
        }
        assert!(printed.stderr.contains("[1/1] RUN make"), "{printed:?}");
    }
}

#[tokio::test]
async fn answers_without_a_stream_have_the_same_exit_statuses() {
    for (status, body, code, part) in [
        (
            401,
            json!({"status": "failed", "error": "the signature does not match"}),
            2,
            "SLIPWAY_PAYLOAD_SECRET",
        ),
        (
            403,
            json!({"status": "failed", "error": "a rule"}),
            2,
            "ask the operator",
        ),
        (
            413,
            json!({"status": "failed", "error": "too large"}),
            2,
            ".dockerignore",
        ),
        (429, Value::Null, 4, "busy"),
        (502, Value::Null, 4, "again"),
        (507, json!({"status": "failed", "error": "no room"}), 4, "no room"),
    ] {
        let server = FakeBuilder::start(vec![("POST /build", ScriptedAnswer::json(status, &body))]).await;
        let arguments = ["up", "--via", "builder", "--builder", &server.url];
        let printed = Project::shop().run(&arguments).await;
        assert_eq!(
            (printed.code, printed.stdout.as_str()),
            (Some(code), ""),
            "{status}: {printed:?}"
        );
        assert!(printed.stderr.contains(part), "{status}: {printed:?}");
    }
}

#[tokio::test]
async fn a_request_is_a_signed_tar_with_the_function_as_the_stack_file_has_it() {
    let mut server = FakeBuilder::start(vec![(
        "POST /async-function/builder-fn",
        ScriptedAnswer::queued(),
    )])
    .await;
    let project = Project::shop();
    project.write("shop/target/large", "x");
    project.write("shop/.dockerignore", "target\n");
    let printed = project
        .run(&[
            "up",
            "--detach",
            "--gateway",
            &server.url,
            "--progress",
            "json",
            "-b",
            "A=1",
        ])
        .await;
    assert_eq!(
        (printed.code, printed.stdout.as_str()),
        (Some(0), ""),
        "{printed:?}"
    );
    let events: Vec<Value> = printed
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert!(
        events
            .iter()
            .any(|event| event["event"] == "submitted" && event["route"] == "queue"),
        "{events:?}"
    );
    let request = server.next_request_except_probes().await;
    assert!(request.headers.contains_key("x-build-signature") && request.headers.contains_key("x-call-id"));
    let mut names = Vec::new();
    let mut config = Value::Null;
    let plain = zstd::stream::decode_all(&request.body[..]).expect("zstd");
    for entry in tar::Archive::new(&plain[..]).entries().expect("a tar") {
        let mut entry = entry.expect("an entry");
        let name = entry.path().expect("a path").to_string_lossy().into_owned();
        if name == "com.openfaas.docker.config" {
            let mut text = String::new();
            entry.read_to_string(&mut text).expect("text");
            config = serde_json::from_str(&text).expect("JSON");
        }
        names.push(name);
    }
    assert_eq!(
        names,
        [
            "context/.dockerignore",
            "context/Dockerfile",
            "com.openfaas.docker.config"
        ]
    );
    assert_eq!(config["image"], "r.example/shop:1");
    assert_eq!(config["deploy"], json!({"service": "shop"}));
    assert_eq!(config["buildArgs"], json!({"A": "1"}));
    let time = |key: &str| {
        let text = config[key].as_str().expect("a time");
        text.parse::<jiff::Timestamp>().expect("RFC 3339")
    };
    // Nobody sends a recorded request again once a day has passed.
    assert_eq!(
        time("notAfter").duration_since(time("submittedAt")),
        jiff::SignedDuration::from_hours(24)
    );
}

#[tokio::test]
async fn a_request_that_is_too_large_for_the_queue_goes_there_as_a_reference_to_its_stored_context() {
    let stored = json!({"status": "success", "context": {"oci": "r.example/contexts@sha256:1"}});
    let mut server = FakeBuilder::start(vec![
        (
            "POST /function/builder-fn/contexts",
            ScriptedAnswer::json(201, &stored),
        ),
        ("POST /async-function/builder-fn", ScriptedAnswer::queued()),
    ])
    .await;
    let project = Project::shop();
    project.write("shop/large", incompressible(300_000));
    let printed = project.run(&["up", "--detach", "--gateway", &server.url]).await;
    assert_eq!(printed.code, Some(0), "{printed:?}");
    let context = server.next_request_except_probes().await;
    assert!(context.body.len() > 256_000);
    let request = server.next_request_except_probes().await;
    assert_eq!(request.headers["content-type"], "application/json");
    let body: Value = serde_json::from_slice(&request.body).expect("JSON");
    assert_eq!(
        (&body["context"], &body["image"]),
        (&stored["context"], &json!("r.example/shop:1"))
    );
}

#[tokio::test]
async fn a_large_request_goes_past_the_queue_or_fails_with_via_queue_if_no_contexts_are_stored() {
    let server = FakeBuilder::start(vec![
        (
            "POST /function/builder-fn/contexts",
            ScriptedAnswer::json(501, &json!({"status": "failed", "error": "not offered"})),
        ),
        (
            "POST /function/builder-fn",
            ScriptedAnswer::events(&[outcome_of_running_function()], BodyEnd::Complete),
        ),
    ])
    .await;
    let project = Project::shop();
    project.write("shop/large", incompressible(300_000));
    let printed = project.run(&["up", "--gateway", &server.url]).await;
    assert_eq!(printed.code, Some(0), "{printed:?}");
    assert_eq!(server.answers_left(), 0);
    assert!(printed.stderr.contains("without the queue"), "{printed:?}");
    let server = FakeBuilder::start(vec![(
        "POST /function/builder-fn/contexts",
        ScriptedAnswer::json(501, &json!({"status": "failed", "error": "not offered"})),
    )])
    .await;
    let printed = project
        .run(&["up", "--via", "queue", "--gateway", &server.url])
        .await;
    assert_eq!(printed.code, Some(2), "{printed:?}");
    assert!(printed.stderr.contains("contexts_repository"), "{printed:?}");
}

#[tokio::test]
async fn quiet_progress_prints_errors_only_and_every_failed_function_counts() {
    let failed = json!({"status": "failed", "error": "why", "code": 422});
    let records = [record_with_line(1, "v: T [1/1] RUN make"), failed];
    let server = FakeBuilder::start(vec![
        (
            "POST /build",
            ScriptedAnswer::records(&records, BodyEnd::Complete),
        ),
        (
            "POST /build",
            ScriptedAnswer::records(&[outcome_of_running_function()], BodyEnd::Complete),
        ),
    ])
    .await;
    let project = Project::shop();
    let stack = "functions:\n  a:\n    lang: dockerfile\n    handler: ./shop\n    image: r.example/a:1\n  b:\n    lang: dockerfile\n    \
                 handler: ./shop\n    image: r.example/b:1\n    namespace: team\n";
    project.write("stack.yaml", stack);
    let arguments = [
        "up",
        "--via",
        "builder",
        "--builder",
        &server.url,
        "--gateway",
        "http://g.example",
        "--progress",
        "quiet",
    ];
    let printed = project.run(&arguments).await;
    assert_eq!(printed.code, Some(1), "{printed:?}");
    assert_eq!(printed.stdout, "http://g.example/function/b.team\n");
    assert_eq!(
        printed.stderr.lines().collect::<Vec<_>>(),
        [
            "a: error: why",
            "a: next: correct what the error names, and run slipway up again"
        ]
    );
}

/// Returns bytes that do not become fewer when they are compressed.
pub(crate) fn incompressible(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut bytes = vec![0; length];
    for word in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
    }
    bytes
}
