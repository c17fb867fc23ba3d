//! Tests of questions about builds: state, log, cancellation, and who may ask.

use bollard_buildkit_proto::google::protobuf::Timestamp;
use bollard_buildkit_proto::moby::buildkit::v1::{StatusResponse, Vertex, VertexLog};
use builder_fn::buildkit::Daemon;
use function_host::http::Method;
use function_host::signature::sign_body;
use function_host::{Body, Request, Response};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use crate::complete_or_panic;
use crate::daemon::{self, DaemonCalls, SolveCall, StatusCall};
use crate::hand_over::let_build_succeed;
use crate::secrets::{recorded_secrets, tar_with_sealed_secrets};
use crate::setting::{
    AnswerStatusAndBody, CALL_ID, PAYLOAD_KEY, TestBuilder, hmac_keys, request_tar_with, tar_with_files,
};

/// Returns a request for the state, the log or the cancellation of builds, signed with `key` at the current time.
pub(crate) fn signed_bodyless_request(key: &str, method: Method, path: &str, accept: &str) -> Request {
    let signed_at = jiff::Timestamp::now().to_string();
    let signature = sign_body(
        &hmac_keys(key),
        format!("{method}\n{path}\n{signed_at}").as_bytes(),
    );
    let mut request = Request::new(Body::from(Vec::new()));
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().expect("path");
    let headers = request.headers_mut();
    headers.insert("x-signed-at", signed_at.parse().expect("header"));
    headers.insert("x-build-signature", signature.parse().expect("header"));
    headers.insert("accept", accept.parse().expect("header"));
    request
}

/// Sends a request for a build's state or cancellation, or a list, signed with [`PAYLOAD_KEY`], and returns the answer.
pub(crate) async fn ask(builder: &TestBuilder, method: Method, path: &str) -> AnswerStatusAndBody {
    let request = signed_bodyless_request(PAYLOAD_KEY, method, path, "*/*");
    AnswerStatusAndBody::from_json_response_or_text_of_429(builder.send_request(request).await).await
}

/// Requests the log of the build from the line `from_line` on, and returns the response with an unread body.
pub(crate) async fn open_log(builder: &TestBuilder, from_line: u64) -> Response {
    let path = format!("/builds/{CALL_ID}/log?from={from_line}");
    let request = signed_bodyless_request(PAYLOAD_KEY, Method::GET, &path, "application/x-ndjson");
    let response = builder.send_request(request).await;
    assert_eq!(response.status(), 200);
    response
}

/// Reads a log from the line `from_line` on to its end: the numbered lines, and the terminal record.
pub(crate) async fn read_numbered_lines_and_terminal_record(
    builder: &TestBuilder,
    from_line: u64,
) -> (Vec<(u64, String)>, Value) {
    let body = open_log(builder, from_line).await.into_body();
    let bytes = complete_or_panic(body.collect()).await.expect("body").to_bytes();
    let mut records: Vec<Value> = bytes
        .split_inclusive(|byte| *byte == b'\n')
        .map(|line| serde_json::from_slice(line).expect("a record"))
        .collect();
    let terminal = records.pop().expect("a terminal record");
    (
        records
            .iter()
            .flat_map(number_and_first_line_of_log_record)
            .collect(),
        terminal,
    )
}

/// Returns the number and the line of a record with one line; `None` for a record without lines.
pub(crate) fn number_and_first_line_of_log_record(record: &Value) -> Option<(u64, String)> {
    assert_eq!(record["status"], "in_progress");
    let seq = record["seq"].as_u64().expect("a number");
    let line = record["log"].as_array().expect("lines").first()?;
    Some((seq, line.as_str().expect("a line").to_owned()))
}

fn timestamp_after_base(seconds: i64, milliseconds: i32) -> Timestamp {
    Timestamp {
        seconds: 1_790_000_000 + seconds,
        nanos: milliseconds * 1_000_000,
    }
}

