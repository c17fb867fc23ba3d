//! Tests of what a tenant's build gets at the daemon: its own rules, cache mounts, credentials and tokens.

use bollard_buildkit_proto::moby::buildkit::v1::sourcepolicy::PolicyAction;
use bollard_buildkit_proto::moby::filesync::v1::auth_client::AuthClient;
use bollard_buildkit_proto::moby::filesync::v1::{
    CredentialsRequest, FetchTokenRequest, GetTokenAuthorityRequest, VerifyTokenAuthorityRequest,
};
use builder_fn::buildkit::Daemon;
use ring::signature::{ED25519, UnparsedPublicKey};
use serde_json::{Value, json};
use tonic::Code;

use crate::daemon::{self, DaemonCalls, SessionCall, SolveCall, StatusCall};
use crate::setting::{TestBuilder, request_tar_with};
use crate::sources::ask_about_source;

const ACME_KEY: &str = "the payload key of acme";

/// Returns a builder with the tenant acme, and with registry credentials of acme and of the operator.
fn builder_with_tenant_acme(daemon: Daemon, additional_rules: Value) -> TestBuilder {
    let mut acme = json!({
        "keys": ["acme-payload"],
        "push": ["registry:5000/acme/"],
        "read": {"images": ["registry:5000/public/"]},
        "registryConfig": "acme-registry",
    });
    for (name, value) in additional_rules.as_object().expect("an object") {
        acme[name] = value.clone();
    }
    let builder = TestBuilder::new(daemon).with_policy(&json!({"tenants": {"acme": acme}}));
    let login = |password: &str| {
        json!({"auths": {"registry:5000": {"username": "u", "password": password}}}).to_string()
    };
    builder.write_secret("acme-payload", ACME_KEY);
    builder.write_secret("acme-registry", &login("of acme"));
    builder.write_secret("registry-config", &login("of everybody"));
    builder
}

/// Returns a builder whose policy has these tenants, on a daemon that reports this version.
fn builder_on_daemon_of_version(version: &str, tenants: &[&str]) -> (TestBuilder, DaemonCalls) {
    let (daemon, calls) = daemon::start_fake_daemon_of_version("the shared daemon", version);
    let rules: serde_json::Map<String, Value> = tenants
        .iter()
        .map(|name| ((*name).to_owned(), json!({ "keys": [format!("{name}-payload")] })))
        .collect();
    let builder = TestBuilder::new(daemon).with_policy(&json!({ "tenants": rules }));
    builder.write_secret("acme-payload", ACME_KEY);
    (builder, calls)
}

#[tokio::test]
async fn tenants_share_no_daemon_that_is_old_or_of_unknown_version() {
    for version in ["v0.34.1", "v0.0.0+unknown", ""] {
        let (builder, mut calls) = builder_on_daemon_of_version(version, &["acme", "other"]);
        let tar = request_tar_with(json!({"image": "registry:5000/acme/app:1"}));
        let answer = builder.send_build_signed_with(ACME_KEY, None, tar).await;
        assert_eq!(answer.status, 502, "{version}: {answer:?}");
        let error = answer.body["error"].as_str().expect("an error");
        for part in ["the shared daemon", version, "0.34.2 or later"] {
            assert!(error.contains(part), "{version}: {error}");
        }
        assert!(
            calls.solves.try_recv().is_err(),
            "{version}: the build has reached the daemon"
        );
    }
}

#[tokio::test]
async fn an_old_daemon_builds_for_a_single_tenant_and_for_tenants_whom_the_operator_lets_share_it() {
    for (version, tenants, allows_any_version) in [
        ("v0.34.1", &["acme"][..], false),
        ("v0.34.1", &["acme", "other"], true),
        ("", &["acme", "other"], true),
        ("v0.34.2", &["acme", "other"], false),
    ] {
        let (mut builder, mut calls) = builder_on_daemon_of_version(version, tenants);
        if allows_any_version {
            builder = builder.with_shared_daemons_of_any_version();
        }
        let (solve, _status, _session) = start_tenant_build(builder, &mut calls).await;
        assert_eq!(solve.request.frontend_attrs["hostname"], "acme", "{version}");
    }
}

/// Starts a build of the tenant's image, and waits for its calls.
async fn start_tenant_build(
    builder: TestBuilder,
    calls: &mut DaemonCalls,
) -> (SolveCall, StatusCall, SessionCall) {
    let config = json!({"image": "registry:5000/acme/app:1"});
    tokio::spawn(async move {
        builder
            .send_build_signed_with(ACME_KEY, None, request_tar_with(config))
            .await
    });
    calls.wait_without_limit_for_build_calls().await
}

