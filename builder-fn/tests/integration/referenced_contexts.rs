//! Tests of JSON requests, which refer to their context in a registry, with faults that a real registry does not have.

use std::io::Write as _;

use bollard_buildkit_proto::fsutil::types::Packet;
use bollard_buildkit_proto::moby::filesync::v1::file_sync_client::FileSyncClient;
use function_host::signature::sign_body;
use serde_json::{Value, json};
use tonic::Request;

use crate::complete_or_panic;
use crate::daemon::{self, SessionCall};
use crate::registry::{FakeRegistry, RegistryBehaviour};
use crate::setting::{
    AnswerStatusAndBody, PAYLOAD_KEY, TestBuilder, build_request_with_signature, hmac_keys, tar_with_files,
};
use crate::sources::ask_about_source;

/// Returns the tar of a context with a Dockerfile.
pub(crate) fn context_tar() -> Vec<u8> {
    tar_with_files(&[("context/Dockerfile", b"FROM scratch\n"), ("context/a", b"a")])
}

/// Sends a JSON request that is signed with `key`.
pub(crate) async fn send_json_signed_with(
    builder: &TestBuilder,
    key: &str,
    request: &Value,
) -> AnswerStatusAndBody {
    let body = request.to_string().into_bytes();
    let signature = sign_body(&hmac_keys(key), &body);
    let mut request = build_request_with_signature(body, Some(&signature));
    let json = "application/json".parse().expect("header");
    request.headers_mut().insert("content-type", json);
    AnswerStatusAndBody::from_json_response_or_text_of_429(builder.send_request(request).await).await
}

/// Sends a JSON request that is signed with the builder's key.
pub(crate) async fn send_json(builder: &TestBuilder, request: &Value) -> AnswerStatusAndBody {
    send_json_signed_with(builder, PAYLOAD_KEY, request).await
}

/// Compresses `bytes` with gzip.
pub(crate) fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).expect("gzip");
    gzip.finish().expect("gzip")
}

/// Requests the files of the context as BuildKit does, and returns their paths.
pub(crate) async fn request_context_files_and_return_paths(session: &SessionCall) -> Vec<String> {
    ask_about_source(session, "local://context")
        .await
        .expect("an answer");
    let mut files = Request::new(tokio_stream::pending::<Packet>());
    files
        .metadata_mut()
        .insert("dir-name", "context".parse().expect("text"));
    let mut files = FileSyncClient::new(session.services.clone())
        .diff_copy(files)
        .await
        .expect("files")
        .into_inner();
    let mut paths = Vec::new();
    while let Some(stat) = files
        .message()
        .await
        .expect("a packet")
        .and_then(|packet| packet.stat)
    {
        paths.push(stat.path);
    }
    paths
}

/// Returns a JSON request with this reference to an artifact.
pub(crate) fn json_request_for_artifact(oci: &str) -> Value {
    json!({"image": "registry:5000/hello:1", "context": {"oci": oci}})
}

#[tokio::test]
async fn a_context_in_a_registry_is_built_like_one_in_a_body() {
    let tar = context_tar();
    for packed in [
        tar.clone(),
        gzipped(&tar),
        zstd::stream::encode_all(&tar[..], 1).expect("zstd"),
    ] {
        let (daemon, mut calls) = daemon::start_fake_daemon();
        let registry = FakeRegistry::start().await;
        let builder =
            TestBuilder::new(daemon).with_private_hosts_for_contexts_and_notifications(&registry.host);
        let oci = registry.push_artifact_and_get_reference("team/contexts", &[&packed]);
        let request = json_request_for_artifact(&oci);
        let answer = tokio::spawn(async move { send_json(&builder, &request).await });
        let (solve, status, session) = calls.wait_without_limit_for_build_calls().await;
        assert_eq!(
            request_context_files_and_return_paths(&session).await,
            ["Dockerfile", "a"]
        );
        solve.answer_with_digest("sha256:12");
        drop(status);

        let answer = answer.await.expect("no panic");
        assert_eq!(answer.status, 200, "{}", answer.body);
        let log = answer.body["log"].to_string();
        assert!(log.contains(&format!("[context] fetch {oci}")), "{log}");
    }
}