/// Returns the status of a step with `count` lines of output, in responses of a few lines each.
pub(crate) fn statuses_of_step_with_output_lines(count: usize, text: &str) -> Vec<StatusResponse> {
    let vertex = |completed| Vertex {
        digest: "sha256:1".into(),
        name: "[1/1] RUN count".into(),
        started: Some(timestamp_after_base(0, 0)),
        completed,
        ..Vertex::default()
    };
    let logs: Vec<_> = (0..count)
        .map(|number| VertexLog {
            vertex: "sha256:1".into(),
            timestamp: Some(timestamp_after_base(
                1 + i64::try_from(number).expect("small") / 1000,
                i32::try_from(number % 1000).expect("small"),
            )),
            stream: 1,
            msg: format!("{text} {number}\n").into(),
        })
        .collect();
    let mut responses = vec![StatusResponse {
        vertexes: vec![vertex(None)],
        ..StatusResponse::default()
    }];
    responses.extend(logs.chunks(7).map(|logs| StatusResponse {
        logs: logs.to_vec(),
        ..StatusResponse::default()
    }));
    responses.push(StatusResponse {
        vertexes: vec![vertex(Some(timestamp_after_base(10_000, 0)))],
        ..StatusResponse::default()
    });
    responses
}

/// Answers every reader of a status with `responses`, the last of them once the returned switch is set.
pub(crate) fn answer_statuses_holding_back_the_last(
    calls: &mut DaemonCalls,
    responses: Vec<StatusResponse>,
) -> watch::Sender<bool> {
    let mut statuses = std::mem::replace(&mut calls.statuses, mpsc::unbounded_channel().1);
    let (ended, _) = watch::channel(false);
    let switch = ended.clone();
    tokio::spawn(async move {
        while let Some(StatusCall { events, .. }) = statuses.recv().await {
            let (responses, mut ended) = (responses.clone(), switch.subscribe());
            tokio::spawn(async move {
                let (last, first) = responses.split_last().expect("responses");
                for response in first {
                    if events.send(Ok(response.clone())).await.is_err() {
                        return;
                    }
                }
                if ended.wait_for(|ended| *ended).await.is_ok() {
                    // A reader that has gone needs no more.
                    let _ = events.send(Ok(last.clone())).await;
                }
            });
        }
    });
    ended
}

/// Starts a build of `tar` at `builder`, and waits for its solve.
pub(crate) async fn start_build_and_wait_for_solve(
    builder: &TestBuilder,
    calls: &mut DaemonCalls,
    tar: Vec<u8>,
) -> (tokio::task::JoinHandle<AnswerStatusAndBody>, SolveCall) {
    let own = builder.clone();
    let build = tokio::spawn(async move { own.send_signed_build(tar).await });
    let solve = complete_or_panic(calls.solves.recv()).await.expect("a solve");
    (build, solve)
}

#[tokio::test]
async fn every_builder_of_a_daemon_answers_with_a_builds_state_while_it_runs_and_afterwards() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon.clone());
    let ended =
        answer_statuses_holding_back_the_last(&mut calls, statuses_of_step_with_output_lines(3, "line"));
    let path = format!("/builds/{CALL_ID}");
    assert_eq!(ask(&builder, Method::GET, &path).await.status, 404);

    let (build, solve) =
        start_build_and_wait_for_solve(&builder, &mut calls, request_tar_with(json!({}))).await;
    for asked in [&builder, &TestBuilder::new(daemon.clone())] {
        let answer = ask(asked, Method::GET, &path).await;
        assert_eq!((answer.status, &answer.body["state"]), (200, &json!("running")));
        assert_eq!(answer.body["image"], "registry:5000/hello:1");
    }
    ended.send_replace(true);
    solve.answer_with_digest("sha256:12");
    assert_eq!(complete_or_panic(build).await.expect("no panic").status, 200);

    for asked in [&builder, &TestBuilder::new(daemon)] {
        let answer = ask(asked, Method::GET, &path).await;
        let body = &answer.body;
        assert_eq!(
            (answer.status, &body["state"]),
            (200, &json!("success")),
            "{body}"
        );
        assert_eq!(
            (&body["id"], &body["digest"]),
            (&json!(CALL_ID), &json!("sha256:12"))
        );
        assert_eq!(body["attempts"], 1);
        for time in ["submittedAt", "startedAt", "endedAt"] {
            assert!(body[time].is_string(), "{time} of {body}");
        }
        let list = ask(asked, Method::GET, "/builds?state=success").await.body;
        assert_eq!(list["builds"][0]["id"], CALL_ID);
        let list = ask(asked, Method::GET, "/builds?image=registry:5000/other")
            .await
            .body;
        assert_eq!(list["builds"], json!([]));
    }
}

