//! The content of a record, and the manifest that has it.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::StoreError;
use crate::builds::{BuildPhase, BuildRecord};
use crate::registry::{EMPTY_CONFIG, MANIFEST_MEDIA_TYPE};
use crate::request::RequestHead;
use crate::request::time::{format_rfc3339, parse_rfc3339};

/// The type of the artifacts that are records or signs of life.
const RECORD_ARTIFACT_TYPE: &str = "application/vnd.slipway.build-record.v1";

/// The type of the artifacts that are bodies of requests.
const BODY_ARTIFACT_TYPE: &str = "application/vnd.slipway.accepted-request.v1";

/// The type of the artifacts that are versions of functions.
const VERSION_ARTIFACT_TYPE: &str = "application/vnd.slipway.function-version.v1";

/// The type of the artifacts that say what a build was made from.
const INPUTS_ARTIFACT_TYPE: &str = "application/vnd.slipway.build-inputs.v1";

/// The annotation with the sealed bytes, in base64.
const SEALED_ANNOTATION: &str = "io.slipway.sealed";

/// The annotation with the time at which a manifest was written that belongs to a record, as RFC 3339.
const CREATED_ANNOTATION: &str = "org.opencontainers.image.created";

/// The annotation with the number of a sign of life.
const SIGN_OF_LIFE_ANNOTATION: &str = "io.slipway.sign";

/// The size up to which a record is stored whole, in bytes. Registries accept manifests of up to 4 MiB.
const RECORD_MAX_BYTES: usize = 1 << 20;

/// A record as it is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct StoredRecord {
    /// The tenant of the build.
    pub(super) tenant: Option<String>,
    /// The process that wrote the record and runs the build; 16 zeros for a build that was handed back.
    pub(super) owner: String,
    /// What is known of the build.
    pub(super) build: BuildRecord,
    /// What is needed to resume the build, until it ends.
    pub(super) request: Option<ResumableRequestHead>,
    /// The body of the request.
    pub(super) body: Option<StoredBodyDigest>,
}

/// The parts of an accepted request that its build is resumed with, besides the body.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ResumableRequestHead {
    /// The value of the header with the signature of the body.
    pub(crate) signature: Option<String>,
    /// The value of the header with the name of the tenant.
    pub(crate) tenant: Option<String>,
    /// The value of the gateway's header with the time of the submission.
    pub(crate) start_time: Option<Vec<u8>>,
    /// Whether the body is JSON.
    pub(crate) is_json: bool,
    /// The time at which the request arrived first.
    pub(crate) arrived: SystemTime,
    /// The time that the call had.
    pub(crate) time_limit: Option<Duration>,
    /// The number of times that the build was resumed because its builder had gone.
    pub(crate) resumptions: u32,
}

/// The digest of the manifest with the sealed body of a request.
///
/// A manifest and not a blob: registries redirect requests for blobs to storage elsewhere, and a manifest is deleted at
/// once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredBodyDigest {
    /// The digest of the manifest, `sha256:…`.
    pub(super) digest: String,
}

impl ResumableRequestHead {
    /// Returns what the build of a request that arrived with `head` is resumed with, within `time_limit` each time.
    pub(crate) fn new(head: &RequestHead, time_limit: Option<Duration>) -> Self {
        Self {
            signature: head.signature.clone(),
            tenant: head.tenant.clone(),
            start_time: head.start_time.clone(),
            is_json: head.is_json,
            arrived: head.arrived,
            time_limit,
            resumptions: 0,
        }
    }

    /// Returns the head of the request, as it is when its build is resumed.
    pub(crate) fn to_resumed_head(&self) -> RequestHead {
        RequestHead {
            signature: self.signature.clone(),
            tenant: self.tenant.clone(),
            start_time: self.start_time.clone(),
            is_asynchronous: true,
            is_resumed: true,
            is_json: self.is_json,
            arrived: self.arrived,
        }
    }
}

