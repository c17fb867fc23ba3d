use std::time::Duration;

use function_host::unverified::UnverifiedLimits;
use function_host::{Secret, signature};
use serde_json::json;

use super::*;
use crate::error::ErrorKind;

const IMAGE_REFERENCE: &str =
    "registry.example/hello@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn hmac_keys(text: &str) -> HmacKeys {
    HmacKeys::new(&Secret::new(text)).unwrap()
}

fn unverified_budget() -> UnverifiedBudget {
    UnverifiedBudget::new(UnverifiedLimits {
        senders: 1,
        memory: 2 << 20,
        disk: 0,
        rate: 1,
        grace: Duration::from_secs(1),
    })
}

fn problems_of_invalid_hand_over(document: &Value) -> Vec<String> {
    match parse_hand_over(document.to_string().as_bytes()) {
        Err(HandOverRejectionOrPanic::Invalid { problems, .. }) => problems,
        other => panic!("expected problems, got {other:?}"),
    }
}

fn parse_valid_hand_over(document: &Value) -> HandOver {
    match parse_hand_over(document.to_string().as_bytes()) {
        Ok(ReceivedHandOver::HandOver(hand_over)) => hand_over,
        other => panic!("expected a hand-over, got {other:?}"),
    }
}

fn parse_valid_dry_run(document: &Value) -> DryRunRequest {
    match parse_hand_over(document.to_string().as_bytes()) {
        Ok(ReceivedHandOver::DryRun(dry_run)) => dry_run,
        other => panic!("expected a dry run, got {other:?}"),
    }
}

fn hand_over_json_with_every_deploy_field() -> Value {
    json!({
        "image": IMAGE_REFERENCE,
        "tag": "registry.example/hello:1.0",
        "callId": "b6a8d1c2",
        "builtAt": "2026-03-01T12:00:00.5Z",
        "deploy": {
            "service": "hello",
            "namespace": "openfaas-fn",
            "envProcess": "node index.js",
            "envVars": {"write_timeout": "1m", "A": ""},
            "constraints": ["node.role == worker"],
            "secrets": ["api-key"],
            "labels": {"com.openfaas.scale.min": "2"},
            "annotations": {"topic": "orders"},
            "limits": {"memory": "128Mi", "cpu": "500m"},
            "requests": {"memory": "64Mi"},
            "readOnlyRootFilesystem": true
        }
    })
}

#[tokio::test]
async fn a_signed_hand_over_is_parsed_in_full() {
    let body = hand_over_json_with_every_deploy_field().to_string();
    let signature = signature::sign_body(&hmac_keys("k"), body.as_bytes());

    let (received, value) = receive_hand_over(
        Body::from(body),
        Some(&signature),
        &[(hmac_keys("other"), 1), (hmac_keys("k"), 2)],
        &unverified_budget(),
    )
    .await
    .unwrap();

    assert_eq!(value, 2);
    let ReceivedHandOver::HandOver(hand_over) = received else {
        panic!("{received:?}");
    };
    assert_eq!(hand_over.spec.image.as_str(), IMAGE_REFERENCE);
    assert_eq!(hand_over.call_id.as_deref(), Some("b6a8d1c2"));
    assert!(hand_over.built_at.is_some());
    let mut expected = hand_over_json_with_every_deploy_field()["deploy"].clone();
    expected["image"] = IMAGE_REFERENCE.into();
    assert_eq!(serde_json::to_value(&hand_over.spec).unwrap(), expected);
}

#[test]
fn a_hand_over_is_found_in_the_builders_result() {
    let result = json!({"log": ["l: x"], "image": "registry.example/hello:1.0", "status": "success", "duration": 1.5,
            "deployment": {"status": "handed_over", "function": "hello", "handOver": hand_over_json_with_every_deploy_field()}});
    assert_eq!(
        parse_valid_hand_over(&result),
        parse_valid_hand_over(&hand_over_json_with_every_deploy_field())
    );
    // A result without a hand-over is not deployed.
    let result = json!({"image": "registry.example/hello:1.0", "status": "success", "duration": 1.5});
    assert!(
        problems_of_invalid_hand_over(&result)
            .iter()
            .any(|problem| problem == "deploy is missing")
    );
}

