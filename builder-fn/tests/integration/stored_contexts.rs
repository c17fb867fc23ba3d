//! Tests of `POST /contexts`, which stores a tar in the operator's registry.

use function_host::http::Method;
use function_host::signature::sign_body;
use serde_json::{Value, json};

use crate::complete_or_panic;
use crate::daemon;
use crate::referenced_contexts::{context_tar, json_request_for_artifact, send_json_signed_with};
use crate::registry::{FakeRegistry, RegistryBehaviour};
use crate::setting::{
    AnswerStatusAndBody, PAYLOAD_KEY, TestBuilder, build_request_with_signature, hmac_keys,
};

async fn post_context_signed_with(builder: &TestBuilder, key: &str, body: Vec<u8>) -> AnswerStatusAndBody {
    let signature = sign_body(&hmac_keys(key), &body);
    let mut request = build_request_with_signature(body, Some(&signature));
    *request.uri_mut() = "/contexts".parse().expect("path");
    AnswerStatusAndBody::from_json_response_or_text_of_429(builder.send_request(request).await).await
}

fn context_reference_or_empty_in(answer: &AnswerStatusAndBody) -> String {
    answer.body["context"]["oci"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[tokio::test]
async fn a_stored_context_is_built_by_its_reference() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let registry = FakeRegistry::start().await;
    let repository = format!("{}/slipway/contexts", registry.host);
    let builder = TestBuilder::new(daemon)
        .with_private_hosts_for_contexts_and_notifications(&registry.host)
        .with_stored_contexts(&repository, false);
    let tar = context_tar();

    let stored = post_context_signed_with(&builder, PAYLOAD_KEY, tar.clone()).await;
    assert_eq!(stored.status, 201, "{}", stored.body);
    assert_eq!(stored.body["bytes"], json!(tar.len()));
    let reference = context_reference_or_empty_in(&stored);
    assert!(
        reference.starts_with(&format!("{repository}@sha256:")),
        "{reference}"
    );
    assert_eq!(builder.spooled_bytes(), 0);

    let again = post_context_signed_with(&builder, PAYLOAD_KEY, tar).await;
    assert_ne!(
        context_reference_or_empty_in(&again),
        reference,
        "each has a manifest of its own, so that it may be deleted"
    );
    assert_eq!(
        registry.content_count(),
        4,
        "the tar and the empty config are there once"
    );

    let request = json_request_for_artifact(&reference);
    let answer = tokio::spawn(async move { send_json_signed_with(&builder, PAYLOAD_KEY, &request).await });
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    solve.answer_with_digest("sha256:12");
    drop(status);
    assert_eq!(answer.await.expect("no panic").status, 200);
}

#[tokio::test]
async fn an_upload_without_the_setting_the_key_or_a_tar_is_rejected_and_nothing_is_stored() {
    let (daemon, _calls) = daemon::start_fake_daemon();
    let registry = FakeRegistry::start().await;
    let builder = TestBuilder::new(daemon);
    let answer = post_context_signed_with(&builder, PAYLOAD_KEY, context_tar()).await;
    assert_eq!(answer.status, 501);
    assert!(
        answer.body["error"]
            .as_str()
            .is_some_and(|error| error.contains("contexts_repository"))
    );

    let builder = builder
        .with_private_hosts_for_contexts_and_notifications(&registry.host)
        .with_stored_contexts(&format!("{}/contexts", registry.host), false);
    assert_eq!(
        post_context_signed_with(&builder, "another key", context_tar())
            .await
            .status,
        401
    );
    assert_eq!(
        post_context_signed_with(&builder, PAYLOAD_KEY, b"hello".to_vec())
            .await
            .status,
        400
    );
    let mut get = build_request_with_signature(Vec::new(), None);
    *get.uri_mut() = "/contexts".parse().expect("path");
    *get.method_mut() = Method::GET;
    let answer =
        AnswerStatusAndBody::from_json_response_or_text_of_429(builder.send_request(get).await).await;
    assert_eq!(answer.status, 405);
    assert_eq!(registry.request_lines(), Vec::<String>::new());
}

#[tokio::test]
async fn an_upload_that_fails_is_the_platforms_fault_and_is_cancelled_at_the_registry() {
    let (daemon, _calls) = daemon::start_fake_daemon();
    let registry = FakeRegistry::start().await;
    let builder = TestBuilder::new(daemon)
        .with_private_hosts_for_contexts_and_notifications(&registry.host)
        .with_stored_contexts(&format!("{}/contexts", registry.host), false);
    for (part, is_begun) in [
        ("POST", false),
        ("PUT /v2/contexts/blobs", true),
        ("PUT /v2/contexts/manifests", false),
    ] {
        registry.set_behaviour(RegistryBehaviour::Failing(part, 500));
        let before = registry.request_lines().len();
        let answer = post_context_signed_with(&builder, PAYLOAD_KEY, context_tar()).await;
        assert_eq!(answer.status, 502, "{part}: {}", answer.body);
        assert_eq!(builder.spooled_bytes(), 0, "{part}");
        if is_begun {
            let cancelled = async {
                while !registry.request_lines()[before..]
                    .iter()
                    .any(|line| line.starts_with("DELETE"))
                {
                    tokio::task::yield_now().await;
                }
            };
            complete_or_panic(cancelled).await;
        }
    }
}

/// Returns a policy with two tenants: acme, which may read everything, and globex, which may read only the images
/// that it may push.
fn policy_with_acme_and_globex() -> Value {
    json!({"tenants": {
        "acme": {"keys": ["acme-payload"], "push": ["registry:5000/"]},
        "globex": {"keys": ["globex-payload"], "push": ["registry:5000/"], "read": {"images": []}},
    }})
}

#[tokio::test]
async fn a_tenant_reads_its_own_stored_contexts_and_none_of_others() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let registry = FakeRegistry::start().await;
    let repository = format!("{}/contexts", registry.host);
    let builder = TestBuilder::new(daemon)
        .with_policy(&policy_with_acme_and_globex())
        .with_private_hosts_for_contexts_and_notifications(&registry.host)
        .with_stored_contexts(&repository, false);
    builder.write_secret("acme-payload", "the payload key of acme");
    builder.write_secret("globex-payload", "the payload key of globex");

    let stored = post_context_signed_with(&builder, "the payload key of globex", context_tar()).await;
    assert_eq!(stored.status, 201, "{}", stored.body);
    let reference = context_reference_or_empty_in(&stored);
    assert!(
        reference.starts_with(&format!("{repository}/globex@")),
        "{reference}"
    );
    let digest = reference.rsplit_once('@').expect("a digest").1;

    let before = registry.request_lines().len();
    for guessed in [
        reference.clone(),
        format!("{repository}@{digest}"),
        format!("{repository}/globex/x@{digest}"),
    ] {
        let answer = send_json_signed_with(
            &builder,
            "the payload key of acme",
            &json_request_for_artifact(&guessed),
        )
        .await;
        assert_eq!(answer.status, 403, "{guessed}: {}", answer.body);
    }
    assert_eq!(
        registry.request_lines().len(),
        before,
        "the registry is not asked for another tenant's context"
    );
    let own = send_json_signed_with(
        &builder,
        "the payload key of acme",
        &json_request_for_artifact(&format!("{repository}/acme@{digest}")),
    )
    .await;
    assert_eq!(
        own.status, 400,
        "the same bytes are not in its own repository: {}",
        own.body
    );

    let request = json_request_for_artifact(&reference);
    let answer =
        tokio::spawn(
            async move { send_json_signed_with(&builder, "the payload key of globex", &request).await },
        );
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    solve.answer_with_digest("sha256:12");
    drop(status);
    assert_eq!(
        answer.await.expect("no panic").status,
        200,
        "also if its rules let it read no image"
    );
}
