//! Stores versions of a function in its annotations, and reads them.
//!
//! A version is stored as JSON, deflated, in base64, split into pieces: faasd keeps annotations as containerd labels,
//! whose name and value together may have 4096 bytes, and Kubernetes allows 256 KiB of annotations in all.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{FunctionVersion, LastGoodVersion};
use crate::request::{MAX_BODY_BYTES, SPEC_DIGEST_ANNOTATION, TENANT_ANNOTATION};

/// The annotation with the tag that the image was pushed with.
const TAG_ANNOTATION: &str = "slipway/tag";
/// The annotation with the ID of the call that built the image.
const CALL_ID_ANNOTATION: &str = "slipway/call-id";
/// The annotation with the time when the source was submitted.
const SUBMITTED_AT_ANNOTATION: &str = "slipway/submitted-at";
/// The annotation with the time when the build ended.
const BUILT_AT_ANNOTATION: &str = "slipway/built-at";
/// The annotation with the complete version; `.0`, `.1`… are added to the name for its pieces.
const VERSION_ANNOTATION: &str = "slipway/version";
/// The annotation with the version to restore if this one fails: in pieces as the version, or [`NO_LAST_GOOD_VALUE`] or
/// [`LAST_GOOD_IS_ITSELF_VALUE`] under the name alone.
const LAST_GOOD_ANNOTATION: &str = "slipway/last-good";
/// The annotation with the deployment that failed last, after which this version was restored.
const FAILURE_ANNOTATION: &str = "slipway/failed";
/// The environment variable with the digest of a function's specification, which the function may repeat in a header
/// of its responses.
const VERSION_VARIABLE: &str = "slipway_version";

/// The most bytes that all annotations of a function may have together: Kubernetes' limit, less a reserve for those
/// that providers add.
pub(crate) const ANNOTATIONS_MAX_BYTES: usize = 250 * 1024;

/// The length in bytes of the pieces that a version is stored in. With the longest name, and faasd's prefix for
/// it, a piece stays below 4096.
const ANNOTATION_PIECE_BYTES: usize = 3900;
/// The value of [`LAST_GOOD_ANNOTATION`] if there was no function before.
const NO_LAST_GOOD_VALUE: &str = "none";
/// The value of [`LAST_GOOD_ANNOTATION`] of a version that was restored.
const LAST_GOOD_IS_ITSELF_VALUE: &str = "itself";
/// The most bytes of reasons that are stored for a failed deployment.
const STORED_REASONS_MAX_BYTES: usize = 2000;

/// A deployment that failed by its caller's fault, and would fail again if the same hand-over were delivered again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PermanentFailureRecord {
    /// The [`digest_shared_by_redeliveries`](crate::request::HandOver::digest_shared_by_redeliveries) of the hand-over
    /// that failed.
    pub(crate) delivery: String,
    /// The reasons why the deployment failed.
    pub(crate) reasons: Vec<String>,
    /// The image before the failed deployment; absent if there was no function.
    pub(crate) previous_image: Option<String>,
}

impl PermanentFailureRecord {
    /// Returns the recorded failure after which the deployed version was restored.
    pub(crate) fn from_annotations(annotations: &BTreeMap<String, String>) -> Option<Self> {
        serde_json::from_str(annotations.get(FAILURE_ANNOTATION)?).ok()
    }

    /// Returns the failure record as an annotation's value, with the reasons shortened to [`STORED_REASONS_MAX_BYTES`].
    fn to_annotation(&self) -> String {
        let mut record = self.clone();
        let mut left = STORED_REASONS_MAX_BYTES;
        for reason in &mut record.reasons {
            reason.truncate(reason.floor_char_boundary(left));
            left -= reason.len();
        }
        record.reasons.retain(|reason| !reason.is_empty());
        serde_json::to_string(&record).unwrap_or_default()
    }
}