#[tokio::test]
async fn a_hand_over_is_parsed_only_with_the_builders_signature() {
    let body = hand_over_json_with_every_deploy_field().to_string();
    let ours = signature::sign_body(&hmac_keys("k"), body.as_bytes());
    let theirs = signature::sign_body(&hmac_keys("other"), body.as_bytes());
    let send = |signature: Option<String>, body: String| async move {
        let keys = [(hmac_keys("k"), ())];
        let budget = unverified_budget();
        receive_hand_over(Body::from(body), signature.as_deref(), &keys, &budget)
            .await
            .unwrap_err()
    };
    assert!(matches!(
        send(None, body.clone()).await,
        HandOverRejectionOrPanic::Unsigned
    ));
    assert!(matches!(
        send(Some("sha256=12".into()), body.clone()).await,
        HandOverRejectionOrPanic::MalformedSignature(_)
    ));
    assert!(matches!(
        send(Some(theirs), body.clone()).await,
        HandOverRejectionOrPanic::WrongSignature(_)
    ));
    assert!(matches!(
        send(Some(ours), body + " ").await,
        HandOverRejectionOrPanic::WrongSignature(_)
    ));
}

#[tokio::test]
async fn a_hand_over_over_the_size_limit_is_rejected() {
    let body = " ".repeat(MAX_BODY_BYTES + 1);
    let signature = signature::sign_body(&hmac_keys("k"), body.as_bytes());
    let keys = [(hmac_keys("k"), ())];
    let error = receive_hand_over(Body::from(body), Some(&signature), &keys, &unverified_budget())
        .await
        .unwrap_err();
    assert_eq!(error.error_kind(), ErrorKind::TooLarge, "{error:?}");
}

#[test]
fn all_problems_of_a_hand_over_are_reported_at_once() {
    let found = problems_of_invalid_hand_over(&json!({
        "image": "registry.example/hello:1.0",
        "builtAt": "yesterday",
        "submittedAt": "2026-03-01",
        "expiresAt": "in an hour",
        "callId": 7,
        "probe": {"path": "health", "successes": 0, "retries": 1},
        "deploy": {
            "service": "Hello World",
            "namespace": "a/b",
            "image": "x",
            "envVars": {"A=B": "", "N": 1},
            "secrets": ["../key", 3],
            "labels": [],
            "annotations": {"slipway/spec": "x"},
            "limits": {"memory": "lots", "gpu": "1"},
            "readOnlyRootFilesystem": "yes",
            "envvars": {}
        }
    }));
    for part in [
        "image must be pinned by digest",
        "builtAt is not a time",
        "submittedAt is not a time",
        "expiresAt is not a time",
        "callId must be a string, is a number",
        "probe.path must be a path",
        "probe.successes must be from 1",
        "probe.retries is not a known field",
        "deploy.service must be lower-case",
        "deploy.namespace must be lower-case",
        "deploy.image must be left out",
        "deploy.envVars has a name that is not the name of an environment variable: \"A=B\"",
        "deploy.envVars.N must be a string",
        "deploy.secrets[0] must be lower-case",
        "deploy.secrets[1] must be a string",
        "deploy.labels must be an object, is an array",
        "deploy.annotations has a name that is reserved for deployer-fn",
        "deploy.limits.memory is not a quantity",
        "deploy.limits.gpu is not a known field",
        "deploy.readOnlyRootFilesystem must be true or false, is a string",
        "deploy.envvars is not a known field",
    ] {
        assert!(
            found.iter().any(|problem| problem.starts_with(part)),
            "{part:?} is not in {found:#?}"
        );
    }
    assert_eq!(found.len(), 21, "{found:#?}");
}