#[tokio::test]
async fn a_rejected_request_is_known_with_its_reason() {
    let (daemon, _calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon);
    let answer = builder
        .send_signed_build(tar_with_files(&[("context/Dockerfile", b"")]))
        .await;
    assert_eq!(answer.status, 400);

    let asked = ask(&builder, Method::GET, &format!("/builds/{CALL_ID}")).await;
    assert_eq!((asked.status, &asked.body["state"]), (200, &json!("failed")));
    assert_eq!(asked.body["error"], answer.body["error"]);
    let (lines, terminal) = read_numbered_lines_and_terminal_record(&builder, 1).await;
    assert_eq!((lines.len(), &terminal["status"]), (0, &json!("failed")));
}

#[tokio::test]
async fn a_log_has_the_same_numbers_live_afterwards_and_at_another_builder() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon.clone());
    let ended =
        answer_statuses_holding_back_the_last(&mut calls, statuses_of_step_with_output_lines(100, "line"));
    let (build, solve) =
        start_build_and_wait_for_solve(&builder, &mut calls, request_tar_with(json!({}))).await;
    let mut live = open_log(&builder, 1).await.into_body();
    let mut received = Vec::new();
    // The last line is held until the next event or a second has passed.
    while !String::from_utf8_lossy(&received).contains("line 99") {
        let frame = complete_or_panic(live.frame())
            .await
            .expect("a frame")
            .expect("no error");
        received.extend_from_slice(&frame.into_data().expect("data"));
    }
    ended.send_replace(true);
    solve.answer_with_digest("sha256:12");
    complete_or_panic(build).await.expect("no panic");
    let rest = complete_or_panic(live.collect()).await.expect("body").to_bytes();
    received.extend_from_slice(&rest);
    let records: Vec<Value> = received
        .split_inclusive(|byte| *byte == b'\n')
        .map(|line| serde_json::from_slice(line).expect("a record"))
        .collect();
    let (terminal, records) = records.split_last().expect("records");
    let lines: Vec<_> = records
        .iter()
        .filter_map(number_and_first_line_of_log_record)
        .collect();

    assert_eq!(lines.len(), 102, "the step's beginning and end, and its output");
    assert_eq!(
        lines.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(),
        (1..=102).collect::<Vec<_>>()
    );
    assert_eq!(
        (&terminal["status"], &terminal["seq"]),
        (&json!("success"), &json!(103))
    );
    for asked in [&builder, &TestBuilder::new(daemon)] {
        let (again, terminal) = read_numbered_lines_and_terminal_record(asked, 1).await;
        assert_eq!(again, lines);
        assert_eq!(
            (&terminal["status"], &terminal["digest"]),
            (&json!("success"), &json!("sha256:12"))
        );
        let (rest, _) = read_numbered_lines_and_terminal_record(asked, 50).await;
        assert_eq!(rest, lines[49..]);
    }
}

