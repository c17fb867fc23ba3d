//! Tests of the rules for sources: the daemon asks about them, and gets files only once it has asked.

use bollard_buildkit_proto::fsutil::types::Packet;
use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::ResolveSourceMetaResponse;
use bollard_buildkit_proto::moby::buildkit::v1::sourcepolicy::PolicyAction;
use bollard_buildkit_proto::moby::filesync::v1::file_sync_client::FileSyncClient;
use bollard_buildkit_proto::pb::SourceOp;
use builder_fn::buildkit::{CheckPolicyRequest, CheckPolicyResponse, DecisionResponse};
use serde_json::json;
use tonic::{Code, Request, Status};

use crate::complete_or_panic;
use crate::daemon::{self, SessionCall};
use crate::setting::{TestBuilder, request_tar_with};

/// Asks the session whether its build may read a source, as BuildKit does.
pub(crate) async fn ask_about_source(
    session: &SessionCall,
    identifier: &str,
) -> Result<DecisionResponse, Status> {
    let mut client = tonic::client::Grpc::new(session.services.clone());
    client.ready().await.expect("ready");
    let request = CheckPolicyRequest {
        source: Some(ResolveSourceMetaResponse {
            source: Some(SourceOp {
                identifier: identifier.into(),
                ..SourceOp::default()
            }),
            ..ResolveSourceMetaResponse::default()
        }),
    };
    let path = "/moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier/CheckPolicy";
    let codec = tonic_prost::ProstCodec::<CheckPolicyRequest, CheckPolicyResponse>::default();
    let path = http::uri::PathAndQuery::from_static(path);
    let answer = client.unary(Request::new(request), path, codec).await?;
    Ok(answer.into_inner().decision.expect("a decision"))
}

/// Requests the files of the context, as BuildKit does, and waits for the first packet. Returns the error if it is one.
async fn request_files_until_first_packet(session: &SessionCall) -> Result<(), Status> {
    let mut request = Request::new(tokio_stream::pending::<Packet>());
    request
        .metadata_mut()
        .insert("dir-name", "context".parse().expect("text"));
    let answers = FileSyncClient::new(session.services.clone())
        .diff_copy(request)
        .await?;
    let mut answers = answers.into_inner();
    match answers.message().await? {
        Some(packet) if packet.r#type() == PacketType::PacketErr => match answers.message().await {
            Err(status) => Err(status),
            Ok(packet) => panic!("{packet:?} after an ERR packet"),
        },
        _ => Ok(()),
    }
}

#[tokio::test]
async fn a_daemon_that_does_not_ask_about_sources_gets_no_files() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::new(daemon);
    let answer = tokio::spawn(async move { setting.send_signed_build(request_tar_with(json!({}))).await });
    let (solve, status, session) = calls.wait_without_limit_for_build_calls().await;
    assert_eq!(
        solve.request.source_policy_session, solve.request.session,
        "the session decides about sources"
    );

    let error = complete_or_panic(request_files_until_first_packet(&session))
        .await
        .expect_err("no files");
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("BuildKit 0.26"), "{error}");

    let decision = ask_about_source(&session, "local://dockerfile")
        .await
        .expect("an answer");
    assert_eq!(decision.action, i32::from(PolicyAction::Allow));
    complete_or_panic(request_files_until_first_packet(&session))
        .await
        .expect("files");
    solve.answer_with_digest("sha256:12");
    drop(status);
    assert_eq!(answer.await.expect("no panic").status, 200);
}

#[tokio::test]
async fn a_build_that_fails_because_of_a_denied_source_says_which_and_why() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::new(daemon);
    let answer = tokio::spawn(async move { setting.send_signed_build(request_tar_with(json!({}))).await });
    let (solve, status, session) = calls.wait_without_limit_for_build_calls().await;

    for (source, is_allowed) in [
        ("docker-image://docker.io/library/alpine:3", true),
        ("https://example.com/a", true),
        ("http://127.0.0.1:8222/", false),
    ] {
        let decision = ask_about_source(&session, source).await.expect("an answer");
        let expected = if is_allowed {
            PolicyAction::Allow
        } else {
            PolicyAction::Deny
        };
        assert_eq!(decision.action, i32::from(expected), "{source}");
    }
    // The text of buildkitd 0.32.2.
    solve.answer_with_error(Status::unknown(
        "failed to load LLB: error evaluating the source policy: source \"http://127.0.0.1:8222/\" not allowed by policy: \
         action DENY",
    ));
    drop(status);

    let answer = answer.await.expect("no panic");
    assert_eq!(answer.status, 422);
    let error = answer.body["error"].as_str().expect("text");
    assert!(
        error.starts_with("the build may not read http://127.0.0.1:8222/: 127.0.0.1 is a loopback address"),
        "{error}"
    );
}

#[tokio::test]
async fn another_failure_of_a_build_with_a_denied_source_is_reported_as_it_is() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::new(daemon);
    let answer = tokio::spawn(async move { setting.send_signed_build(request_tar_with(json!({}))).await });
    let (solve, status, session) = calls.wait_without_limit_for_build_calls().await;
    ask_about_source(&session, "http://127.0.0.1/")
        .await
        .expect("an answer");
    solve.answer_with_error(Status::unknown(
        "process \"x\" did not complete successfully: exit code: 1",
    ));
    drop(status);

    let answer = answer.await.expect("no panic");
    assert_eq!(answer.status, 422);
    assert_eq!(
        answer.body["error"],
        "process \"x\" did not complete successfully: exit code: 1"
    );
}
