//! Tests of sealed secrets: the build gets them, and they are masked in its log, its error and its warnings.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bollard_buildkit_proto::moby::buildkit::secrets::v1::GetSecretRequest;
use bollard_buildkit_proto::moby::buildkit::secrets::v1::secrets_client::SecretsClient;
use builder_fn::hand_over::DeployVia;
use crypto_box::aead::Aead;
use crypto_box::{PublicKey, SalsaBox, SecretKey};
use function_host::Body;
use function_host::http::Method;
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::daemon;
use crate::hand_over::let_build_succeed;
use crate::job::step_output_response;
use crate::setting::{AnswerStatusAndBody, TestBuilder, build_request_with_signature, tar_with_files};

/// Returns recorded secrets that faas-cli generated and sealed.
pub(crate) fn recorded_secrets() -> Value {
    let text = include_str!("../../../tests/clients/recorded/secrets.json");
    serde_json::from_str(text).expect("JSON")
}

/// Returns an envelope with `secrets`, as names and values, which the private key of `public_key` opens.
pub(crate) fn seal_secrets(public_key: &[u8], secrets: &[(&str, &str)]) -> String {
    let sender = SecretKey::from([2; 32]);
    let seal = SalsaBox::new(&PublicKey::from_slice(public_key).expect("a key"), &sender);
    let sender = STANDARD.encode(sender.public_key().as_bytes());
    let mut envelope = format!("version: v1\nalgorithm: nacl/box\npublic_key: {sender}\nsecrets:\n");
    for (number, (name, value)) in (1..).zip(secrets) {
        let nonce = [number; 24];
        let value = seal.encrypt(&nonce.into(), value.as_bytes()).expect("sealed");
        let value = STANDARD.encode([&nonce[..], &value[..]].concat());
        envelope.push_str(&format!("  {name}: {value}\n"));
    }
    envelope
}

pub(crate) fn tar_with_sealed_secrets(envelope: &str) -> Vec<u8> {
    tar_with_files(&[
        ("context/Dockerfile", b"FROM scratch\n"),
        (
            "com.openfaas.docker.config",
            br#"{"image": "registry:5000/hello:1"}"#,
        ),
        ("com.openfaas.secrets", envelope.as_bytes()),
    ])
}

#[tokio::test]
async fn secrets_are_served_to_the_build_and_masked_in_the_log_and_the_error() {
    let recorded = recorded_secrets();
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::new(daemon).with_seal_key(recorded["private_key"].as_str().expect("a key"));
    let body = tar_with_sealed_secrets(recorded["sealed"].as_str().expect("an envelope"));
    let answer = tokio::spawn(async move { setting.send_signed_build(body).await });
    let (solve, status, session) = calls.wait_without_limit_for_build_calls().await;

    let mut client = SecretsClient::new(session.services.clone());
    for (id, value) in recorded["values"].as_object().expect("values") {
        let request = GetSecretRequest {
            id: id.clone(),
            ..GetSecretRequest::default()
        };
        let data = client
            .get_secret(request)
            .await
            .expect("a secret")
            .into_inner()
            .data;
        assert_eq!(data, value.as_str().expect("text").as_bytes());
    }
    let request = GetSecretRequest {
        id: "other".into(),
        ..GetSecretRequest::default()
    };
    let error = client
        .get_secret(request)
        .await
        .expect_err("there is no such secret");
    assert_eq!(error.code(), Code::NotFound);
    let methods: Vec<_> = session
        .headers
        .get_all("x-docker-expose-session-grpc-method")
        .iter()
        .collect();
    assert!(
        methods
            .iter()
            .any(|method| *method == "/moby.buildkit.secrets.v1.Secrets/GetSecret")
    );

    status
        .events
        .send(Ok(step_output_response("the token is s3c")))
        .await
        .expect("listening");
    status
        .events
        .send(Ok(step_output_response("r3t!\n")))
        .await
        .expect("listening");
    drop(status);
    solve.answer_with_error(Status::unknown("process \"echo s3cr3t\" failed"));
    let answer = answer.await.expect("no panic");

    assert_eq!(answer.body["log"][0], "l: 1970-01-01T00:00:00Z the token is ***!");
    assert_eq!(answer.body["error"], "process \"echo ***\" failed");
}

/// The values of secrets are also values of the configuration, which is in the tar in clear text.
#[tokio::test]
async fn masking_changes_neither_the_hand_over_nor_the_fields_that_programs_read() {
    let recorded = recorded_secrets();
    let secret = "s3cr3t";
    let deploy = json!({"service": secret, "envVars": {"TOKEN": secret}, "labels": {secret: secret}});
    let config = json!({"image": "registry:5000/s3cr3t:1", "deploy": deploy, "probe": {"path": "/s3cr3t"}, "s3cr3t": 1})
        .to_string();
    let body = tar_with_files(&[
        ("context/Dockerfile", b"FROM scratch\n"),
        ("com.openfaas.docker.config", config.as_bytes()),
        (
            "com.openfaas.secrets",
            recorded["sealed"].as_str().expect("an envelope").as_bytes(),
        ),
    ]);
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::new(daemon)
        .with_deploy_via(DeployVia::Callback)
        .with_seal_key(recorded["private_key"].as_str().expect("a key"));
    setting.write_secret("deploy-secret", "deploy key");

    let answer = tokio::spawn(async move { setting.send_signed_build(body).await });
    let_build_succeed(&mut calls).await;

    let AnswerStatusAndBody { status, body } = answer.await.expect("no panic");
    assert_eq!(status, 200, "{body}");
    let deployment = &body["deployment"];
    assert_eq!(deployment["function"], secret);
    assert_eq!(deployment["image"], "registry:5000/s3cr3t@sha256:12");
    assert_eq!(deployment["handOver"]["image"], "registry:5000/s3cr3t@sha256:12");
    assert_eq!(deployment["handOver"]["deploy"], deploy);
    assert_eq!(deployment["handOver"]["probe"], json!({"path": "/s3cr3t"}));
    let log = body["log"].to_string();
    assert!(log.contains("[deploy] ***") && !log.contains(secret), "{log}");
    let warnings = body["warnings"].to_string();
    assert!(
        warnings.contains("***") && !warnings.contains(secret),
        "{warnings}"
    );
}

#[tokio::test]
async fn the_public_key_is_published_and_an_unusable_envelope_is_rejected_before_the_build() {
    let recorded = recorded_secrets();
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::new(daemon).with_seal_key(recorded["private_key"].as_str().expect("a key"));
    let mut request = build_request_with_signature(Body::empty(), None);
    *request.method_mut() = Method::GET;
    *request.uri_mut() = "/publickey".parse().expect("path");
    let answer =
        AnswerStatusAndBody::from_json_response_or_text_of_429(setting.send_request(request).await).await;
    assert_eq!(
        (answer.status, &answer.body),
        (200, &recorded["publickey_answer"])
    );

    let sealed = recorded["sealed"].as_str().expect("an envelope");
    for (envelope, error) in [
        (
            sealed.replace("UWnDv86x", "ABCDEFGH"),
            "sealed to key \"ABCDEFGH\", and the key of this builder is \"UWnDv86x\"",
        ),
        (sealed.replace("8wx/10", "8wx/11"), "\"pip_token\""),
    ] {
        let answer = setting
            .send_signed_build(tar_with_sealed_secrets(&envelope))
            .await;
        assert_eq!(answer.status, 400, "{answer:?}");
        assert!(
            answer.body["error"]
                .as_str()
                .is_some_and(|text| text.contains(error)),
            "{answer:?}"
        );
    }
    assert!(calls.solves.try_recv().is_err());
}