#[tokio::test]
async fn a_reader_that_is_cut_off_many_times_gets_every_line_once() {
    const LINE_COUNT: usize = 5_000;
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon.clone());
    let ended = answer_statuses_holding_back_the_last(
        &mut calls,
        statuses_of_step_with_output_lines(LINE_COUNT, "line"),
    );
    let (build, solve) =
        start_build_and_wait_for_solve(&builder, &mut calls, request_tar_with(json!({}))).await;
    let mut solve = Some(solve);

    let (mut next, mut texts, mut cuts) = (1, Vec::new(), 0);
    let terminal = 'reading: loop {
        let asked = if cuts % 2 == 0 {
            builder.clone()
        } else {
            TestBuilder::new(daemon.clone())
        };
        let mut body = open_log(&asked, next).await.into_body();
        let mut pending = Vec::new();
        // One frame at a time while the build runs, then up to fifty.
        let frames = if cuts < 10 { 1 } else { 1 + cuts * 7 % 50 };
        for _ in 0..frames {
            let Some(frame) = complete_or_panic(body.frame()).await else {
                break;
            };
            pending.extend_from_slice(&frame.expect("no error").into_data().expect("data"));
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let record: Value = serde_json::from_slice(&pending[..end]).expect("a record");
                pending.drain(..=end);
                if record["status"] != "in_progress" {
                    break 'reading record;
                }
                if let Some((seq, line)) = number_and_first_line_of_log_record(&record) {
                    assert_eq!(seq, next);
                    next = seq + 1;
                    texts.push(line);
                }
            }
        }
        cuts += 1;
        if cuts == 10 {
            ended.send_replace(true);
            solve.take().expect("once").answer_with_digest("sha256:12");
        }
    };

    complete_or_panic(build).await.expect("no panic");
    assert_eq!(terminal["status"], "success");
    assert!(cuts > 20, "{cuts}");
    let numbers: Vec<_> = texts
        .iter()
        .filter_map(|line| line.split("line ").nth(1)?.parse::<usize>().ok())
        .collect();
    assert_eq!(numbers, (0..LINE_COUNT).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_cancelled_build_ends_its_solve_and_answers_409() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon.clone());
    let _ended =
        answer_statuses_holding_back_the_last(&mut calls, statuses_of_step_with_output_lines(3, "line"));
    for (asked, id) in [(builder.clone(), "here"), (TestBuilder::new(daemon), "there")] {
        let builder = builder.with_call_id(id);
        let path = format!("/builds/{id}");
        let signed_bodyless_request = path.clone();
        let (build, mut solve) =
            start_build_and_wait_for_solve(&builder, &mut calls, request_tar_with(json!({}))).await;
        let cancelling =
            tokio::spawn(async move { ask(&asked, Method::DELETE, &signed_bodyless_request).await });

        let marker = complete_or_panic(calls.solves.recv()).await.expect("a marker");
        assert_eq!(marker.request.frontend_attrs["slipway.cancel"], id);
        assert!(marker.request.exporters.is_empty() && marker.request.definition.is_some());
        complete_or_panic(solve.reply.closed()).await;
        marker
            .reply
            .send(Err(tonic::Status::unknown("nothing to solve")))
            .expect("it waits");

        let built = complete_or_panic(build).await.expect("no panic");
        assert_eq!((built.status, &built.body["error"]), (409, &json!("cancelled")));
        let answer = complete_or_panic(cancelling).await.expect("no panic");
        assert_eq!(
            (answer.status, &answer.body["state"]),
            (200, &json!("cancelled")),
            "{}",
            answer.body
        );
        let again = ask(&builder, Method::DELETE, &path).await;
        assert_eq!((again.status, &again.body["state"]), (200, &json!("cancelled")));
    }
}

#[tokio::test]
async fn a_cancelled_call_is_not_built_by_another_builder_that_gets_it_again() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let first = TestBuilder::new(daemon.clone());
    let _ended =
        answer_statuses_holding_back_the_last(&mut calls, statuses_of_step_with_output_lines(3, "line"));
    let (build, _solve) =
        start_build_and_wait_for_solve(&first, &mut calls, request_tar_with(json!({}))).await;
    let own = first.clone();
    let cancelling =
        tokio::spawn(async move { ask(&own, Method::DELETE, &format!("/builds/{CALL_ID}")).await });
    let marker = complete_or_panic(calls.solves.recv()).await.expect("a marker");
    marker
        .reply
        .send(Err(tonic::Status::unknown("nothing to solve")))
        .expect("it waits");
    complete_or_panic(build).await.expect("no panic");
    complete_or_panic(cancelling).await.expect("no panic");

    let second = TestBuilder::new(daemon);
    let answer = complete_or_panic(second.send_signed_build(request_tar_with(json!({})))).await;

    assert_eq!((answer.status, &answer.body["error"]), (409, &json!("cancelled")));
    assert!(calls.solves.try_recv().is_err(), "nothing is solved");
}

#[tokio::test]
async fn an_ended_build_is_not_cancelled() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon);
    let ended =
        answer_statuses_holding_back_the_last(&mut calls, statuses_of_step_with_output_lines(3, "line"));
    ended.send_replace(true);
    let (build, solve) =
        start_build_and_wait_for_solve(&builder, &mut calls, request_tar_with(json!({}))).await;
    solve.answer_with_digest("sha256:12");
    complete_or_panic(build).await.expect("no panic");

    let answer = ask(&builder, Method::DELETE, &format!("/builds/{CALL_ID}")).await;
    assert_eq!((answer.status, &answer.body["state"]), (409, &json!("success")));
    assert_eq!(ask(&builder, Method::DELETE, "/builds/unknown").await.status, 404);
    assert!(calls.solves.try_recv().is_err(), "no marker");
}

