//! Tests of `commitStatus`: the status of a commit at GitHub and GitLab, of which the fake web server has the routes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crypto_box::SecretKey;
use function_host::http::Method;
use function_host::http::request::Parts;
use function_host::signature::sign_body;
use serde_json::{Value, json};
use tonic::Status;

use crate::builds::ask;
use crate::captured_log::CapturedLog;
use crate::complete_or_panic;
use crate::daemon;
use crate::job::step_output_response;
use crate::record_store::{ask_until, record_repository_of};
use crate::registry::FakeRegistry;
use crate::secrets::seal_secrets;
use crate::setting::{
    AnswerStatusAndBody, CALL_ID, PAYLOAD_KEY, TestBuilder, build_request_with_signature, hmac_keys,
    request_tar_with,
};
use crate::sources::ask_about_source;
use crate::web_server::{FakeWebServer, PageResponse};

const COMMIT_HASH: &str = "0123456789012345678901234567890123456789";

const OPERATOR_STATUS_TOKEN: &str = "the-token-for-statuses";

fn builder_with_status_token(daemon: builder_fn::buildkit::Daemon, server: &FakeWebServer) -> TestBuilder {
    let tokens = format!("{}=status-token", server.url("/"));
    let builder = TestBuilder::new(daemon)
        .with_private_hosts_for_contexts_and_notifications(&server.host)
        .with_status_tokens(&tokens);
    builder.write_secret("status-token", &format!("{OPERATOR_STATUS_TOKEN}\n"));
    builder
}

fn header<'a>(head: &'a Parts, name: &str) -> &'a str {
    head.headers[name].to_str().expect("text")
}

#[tokio::test]
async fn a_commit_is_pending_during_its_build_and_then_has_its_outcome() {
    let encoded = format!("/projects/acme%2Ffunctions%2Fhello/statuses/{COMMIT_HASH}");
    let plain = format!("/repos/acme/hello/statuses/{COMMIT_HASH}");
    for (forge, project, path, fails, states, name_key) in [
        (
            "github",
            "acme/hello",
            &plain,
            false,
            ["pending", "success"],
            "context",
        ),
        (
            "github",
            "acme/hello",
            &plain,
            true,
            ["pending", "failure"],
            "context",
        ),
        (
            "gitlab",
            "acme/functions/hello",
            &encoded,
            true,
            ["pending", "failed"],
            "name",
        ),
    ] {
        let (daemon, mut calls) = daemon::start_fake_daemon();
        let server = FakeWebServer::start().await;
        server.set_page(path, PageResponse::Status(201));
        let builder = builder_with_status_token(daemon, &server);
        let config = json!({"commitStatus": {
            forge: project, "api": server.url(""), "commit": COMMIT_HASH, "name": "ci/hello", "link": "https://ci.example/1?a=b",
        }});
        let sender = builder.clone();
        let answer = tokio::spawn(async move { sender.send_signed_build(request_tar_with(config)).await });
        let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
        server.wait_for_requests(1).await;
        match fails {
            false => solve.answer_with_digest("sha256:12"),
            true => solve.answer_with_error(Status::unknown("exit code: 1")),
        }
        drop(status);
        let answer = complete_or_panic(answer).await.expect("no panic");
        assert_eq!(answer.status, if fails { 422 } else { 200 }, "{}", answer.body);

        let requests = server.wait_for_requests(2).await;
        for (request, state) in requests.iter().zip(states) {
            assert_eq!(
                (request.head.method.as_str(), request.head.uri.to_string()),
                ("POST", path.clone())
            );
            let body: Value = serde_json::from_slice(&request.body).expect("JSON");
            assert_eq!(body["state"], state, "{body}");
            assert_eq!(body[name_key], "ci/hello", "{body}");
            assert_eq!(body["target_url"], "https://ci.example/1?a=b", "{body}");
            assert!(header(&request.head, "user-agent").contains("slipway"));
            match forge {
                "github" => {
                    assert_eq!(
                        header(&request.head, "authorization"),
                        format!("Bearer {OPERATOR_STATUS_TOKEN}")
                    );
                    assert_eq!(header(&request.head, "accept"), "application/vnd.github+json");
                }
                _ => assert_eq!(header(&request.head, "private-token"), OPERATOR_STATUS_TOKEN),
            }
        }
        builder.wait_for_notifications("sent", 2).await;
        assert!(
            !answer.body.to_string().contains(OPERATOR_STATUS_TOKEN),
            "{}",
            answer.body
        );
    }
}

