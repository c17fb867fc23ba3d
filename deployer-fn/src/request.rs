//! From the body of a request to a hand-over that can be acted on: signed by the builder, and valid field by field.
//!
//! The signature is checked over the bytes as they came before anything in them is read; then everything that is wrong
//! with the content is told at once.

mod fields;
mod image;
mod names;
mod probe;
mod spec;

use function_host::Body;
use function_host::signature::{HmacKeys, Verifier};
use jiff::Timestamp;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

pub use self::image::{PinnedImage, same_image};
pub use self::probe::Probe;
pub use self::spec::{FunctionSpec, OWN_ANNOTATIONS, Resources, SPEC_ANNOTATION};
use crate::error::Error;
use crate::time;
use fields::Fields;

/// The header that carries the signature of a hand-over.
pub const SIGNATURE_HEADER: &str = "x-deploy-signature";

/// The largest hand-over in bytes: what a provider stores of it (annotations above all) is far smaller.
pub const MAX_BODY: usize = 1024 * 1024;

/// One image to be brought to run, as the builder handed it over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandOver {
    /// What shall run.
    pub spec: FunctionSpec,
    /// The tag under which the image was pushed. Told, never deployed.
    pub tag: Option<String>,
    /// The call that built the image.
    pub call_id: Option<String>,
    /// When the image was built.
    pub built_at: Option<Timestamp>,
    /// How the function is asked whether it works.
    pub probe: Probe,
    /// Fields that are not known here: a newer builder may send them.
    pub unknown: Vec<String>,
}

impl HandOver {
    /// Tells one delivery of a hand-over from another hand-over: the same one delivered again has the same. `None` where
    /// nothing in it says which build it is of.
    #[must_use]
    pub fn delivery(&self) -> Option<String> {
        if self.call_id.is_none() && self.built_at.is_none() {
            return None;
        }
        let built_at = self.built_at.map(time::format);
        let all = serde_json::json!([self.spec.digest(), self.call_id, built_at, self.probe]);
        Some(hex::encode(Sha256::digest(all.to_string())))
    }
}

/// Reads a hand-over whose signature one of the keys gives, and says what that key stands for.
///
/// # Errors
/// [`Error::Unsigned`], [`Error::Malformed`] and [`Error::Forged`] where it is not the builder's;
/// [`Error::Body`], [`Error::NotJson`] and [`Error::Invalid`] where it is and cannot be used.
pub async fn receive<K: Copy>(
    body: Body,
    signature: Option<&str>,
    keys: &[(HmacKeys, K)],
) -> Result<(HandOver, K), Error> {
    let signature = signature.ok_or(Error::Unsigned)?;
    let mut verifiers = Vec::with_capacity(keys.len());
    for (key, meaning) in keys {
        verifiers.push((Verifier::new(key, signature).map_err(Error::Malformed)?, *meaning));
    }
    let bytes = body.collect(MAX_BODY).await.map_err(Error::Body)?;
    let mut refused = Error::Unsigned;
    for (mut verifier, meaning) in verifiers {
        verifier.update(&bytes);
        match verifier.finish() {
            Ok(()) => return Ok((parse(&bytes)?, meaning)),
            Err(mismatch) => refused = Error::Forged(mismatch),
        }
    }
    Err(refused)
}