impl StoredRecord {
    /// Converts the record to JSON. One of more than 1 MiB loses its warnings, and then its outcome except the digest.
    pub(super) fn to_json_within_limit(&self) -> Vec<u8> {
        let encode = |record: &Self| serde_json::to_vec(record).unwrap_or_default();
        let json = encode(self);
        if json.len() <= RECORD_MAX_BYTES {
            return json;
        }
        let mut shorter = self.clone();
        let outcome = &mut shorter.build.outcome;
        let notice = "the warnings of this build are too long for its record";
        outcome.insert("warnings".to_owned(), json!([notice]));
        let json = encode(&shorter);
        if json.len() <= RECORD_MAX_BYTES {
            return json;
        }
        let outcome = &mut shorter.build.outcome;
        outcome.retain(|key, _| key == "digest");
        let notice = "the outcome of this build is too long for its record";
        outcome.insert("warnings".to_owned(), json!([notice]));
        encode(&shorter)
    }

    /// Parses the JSON of a record.
    pub(super) fn parse(json: &[u8]) -> Result<Self, StoreError> {
        serde_json::from_slice(json).map_err(|_| StoreError::Malformed)
    }

    /// Returns whether the process `owner` may replace the record by one that says `build`.
    ///
    /// A delivery that fails, or that waits, must not hide that another one builds or has built the same.
    pub(super) fn may_be_replaced_by(&self, build: &BuildRecord, owner: &str) -> bool {
        match (self.build.phase, build.phase) {
            (_, BuildPhase::Success) => true,
            (BuildPhase::Success, _) => false,
            (_, BuildPhase::Cancelled) => true,
            (BuildPhase::Cancelled, _) => false,
            (current, BuildPhase::Failed) => current.is_terminal() || self.owner == owner,
            (_, _) => true,
        }
    }
}

/// The JSON of the manifest of a stored artifact: a record, a body, a version, what a build was made from, or a sign of
/// life. The content is in an annotation; the only layer is empty.
#[derive(Clone, Debug)]
pub(super) struct ArtifactManifest(String);

impl ArtifactManifest {
    /// Returns the manifest of an artifact that is a sealed record.
    pub(super) fn of_record(sealed: &[u8]) -> Self {
        let annotations = json!({ SEALED_ANNOTATION: STANDARD.encode(sealed) });
        Self::with_annotations(RECORD_ARTIFACT_TYPE, &annotations)
    }

    /// Returns the manifest of an artifact that is the sealed body of a request, written at the time `now`.
    pub(super) fn of_body(sealed: &[u8], now: SystemTime) -> Self {
        let annotations = json!({
            SEALED_ANNOTATION: STANDARD.encode(sealed),
            CREATED_ANNOTATION: format_rfc3339(now),
        });
        Self::with_annotations(BODY_ARTIFACT_TYPE, &annotations)
    }

    /// Returns the manifest of an artifact that is a sealed version of a function.
    pub(super) fn of_version(sealed: &[u8]) -> Self {
        let annotations = json!({ SEALED_ANNOTATION: STANDARD.encode(sealed) });
        Self::with_annotations(VERSION_ARTIFACT_TYPE, &annotations)
    }

    /// Returns the manifest of an artifact that says, sealed, what a build was made from, written at the time `now`.
    pub(super) fn of_inputs(sealed: &[u8], now: SystemTime) -> Self {
        let annotations = json!({
            SEALED_ANNOTATION: STANDARD.encode(sealed),
            CREATED_ANNOTATION: format_rfc3339(now),
        });
        Self::with_annotations(INPUTS_ARTIFACT_TYPE, &annotations)
    }

    /// Returns the manifest of the sign number `beat` that a process lives.
    pub(super) fn of_sign_of_life(beat: u64) -> Self {
        Self::with_annotations(
            RECORD_ARTIFACT_TYPE,
            &json!({ SIGN_OF_LIFE_ANNOTATION: beat.to_string() }),
        )
    }