#[tokio::test]
async fn a_tenants_solve_has_its_own_cache_mounts_and_cache_keys_and_no_entitlement() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let (solve, _status, _session) =
        start_tenant_build(builder_with_tenant_acme(daemon, json!({})), &mut calls).await;
    let attrs = &solve.request.frontend_attrs;
    assert_eq!(attrs["build-arg:BUILDKIT_CACHE_MOUNT_NS"], "acme");
    assert_eq!(attrs["hostname"], "acme");
    assert_eq!(attrs.get("force-network-mode"), None);
    assert_eq!(solve.request.entitlements, Vec::<String>::new());
}

#[tokio::test]
async fn the_steps_of_a_tenant_without_network_have_none() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = builder_with_tenant_acme(daemon, json!({"network": "none"}));
    let (solve, _status, _session) = start_tenant_build(builder, &mut calls).await;
    assert_eq!(solve.request.frontend_attrs["force-network-mode"], "none");
}

#[tokio::test]
async fn a_tenants_build_reads_no_image_of_another_tenant() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let (_solve, _status, session) =
        start_tenant_build(builder_with_tenant_acme(daemon, json!({})), &mut calls).await;
    for (image, is_allowed) in [
        ("registry:5000/acme/base:1", true),
        ("registry:5000/public/base:1", true),
        ("registry:5000/victim/private:1", false),
        ("docker.io/library/alpine:3", false),
    ] {
        let decision = ask_about_source(&session, &format!("docker-image://{image}")).await;
        let decision = decision.expect("an answer");
        let expected = if is_allowed {
            PolicyAction::Allow
        } else {
            PolicyAction::Deny
        };
        assert_eq!(decision.action, i32::from(expected), "{image}");
        let reasons = decision.deny_messages.iter();
        assert!(
            reasons.clone().count() == usize::from(!is_allowed)
                && reasons
                    .clone()
                    .all(|reason| reason.message.contains("policy rule read.images of tenant acme")),
            "{image}"
        );
    }
}

#[tokio::test]
async fn a_tenants_build_gets_its_own_credentials_and_tokens_only_for_its_own_repositories() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let (_solve, _status, session) =
        start_tenant_build(builder_with_tenant_acme(daemon, json!({})), &mut calls).await;
    let mut auth = AuthClient::new(session.services.clone());
    let host = || "registry:5000".to_owned();

    let credentials = auth.credentials(CredentialsRequest { host: host() }).await;
    assert_eq!(credentials.expect("credentials").into_inner().secret, "of acme");

    // The session is the token authority of registries that the tenant has credentials for.
    let authority = |host: &str| GetTokenAuthorityRequest {
        host: host.into(),
        salt: vec![1; 32],
    };
    let key = auth.get_token_authority(authority("registry:5000")).await;
    let key = key.expect("an authority").into_inner().public_key;
    let other = auth.get_token_authority(authority("elsewhere")).await;
    assert_eq!(other.expect_err("no credentials").code(), Code::Unimplemented);
    let request = VerifyTokenAuthorityRequest {
        host: host(),
        payload: b"payload".to_vec(),
        salt: vec![1; 32],
    };
    let signed = auth
        .verify_token_authority(request)
        .await
        .expect("signed")
        .into_inner()
        .signed;
    let (signature, message) = signed.split_at(64);
    assert_eq!(message, b"payload");
    UnparsedPublicKey::new(&ED25519, key)
        .verify(message, signature)
        .expect("a valid signature");

    // Nothing is requested from the realm.
    let token = |scope: &str, realm: &str| FetchTokenRequest {
        host: host(),
        realm: realm.into(),
        scopes: vec![scope.to_owned()],
        ..FetchTokenRequest::default()
    };
    for scope in [
        "repository:victim/private:pull",
        "repository:acme/other:push",
        "repository:public/base:pull",
        "registry:catalog:*",
    ] {
        let answer = auth.fetch_token(token(scope, "http://registry:5000/token")).await;
        assert_eq!(answer.expect_err(scope).code(), Code::PermissionDenied, "{scope}");
    }
    let foreign = token("repository:acme/app:push", "http://169.254.169.254/token");
    let error = auth.fetch_token(foreign).await.expect_err("a foreign realm");
    assert!(error.message().contains("169.254.169.254"), "{error}");
    // The solve fails with the same code, and this one would mean that the daemon is lost.
    assert_ne!(error.code(), Code::Unavailable);
}

#[tokio::test]
async fn a_tenant_without_credentials_uses_registries_anonymously() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = builder_with_tenant_acme(daemon, json!({"registryConfig": "acme-missing"}));
    let (_solve, _status, session) = start_tenant_build(builder, &mut calls).await;
    let request = CredentialsRequest {
        host: "registry:5000".into(),
    };
    let credentials = AuthClient::new(session.services.clone())
        .credentials(request)
        .await;
    assert_eq!(credentials.expect("an answer").into_inner().secret, "");
}
