//! Receives a hand-over: checks the builder's signature, then parses and validates every field.
//!
//! The signature is checked over the bytes as received, before any of them is parsed. After that all problems with the
//! content are reported at once.

mod dry_run;
mod fields;
mod image;
mod names;
mod probe;
mod spec;

use function_host::Body;
use function_host::signature::{HmacKeys, SignatureMismatch, SignatureVerifier};
use function_host::unverified::UnverifiedBudget;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

pub(crate) use self::dry_run::{DryRunRequest, ReceivedHandOver};
pub use self::image::PinnedImage;
pub(crate) use self::image::names_same_image;
pub(crate) use self::names::check_namespace_name as check_namespace;
pub use self::probe::ReadinessProbe;
pub use self::spec::{FunctionSpec, ResourceAmounts, SPEC_DIGEST_ANNOTATION};
pub(crate) use self::spec::{OWN_ANNOTATION_PREFIX, TENANT_ANNOTATION};
use crate::build_times::BuildTimes;
use crate::error::HandOverError;
use crate::time;
use fields::{JsonFields, ProblemsAndWarnings};

/// The name of the header with a hand-over's signature.
pub(crate) const SIGNATURE_HEADER: &str = "x-deploy-signature";

/// The size limit of a hand-over, in bytes. Providers store far less of it, above all in annotations.
pub const MAX_BODY_BYTES: usize = 1024 * 1024;

/// An image to deploy, with its specification, as the builder hands it over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandOver {
    /// The function's specification.
    pub spec: FunctionSpec,
    /// The tag that the image was pushed with. The tag is reported and never deployed.
    pub tag: Option<String>,
    /// The tenant that the hand-over names, and, once its rules were checked, belongs to.
    pub tenant: Option<String>,
    /// The ID of the call that built the image.
    pub call_id: Option<String>,
    /// The time at which the build's source was submitted. This time orders the builds of one function.
    pub submitted_at: Option<Timestamp>,
    /// The time at which the build ended. This time orders builds if one of them has no time of submission.
    pub built_at: Option<Timestamp>,
    /// The time from which the hand-over is rejected, so that a recorded one cannot be replayed later.
    pub expires_at: Option<Timestamp>,
    /// The probe: the request that checks that the function works.
    pub probe: ReadinessProbe,
    /// Warnings about fields of the hand-over that are ignored, or read in another way than they are written.
    pub warnings: Vec<String>,
}

impl HandOver {
    /// Returns the times of the hand-over's build.
    pub(crate) fn build_times(&self) -> BuildTimes {
        BuildTimes {
            submitted_at: self.submitted_at,
            built_at: self.built_at,
        }
    }

    /// Returns the problems with the times of a hand-over that was received at `now`.
    pub(crate) fn time_problems(&self, now: Timestamp) -> Vec<String> {
        let expired = self.expires_at.filter(|at| *at <= now).map(|at| {
            format!(
                "the hand-over expired at {}; it was received at {}",
                time::format_with_millis(at),
                time::format_with_millis(now)
            )
        });
        expired
            .into_iter()
            .chain(self.build_times().problem_if_ahead_of(now))
            .collect()
    }

    /// Returns a digest that identifies the hand-over in all its deliveries. `None` if neither call nor time
    /// identify the build.
    ///
    /// A build that is found finished may be handed over with another `builtAt` than the first time, which therefore
    /// counts only if there is no `submittedAt`. `expiresAt` differs with each delivery.
    pub(crate) fn delivery_digest(&self) -> Option<String> {
        let time = match (self.submitted_at, self.built_at) {
            (Some(at), _) => json!({"submittedAt": time::format_with_nanos(at)}),
            // The form of earlier releases, whose digests are in the annotations of deployed functions.
            (None, Some(at)) => json!(time::format_with_nanos(at)),
            (None, None) if self.call_id.is_none() => return None,
            (None, None) => Value::Null,
        };
        let identity = json!([self.spec.spec_digest(), self.call_id, time, self.probe]);
        Some(hex::encode(Sha256::digest(identity.to_string())))
    }
}

/// Receives a request's hand-over within the budget of unverified bodies, checks that it is signed with one of `keys`,
/// and returns it with the value that belongs to the key. A signature that keys with different values verify has no signer, and is wrong.
///
/// # Errors
/// [`HandOverError::Unsigned`], [`HandOverError::MalformedSignature`] and [`HandOverError::WrongSignature`] if the hand-over is not the
/// builder's; [`HandOverError::Receive`], [`HandOverError::NotJson`] and [`HandOverError::Invalid`] if it cannot be read or is not valid.
pub(crate) async fn receive_hand_over<K: Copy + PartialEq>(
    body: Body,
    signature: Option<&str>,
    keys: &[(HmacKeys, K)],
    unverified: &UnverifiedBudget,
) -> Result<(ReceivedHandOver, K), HandOverError> {
    let signature = signature.ok_or(HandOverError::Unsigned)?;
    let mut verifiers = Vec::with_capacity(keys.len());
    for (key, value) in keys {
        let verifier = SignatureVerifier::new(key, signature).map_err(HandOverError::MalformedSignature)?;
        verifiers.push((verifier, *value));
    }
    // Released on return: when the signature is verified, or the hand-over is rejected.
    let mut sender = unverified.admit();
    let bytes = sender
        .collect(body, MAX_BODY_BYTES)
        .await
        .map_err(HandOverError::Receive)?;
    let mut signers = Vec::new();
    for (mut verifier, value) in verifiers {
        verifier.update(&bytes);
        if verifier.finish().is_ok() {
            signers.push(value);
        }
    }
    match signers.split_first() {
        Some((first, others)) if others.iter().all(|other| other == first) => {
            Ok((parse_hand_over(&bytes)?, *first))
        }
        Some(_) => {
            tracing::error!(
                "two secrets for signatures have the same key; what is signed with it is rejected"
            );
            Err(HandOverError::WrongSignature(SignatureMismatch))
        }
        None => Err(HandOverError::WrongSignature(SignatureMismatch)),
    }
}

