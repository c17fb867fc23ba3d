//! Tests of the hints that explain failed builds and deployments.

use bollard_buildkit_proto::google::protobuf::Any;
use bollard_buildkit_proto::google::rpc;
use bollard_buildkit_proto::moby::buildkit::v1::{StatusResponse, Vertex, VertexLog};
use function_host::http::Method;
use proptest::prelude::*;
use prost::Message;
use serde_json::json;
use tonic::{Code, Status};

use crate::builds::ask;
use crate::daemon::{self, DaemonCalls};
use crate::gateway::start_gateway_answering_hand_overs;
use crate::hand_over::let_build_succeed;
use crate::harness::check_hint;
use crate::secrets::recorded_secrets;
use crate::setting::{CALL_ID, TestBuilder, request_tar_with, tar_with_files};

const DOCKERFILE: &[u8] = b"FROM scratch\n\nCOPY config.json /\nRUN make\n";

/// The error of BuildKit for a copied file that is not there.
const MISSING_FILE_ERROR: &str =
    "failed to compute cache key: failed to calculate checksum of ref a::b: \"/config.json\": not found";

/// Returns the tar of a request with a config and these entries: paths in the tar, and contents.
fn request_tar_with_config_and_entries(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut all = vec![(
        "com.openfaas.docker.config",
        &br#"{"image": "registry:5000/hello:1"}"#[..],
    )];
    all.extend(entries);
    tar_with_files(&all)
}

/// Returns the status of a solve that failed at a line of the Dockerfile.
fn solve_failure_at_dockerfile_line(message: &str, line: u32) -> Status {
    let source = json!({"info": {"filename": "Dockerfile"}, "ranges": [{"start": {"line": line}, "end": {"line": line}}]});
    let details = rpc::Status {
        code: 2,
        message: message.into(),
        details: vec![Any {
            type_url: "github.com/moby/buildkit/errdefs.Source+json".into(),
            value: source.to_string().into_bytes(),
        }],
    };
    Status::with_details(Code::Unknown, message, details.encode_to_vec().into())
}

/// Lets the build of the next call fail in a step that has written `output`.
async fn let_build_fail_in_step(calls: &mut DaemonCalls, step_name: &str, output: &str, failure: Status) {
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    let vertex = |error: &str| Vertex {
        digest: "sha256:1".into(),
        name: step_name.into(),
        started: Some(Default::default()),
        completed: (!error.is_empty()).then(Default::default),
        error: error.into(),
        ..Vertex::default()
    };
    let log = VertexLog {
        vertex: "sha256:1".into(),
        stream: 2,
        msg: output.into(),
        ..VertexLog::default()
    };
    let begun = StatusResponse {
        vertexes: vec![vertex("")],
        logs: vec![log],
        ..StatusResponse::default()
    };
    let ended = StatusResponse {
        vertexes: vec![vertex(failure.message())],
        ..StatusResponse::default()
    };
    for response in [begun, ended] {
        status
            .events
            .send(Ok(response))
            .await
            .expect("the builder listens");
    }
    drop(status);
    solve.answer_with_error(failure);
}