#[tokio::test]
async fn a_status_that_fails_is_sent_again_until_the_next_one_replaces_it() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let server = FakeWebServer::start().await;
    let path = format!("/repos/acme/hello/statuses/{COMMIT_HASH}");
    server.set_pages(
        &path,
        [
            PageResponse::Status(503),
            PageResponse::Status(503),
            PageResponse::Status(201),
        ],
    );
    let builder = builder_with_status_token(daemon, &server);
    let config =
        json!({"commitStatus": {"github": "acme/hello", "api": server.url(""), "commit": COMMIT_HASH}});
    let sender = builder.clone();
    let answer = tokio::spawn(async move { sender.send_signed_build(request_tar_with(config)).await });
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    server.wait_for_requests(1).await;
    solve.answer_with_digest("sha256:12");
    drop(status);
    assert_eq!(complete_or_panic(answer).await.expect("no panic").status, 200);
    builder.wait_for_notifications("sent", 1).await;
    let requests = server.requests();
    let state = |body: &[u8]| serde_json::from_slice::<Value>(body).expect("JSON")["state"].take();
    let states: Vec<_> = requests.iter().map(|request| state(&request.body)).collect();
    assert_eq!(states.last(), Some(&json!("success")), "{states:?}");
    let first_success = states.iter().position(|state| state == "success").expect("one");
    assert!(
        states[first_success..].iter().all(|state| state == "success"),
        "nothing older follows: {states:?}"
    );
}

#[tokio::test]
async fn a_status_that_cannot_be_set_rejects_the_request_before_its_build() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let server = FakeWebServer::start().await;
    let builder = builder_with_status_token(daemon, &server);
    let api = server.url("");
    for (status, code, expected) in [
        (
            json!({"github": "acme/hello", "api": api}),
            400,
            "commitStatus.commit is missing",
        ),
        (
            json!({"github": "acme/hello", "commit": COMMIT_HASH}),
            400,
            "commitStatus: no token for https://api.github.com/repos/acme/hello",
        ),
        (
            json!({"gitlab": "acme/hello", "api": "https://10.0.0.1/api/v4", "commit": COMMIT_HASH}),
            403,
            "commitStatus: 10.0.0.1 is a private address",
        ),
        (
            json!({"github": "acme/hello", "api": "https://169.254.169.254", "commit": COMMIT_HASH}),
            403,
            "commitStatus: 169.254.169.254",
        ),
    ] {
        let answer = builder
            .send_signed_build(request_tar_with(json!({"commitStatus": status})))
            .await;
        let error = answer.body["error"].as_str().unwrap_or_default();
        assert_eq!(answer.status, code, "{status}: {error}");
        assert!(error.contains(expected), "{status}: {error}");
    }
    assert!(calls.solves.try_recv().is_err(), "nothing reaches BuildKit");
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn a_tenant_uses_the_token_of_the_operator_only_by_a_rule_for_the_project() {
    for (rule, status) in [("/projects/acme/", 200), ("/projects/globex/", 403), ("", 400)] {
        let (daemon, mut calls) = daemon::start_fake_daemon();
        let server = FakeWebServer::start().await;
        server.set_page(
            &format!("/projects/acme%2Fhello/statuses/{COMMIT_HASH}"),
            PageResponse::Status(201),
        );
        let key = "the payload key of acme";
        let mut policy = json!({"tenants": {"acme": {"keys": ["acme-payload"]}}});
        if !rule.is_empty() {
            policy["tenants"]["acme"]["read"] =
                json!({"http": [server.url(rule)], "images": ["docker.io/library/"]});
        }
        let builder = builder_with_status_token(daemon, &server).with_policy(&policy);
        builder.write_secret("acme-payload", key);
        let config =
            json!({"commitStatus": {"gitlab": "acme/hello", "api": server.url(""), "commit": COMMIT_HASH}});
        let sender = builder.clone();
        let answer = tokio::spawn(async move {
            sender
                .send_build_signed_with(key, None, request_tar_with(config))
                .await
        });
        if status == 200 {
            let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
            solve.answer_with_digest("sha256:12");
            drop(status);
        }
        let answer = complete_or_panic(answer).await.expect("no panic");
        assert_eq!(answer.status, status, "{rule}: {}", answer.body);
        if status == 200 {
            builder.wait_for_notifications("sent", 1).await;
        }
    }
}

