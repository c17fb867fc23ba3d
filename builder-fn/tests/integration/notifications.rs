//! Tests of `notify`: the result of a build, sent to the URL that its config names.

use std::time::Duration;

use function_host::signature::sign_body;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::complete_or_panic;
use crate::daemon::{self, DaemonCalls, SolveCall};
use crate::setting::{AnswerStatusAndBody, CALL_ID, PAYLOAD_KEY, TestBuilder, hmac_keys, request_tar_with};
use crate::url_contexts::{FORBIDDEN_HOSTS, MALFORMED_URLS};
use crate::web_server::{FakeWebServer, PageResponse};

/// Sends a build request with this config, has `answer_solve` answer its solve, and returns the answer.
async fn build(
    builder: &TestBuilder,
    calls: &mut DaemonCalls,
    config: Value,
    answer_solve: impl FnOnce(SolveCall),
) -> AnswerStatusAndBody {
    let sender = builder.clone();
    let answer = tokio::spawn(async move { sender.send_signed_build(request_tar_with(config)).await });
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    answer_solve(solve);
    drop(status);
    complete_or_panic(answer).await.expect("no panic")
}

fn answer_solve_with_digest(solve: SolveCall) {
    solve.answer_with_digest("sha256:12");
}

#[tokio::test]
async fn the_result_is_sent_as_it_was_answered_and_signed_with_the_callers_key() {
    for fails in [false, true] {
        let (daemon, mut calls) = daemon::start_fake_daemon();
        let server = FakeWebServer::start().await;
        server.set_page("/result", PageResponse::Status(204));
        let builder =
            TestBuilder::new(daemon).with_private_hosts_for_contexts_and_notifications(&server.host);
        let config = json!({"notify": server.url("/result?for=me")});
        let answer = build(&builder, &mut calls, config, |solve| match fails {
            false => answer_solve_with_digest(solve),
            true => solve.answer_with_error(tonic::Status::unknown("exit code: 1")),
        })
        .await;
        assert_eq!(answer.status, if fails { 422 } else { 200 }, "{}", answer.body);

        let requests = server.wait_for_requests(1).await;
        let [request] = &requests[..] else {
            panic!("{requests:?}");
        };
        assert_eq!(
            (request.head.method.as_str(), request.head.uri.to_string()),
            ("POST", "/result?for=me".into())
        );
        assert_eq!(
            serde_json::from_slice::<Value>(&request.body).expect("JSON"),
            answer.body
        );
        let header = |name: &str| request.head.headers[name].to_str().expect("text");
        assert_eq!(
            header("x-build-signature"),
            sign_body(&hmac_keys(PAYLOAD_KEY), &request.body)
        );
        assert_eq!(header("x-call-id"), CALL_ID);
        assert_eq!(header("content-type"), "application/json");
        assert!(!request.head.headers.contains_key("authorization"));
    }
}

#[tokio::test]
async fn the_result_of_a_streamed_build_is_sent_too() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let server = FakeWebServer::start().await;
    server.set_page("/result", PageResponse::Status(200));
    let builder = TestBuilder::new(daemon).with_private_hosts_for_contexts_and_notifications(&server.host);
    let tar = request_tar_with(json!({"notify": server.url("/result")}));
    let records = builder.send_streamed_build(tar, "application/x-ndjson").await;
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    answer_solve_with_digest(solve);
    drop(status);
    let (_, terminal) = complete_or_panic(records.read_lines_and_terminal_record()).await;

    let request = server.wait_for_requests(1).await.remove(0);
    let sent: Value = serde_json::from_slice(&request.body).expect("JSON");
    for key in ["status", "image", "digest"] {
        assert_eq!(sent[key], terminal[key], "{sent}");
    }
    assert_eq!(sent["status"], "success");
}