pub(crate) fn parse(bytes: &[u8]) -> Result<HandOver, Error> {
    let Value::Object(document) = serde_json::from_slice(bytes).map_err(Error::NotJson)? else {
        return Err(Error::Invalid(vec![
            "the hand-over is JSON, but not an object".to_owned(),
        ]));
    };
    let document = hand_over_in(document);
    let mut problems = Vec::new();
    let mut fields = Fields::new("", document, &mut problems);
    let image = fields
        .needed("image")
        .and_then(|text| match PinnedImage::parse(&text) {
            Ok(image) => Some(image),
            Err(reason) => {
                fields.complain("image", reason);
                None
            }
        });
    let tag = fields.text("tag");
    let call_id = fields.text("callId");
    let built_at = fields.text("builtAt").and_then(|text| match time::parse(&text) {
        Some(time) => Some(time),
        None => {
            fields.complain(
                "builtAt",
                format!("is not a time as RFC 3339 writes it in UTC: {text:?}"),
            );
            None
        }
    });
    let probe = match fields.object("probe") {
        Some(probe) => fields.within("probe", probe, Probe::read),
        None => Probe::default(),
    };
    let spec = match fields.object("deploy") {
        Some(deploy) => fields.within("deploy", deploy, |fields| {
            let spec = FunctionSpec::read(fields, image);
            fields.refuse_rest();
            spec
        }),
        None => {
            fields.complain("deploy", "has to be an object that says what to deploy");
            None
        }
    };
    let unknown = fields.rest();
    match spec {
        Some(spec) if problems.is_empty() => Ok(HandOver {
            spec,
            tag,
            call_id,
            built_at,
            probe,
            unknown,
        }),
        _ => Err(Error::Invalid(problems)),
    }
}

/// The hand-over in a result of the builder, which a queue-worker brings as it was asked to call back; or the document
/// itself.
fn hand_over_in(mut document: Map<String, Value>) -> Map<String, Value> {
    let deployment = document.get_mut("deployment");
    match deployment.and_then(|deployment| deployment.get_mut("handOver")) {
        Some(Value::Object(hand_over)) => std::mem::take(hand_over),
        _ => document,
    }
}

#[cfg(test)]
mod tests {
    use function_host::{Secret, signature};
    use serde_json::json;

    use super::*;