    fn with_annotations(artifact_type: &str, annotations: &Value) -> Self {
        let empty = json!({
            "mediaType": "application/vnd.oci.empty.v1+json",
            "digest": digest_of(EMPTY_CONFIG),
            "size": EMPTY_CONFIG.len(),
        });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_MEDIA_TYPE,
            "artifactType": artifact_type,
            "config": empty,
            // A manifest has at least one layer.
            "layers": [empty],
            "annotations": annotations,
        });
        Self(manifest.to_string())
    }

    /// Returns the sealed bytes that a manifest has, which are still to be opened.
    ///
    /// # Errors
    /// Fails if the manifest has nothing sealed.
    pub(super) fn sealed_content(manifest: &[u8]) -> Result<Vec<u8>, StoreError> {
        let manifest: Value = serde_json::from_slice(manifest).map_err(|_| StoreError::Malformed)?;
        let sealed = manifest["annotations"][SEALED_ANNOTATION].as_str();
        sealed
            .and_then(|sealed| STANDARD.decode(sealed).ok())
            .ok_or(StoreError::Malformed)
    }

    /// Returns the time at which a body or what a build was made from was written, as its manifest has it. Builders
    /// before this one wrote none.
    pub(super) fn created_at(manifest: &[u8]) -> Option<SystemTime> {
        let manifest: Value = serde_json::from_slice(manifest).ok()?;
        parse_rfc3339(manifest["annotations"][CREATED_ANNOTATION].as_str()?)
    }

    /// Returns the manifest's digest, `sha256:…`.
    pub(super) fn digest(&self) -> String {
        digest_of(self.0.as_bytes())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Returns the digest of `bytes`, as registries have it.
pub(super) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(owner: &str, phase: BuildPhase) -> StoredRecord {
        StoredRecord {
            tenant: None,
            owner: owner.into(),
            build: BuildRecord {
                phase,
                ..BuildRecord::accepted("a", SystemTime::UNIX_EPOCH)
            },
            request: None,
            body: None,
        }
    }

    #[test]
    fn a_record_is_read_back_from_its_manifest_and_a_malformed_manifest_is_an_error() {
        let mut stored = record("me", BuildPhase::Failed);
        stored.build.outcome.insert("error".into(), json!("broken"));
        let manifest = ArtifactManifest::of_record(&stored.to_json_within_limit());
        let sealed = ArtifactManifest::sealed_content(manifest.as_str().as_bytes()).unwrap();
        let read = StoredRecord::parse(&sealed).unwrap();
        assert_eq!(read.build.to_json(), stored.build.to_json());
        for text in ["", "{}", r#"{"annotations":{"io.slipway.sealed":"?"}}"#] {
            assert!(
                matches!(
                    ArtifactManifest::sealed_content(text.as_bytes()),
                    Err(StoreError::Malformed)
                ),
                "{text}"
            );
        }
    }

    #[test]
    fn success_then_cancelled_outrank_all_and_a_failure_hides_no_unfinished_build_of_another() {
        use BuildPhase::{Cancelled, Failed, Success, Waiting};
        for (owner, current, new, may) in [
            ("me", Waiting, Failed, true),
            ("other", Waiting, Failed, false),
            ("other", Failed, Failed, true),
            ("other", Waiting, Success, true),
            ("other", Cancelled, Success, true),
            ("other", Success, Failed, false),
            ("me", Success, Waiting, false),
            ("me", Success, Cancelled, false),
            ("me", Cancelled, Failed, false),
            ("me", Cancelled, Waiting, false),
            ("other", Waiting, Cancelled, true),
            ("other", Waiting, Waiting, true),
            ("other", Failed, Waiting, true),
        ] {
            let new = record("me", new).build;
            assert_eq!(
                record(owner, current).may_be_replaced_by(&new, "me"),
                may,
                "{owner} {current:?} {:?}",
                new.phase
            );
        }
    }

    #[test]
    fn a_record_over_1_mib_loses_its_warnings_and_then_its_outcome_and_keeps_its_state() {
        let mut stored = record("me", BuildPhase::Success);
        let long = "x".repeat(RECORD_MAX_BYTES);
        let outcome = &mut stored.build.outcome;
        outcome.insert("digest".into(), json!("sha256:12"));
        outcome.insert("warnings".into(), json!([long]));
        let read = StoredRecord::parse(&stored.to_json_within_limit()).unwrap();
        assert_eq!(read.build.outcome["digest"], "sha256:12");
        assert!(
            read.build.outcome["warnings"][0]
                .as_str()
                .unwrap()
                .contains("too long")
        );

        stored.build.outcome.insert("error".into(), json!(long));
        let json = stored.to_json_within_limit();
        assert!(json.len() < 1000);
        assert_eq!(
            StoredRecord::parse(&json).unwrap().build.phase,
            BuildPhase::Success
        );
    }
}
