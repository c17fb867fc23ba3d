//! Tests of JSON requests whose context is in a git repository.

use bollard_buildkit_proto::moby::buildkit::secrets::v1::GetSecretRequest;
use bollard_buildkit_proto::moby::buildkit::secrets::v1::secrets_client::SecretsClient;
use bollard_buildkit_proto::moby::buildkit::v1::sourcepolicy::PolicyAction;
use builder_fn::buildkit::Daemon;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tonic::Code;

use crate::complete_or_panic;
use crate::daemon::{self, DaemonCalls, LookupCall, SessionCall, SolveCall};
use crate::referenced_contexts::{send_json, send_json_signed_with};
use crate::setting::{AnswerStatusAndBody, PAYLOAD_KEY, TestBuilder};
use crate::sources::ask_about_source;

const COMMIT_HASH: &str = "0123456789012345678901234567890123456789";

const SOURCE_IDENTIFIER: &str = "git://git.example/team/app.git#v1";

fn git_request_json() -> Value {
    json!({
        "image": "registry:5000/hello:1",
        "context": {"git": {"repository": "https://git.example/team/app.git", "ref": "v1", "subdir": "fn"}},
    })
}

/// Starts a build, and waits for the calls that look its commit up.
async fn start_build_and_wait_for_lookup(
    builder: &TestBuilder,
    calls: &mut DaemonCalls,
    request: Value,
) -> (
    JoinHandle<AnswerStatusAndBody>,
    SolveCall,
    SessionCall,
    LookupCall,
) {
    start_build_signed_with_and_wait_for_lookup(builder, PAYLOAD_KEY, calls, request).await
}

/// Starts a build that is signed with `key`, and waits for the calls that look its commit up.
async fn start_build_signed_with_and_wait_for_lookup(
    builder: &TestBuilder,
    key: &'static str,
    calls: &mut DaemonCalls,
    request: Value,
) -> (
    JoinHandle<AnswerStatusAndBody>,
    SolveCall,
    SessionCall,
    LookupCall,
) {
    let sender = builder.clone();
    let answer = tokio::spawn(async move { send_json_signed_with(&sender, key, &request).await });
    let (solve, session, lookup) =
        tokio::join!(calls.solves.recv(), calls.sessions.recv(), calls.lookups.recv());
    (
        answer,
        solve.expect("a solve"),
        session.expect("a session"),
        lookup.expect("a lookup"),
    )
}

#[tokio::test]
async fn a_git_context_is_built_at_its_commit_which_image_answer_and_record_have() {
    for (tag, label, expected_label) in [
        (None, None, COMMIT_HASH),
        (
            Some("9999999999999999999999999999999999999999"),
            Some("own"),
            "own",
        ),
    ] {
        let (daemon, mut calls) = daemon::start_fake_daemon();
        let builder = TestBuilder::new(daemon);
        let mut request = git_request_json();
        if let Some(label) = label {
            request["labels"] = json!({"org.opencontainers.image.revision": label});
        }
        let (answer, solve, session, lookup) =
            start_build_and_wait_for_lookup(&builder, &mut calls, request).await;
        assert!(solve.request.internal, "the history has no record of a lookup");
        assert_eq!(
            (solve.request.frontend.as_str(), &solve.request.definition),
            ("", &None)
        );
        assert_eq!(solve.request.source_policy_session, solve.request.session);
        assert_eq!(lookup.reference, solve.request.r#ref);
        let source = lookup.request.source.clone().expect("a source");
        assert_eq!(source.identifier, SOURCE_IDENTIFIER);
        assert_eq!(source.attrs["git.fullurl"], "https://git.example/team/app.git");
        let decision = ask_about_source(&session, SOURCE_IDENTIFIER)
            .await
            .expect("an answer");
        assert_eq!(decision.action(), PolicyAction::Allow);
        lookup.answer_with_commit(tag, COMMIT_HASH);

        let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
        let attrs = &solve.request.frontend_attrs;
        assert_eq!(
            attrs["context"],
            format!("https://git.example/team/app.git?checksum={COMMIT_HASH}&ref=v1&subdir=fn")
        );
        assert_eq!(attrs["label:org.opencontainers.image.revision"], expected_label);
        assert_eq!(attrs["slipway.commit"], COMMIT_HASH);
        assert_eq!(
            attrs["cmdline"], "dockerfile.v0",
            "no other frontend reads the Dockerfile"
        );
        solve.answer_with_digest("sha256:12");
        drop(status);
        let answer = complete_or_panic(answer).await.expect("no panic");
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.body["commit"], COMMIT_HASH);
        let log = answer.body["log"].to_string();
        assert!(
            log.contains("[context] look up the commit of https://git.example/team/app.git#v1:fn"),
            "{log}"
        );
    }
}