/// The tokens are sealed secrets of a request through the queue, whose result is also sent to `notify`. A status is
/// rejected, git's and the step's errors contain both tokens, and so does the output of the step.
#[tokio::test]
async fn sealed_tokens_are_in_no_log_no_record_no_error_no_notification_and_no_provenance() {
    const SEALED_STATUS_TOKEN: &str = "the-sealed-token-for-statuses";
    const SEALED_GIT_TOKEN: &str = "the-sealed-token-for-git";
    let encoded = format!("/projects/acme%2Fhello/statuses/{COMMIT_HASH}");
    let plain = format!("/repos/acme/hello/statuses/{COMMIT_HASH}");
    for (forge, path, token_header, token_value) in [
        (
            "github",
            &plain,
            "authorization",
            format!("Bearer {SEALED_STATUS_TOKEN}"),
        ),
        (
            "gitlab",
            &encoded,
            "private-token",
            SEALED_STATUS_TOKEN.to_owned(),
        ),
    ] {
        let (log, _capturing) = CapturedLog::begin();
        let registry = FakeRegistry::start().await;
        let (daemon, mut calls) = daemon::start_fake_daemon();
        let server = FakeWebServer::start().await;
        server.set_pages(path, [PageResponse::Status(401), PageResponse::Status(201)]);
        server.set_page("/result", PageResponse::Status(204));
        // The operator's token for the same project is not used.
        let builder = builder_with_status_token(daemon, &server)
            .with_record_store(&record_repository_of(&registry))
            .with_seal_key(&STANDARD.encode([7; 32]));
        let public_key = SecretKey::from([7; 32]).public_key();
        let secrets = [
            ("COMMIT_STATUS_TOKEN", SEALED_STATUS_TOKEN),
            ("GIT_AUTH_TOKEN", SEALED_GIT_TOKEN),
        ];
        let body = json!({
            "image": "registry:5000/hello:1",
            "context": {"git": {"repository": "https://git.example/team/app.git", "ref": "v1"}},
            "sealedSecrets": seal_secrets(public_key.as_bytes(), &secrets),
            "commitStatus": {forge: "acme/hello", "api": server.url(""), "commit": COMMIT_HASH},
            "notify": server.url("/result"),
            "provenance": "max",
        });
        let body = body.to_string().into_bytes();
        let signature = sign_body(&hmac_keys(PAYLOAD_KEY), &body);
        let mut request = build_request_with_signature(body, Some(&signature));
        let headers = request.headers_mut();
        headers.insert("content-type", "application/json".parse().expect("header"));
        headers.insert(
            "x-start-time",
            "1790000000000000000, 1790000000000000001"
                .parse()
                .expect("header"),
        );
        let sender = builder.clone();
        let answer = tokio::spawn(async move {
            AnswerStatusAndBody::from_json_response_or_text_of_429(sender.send_request(request).await).await
        });

        let (_lookup_solve, session, lookup) =
            tokio::join!(calls.solves.recv(), calls.sessions.recv(), calls.lookups.recv());
        let (session, lookup) = (session.expect("a session"), lookup.expect("a lookup"));
        ask_about_source(&session, "git://git.example/team/app.git#v1")
            .await
            .expect("an answer");
        lookup.answer_with_commit(None, COMMIT_HASH);
        let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
        let requested = format!("{:?}", solve.request);
        status
            .events
            .send(Ok(step_output_response(&format!(
                "tokens {SEALED_STATUS_TOKEN} {SEALED_GIT_TOKEN}\n"
            ))))
            .await
            .expect("listening");
        drop(status);
        solve.answer_with_error(Status::unknown(format!(
            "process \"use {SEALED_STATUS_TOKEN} {SEALED_GIT_TOKEN}\" failed"
        )));
        let answer = complete_or_panic(answer).await.expect("no panic");
        assert_eq!(answer.status, 422, "{}", answer.body);
        assert_eq!(answer.body["error"], "process \"use *** ***\" failed");
        assert!(
            answer.body["log"].to_string().contains("tokens *** ***"),
            "{}",
            answer.body
        );

        builder.wait_for_notifications("failed", 1).await;
        builder.wait_for_notifications("sent", 2).await;
        let requests = server.requests();
        let (results, statuses): (Vec<_>, Vec<_>) = requests
            .iter()
            .partition(|request| request.head.uri.path() == "/result");
        let tokens: Vec<_> = statuses
            .iter()
            .map(|request| header(&request.head, token_header))
            .collect();
        assert_eq!(
            tokens,
            [token_value.as_str(), token_value.as_str()],
            "both states"
        );
        let [result] = &results[..] else {
            panic!("{results:?}");
        };
        let own = ask(&builder, Method::GET, &format!("/builds/{CALL_ID}")).await;
        let later = TestBuilder::new(daemon::never_connecting_daemon())
            .with_record_store(&record_repository_of(&registry));
        let stored = ask_until(&later, CALL_ID, |asked| asked.body["state"] == "failed").await;
        let stored_bytes: Vec<_> = registry
            .contents()
            .into_iter()
            .map(|(_, content)| content)
            .collect();
        let sent: Vec<_> = requests
            .iter()
            .map(|request| format!("{:?}", request.body))
            .collect();
        for (place, text) in [
            ("the builder's log", log.text()),
            ("the answer", answer.body.to_string()),
            ("the record", own.body.to_string()),
            ("the stored record", stored.body.to_string()),
            (
                "the registry",
                String::from_utf8_lossy(&stored_bytes.concat()).into_owned(),
            ),
            ("what provenance is made from", requested),
            (
                "a notification",
                String::from_utf8_lossy(&result.body).into_owned(),
            ),
            ("the bodies of requests", sent.concat()),
        ] {
            for token in [SEALED_STATUS_TOKEN, SEALED_GIT_TOKEN, OPERATOR_STATUS_TOKEN] {
                assert!(!text.contains(token), "{forge}: {place} has {token}: {text}");
            }
            assert!(!text.is_empty(), "{forge}: {place}");
        }
        let logged = log.text();
        assert!(
            logged.contains("the status of a commit could not be set"),
            "{logged}"
        );
    }
}