#[tokio::test]
async fn no_context_is_read_from_the_builders_repository_of_caches() {
    let (daemon, _calls) = daemon::start_fake_daemon();
    let registry = FakeRegistry::start().await;
    let builder = TestBuilder::new(daemon)
        .with_private_hosts_for_contexts_and_notifications(&registry.host)
        .with_cache_registry(&format!("{}/slipway/caches", registry.host));
    for repository in ["slipway/caches", "slipway/caches/team/app"] {
        let oci = registry.push_artifact_and_get_reference(repository, &[&context_tar()]);
        let answer = send_json(&builder, &json_request_for_artifact(&oci)).await;
        assert_eq!(answer.status, 403, "{}", answer.body);
        let error = answer.body["error"].to_string();
        assert!(
            error.contains("is the builder's repository for caches"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_context_that_cannot_be_fetched_is_the_callers_or_the_platforms_fault_and_nothing_is_built() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let registry = FakeRegistry::start().await;
    let other = FakeRegistry::start().await;
    let builder = TestBuilder::new(daemon).with_private_hosts_for_contexts_and_notifications(&registry.host);
    let good = registry.push_artifact_and_get_reference("team/contexts", &[&context_tar()]);
    let none = format!("{}/team/contexts@sha256:{}", registry.host, "0".repeat(64));
    let two = registry.push_artifact_and_get_reference("team/contexts", &[b"1", b"2"]);
    let large = registry.push_artifact_and_get_reference("team/contexts", &[&vec![0; (1 << 20) + 1]]);
    let no_tar = registry.push_artifact_and_get_reference("team/contexts", &[b"hello"]);
    let no_dockerfile =
        registry.push_artifact_and_get_reference("team/contexts", &[&tar_with_files(&[("context/a", b"a")])]);
    let private = other.push_artifact_and_get_reference("team/contexts", &[&context_tar()]);
    let failing = |part, status| RegistryBehaviour::Failing(part, status);
    let elsewhere = |host: &str| RegistryBehaviour::Redirecting(format!("http://{host}"));
    for (behaviour, oci, status, text) in [
        (RegistryBehaviour::Open, &none, 400, "is not there"),
        (RegistryBehaviour::Open, &two, 400, "the artifact has 2 layers"),
        (RegistryBehaviour::Open, &large, 413, "larger than 1048576 bytes"),
        (RegistryBehaviour::Open, &no_tar, 400, "the fetched context: "),
        (
            RegistryBehaviour::Open,
            &no_dockerfile,
            400,
            "context/Dockerfile: not in the tar",
        ),
        (RegistryBehaviour::Lying, &good, 400, "and should have sha256:"),
        (failing("manifests", 500), &good, 502, "answered 500"),
        (failing("blobs", 503), &good, 502, "answered 503"),
        (failing("blobs", 404), &good, 400, "the layer of"),
        (
            failing("manifests", 403),
            &good,
            403,
            "does not let this builder read it (403",
        ),
        (
            RegistryBehaviour::Locked,
            &good,
            403,
            "does not let this builder read it (401",
        ),
        // A registry cannot send the builder to a place that its caller could not name.
        (
            elsewhere(&other.host),
            &good,
            403,
            "127.0.0.1 is a loopback address",
        ),
        (
            elsewhere("localhost:1"),
            &good,
            403,
            "a name without a public address",
        ),
        (elsewhere("169.254.169.254"), &good, 403, "a metadata service"),
        (elsewhere(&registry.host), &good, 400, "redirects too often"),
        (
            elsewhere("user@example.com"),
            &good,
            400,
            "no absolute http address",
        ),
        (
            RegistryBehaviour::Open,
            &private,
            403,
            "127.0.0.1 is a loopback address",
        ),
    ] {
        registry.set_behaviour(behaviour.clone());
        let answer = complete_or_panic(send_json(&builder, &json_request_for_artifact(oci))).await;
        let error = answer.body["error"].as_str().unwrap_or_default();
        assert_eq!(answer.status, status, "{behaviour:?}: {error}");
        assert!(error.contains(text), "{behaviour:?}: {error}");
        assert_eq!(builder.spooled_bytes(), 0, "{behaviour:?}");
    }
    assert!(calls.solves.try_recv().is_err(), "nothing reaches BuildKit");
    assert_eq!(
        other.request_lines(),
        Vec::<String>::new(),
        "no connection to a private address"
    );
}

#[tokio::test]
async fn wrong_members_of_a_json_request_are_named() {
    let (daemon, _calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon);
    let digest = format!("sha256:{}", "0".repeat(64));
    for (request, expected) in [
        (json!([]), "the JSON request: should be a JSON object"),
        (
            json!({"image": "r.example/a"}),
            "the JSON request: context is missing",
        ),
        (
            json!({"image": "", "timeout": "soon", "context": {}, "sealedSecrets": 1}),
            "context should have exactly one of oci, url, git",
        ),
        (json!({"image": "", "context": {}}), "image is missing"),
        (
            json!({"image": "", "timeout": "soon", "context": {}}),
            "timeout should be a duration",
        ),
        (
            json!({"image": "r.example/a", "context": {}, "sealedSecrets": 1}),
            "sealedSecrets should be a string",
        ),
        (
            json!({"image": "r.example/a", "context": {"oci": format!("r.example/a@{digest}"), "tar": "x"}}),
            "context.tar is unknown",
        ),
        (
            json!({"image": "r.example/a", "context": {"oci": "r.example/a:1"}}),
            "context.oci should be",
        ),
        (
            json!({"image": "r.example/a", "context": {"oci": format!("r.example/a:1@{digest}")}}),
            "without a tag",
        ),
        (
            json!({"image": "r.example/a", "context": {"oci": format!("a@{digest}")}}),
            "context.oci should be",
        ),
        (
            json!({"image": "r.example/a", "context": {"oci": format!("r.example/../a@{digest}")}}),
            "context.oci should be",
        ),
    ] {
        let answer = send_json(&builder, &request).await;
        let error = answer.body["error"].as_str().unwrap_or_default();
        assert_eq!(answer.status, 400, "{request}: {error}");
        assert!(error.contains(expected), "{request}: {error}");
    }
    let large = json!({"image": "r.example/a", "buildArgs": {"A": "x".repeat((2 << 20) + 1)}});
    assert_eq!(send_json(&builder, &large).await.status, 413);
}

/// The setting `delete_contexts`, a registry's garbage collection, or a caller may have deleted the context in between.
#[tokio::test]
async fn a_redelivery_whose_context_is_gone_gets_the_result_of_the_first_delivery() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let registry = FakeRegistry::start().await;
    let builder = TestBuilder::new(daemon)
        .with_private_hosts_for_contexts_and_notifications(&registry.host)
        .with_stored_contexts(&format!("{}/contexts", registry.host), true);
    let request =
        json_request_for_artifact(&registry.push_artifact_and_get_reference("contexts", &[&context_tar()]));
    let (first, sent) = (builder.clone(), request.clone());
    let answer = tokio::spawn(async move { send_json(&first, &sent).await });
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    solve.answer_with_digest("sha256:12");
    drop(status);
    assert_eq!(answer.await.expect("no panic").status, 200);
    let manifests = |lines: Vec<String>| lines.iter().filter(|line| line.contains("DELETE")).count();
    assert_eq!(
        manifests(registry.request_lines()),
        1,
        "the context is deleted once it was built"
    );

    let second = tokio::spawn(async move { send_json(&builder, &request).await });
    drop(
        calls
            .statuses
            .recv()
            .await
            .expect("the log of the first delivery"),
    );
    let answer = complete_or_panic(second).await.expect("no panic");
    assert_eq!(
        (answer.status, &answer.body["digest"]),
        (200, &json!("sha256:12")),
        "{}",
        answer.body
    );
    assert!(calls.solves.try_recv().is_err(), "it is built once");
}

#[tokio::test]
async fn a_context_is_kept_if_its_build_fails_or_it_is_in_another_repository() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let registry = FakeRegistry::start().await;
    let builder = TestBuilder::new(daemon)
        .with_private_hosts_for_contexts_and_notifications(&registry.host)
        .with_stored_contexts(&format!("{}/contexts", registry.host), true);
    for (repository, fails) in [("contexts", true), ("contexts-of-others", false)] {
        let request = json_request_for_artifact(
            &registry.push_artifact_and_get_reference(repository, &[&context_tar()]),
        );
        let sender = builder.with_call_id(repository);
        let answer = tokio::spawn(async move { send_json(&sender, &request).await });
        let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
        match fails {
            true => solve.answer_with_error(tonic::Status::unknown("exit code: 1")),
            false => solve.answer_with_digest("sha256:12"),
        }
        drop(status);
        assert_eq!(
            answer.await.expect("no panic").status,
            if fails { 422 } else { 200 }
        );
    }
    let deleted = registry
        .request_lines()
        .into_iter()
        .filter(|line| line.contains("DELETE"));
    assert_eq!(deleted.collect::<Vec<_>>(), Vec::<String>::new());
}