#[tokio::test]
async fn nothing_is_built_if_the_commit_lookup_fails_or_the_daemon_does_not_ask_about_sources() {
    for (asks, message, status, text) in [
        (
            true,
            "repository does not contain ref v1",
            422,
            "context.git: repository does not contain ref v1",
        ),
        (
            true,
            "failed to fetch remote: fatal: could not read Username: terminal prompts disabled",
            422,
            "needs its token among the sealed secrets",
        ),
        (
            true,
            "failed to fetch remote: Could not resolve host: git.example",
            502,
            "Could not resolve host",
        ),
        (true, "", 200, ""),
        (false, "", 502, "does not ask the builder which sources"),
    ] {
        let (daemon, mut calls) = daemon::start_fake_daemon();
        let builder = TestBuilder::new(daemon);
        let (answer, _solve, session, lookup) =
            start_build_and_wait_for_lookup(&builder, &mut calls, git_request_json()).await;
        if asks {
            ask_about_source(&session, SOURCE_IDENTIFIER)
                .await
                .expect("an answer");
        }
        match message {
            "" => lookup.answer_with_commit(None, COMMIT_HASH),
            message => lookup.answer_with_error(message),
        }
        if status == 200 {
            let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
            solve.answer_with_digest("sha256:12");
            drop(status);
        }
        let answer = complete_or_panic(answer).await.expect("no panic");
        let error = answer.body["error"].as_str().unwrap_or_default();
        assert_eq!(answer.status, status, "{message}: {error}");
        assert!(error.contains(text), "{message}: {error}");
        assert!(calls.solves.try_recv().is_err(), "{message}");
    }
}

/// Asks a session for a secret, as BuildKit does.
async fn ask_for_secret(session: &SessionCall, id: &str) -> Result<Vec<u8>, Code> {
    let request = GetSecretRequest {
        id: id.into(),
        ..GetSecretRequest::default()
    };
    let mut client = SecretsClient::new(session.services.clone());
    let answer = client.get_secret(request).await;
    answer
        .map(|answer| answer.into_inner().data)
        .map_err(|status| status.code())
}

const OPERATOR_GIT_TOKEN: &str = "the-token-of-the-operator";

fn builder_with_operator_git_token(daemon: Daemon) -> TestBuilder {
    let builder = TestBuilder::new(daemon).with_git_tokens("https://git.example/team/=git-token");
    builder.write_secret("git-token", &format!("{OPERATOR_GIT_TOKEN}\n"));
    builder
}