/// Parses the JSON of a hand-over, or of a builder's result that contains one.
pub(crate) fn parse_hand_over(bytes: &[u8]) -> Result<ReceivedHandOver, HandOverError> {
    let Value::Object(document) = serde_json::from_slice(bytes).map_err(HandOverError::NotJson)? else {
        return Err(HandOverError::Invalid {
            problems: vec!["the hand-over is JSON, but not an object".to_owned()],
            dry_run: false,
        });
    };
    let document = unwrap_build_result(document);
    let mut remarks = ProblemsAndWarnings::default();
    let mut fields = JsonFields::new("", document, &mut remarks);
    let dry_run = fields.read_boolean("dryRun").unwrap_or_default();
    let tag = fields.read_string("tag");
    let given = match dry_run {
        true => fields.read_string("image").filter(|text| !text.is_empty()),
        false => fields.read_required_string("image"),
    };
    let names_repository = !dry_run || given.is_some() || tag.is_some();
    let (key, image) = match &given {
        Some(text) => ("image", PinnedImage::parse_pinned(text).map(Some)),
        None if dry_run => ("tag", PinnedImage::stand_in_for_unbuilt(tag.as_deref()).map(Some)),
        None => ("image", Ok(None)),
    };
    let image = image.unwrap_or_else(|problem| {
        fields.add_problem(key, problem);
        None
    });
    let tenant = fields.read_string("tenant");
    let call_id = fields.read_string("callId");
    let submitted_at = read_time_field(&mut fields, "submittedAt");
    let built_at = read_time_field(&mut fields, "builtAt");
    let expires_at = read_time_field(&mut fields, "expiresAt");
    let probe = match fields.read_object("probe") {
        Some(probe) => fields.read_nested_fields("probe", probe, ReadinessProbe::read_probe),
        None => ReadinessProbe::default(),
    };
    let spec: Option<FunctionSpec> = fields.read_required_object("deploy").and_then(|deploy| {
        fields.read_nested_fields("deploy", deploy, |fields| {
            let spec = FunctionSpec::read_spec(fields, image);
            fields.report_unread_fields();
            spec
        })
    });
    if let Some(Err(problem)) = spec
        .as_ref()
        .map(|spec| probe.check_gateway_path(&spec.function_address()))
    {
        fields.add_problem("probe.path", problem);
    }
    fields.ignore_unread_fields();
    let ProblemsAndWarnings { problems, warnings } = remarks;
    let hand_over = match spec {
        Some(spec) if problems.is_empty() => HandOver {
            spec,
            tag,
            tenant,
            call_id,
            submitted_at,
            built_at,
            expires_at,
            probe,
            warnings,
        },
        _ => return Err(HandOverError::Invalid { problems, dry_run }),
    };
    Ok(match dry_run {
        true => ReceivedHandOver::DryRun(DryRunRequest {
            hand_over,
            names_repository,
        }),
        false => ReceivedHandOver::HandOver(hand_over),
    })
}

/// Reads a field with a time in RFC 3339, and reports other text.
fn read_time_field(fields: &mut JsonFields<'_>, key: &str) -> Option<Timestamp> {
    let text = fields.read_string(key).filter(|text| !text.is_empty())?;
    let time = time::parse_utc_time(&text);
    if time.is_none() {
        fields.add_problem(
            key,
            format!("is not a time in UTC such as \"2026-03-01T12:00:00Z\" (RFC 3339): {text:?}"),
        );
    }
    time
}

/// Returns the hand-over inside a result of the builder, which a queue-worker posts to its callback; returns
/// any other document as it is.
fn unwrap_build_result(mut document: Map<String, Value>) -> Map<String, Value> {
    let deployment = document.get_mut("deployment");
    match deployment.and_then(|deployment| deployment.get_mut("handOver")) {
        Some(Value::Object(hand_over)) => std::mem::take(hand_over),
        _ => document,
    }
}

#[cfg(test)]
mod tests {
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