impl FunctionVersion {
    /// Returns the version's `FunctionDeployment` for the provider, with everything that later deployments have
    /// to know in annotations.
    pub(crate) fn to_deployment_with_own_annotations_and_version_variable(
        &self,
        last_good: &LastGoodVersion,
        failure: Option<&PermanentFailureRecord>,
    ) -> Value {
        let mut deployment = self.deployment.clone();
        let mut own = Map::new();
        if let Some(digest) = &self.spec_digest {
            own.insert(SPEC_DIGEST_ANNOTATION.to_owned(), digest.clone().into());
            for (name, value) in [
                (TAG_ANNOTATION, &self.tag),
                (CALL_ID_ANNOTATION, &self.call_id),
                (SUBMITTED_AT_ANNOTATION, &self.submitted_at),
                (BUILT_AT_ANNOTATION, &self.built_at),
            ] {
                own.extend(value.clone().map(|value| (name.to_owned(), value.into())));
            }
            pack_into_annotations(&mut own, VERSION_ANNOTATION, self);
            match last_good {
                LastGoodVersion::Nothing => {
                    drop(own.insert(LAST_GOOD_ANNOTATION.to_owned(), NO_LAST_GOOD_VALUE.into()))
                }
                LastGoodVersion::Itself => {
                    drop(own.insert(LAST_GOOD_ANNOTATION.to_owned(), LAST_GOOD_IS_ITSELF_VALUE.into()))
                }
                LastGoodVersion::Version(version) => {
                    pack_into_annotations(&mut own, LAST_GOOD_ANNOTATION, version)
                }
            }
            let variables = deployment.entry("envVars").or_insert_with(|| json!({}));
            if let Some(variables) = variables.as_object_mut() {
                variables
                    .entry(VERSION_VARIABLE)
                    .or_insert_with(|| digest.clone().into());
            }
        }
        if let Some(tenant) = &self.tenant {
            own.insert(TENANT_ANNOTATION.to_owned(), tenant.clone().into());
        }
        if let Some(failure) = failure {
            own.insert(FAILURE_ANNOTATION.to_owned(), failure.to_annotation().into());
        }
        if !own.is_empty() {
            let annotations = deployment.entry("annotations").or_insert_with(|| json!({}));
            if let Some(annotations) = annotations.as_object_mut() {
                annotations.extend(own);
            }
        }
        Value::Object(deployment)
    }

    /// Returns the size in bytes of all annotations of the version's deployment with `last_good`, as Kubernetes
    /// counts it.
    pub(crate) fn size_of_annotations(&self, last_good: &LastGoodVersion) -> usize {
        let deployment = self.to_deployment_with_own_annotations_and_version_variable(last_good, None);
        let annotations = deployment["annotations"].as_object().into_iter().flatten();
        annotations
            .map(|(name, value)| name.len() + value.as_str().map_or(0, str::len))
            .sum()
    }

    /// Returns the version that a function's annotations carry.
    pub(super) fn from_annotations(annotations: &BTreeMap<String, String>) -> Option<Self> {
        unpack_from_annotations(annotations, VERSION_ANNOTATION)
    }
}

impl LastGoodVersion {
    /// Returns the version to restore if the version with these annotations fails; `None` if they do not name
    /// one.
    pub(crate) fn from_annotations(annotations: &BTreeMap<String, String>) -> Option<Self> {
        match annotations.get(LAST_GOOD_ANNOTATION).map(String::as_str) {
            Some(NO_LAST_GOOD_VALUE) => Some(Self::Nothing),
            Some(LAST_GOOD_IS_ITSELF_VALUE) => Some(Self::Itself),
            _ => unpack_from_annotations(annotations, LAST_GOOD_ANNOTATION)
                .map(|version| Self::Version(Box::new(version))),
        }
    }
}

/// Adds the annotations `NAME.0`, `NAME.1`… with the pieces of a version.
fn pack_into_annotations(annotations: &mut Map<String, Value>, name: &str, version: &FunctionVersion) {
    let json = serde_json::to_vec(version).unwrap_or_default();
    let mut deflate = DeflateEncoder::new(Vec::new(), Compression::best());
    // Writing to memory does not fail. If it did, unpacking would fail, and never give another version.
    let packed = deflate
        .write_all(&json)
        .and_then(|()| deflate.finish())
        .unwrap_or_default();
    let text = BASE64.encode(packed);
    let mut rest = text.as_str();
    let mut number = 0;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.len().min(ANNOTATION_PIECE_BYTES));
        annotations.insert(format!("{name}.{number}"), piece.into());
        rest = after;
        number += 1;
    }
}