#[tokio::test]
async fn a_question_needs_a_signature_of_its_own() {
    let (daemon, _calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon);
    let path = format!("/builds/{CALL_ID}");
    let mut moved = signed_bodyless_request(PAYLOAD_KEY, Method::GET, "/builds", "*/*");
    *moved.uri_mut() = path.parse().expect("path");
    let mut unsigned = signed_bodyless_request(PAYLOAD_KEY, Method::GET, &path, "*/*");
    unsigned.headers_mut().remove("x-build-signature");
    let mut old = signed_bodyless_request(PAYLOAD_KEY, Method::GET, &path, "*/*");
    old.headers_mut()
        .insert("x-signed-at", "2020-01-01T00:00:00Z".parse().expect("header"));
    for request in [
        moved,
        unsigned,
        old,
        signed_bodyless_request("another key", Method::GET, &path, "*/*"),
    ] {
        let answer =
            AnswerStatusAndBody::from_json_response_or_text_of_429(builder.send_request(request).await).await;
        assert_eq!(answer.status, 401, "{}", answer.body);
    }
    let request = signed_bodyless_request(PAYLOAD_KEY, Method::POST, &path, "*/*");
    let answer =
        AnswerStatusAndBody::from_json_response_or_text_of_429(builder.send_request(request).await).await;
    assert_eq!(answer.status, 405);
}

#[tokio::test]
async fn the_build_of_another_tenant_looks_like_one_that_does_not_exist() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let create = |daemon: Daemon| {
        let tenant = |name: &str| json!({"keys": [format!("{name}-payload")], "push": [format!("registry:5000/{name}/")]});
        let builder = TestBuilder::new(daemon)
            .with_policy(&json!({"tenants": {"acme": tenant("acme"), "bolt": tenant("bolt")}}));
        builder.write_secret("acme-payload", "the payload key of acme");
        builder.write_secret("bolt-payload", "the payload key of bolt");
        builder
    };
    let (builder, other) = (create(daemon.clone()), create(daemon));
    let ended =
        answer_statuses_holding_back_the_last(&mut calls, statuses_of_step_with_output_lines(3, "line"));
    ended.send_replace(true);
    let own = builder.clone();
    let build = tokio::spawn(async move {
        let tar = request_tar_with(json!({"image": "registry:5000/acme/app:1"}));
        own.send_build_signed_with("the payload key of acme", None, tar)
            .await
    });
    let solve = complete_or_panic(calls.solves.recv()).await.expect("a solve");
    for asked in [&builder, &other] {
        for (tenant, status, is_listed) in [("acme", 200, true), ("bolt", 404, false)] {
            let key = format!("the payload key of {tenant}");
            for path in ["", "/log"] {
                let path = format!("/builds/{CALL_ID}{path}");
                let response = asked
                    .send_request(signed_bodyless_request(&key, Method::GET, &path, "*/*"))
                    .await;
                assert_eq!(response.status(), status, "{tenant} {path}");
            }
            let response = asked
                .send_request(signed_bodyless_request(&key, Method::GET, "/builds", "*/*"))
                .await;
            let list = AnswerStatusAndBody::from_json_response_or_text_of_429(response)
                .await
                .body;
            assert_eq!(list["builds"] != json!([]), is_listed, "{tenant} {list}");
        }
        let path = format!("/builds/{CALL_ID}");
        let foreign = signed_bodyless_request("the payload key of bolt", Method::DELETE, &path, "*/*");
        let foreign =
            AnswerStatusAndBody::from_json_response_or_text_of_429(asked.send_request(foreign).await).await;
        let path = "/builds/no-such-call";
        let unknown = signed_bodyless_request("the payload key of bolt", Method::DELETE, path, "*/*");
        let unknown =
            AnswerStatusAndBody::from_json_response_or_text_of_429(asked.send_request(unknown).await).await;
        assert_eq!((foreign.status, foreign.body), (unknown.status, unknown.body));
    }
    solve.answer_with_digest("sha256:12");
    complete_or_panic(build).await.expect("no panic");
}