#[tokio::test]
async fn a_token_of_the_operator_reads_the_context_and_is_in_no_session_with_steps() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = builder_with_operator_git_token(daemon);
    let (answer, _solve, session, lookup) =
        start_build_and_wait_for_lookup(&builder, &mut calls, git_request_json()).await;
    let token = complete_or_panic(ask_for_secret(&session, "GIT_AUTH_TOKEN")).await;
    assert_eq!(token, Ok(OPERATOR_GIT_TOKEN.into()));
    let decision = ask_about_source(&session, SOURCE_IDENTIFIER)
        .await
        .expect("an answer");
    let attributes = decision.update.expect("other attributes").attrs;
    assert_eq!(
        attributes["git.skipsubmodules"], "true",
        "the repository names their addresses"
    );
    lookup.answer_with_commit(None, COMMIT_HASH);
    let checkout = complete_or_panic(calls.bridge_solves.recv())
        .await
        .expect("a checkout");
    assert!(checkout.request.evaluate);
    assert_eq!(checkout.request.frontend, "", "no frontend sees the session");
    assert!(
        calls.solves.try_recv().is_err(),
        "the checkout comes before the build"
    );
    checkout.answer_with_success();

    let (solve, status, session) = calls.wait_without_limit_for_build_calls().await;
    let attrs = &solve.request.frontend_attrs;
    assert_eq!(
        attrs["context"],
        format!("https://git.example/team/app.git?checksum={COMMIT_HASH}&ref={COMMIT_HASH}&subdir=fn")
    );
    let decision = ask_about_source(
        &session,
        &format!("git://git.example/team/app.git#{COMMIT_HASH}:fn"),
    )
    .await
    .expect("an answer");
    let attributes = decision.update.expect("other attributes").attrs;
    assert_eq!(attributes["git.skipsubmodules"], "true", "the same checkout");
    let stolen = complete_or_panic(ask_for_secret(&session, "GIT_AUTH_TOKEN")).await;
    assert_eq!(stolen, Err(Code::Unimplemented), "a step could mount it");
    let text = format!("{:?}", solve.request);
    assert!(!text.contains(OPERATOR_GIT_TOKEN), "{text}");
    solve.answer_with_digest("sha256:12");
    drop(status);
    let answer = complete_or_panic(answer).await.expect("no panic");
    assert_eq!(
        (answer.status, &answer.body["commit"]),
        (200, &json!(COMMIT_HASH)),
        "{}",
        answer.body
    );
    assert!(
        !answer.body.to_string().contains(OPERATOR_GIT_TOKEN),
        "{}",
        answer.body
    );
}

#[tokio::test]
async fn a_token_of_the_operator_is_masked_in_the_error_of_git() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = builder_with_operator_git_token(daemon);
    let (answer, _solve, session, lookup) =
        start_build_and_wait_for_lookup(&builder, &mut calls, git_request_json()).await;
    ask_about_source(&session, SOURCE_IDENTIFIER)
        .await
        .expect("an answer");
    lookup.answer_with_commit(None, COMMIT_HASH);
    let checkout = complete_or_panic(calls.bridge_solves.recv())
        .await
        .expect("a checkout");
    checkout.answer_with_error(&format!(
        "git fetch: fatal: Authorization: {OPERATOR_GIT_TOKEN} is wrong"
    ));
    let answer = complete_or_panic(answer).await.expect("no panic");
    let error = answer.body["error"].as_str().expect("a text");
    assert_eq!(answer.status, 422, "{error}");
    assert!(error.starts_with("context.git: git fetch: fatal: "), "{error}");
    assert!(!error.contains(OPERATOR_GIT_TOKEN), "{error}");
}

#[tokio::test]
async fn a_tenant_gets_the_token_of_the_operator_only_by_a_rule_for_the_repository() {
    for (rules, expected) in [
        (
            json!({"git": ["https://git.example/team/"]}),
            Ok(OPERATOR_GIT_TOKEN.into()),
        ),
        (Value::Null, Err(Code::Unimplemented)),
    ] {
        let (daemon, mut calls) = daemon::start_fake_daemon();
        let key = "the payload key of acme";
        let mut policy = json!({"tenants": {"acme": {"keys": ["acme-payload"]}}});
        if !rules.is_null() {
            policy["tenants"]["acme"]["read"] = rules.clone();
        }
        let builder = builder_with_operator_git_token(daemon).with_policy(&policy);
        builder.write_secret("acme-payload", key);
        let (answer, _solve, session, _lookup) =
            start_build_signed_with_and_wait_for_lookup(&builder, key, &mut calls, git_request_json()).await;
        let token = complete_or_panic(ask_for_secret(&session, "GIT_AUTH_TOKEN")).await;
        assert_eq!(token, expected, "{rules}");
        answer.abort();
    }
}