#[test]
fn names_of_labels_and_annotations_label_values_and_requests_over_limits_are_checked() {
    let found = problems_of_invalid_hand_over(&json!({"image": IMAGE_REFERENCE, "deploy": {
        "service": "hello",
        "labels": {"a b": "1", "team": "a/b"},
        "annotations": {"x y": "1", "anything": "a b, as it likes"},
        "limits": {"memory": "128Mi", "cpu": "1"},
        "requests": {"memory": "1Gi", "cpu": "500m"}
    }}));
    for part in [
        "deploy.labels has a name that is not a name such as",
        "deploy.labels.team must be",
        "deploy.annotations has a name that is not a name such as",
        "deploy.requests.memory is 1Gi, which exceeds the limit of 128Mi",
    ] {
        assert!(
            found.iter().any(|problem| problem.starts_with(part)),
            "{part:?}: {found:#?}"
        );
    }
    assert_eq!(found.len(), 4, "{found:#?}");
}

#[test]
fn a_probe_whose_address_is_too_long_is_rejected() {
    let of_length = |length: usize| {
        json!({"image": IMAGE_REFERENCE, "probe": {"path": format!("/{}", "a".repeat(length - 1))},
                "deploy": {"service": "hello", "namespace": "team"}})
    };
    let longest = 4096 - "/function/hello.team".len();
    assert!(parse_hand_over(of_length(longest).to_string().as_bytes()).is_ok());
    assert_eq!(
        problems_of_invalid_hand_over(&of_length(longest + 1)),
        ["probe.path makes an address of 4097 bytes, and 4096 are allowed"]
    );
    assert_eq!(
        problems_of_invalid_hand_over(&of_length(65_530)),
        ["probe.path makes an address of 65530 bytes, and 4096 are allowed"]
    );
}

#[test]
fn missing_fields_of_a_hand_over_are_reported() {
    assert_eq!(
        problems_of_invalid_hand_over(&json!({})),
        ["image is missing", "deploy is missing"]
    );
    assert_eq!(
        problems_of_invalid_hand_over(&json!({"image": IMAGE_REFERENCE, "deploy": {}})),
        ["deploy.service is missing"]
    );
    assert_eq!(
        problems_of_invalid_hand_over(&json!({"image": IMAGE_REFERENCE, "deploy": []})),
        ["deploy must be an object, is an array"]
    );
    assert_eq!(problems_of_invalid_hand_over(&json!([])).len(), 1);
    assert!(matches!(
        parse_hand_over(b"{"),
        Err(HandOverRejectionOrPanic::NotJson(_))
    ));
}

#[test]
fn null_and_empty_mean_absent_as_go_clients_send_them() {
    let document = json!({"image": IMAGE_REFERENCE, "later": 1, "deploy": {
        "service": "hello", "namespace": "", "image": "", "labels": null, "limits": {"memory": ""},
        "secrets": [null], "envVars": {"A": null}, "network": null, "registryAuth": ""
    }});
    let hand_over = parse_valid_hand_over(&document);
    let spec = serde_json::to_value(&hand_over.spec).unwrap();
    assert_eq!(spec, json!({"service": "hello", "image": IMAGE_REFERENCE}));
    assert_eq!(hand_over.warnings, ["later is not a known field, and is ignored"]);
}

#[test]
fn a_field_in_another_case_is_read_with_a_warning_and_null_variables_are_dropped() {
    let hand_over = parse_valid_hand_over(&json!({"image": IMAGE_REFERENCE, "deploy": {
        "Service": "hello", "envVars": {"A": "", "B": null}
    }}));
    assert_eq!(
        serde_json::to_value(&hand_over.spec).unwrap(),
        json!({"service": "hello", "image": IMAGE_REFERENCE, "envVars": {"A": ""}})
    );
    assert_eq!(hand_over.warnings, ["deploy.Service is read as service"]);
}

#[test]
fn a_field_that_gateways_ignore_is_ignored_with_a_warning() {
    let hand_over = parse_valid_hand_over(
        &json!({"image": IMAGE_REFERENCE, "deploy": {"service": "hello", "network": "func_functions"}}),
    );
    assert_eq!(
        serde_json::to_value(&hand_over.spec).unwrap(),
        json!({"service": "hello", "image": IMAGE_REFERENCE})
    );
    assert_eq!(
        hand_over.warnings,
        ["deploy.network is ignored: gateways have not used it since Docker Swarm"]
    );
}