#[tokio::test]
async fn secrets_are_masked_in_a_log_that_another_builder_reads_from_the_history() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let recorded = recorded_secrets();
    let key = recorded["private_key"].as_str().expect("a key");
    let values = recorded["values"].as_object().expect("values").values();
    // A value with several lines would be several lines of the log.
    let mut values = values.filter_map(Value::as_str).map(str::trim_end);
    let secret = values.find(|value| !value.contains('\n')).expect("a secret");
    let builder = TestBuilder::new(daemon.clone()).with_seal_key(key);
    let ended = answer_statuses_holding_back_the_last(
        &mut calls,
        statuses_of_step_with_output_lines(1, &format!("it is {secret}")),
    );
    ended.send_replace(true);
    let tar = tar_with_sealed_secrets(recorded["sealed"].as_str().expect("an envelope"));
    let (build, solve) = start_build_and_wait_for_solve(&builder, &mut calls, tar).await;
    solve.answer_with_digest("sha256:12");
    complete_or_panic(build).await.expect("no panic");

    for asked in [builder, TestBuilder::new(daemon.clone()).with_seal_key(key)] {
        let (lines, terminal) = read_numbered_lines_and_terminal_record(&asked, 1).await;
        assert_eq!(lines.len(), 3);
        assert!(!format!("{lines:?} {terminal}").contains(secret), "{lines:?}");
    }
    // A builder without the key cannot mask the log, and shows none of it.
    let (lines, terminal) = read_numbered_lines_and_terminal_record(&TestBuilder::new(daemon), 1).await;
    assert_eq!(lines, []);
    assert!(
        terminal["warnings"][0]
            .as_str()
            .is_some_and(|text| text.contains("secrets")),
        "{terminal}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_daemon_makes_lists_incomplete_and_unknown_builds_502_with_the_reason() {
    let builder = TestBuilder::new(daemon::never_connecting_daemon());
    let list = ask(&builder, Method::GET, "/builds").await;
    assert_eq!((list.status, &list.body["builds"]), (200, &json!([])));
    assert!(list.body["incomplete"].is_string(), "{}", list.body);
    let missing = ask(&builder, Method::GET, &format!("/builds/{CALL_ID}")).await;
    assert_eq!(missing.status, 502, "it may be known there");
    assert!(
        missing.body["error"]
            .as_str()
            .is_some_and(|text| text.contains("could not be read"))
    );
}

#[tokio::test]
async fn lists_that_follow_each_other_make_the_daemon_read_its_history_once_and_miss_nothing() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon.clone());
    for number in 0..3 {
        let (own, id) = (builder.with_call_id(&number.to_string()), number.to_string());
        let build = tokio::spawn(async move { own.send_signed_build(request_tar_with(json!({}))).await });
        let_build_succeed(&mut calls).await;
        assert_eq!(
            complete_or_panic(build).await.expect("no panic").status,
            200,
            "{id}"
        );
    }
    // It knows no build itself.
    let other = TestBuilder::new(daemon);
    let ids = async || {
        let list = ask(&other, Method::GET, "/builds?state=success").await.body;
        let builds = list["builds"].as_array().expect("a list").clone();
        let ids = builds.iter().filter_map(|build| build["id"].as_str());
        let mut ids: Vec<_> = ids.map(str::to_owned).collect();
        ids.sort();
        ids
    };
    assert_eq!(ids().await, ["0", "1", "2"]);
    let decoded = calls.history.count_of_records_daemon_decoded();
    for _ in 0..3 {
        assert_eq!(ids().await, ["0", "1", "2"]);
    }
    assert_eq!(
        calls.history.count_of_records_daemon_decoded(),
        decoded,
        "answered from memory"
    );

    let own = builder.with_call_id("3");
    let build = tokio::spawn(async move { own.send_signed_build(request_tar_with(json!({}))).await });
    let_build_succeed(&mut calls).await;
    assert_eq!(complete_or_panic(build).await.expect("no panic").status, 200);
    complete_or_panic(async {
        while ids().await != ["0", "1", "2", "3"] {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // The daemon is started again.
    calls.history.disconnect_listeners();
    complete_or_panic(async {
        while calls.history.count_of_records_daemon_decoded() <= decoded {
            assert_eq!(ids().await, ["0", "1", "2", "3"]);
        }
    })
    .await;
}