#[tokio::test]
async fn a_git_context_at_a_private_address_or_without_tls_is_rejected() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon);
    let request =
        json!({"image": "r.example/a", "context": {"git": {"repository": "https://10.0.0.1/app.git"}}});
    let (answer, _solve, session, lookup) =
        start_build_and_wait_for_lookup(&builder, &mut calls, request).await;
    let source = lookup.request.source.clone().expect("a source").identifier;
    let decision = ask_about_source(&session, &source).await.expect("an answer");
    assert_eq!(decision.action(), PolicyAction::Deny);
    lookup.answer_with_error(&format!("source \"{source}\" not allowed by policy: action DENY"));
    let answer = complete_or_panic(answer).await.expect("no panic");
    let error = answer.body["error"].as_str().unwrap_or_default();
    assert_eq!(answer.status, 422, "{error}");
    assert!(
        error.contains("context.git: ") && error.contains("10.0.0.1 is a private address"),
        "{error}"
    );

    let plain =
        json!({"image": "r.example/a", "context": {"git": {"repository": "http://git.example/app.git"}}});
    let answer = complete_or_panic(send_json(&builder.with_tls_only(), &plain)).await;
    let error = answer.body["error"].as_str().unwrap_or_default();
    assert_eq!(answer.status, 400, "{error}");
    assert!(
        error.contains("context.git.repository: ") && error.contains("https://"),
        "{error}"
    );
    assert!(calls.solves.try_recv().is_err(), "nothing reaches BuildKit");
}

#[tokio::test]
async fn every_wrong_member_of_a_git_context_is_named_at_once() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon);
    let repository = "https://git.example/app.git";
    for (git, expected) in [
        (json!(repository), &["context.git should be an object"][..]),
        (
            json!({"repository": "ssh://git@git.example/app.git", "ref": "-x", "subdir": "../x", "branch": "x"}),
            &[
                "context.git.repository should be a URL that begins with https://",
                "context.git.ref should be a branch",
                "context.git.subdir should be a folder",
                "context.git.branch is unknown",
            ],
        ),
        (json!({"ref": "main"}), &["context.git.repository should be"]),
        (
            json!({"repository": "https://token@git.example/app.git"}),
            &["context.git.repository should have no user and no password"],
        ),
        (
            json!({"repository": "https://git.example/app"}),
            &["should end with .git"],
        ),
        (
            json!({"repository": "https://git.example/app.git?ref=x"}),
            &["should end with .git"],
        ),
        (
            json!({"repository": "https://git.example/a%2egit/app.git"}),
            &["context.git.repository should"],
        ),
        (
            json!({"repository": "git@git.example:app.git"}),
            &["begins with https://"],
        ),
        (
            json!({"repository": "file:///srv/app.git"}),
            &["begins with https://"],
        ),
        (
            json!({"repository": "ext::sh -c id .git"}),
            &["context.git.repository should"],
        ),
        (
            json!({"repository": repository, "ref": "main:x"}),
            &["context.git.ref should be"],
        ),
        (
            json!({"repository": repository, "ref": 1}),
            &["context.git.ref should be"],
        ),
        (
            json!({"repository": repository, "ref": "--upload-pack=id"}),
            &["context.git.ref should be"],
        ),
        (
            json!({"repository": repository, "subdir": "a\u{0}b"}),
            &["context.git.subdir should be"],
        ),
        (
            json!({"repository": repository, "subdir": "/etc"}),
            &["context.git.subdir should be"],
        ),
    ] {
        let request = json!({"image": "r.example/a", "context": {"git": git}});
        let answer = send_json(&builder, &request).await;
        let error = answer.body["error"].as_str().unwrap_or_default();
        assert_eq!(answer.status, 400, "{request}: {error}");
        for text in expected {
            assert!(error.contains(text), "{request}: {error}");
        }
        assert!(!error.contains("token@"), "{error}");
    }
    assert!(calls.solves.try_recv().is_err(), "nothing reaches BuildKit");
}
