//! Versions as annotations.
//!
//! JSON, deflated, in base64, in pieces: faasd keeps annotations as containerd labels, of which name and value together
//! may have 4096 bytes, and Kubernetes lets a function have 256 KiB of annotations in all.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{LastGood, Version};
use crate::request::{MAX_BODY, SPEC_ANNOTATION};

/// The tag under which the image was pushed.
pub const TAG_ANNOTATION: &str = "slipway/tag";
/// The call that built the image.
pub const CALL_ID_ANNOTATION: &str = "slipway/call-id";
/// When the image was built.
pub const BUILT_AT_ANNOTATION: &str = "slipway/built-at";
/// The version itself, whole; with `.0`, `.1`… for its pieces.
pub const VERSION: &str = "slipway/version";
/// What to put back if the version fails; pieces likewise, or one of the words below alone.
pub const LAST_GOOD: &str = "slipway/last-good";
/// The deployment that failed last, and after which this version was put back.
const FAILED: &str = "slipway/failed";
/// The environment variable that tells a function its own version, so that its answers can tell it in turn.
pub const VERSION_VARIABLE: &str = "slipway_version";

/// What all annotations of a function may have together in bytes: what Kubernetes allows, with some room for what
/// providers add.
pub const SIZE_MAX: usize = 250 * 1024;

/// With the longest name, and faasd's prefix for it, under 4096 bytes.
const PIECE: usize = 3900;
const NOTHING: &str = "none";
const ITSELF: &str = "itself";
/// How much is kept of why a deployment failed, in bytes.
const REASONS_MAX: usize = 2000;

/// A deployment that failed by its caller's doing: delivered again, it would fail again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// Digest of the delivery, see [`HandOver::delivery`](crate::request::HandOver::delivery).
    pub delivery: String,
    /// Why it failed.
    pub reasons: Vec<String>,
    /// What was there before it; absent where there was no function.
    pub previous_image: Option<String>,
}

impl Failure {
    /// The failure after which this version was put back.
    #[must_use]
    pub fn noted(notes: &BTreeMap<String, String>) -> Option<Self> {
        serde_json::from_str(notes.get(FAILED)?).ok()
    }

    fn written(mut self) -> String {
        let mut left = REASONS_MAX;
        for reason in &mut self.reasons {
            reason.truncate(reason.floor_char_boundary(left));
            left -= reason.len();
        }
        self.reasons.retain(|reason| !reason.is_empty());
        serde_json::to_string(&self).unwrap_or_default()
    }
}

impl Version {
    /// What the provider is asked for: the version with everything that is to be known of it later.
    #[must_use]
    pub fn body(&self, last_good: &LastGood, failure: Option<&Failure>) -> Value {
        let mut deployment = self.deployment.clone();
        let mut own = Map::new();
        if let Some(mark) = &self.mark {
            own.insert(SPEC_ANNOTATION.to_owned(), mark.clone().into());
            for (name, value) in [
                (TAG_ANNOTATION, &self.tag),
                (CALL_ID_ANNOTATION, &self.call_id),
                (BUILT_AT_ANNOTATION, &self.built_at),
            ] {
                own.extend(value.clone().map(|value| (name.to_owned(), value.into())));
            }
            pack(&mut own, VERSION, self);
            match last_good {
                LastGood::Nothing => drop(own.insert(LAST_GOOD.to_owned(), NOTHING.into())),
                LastGood::Itself => drop(own.insert(LAST_GOOD.to_owned(), ITSELF.into())),
                LastGood::Version(version) => pack(&mut own, LAST_GOOD, version),
            }
            let variables = deployment.entry("envVars").or_insert_with(|| json!({}));
            if let Some(variables) = variables.as_object_mut() {
                variables
                    .entry(VERSION_VARIABLE)
                    .or_insert_with(|| mark.clone().into());
            }
        }
        if let Some(failure) = failure {
            own.insert(FAILED.to_owned(), failure.clone().written().into());
        }
        if !own.is_empty() {
            let annotations = deployment.entry("annotations").or_insert_with(|| json!({}));
            if let Some(annotations) = annotations.as_object_mut() {
                annotations.extend(own);
            }
        }
        Value::Object(deployment)
    }

    /// How large the annotations of such a body are, in bytes, as Kubernetes counts them.
    #[must_use]
    pub fn size_of_annotations(body: &Value) -> usize {
        let annotations = body["annotations"].as_object().into_iter().flatten();
        annotations
            .map(|(name, value)| name.len() + value.as_str().map_or(0, str::len))
            .sum()
    }
}