#[tokio::test]
async fn an_answer_a_terminal_record_and_a_build_query_have_the_same_hint_for_an_ignored_file() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::new(daemon);
    let tar = || {
        request_tar_with_config_and_entries(&[
            ("context/Dockerfile", DOCKERFILE),
            ("context/.dockerignore", b"# local\n*.json\n"),
            ("context/config.json", b"{}"),
        ])
    };
    let expected = json!({
        "kind": "source-ignored",
        "cause": "line 2 of .dockerignore (*.json) excludes config.json from the build",
        "file": ".dockerignore",
        "line": 2,
        "step": {"name": "[2/3] COPY config.json /", "file": "Dockerfile", "line": 3},
        "next": "add the exception !config.json below line 2 of .dockerignore, or narrow the pattern; or do without config.json",
    });

    let sender = setting.clone();
    let answer = tokio::spawn(async move { sender.send_signed_build(tar()).await });
    let_build_fail_in_step(
        &mut calls,
        "[2/3] COPY config.json /",
        "",
        solve_failure_at_dockerfile_line(MISSING_FILE_ERROR, 3),
    )
    .await;
    let answer = answer.await.expect("no panic");
    assert_eq!(answer.status, 422, "{}", answer.body);
    assert_eq!(answer.body["hint"], expected, "{}", answer.body);
    let build = ask(&setting, Method::GET, &format!("/builds/{CALL_ID}")).await;
    assert_eq!(build.body["hint"], expected, "{}", build.body);

    let streaming = setting.with_call_id("call-2");
    let records = streaming.send_streamed_build(tar(), "application/x-ndjson").await;
    let_build_fail_in_step(
        &mut calls,
        "[2/3] COPY config.json /",
        "",
        solve_failure_at_dockerfile_line(MISSING_FILE_ERROR, 3),
    )
    .await;
    let (_, last) = records.read_lines_and_terminal_record().await;
    assert_eq!(last["hint"], expected, "{last}");
}

#[tokio::test]
async fn a_failed_step_without_a_known_cause_has_a_hint_that_quotes_its_output() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::new(daemon);
    let answer = tokio::spawn(async move { setting.send_signed_build(request_tar_with(json!({}))).await });
    let error = "process \"/bin/sh -c make\" did not complete successfully: exit code: 2";
    let_build_fail_in_step(
        &mut calls,
        "[2/2] RUN make",
        "make: *** [all] Error 2\n",
        Status::unknown(error),
    )
    .await;
    let answer = answer.await.expect("no panic");
    assert_eq!(answer.status, 422, "{}", answer.body);
    assert_eq!(answer.body["hint"]["kind"], "step-failed", "{}", answer.body);
    let cause = answer.body["hint"]["cause"].as_str().expect("a cause");
    assert!(
        cause.contains("exit code 2") && cause.ends_with("make: *** [all] Error 2"),
        "{cause}"
    );
}

#[tokio::test]
async fn a_hint_shows_no_secret_that_a_step_has_written() {
    let recorded = recorded_secrets();
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::new(daemon).with_seal_key(recorded["private_key"].as_str().expect("a key"));
    let secret = recorded["values"]["pip_token"].as_str().expect("a secret").trim();
    let tar = tar_with_files(&[
        ("context/Dockerfile", b"FROM scratch\nRUN cc a.c\n"),
        (
            "com.openfaas.docker.config",
            br#"{"image": "registry:5000/hello:1"}"#,
        ),
        (
            "com.openfaas.secrets",
            recorded["sealed"].as_str().expect("an envelope").as_bytes(),
        ),
    ]);
    let answer = tokio::spawn(async move { setting.send_signed_build(tar).await });
    let error = format!("process \"/bin/sh -c cc {secret}\" did not complete successfully: exit code: 1");
    let output = format!("a.c:4:1: error: unknown type name '{secret}'\n");
    let_build_fail_in_step(
        &mut calls,
        &format!("[2/2] RUN cc {secret}"),
        &output,
        Status::unknown(error),
    )
    .await;
    let answer = answer.await.expect("no panic");
    assert_eq!(answer.body["hint"]["kind"], "compile-error", "{}", answer.body);
    assert_eq!(answer.body["hint"]["line"], 4, "{}", answer.body);
    assert!(!answer.body.to_string().contains(secret), "{}", answer.body);
}