#[test]
fn registry_credentials_in_a_specification_are_rejected_without_repeating_them() {
    let found = problems_of_invalid_hand_over(
        &json!({"image": IMAGE_REFERENCE, "deploy": {"service": "hello", "registryAuth": "c2VjcmV0"}}),
    );
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("deploy.registryAuth is not used") && !found[0].contains("c2VjcmV0"));
}

#[test]
fn a_dry_run_needs_no_image_and_is_known_as_one_even_if_invalid() {
    let unnamed = parse_valid_dry_run(&json!({"dryRun": true, "deploy": {"service": "hello"}}));
    assert_eq!(unnamed.possibly_unbuilt_image_if_repository_known(), None);
    let tagged =
        parse_valid_dry_run(&json!({"dryRun": true, "tag": "r.example/t:1", "deploy": {"service": "hello"}}));
    assert_eq!(
        tagged
            .possibly_unbuilt_image_if_repository_known()
            .unwrap()
            .repository(),
        "r.example/t"
    );
    // Whether it is one is known even if something else is wrong.
    let wrong = json!({"dryRun": true, "tag": "R/t", "deploy": {"service": "0"}}).to_string();
    let Err(HandOverRejectionOrPanic::Invalid { problems, dry_run }) = parse_hand_over(wrong.as_bytes())
    else {
        panic!("{wrong} is valid");
    };
    assert!(dry_run);
    assert_eq!(problems.len(), 2, "{problems:?}");
}

/// A builder that learns that a build has finished hands it over again, with a later end of the build.
#[test]
fn the_delivery_digest_is_the_same_for_repeated_deliveries_of_one_hand_over_only() {
    let digest = |change: &dyn Fn(&mut Value)| {
        let mut document = hand_over_json_with_every_deploy_field();
        change(&mut document);
        parse_valid_hand_over(&document).digest_shared_by_redeliveries()
    };
    let submitted = |document: &mut Value| document["submittedAt"] = "2026-03-01T11:59:00Z".into();
    let first = digest(&submitted);
    assert!(first.is_some());
    let same = digest(&|document| {
        submitted(document);
        document["builtAt"] = "2026-03-01T13:00:00Z".into();
        document["expiresAt"] = "2026-03-01T14:00:00Z".into();
    });
    assert_eq!(first, same);
    let changes: [&dyn Fn(&mut Value); 5] = [
        &|document| document["callId"] = "another".into(),
        &|document| document["submittedAt"] = "2026-03-01T11:59:01Z".into(),
        &|document| document["probe"] = json!({"path": "/ready"}),
        &|document| document["deploy"]["envVars"]["A"] = "1".into(),
        &|document| drop(document.as_object_mut().unwrap().remove("submittedAt")),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let other = digest(&|document| {
            submitted(document);
            change(document);
        });
        assert_ne!(first, other, "{number}");
    }
    // Without a time of submission, the end of the build identifies it, in the form of earlier releases.
    assert_eq!(
        digest(&|_| ()).unwrap(),
        "ce2852823bd78d70bb17c183211131870741d5fb08f139ef02e8032f6efbb4ca"
    );
    assert_ne!(
        digest(&|_| ()),
        digest(&|document| document["builtAt"] = "2026-03-01T13:00:00Z".into())
    );
}

#[test]
fn the_specification_digest_changes_with_the_specification_and_not_with_the_call() {
    let spec = |change: &dyn Fn(&mut Value)| {
        let mut document = hand_over_json_with_every_deploy_field();
        change(&mut document);
        parse_valid_hand_over(&document).spec.spec_digest()
    };
    let plain = spec(&|_| ());
    assert_eq!(plain, spec(&|document| document["callId"] = "another".into()));
    assert_ne!(
        plain,
        spec(&|document| document["deploy"]["envVars"]["A"] = "1".into())
    );
    assert_ne!(
        plain,
        spec(&|document| document["deploy"]["readOnlyRootFilesystem"] = false.into())
    );
}