impl LastGood {
    /// What is to be put back if the version with these annotations fails. `None` where they do not say.
    #[must_use]
    pub fn noted(notes: &BTreeMap<String, String>) -> Option<Self> {
        match notes.get(LAST_GOOD).map(String::as_str) {
            Some(NOTHING) => Some(Self::Nothing),
            Some(ITSELF) => Some(Self::Itself),
            _ => unpack(notes, LAST_GOOD).map(|version| Self::Version(Box::new(version))),
        }
    }
}

fn pack(own: &mut Map<String, Value>, name: &str, version: &Version) {
    let json = serde_json::to_vec(version).unwrap_or_default();
    let mut deflate = DeflateEncoder::new(Vec::new(), Compression::best());
    // Into memory, this cannot fail; and were a piece missing, it would be found out when it is read.
    let packed = deflate
        .write_all(&json)
        .and_then(|()| deflate.finish())
        .unwrap_or_default();
    let text = BASE64.encode(packed);
    let mut rest = text.as_str();
    let mut number = 0;
    while !rest.is_empty() {
        let (piece, others) = rest.split_at(rest.len().min(PIECE));
        own.insert(format!("{name}.{number}"), piece.into());
        rest = others;
        number += 1;
    }
}

/// The version that is packed in annotations of this name, if there is one and it is whole.
pub(super) fn unpack(notes: &BTreeMap<String, String>, name: &str) -> Option<Version> {
    let mut text = String::new();
    for number in 0.. {
        match notes.get(&format!("{name}.{number}")) {
            Some(piece) => text.push_str(piece),
            None => break,
        }
    }
    let packed = BASE64.decode(text).ok()?;
    let mut json = Vec::new();
    // What is larger than any hand-over did not come from one.
    let limit = 2 * MAX_BODY as u64;
    DeflateDecoder::new(packed.as_slice())
        .take(limit)
        .read_to_end(&mut json)
        .ok()?;
    serde_json::from_slice(&json).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(variables: usize) -> Version {
        // Words that do not repeat, so that they do not vanish when they are deflated.
        let word = |n: usize| {
            (n as u64)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .wrapping_add(7)
                .to_string()
        };
        let variables: Map<String, Value> = (0..variables)
            .map(|n| (format!("V{n}"), word(n).into()))
            .collect();
        let deployment = json!({"service": "hello", "image": "r/hello@sha256:1", "envVars": variables,
            "annotations": {"topic": "orders"}});
        serde_json::from_value(json!({"deployment": deployment, "mark": "sha256:00", "callId": "7"})).unwrap()
    }

    fn notes(body: &Value) -> BTreeMap<String, String> {
        serde_json::from_value(body["annotations"].clone()).unwrap()
    }

    #[test]
    fn a_version_is_read_back_whole_with_what_was_before_it() {
        let (old, new) = (version(2), version(3));
        let body = new.body(&LastGood::Version(Box::new(old.clone())), None);
        let notes = notes(&body);
        assert_eq!(unpack(&notes, VERSION), Some(new));
        assert_eq!(LastGood::noted(&notes), Some(LastGood::Version(Box::new(old))));
        assert_eq!(notes["topic"], "orders");
        assert_eq!(body["envVars"]["V1"], version(2).deployment["envVars"]["V1"]);
        assert_eq!(body["envVars"][VERSION_VARIABLE], "sha256:00");
    }

    #[test]
    fn a_large_version_is_kept_in_pieces_that_containerd_takes() {
        let large = version(2000);
        let body = large.body(&LastGood::Nothing, None);
        let notes = notes(&body);
        assert!(notes.len() > 5, "{}", notes.len());
        for (name, value) in &notes {
            assert!(
                "com.openfaas.annotations.".len() + name.len() + value.len() <= 4096,
                "{name}"
            );
        }
        assert_eq!(unpack(&notes, VERSION), Some(large));
        assert!(Version::size_of_annotations(&body) > 5 * PIECE);
    }

    #[test]
    fn what_is_damaged_is_not_taken_for_a_version() {
        let mut notes = notes(&version(2000).body(&LastGood::Itself, None));
        assert_eq!(LastGood::noted(&notes), Some(LastGood::Itself));
        notes.remove(&format!("{VERSION}.1"));
        assert_eq!(unpack(&notes, VERSION), None);
        assert_eq!(unpack(&BTreeMap::new(), VERSION), None);
        assert_eq!(LastGood::noted(&BTreeMap::new()), None);
    }

    #[test]
    fn a_failure_is_noted_shortly() {
        let failure = Failure {
            delivery: "d".to_owned(),
            reasons: vec!["ä".repeat(3000), "second".to_owned()],
            previous_image: None,
        };
        let notes = notes(&version(1).body(&LastGood::Itself, Some(&failure)));
        let noted = Failure::noted(&notes).unwrap();
        assert_eq!(noted.delivery, "d");
        assert_eq!(noted.reasons.len(), 1);
        assert!(notes[FAILED].len() < PIECE);
    }
}