#[tokio::test(start_paused = true)]
async fn the_hint_for_a_build_over_its_time_limit_names_the_step_and_its_last_output() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::new(daemon);
    let tar = request_tar_with(json!({"timeout": "90s"}));
    let records = setting.send_streamed_build(tar, "application/x-ndjson").await;
    let (_solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    let begun = StatusResponse {
        vertexes: vec![Vertex {
            digest: "sha256:1".into(),
            name: "[2/2] RUN read answer".into(),
            started: Some(Default::default()),
            ..Vertex::default()
        }],
        logs: vec![VertexLog {
            vertex: "sha256:1".into(),
            stream: 1,
            msg: b"Continue? [y/N]".to_vec(),
            ..VertexLog::default()
        }],
        ..StatusResponse::default()
    };
    status.events.send(Ok(begun)).await.expect("the builder listens");
    let (_, last) = records.read_lines_and_terminal_record().await;
    let hint = &last["hint"];
    assert_eq!(hint["kind"], "time-limit", "{last}");
    let cause = hint["cause"].as_str().expect("a cause");
    assert!(
        cause.contains("RUN read answer") && cause.contains("Continue? [y/N]"),
        "{cause}"
    );
}

#[tokio::test]
async fn a_deployment_that_failed_has_the_hint_for_the_deployers_reasons() {
    const ROLLED_BACK_ANSWER_JSON: &str = r#"{"status":"rolled_back","reasons":["not ready within 20s: the container ended with exit code 101; its log ends with: starting | panicked at src/main.rs:4:5"]}"#;
    let (address, _deliveries) = start_gateway_answering_hand_overs(422, ROLLED_BACK_ANSWER_JSON).await;
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::with_gateway(daemon, &format!("http://{address}"));
    setting.write_secret("deploy-secret", "deploy key");
    let tar = request_tar_with(json!({"deploy": {"service": "hello"}}));
    let answer = tokio::spawn(async move { setting.send_signed_build(tar).await });
    let_build_succeed(&mut calls).await;
    let answer = answer.await.expect("no panic");
    assert_eq!(answer.body["hint"]["kind"], "function-exits", "{}", answer.body);
    assert_eq!(
        answer.body["hint"]["log"],
        json!(["starting", "panicked at src/main.rs:4:5"])
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_hint_for_any_texts_is_short_and_has_no_control_characters(
        line in any::<u8>(),
        parts in prop::collection::vec(prop::collection::vec(prop_oneof![
            prop::sample::select(HINT_TEXT_FRAGMENTS).prop_map(str::to_owned),
            ".{0,40}",
        ], 0..10), 5),
    ) {
        let parts: Vec<_> = parts.into_iter().map(|words| words.concat().replace('\0', "")).collect();
        let mut bytes = vec![line];
        bytes.extend(parts.join("\0").into_bytes());
        check_hint(&bytes);
    }
}

/// The beginnings and ends of texts that rules look for.
const HINT_TEXT_FRAGMENTS: &[&str] = &[
    "process \"x\" did not complete successfully: exit code: 1",
    "process \"x\" did not complete successfully: exit code: 127",
    "failed to calculate checksum of ref a::b: \"/x\": not found",
    "x: failed to resolve source metadata for r.example/y:1: ",
    "failed to push a.example/b:1: unexpected status from HEAD request to http://r/v2/: 401 Unauthorized",
    "dockerfile parse error on line 3: ",
    "the build ran past its time limit of ",
    "the build may not read ",
    "secret x: not found",
    "error: ",
    "error[E0308]: ",
    " --> src/a.rs:1:2",
    "npm error code E404\n",
    "Traceback\n  File \"a\", line 1\nxError: y",
    "/run/secrets/x: No such file",
    "FROM a AS b\nCOPY --from=x a b\n",
    "RUN --mount=type=secret,id=x <<EOF\n",
    "go: errors parsing go.mod:\ngo.mod:3: ",
    "sh: 1: x/y: not found\n",
    "*\n!x\n**/[a-z]?\n",
    "\u{1b}[31m",
    "\u{1b}]",
    "\u{202e}",
    "\u{2028}",
    "/",
    "..",
    ": ",
    "\"",
    "'",
    "\r",
    "\n",
    "\\\n",
];