/// Returns the version in the annotations `NAME.0`, `NAME.1`…; `None` if there is none, or if it is damaged.
fn unpack_from_annotations(annotations: &BTreeMap<String, String>, name: &str) -> Option<FunctionVersion> {
    let mut text = String::new();
    for number in 0.. {
        match annotations.get(&format!("{name}.{number}")) {
            Some(piece) => text.push_str(piece),
            None => break,
        }
    }
    let packed = BASE64.decode(text).ok()?;
    let mut json = Vec::new();
    // A larger version cannot come from a hand-over.
    let limit = 2 * MAX_BODY_BYTES as u64;
    DeflateDecoder::new(packed.as_slice())
        .take(limit)
        .read_to_end(&mut json)
        .ok()?;
    serde_json::from_slice(&json).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version_with_variables(variable_count: usize) -> FunctionVersion {
        // Values that do not repeat, so that they do not compress well.
        let value = |n: usize| {
            (n as u64)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .wrapping_add(7)
                .to_string()
        };
        let variables: Map<String, Value> = (0..variable_count)
            .map(|n| (format!("V{n}"), value(n).into()))
            .collect();
        let deployment = json!({"service": "hello", "image": "r/hello@sha256:1", "envVars": variables,
            "annotations": {"topic": "orders"}});
        serde_json::from_value(json!({"deployment": deployment, "mark": "sha256:00", "callId": "7"})).unwrap()
    }

    fn annotations_of_deployment_or_panic(body: &Value) -> BTreeMap<String, String> {
        serde_json::from_value(body["annotations"].clone()).unwrap()
    }

    #[test]
    fn a_version_and_its_last_good_one_are_unpacked_from_annotations_unchanged() {
        let (old, new) = (version_with_variables(2), version_with_variables(3));
        let body = new.to_deployment_with_own_annotations_and_version_variable(
            &LastGoodVersion::Version(Box::new(old.clone())),
            None,
        );
        let annotations = annotations_of_deployment_or_panic(&body);
        assert_eq!(FunctionVersion::from_annotations(&annotations), Some(new));
        assert_eq!(
            LastGoodVersion::from_annotations(&annotations),
            Some(LastGoodVersion::Version(Box::new(old)))
        );
        assert_eq!(annotations["topic"], "orders");
        assert_eq!(
            body["envVars"]["V1"],
            version_with_variables(2).deployment["envVars"]["V1"]
        );
        assert_eq!(body["envVars"][VERSION_VARIABLE], "sha256:00");
    }

    #[test]
    fn a_large_version_is_split_into_pieces_that_containerd_accepts() {
        let large = version_with_variables(2000);
        let body =
            large.to_deployment_with_own_annotations_and_version_variable(&LastGoodVersion::Nothing, None);
        let annotations = annotations_of_deployment_or_panic(&body);
        assert!(annotations.len() > 5, "{}", annotations.len());
        for (name, value) in &annotations {
            assert!(
                "com.openfaas.annotations.".len() + name.len() + value.len() <= 4096,
                "{name}"
            );
        }
        assert!(large.size_of_annotations(&LastGoodVersion::Nothing) > 5 * ANNOTATION_PIECE_BYTES);
        assert_eq!(FunctionVersion::from_annotations(&annotations), Some(large));
    }

    /// The JSON of earlier releases is in the annotations of deployed functions.
    #[test]
    fn the_json_keys_of_a_stored_versions_digest_and_call_id_do_not_change() {
        let stored = serde_json::to_value(version_with_variables(0)).unwrap();
        assert_eq!(
            (&stored["mark"], &stored["callId"]),
            (&json!("sha256:00"), &json!("7"))
        );
    }

    /// Its specification is needed to restore it. Earlier releases stored probes that cannot be sent.
    #[test]
    fn a_version_with_an_unusable_probe_is_unpacked_without_it() {
        for path in [format!("/{}", "a".repeat(65_529)), "no slash".to_owned()] {
            let mut stored = serde_json::to_value(version_with_variables(1)).unwrap();
            stored["probe"] = json!({"path": path, "method": "GET", "successes": 1});
            let unpacked: FunctionVersion = serde_json::from_value(stored).unwrap();
            assert_eq!(unpacked.usable_probe(), None);
            assert_eq!(unpacked.deployment, version_with_variables(1).deployment);
            let again = annotations_of_deployment_or_panic(
                &unpacked
                    .to_deployment_with_own_annotations_and_version_variable(&LastGoodVersion::Nothing, None),
            );
            assert_eq!(FunctionVersion::from_annotations(&again), Some(unpacked));
        }
        assert!(version_with_variables(1).usable_probe().is_some());
    }

    #[test]
    fn damaged_annotations_give_no_version() {
        let mut annotations = annotations_of_deployment_or_panic(
            &version_with_variables(2000)
                .to_deployment_with_own_annotations_and_version_variable(&LastGoodVersion::Itself, None),
        );
        assert_eq!(
            LastGoodVersion::from_annotations(&annotations),
            Some(LastGoodVersion::Itself)
        );
        annotations.remove(&format!("{VERSION_ANNOTATION}.1"));
        assert_eq!(FunctionVersion::from_annotations(&annotations), None);
        assert_eq!(FunctionVersion::from_annotations(&BTreeMap::new()), None);
        assert_eq!(LastGoodVersion::from_annotations(&BTreeMap::new()), None);
    }

    #[test]
    fn a_stored_failure_has_shortened_reasons() {
        let failure = PermanentFailureRecord {
            delivery: "d".to_owned(),
            reasons: vec!["ä".repeat(3000), "second".to_owned()],
            previous_image: None,
        };
        let annotations = annotations_of_deployment_or_panic(
            &version_with_variables(1).to_deployment_with_own_annotations_and_version_variable(
                &LastGoodVersion::Itself,
                Some(&failure),
            ),
        );
        let stored = PermanentFailureRecord::from_annotations(&annotations).unwrap();
        assert_eq!(stored.delivery, "d");
        assert_eq!(stored.reasons.len(), 1);
        assert!(annotations[FAILURE_ANNOTATION].len() < ANNOTATION_PIECE_BYTES);
    }
}