    const IMAGE: &str =
        "registry.example/hello@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn key(text: &str) -> HmacKeys {
        HmacKeys::new(&Secret::new(text)).unwrap()
    }

    fn problems(document: &Value) -> Vec<String> {
        match parse(document.to_string().as_bytes()) {
            Err(Error::Invalid(problems)) => problems,
            other => panic!("expected problems, got {other:?}"),
        }
    }

    fn full() -> Value {
        json!({
            "image": IMAGE,
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
    async fn a_signed_hand_over_is_read_in_full() {
        let body = full().to_string();
        let signature = signature::sign(&key("k"), body.as_bytes());

        let (hand_over, meaning) = receive(
            Body::from(body),
            Some(&signature),
            &[(key("other"), 1), (key("k"), 2)],
        )
        .await
        .unwrap();

        assert_eq!(meaning, 2);
        assert_eq!(hand_over.spec.image.as_str(), IMAGE);
        assert_eq!(hand_over.call_id.as_deref(), Some("b6a8d1c2"));
        assert!(hand_over.built_at.is_some());
        let mut expected = full()["deploy"].clone();
        expected["image"] = IMAGE.into();
        assert_eq!(serde_json::to_value(&hand_over.spec).unwrap(), expected);
    }

    #[test]
    fn a_hand_over_is_found_in_the_builders_result() {
        let result = json!({"log": ["l: x"], "image": "registry.example/hello:1.0", "status": "success", "duration": 1.5,
            "deployment": {"status": "handed_over", "function": "hello", "handOver": full()}});
        assert_eq!(
            parse(result.to_string().as_bytes()).unwrap(),
            parse(full().to_string().as_bytes()).unwrap()
        );
        // Of a result without one, there is nothing to deploy.
        let result = json!({"image": "registry.example/hello:1.0", "status": "success", "duration": 1.5});
        assert!(
            problems(&result)
                .iter()
                .any(|problem| problem.starts_with("deploy has to be"))
        );
    }

    #[tokio::test]
    async fn what_the_builder_did_not_sign_is_not_read() {
        let body = full().to_string();
        let ours = signature::sign(&key("k"), body.as_bytes());
        let theirs = signature::sign(&key("other"), body.as_bytes());
        let send = |signature: Option<String>, body: String| async move {
            receive(Body::from(body), signature.as_deref(), &[(key("k"), ())])
                .await
                .unwrap_err()
        };
        assert!(matches!(send(None, body.clone()).await, Error::Unsigned));
        assert!(matches!(
            send(Some("sha256=12".into()), body.clone()).await,
            Error::Malformed(_)
        ));
        assert!(matches!(send(Some(theirs), body.clone()).await, Error::Forged(_)));
        assert!(matches!(send(Some(ours), body + " ").await, Error::Forged(_)));
    }

    #[tokio::test]
    async fn a_hand_over_that_is_too_large_is_not_read_on() {
        let body = " ".repeat(MAX_BODY + 1);
        let signature = signature::sign(&key("k"), body.as_bytes());
        let error = receive(Body::from(body), Some(&signature), &[(key("k"), ())])
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Body(_)), "{error:?}");
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let found = problems(&json!({
            "image": "registry.example/hello:1.0",
            "builtAt": "yesterday",
            "callId": 7,
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
            "callId must be a text, is a number",
            "deploy.service may have lower-case",
            "deploy.namespace may have lower-case",
            "deploy.image must be left out",
            "deploy.envVars has a name that is not the name of an environment variable: \"A=B\"",
            "deploy.envVars.N must be a text",
            "deploy.secrets[0] may have",
            "deploy.secrets[1] must be a text",
            "deploy.labels must be an object, is a list",
            "deploy.annotations has a name that is the deployer's own",
            "deploy.limits.memory is not a quantity",
            "deploy.limits.gpu is not a field that is known here",
            "deploy.readOnlyRootFilesystem must be true or false, is a text",
            "deploy.envvars is not a field that is known here",
        ] {
            assert!(
                found.iter().any(|problem| problem.starts_with(part)),
                "{part:?} is not in {found:#?}"
            );
        }
        assert_eq!(found.len(), 16, "{found:#?}");
    }

    #[test]
    fn what_kubernetes_would_refuse_is_refused_before() {
        let found = problems(&json!({"image": IMAGE, "deploy": {
            "service": "hello",
            "labels": {"a b": "1", "team": "a/b"},
            "annotations": {"x y": "1", "anything": "a b, as it likes"},
            "limits": {"memory": "128Mi", "cpu": "1"},
            "requests": {"memory": "1Gi", "cpu": "500m"}
        }}));
        for part in [
            "deploy.labels has a name that is not a name such as",
            "deploy.labels.team may have",
            "deploy.annotations has a name that is not a name such as",
            "deploy.requests.memory is 1Gi, more than the limit of 128Mi",
        ] {
            assert!(
                found.iter().any(|problem| problem.starts_with(part)),
                "{part:?}: {found:#?}"
            );
        }
        assert_eq!(found.len(), 4, "{found:#?}");
    }

    #[test]
    fn what_has_to_be_there_is_asked_for() {
        assert_eq!(
            problems(&json!({})),
            [
                "image is missing",
                "deploy has to be an object that says what to deploy"
            ]
        );
        assert_eq!(
            problems(&json!({"image": IMAGE, "deploy": {}})),
            ["deploy.service is missing"]
        );
        assert_eq!(problems(&json!([])).len(), 1);
        assert!(matches!(parse(b"{"), Err(Error::NotJson(_))));
    }

    #[test]
    fn null_and_empty_mean_absent_as_go_clients_send_them() {
        let document = json!({"image": IMAGE, "later": 1, "deploy": {
            "service": "hello", "namespace": "", "image": "", "labels": null, "limits": {"memory": ""}, "secrets": null
        }});
        let hand_over = parse(document.to_string().as_bytes()).unwrap();
        let spec = serde_json::to_value(&hand_over.spec).unwrap();
        assert_eq!(spec, json!({"service": "hello", "image": IMAGE}));
        assert_eq!(hand_over.unknown, ["later"]);
    }

    #[test]
    fn the_digest_of_a_specification_is_that_of_its_content() {
        let spec = |change: &dyn Fn(&mut Value)| {
            let mut document = full();
            change(&mut document);
            parse(document.to_string().as_bytes()).unwrap().spec.digest()
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