    fn problems_of(document: &Value) -> Vec<String> {
        match parse_hand_over(document.to_string().as_bytes()) {
            Err(HandOverError::Invalid { problems, .. }) => problems,
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

    fn complete_hand_over_json() -> Value {
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
        let body = complete_hand_over_json().to_string();
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
        let mut expected = complete_hand_over_json()["deploy"].clone();
        expected["image"] = IMAGE_REFERENCE.into();
        assert_eq!(serde_json::to_value(&hand_over.spec).unwrap(), expected);
    }

    #[test]
    fn a_hand_over_is_found_in_the_builders_result() {
        let result = json!({"log": ["l: x"], "image": "registry.example/hello:1.0", "status": "success", "duration": 1.5,
            "deployment": {"status": "handed_over", "function": "hello", "handOver": complete_hand_over_json()}});
        assert_eq!(
            parse_valid_hand_over(&result),
            parse_valid_hand_over(&complete_hand_over_json())
        );
        // A result without a hand-over is not deployed.
        let result = json!({"image": "registry.example/hello:1.0", "status": "success", "duration": 1.5});
        assert!(
            problems_of(&result)
                .iter()
                .any(|problem| problem == "deploy is missing")
        );
    }

    #[tokio::test]
    async fn a_hand_over_is_parsed_only_with_the_builders_signature() {
        let body = complete_hand_over_json().to_string();
        let ours = signature::sign_body(&hmac_keys("k"), body.as_bytes());
        let theirs = signature::sign_body(&hmac_keys("other"), body.as_bytes());
        let send = |signature: Option<String>, body: String| async move {
            let keys = [(hmac_keys("k"), ())];
            let budget = unverified_budget();
            receive_hand_over(Body::from(body), signature.as_deref(), &keys, &budget)
                .await
                .unwrap_err()
        };
        assert!(matches!(send(None, body.clone()).await, HandOverError::Unsigned));
        assert!(matches!(
            send(Some("sha256=12".into()), body.clone()).await,
            HandOverError::MalformedSignature(_)
        ));
        assert!(matches!(
            send(Some(theirs), body.clone()).await,
            HandOverError::WrongSignature(_)
        ));
        assert!(matches!(
            send(Some(ours), body + " ").await,
            HandOverError::WrongSignature(_)
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
        let found = problems_of(&json!({
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
    fn names_and_amounts_that_kubernetes_rejects_are_rejected() {
        let found = problems_of(&json!({"image": IMAGE_REFERENCE, "deploy": {
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
            problems_of(&of_length(longest + 1)),
            ["probe.path makes an address of 4097 bytes, and 4096 are allowed"]
        );
        assert_eq!(
            problems_of(&of_length(65_530)),
            ["probe.path makes an address of 65530 bytes, and 4096 are allowed"]
        );
    }

    #[test]
    fn missing_fields_of_a_hand_over_are_reported() {
        assert_eq!(problems_of(&json!({})), ["image is missing", "deploy is missing"]);
        assert_eq!(
            problems_of(&json!({"image": IMAGE_REFERENCE, "deploy": {}})),
            ["deploy.service is missing"]
        );
        assert_eq!(
            problems_of(&json!({"image": IMAGE_REFERENCE, "deploy": []})),
            ["deploy must be an object, is an array"]
        );
        assert_eq!(problems_of(&json!([])).len(), 1);
        assert!(matches!(parse_hand_over(b"{"), Err(HandOverError::NotJson(_))));
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
        let found = problems_of(
            &json!({"image": IMAGE_REFERENCE, "deploy": {"service": "hello", "registryAuth": "c2VjcmV0"}}),
        );
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("deploy.registryAuth is not used") && !found[0].contains("c2VjcmV0"));
    }

    #[test]
    fn a_dry_run_needs_no_image() {
        let unnamed = parse_valid_dry_run(&json!({"dryRun": true, "deploy": {"service": "hello"}}));
        assert_eq!(unnamed.image_without_digest(), None);
        let tagged = parse_valid_dry_run(
            &json!({"dryRun": true, "tag": "r.example/t:1", "deploy": {"service": "hello"}}),
        );
        assert_eq!(tagged.image_without_digest().unwrap().repository(), "r.example/t");
        // Whether it is one is known even if something else is wrong.
        let wrong = json!({"dryRun": true, "tag": "R/t", "deploy": {"service": "0"}}).to_string();
        let Err(HandOverError::Invalid { problems, dry_run }) = parse_hand_over(wrong.as_bytes()) else {
            panic!("{wrong} is valid");
        };
        assert!(dry_run);
        assert_eq!(problems.len(), 2, "{problems:?}");
    }

    /// A builder that learns that a build has finished hands it over again, with a later end of the build.
    #[test]
    fn repeated_deliveries_of_one_hand_over_have_the_same_delivery_digest() {
        let digest = |change: &dyn Fn(&mut Value)| {
            let mut document = complete_hand_over_json();
            change(&mut document);
            parse_valid_hand_over(&document).delivery_digest()
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
    fn the_specification_digest_covers_the_whole_specification_and_nothing_else() {
        let spec = |change: &dyn Fn(&mut Value)| {
            let mut document = complete_hand_over_json();
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
}