#[tokio::test]
async fn a_failed_notification_is_sent_again_and_does_not_change_the_result() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let server = FakeWebServer::start().await;
    server.set_pages("/result", [PageResponse::Status(503), PageResponse::Status(200)]);
    let builder = TestBuilder::new(daemon).with_private_hosts_for_contexts_and_notifications(&server.host);
    let config = json!({"notify": server.url("/result")});
    let answer = build(&builder, &mut calls, config, answer_solve_with_digest).await;
    assert_eq!((answer.status, &answer.body["status"]), (200, &json!("success")));

    let requests = server.wait_for_requests(2).await;
    assert_eq!(requests[0].body, requests[1].body);
    builder.wait_for_notifications("sent", 1).await;
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn a_receiver_that_rejects_or_redirects_gets_the_result_once_and_nobody_else_does() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let (server, other) = (FakeWebServer::start().await, FakeWebServer::start().await);
    let builder = TestBuilder::new(daemon)
        .with_private_hosts_for_contexts_and_notifications(&format!("{},{}", server.host, other.host));
    let pages = [
        PageResponse::Status(404),
        PageResponse::Status(401),
        PageResponse::Redirect(307, other.url("/")),
    ];
    for (number, page) in pages.into_iter().enumerate() {
        server.set_page("/result", page);
        let sender = builder.with_call_id(&format!("call-of-page-{number}"));
        let config = json!({"notify": server.url("/result")});
        let answer = build(&sender, &mut calls, config, answer_solve_with_digest).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        builder.wait_for_notifications("failed", number as u64 + 1).await;
        assert_eq!(server.requests().len(), number + 1);
    }
    assert_eq!(other.requests().len(), 0);
}

#[tokio::test]
async fn a_forbidden_or_malformed_notify_url_is_rejected_before_the_build() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon);
    let forbidden = FORBIDDEN_HOSTS.map(|(host, text)| (format!("http://{host}/a"), 403, "notify: ", text));
    let malformed = MALFORMED_URLS.map(|(url, text)| (url.to_owned(), 400, "notify should ", text));
    for (url, status, begin, text) in forbidden.into_iter().chain(malformed) {
        let tar = request_tar_with(json!({"notify": url}));
        let answer = complete_or_panic(builder.send_signed_build(tar)).await;
        let error = answer.body["error"].as_str().unwrap_or_default();
        assert_eq!(answer.status, status, "{url}: {error}");
        assert!(error.contains(begin) && error.contains(text), "{url}: {error}");
    }
    let tar = request_tar_with(json!({"notify": "http://example.com/"}));
    let answer = complete_or_panic(builder.with_tls_only().send_signed_build(tar)).await;
    assert_eq!(answer.status, 400, "{}", answer.body);
    assert!(calls.solves.try_recv().is_err(), "nothing is built");
}

#[tokio::test]
async fn a_tenants_results_are_signed_with_its_own_key_and_sent_where_its_rules_allow() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let server = FakeWebServer::start().await;
    server.set_page("/acme/result", PageResponse::Status(200));
    let policy = json!({"tenants": {"acme": {
        "keys": ["acme-payload"],
        "read": {"http": [server.url("/acme/")]},
    }}});
    let builder = TestBuilder::new(daemon)
        .with_private_hosts_for_contexts_and_notifications(&server.host)
        .with_policy(&policy);
    builder.write_secret("acme-payload", "the payload key of acme");
    let send = async |builder: TestBuilder, url: String| {
        let tar = request_tar_with(json!({"notify": url}));
        builder
            .send_build_signed_with("the payload key of acme", None, tar)
            .await
    };
    let answer = send(builder.clone(), server.url("/other")).await;
    let error = answer.body["error"].as_str().unwrap_or_default();
    assert_eq!(answer.status, 403, "{error}");
    assert!(
        error.contains("notify: ") && error.contains("read.http of tenant acme"),
        "{error}"
    );

    let answer = tokio::spawn(send(builder.clone(), server.url("/acme/result")));
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    answer_solve_with_digest(solve);
    drop(status);
    assert_eq!(complete_or_panic(answer).await.expect("no panic").status, 200);
    let request = server.wait_for_requests(1).await.remove(0);
    let expected = sign_body(&hmac_keys("the payload key of acme"), &request.body);
    assert_eq!(request.head.headers["x-build-signature"], expected.as_str());
}

/// The process may exit once every request is answered.
#[tokio::test]
async fn a_build_that_ends_during_a_shutdown_is_answered_after_its_result_was_sent() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let server = FakeWebServer::start().await;
    server.set_pages("/result", [PageResponse::Status(503), PageResponse::Status(200)]);
    let builder = TestBuilder::new(daemon).with_private_hosts_for_contexts_and_notifications(&server.host);
    let config = json!({"notify": server.url("/result")});
    let answer = build(&builder, &mut calls, config, |solve| {
        builder.begin_shutdown(Instant::now() + Duration::from_secs(60));
        answer_solve_with_digest(solve);
    })
    .await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(server.requests().len(), 2);
}
