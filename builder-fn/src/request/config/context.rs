//! Reads the key `context` of a JSON request: the reference to a context, in place of a tar.

use serde_json::{Map, Value};

use super::error::escape_and_shorten_key;
use super::fields::ConfigFields;
use crate::registry::ImageName;
use crate::request::Sha256Digest;

/// The kinds of references, which are keys of `context`.
const KINDS: [&str; 1] = ["oci"];

/// A reference to a context that is fetched when its build begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContextReference {
    /// A context in a registry.
    Oci(OciContext),
}

/// A reference to an artifact in a registry, whose only layer is the tar of a context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OciContext {
    /// The registry and repository of the artifact.
    pub image: ImageName,
    /// The digest of the artifact's manifest.
    pub digest: Sha256Digest,
}

impl std::fmt::Display for OciContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.image, self.digest)
    }
}

impl std::fmt::Display for ContextReference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Oci(oci) => oci.fmt(f),
        }
    }
}

/// Reads the key `context`, which has to be there.
pub(super) fn read_context_reference(fields: &mut ConfigFields) -> Option<ContextReference> {
    if !fields.has_unread_key("context") {
        fields.record_wrong_key(
            "context",
            "is missing; a JSON request should refer to its context, like {\"oci\": \"registry/repository@sha256:…\"}",
        );
        return None;
    }
    let context = fields.read_spelled_object("context", &KINDS)?;
    for key in context.keys().filter(|key| !KINDS.contains(&key.as_str())) {
        fields.record_wrong_key(
            format_args!("context.{}", escape_and_shorten_key(key)),
            format_args!("is unknown; context should have one of {}", KINDS.join(", ")),
        );
    }
    let given: Vec<&str> = KINDS
        .into_iter()
        .filter(|kind| context.contains_key(*kind))
        .collect();
    match given[..] {
        ["oci"] => read_oci(fields, &context).map(ContextReference::Oci),
        _ => {
            let problem = format!("should have exactly one of {}", KINDS.join(", "));
            fields.record_wrong_key("context", problem);
            None
        }
    }
}

/// Reads the value of `context.oci`.
fn read_oci(fields: &mut ConfigFields, context: &Map<String, Value>) -> Option<OciContext> {
    let text = context.get("oci").and_then(Value::as_str).unwrap_or_default();
    let parsed = text.rsplit_once('@').and_then(|(name, digest)| {
        // A tag beside the digest would be ignored, as the digest alone says what is fetched.
        let image = ImageName::parse(name).filter(|image| image.to_string() == name)?;
        let digest = Sha256Digest::parse(digest)?;
        Some(OciContext { image, digest })
    });
    if parsed.is_none() {
        fields.record_wrong_key(
            "context.oci",
            "should be an artifact by digest without a tag, like registry.example.com/team/contexts@sha256: and 64 \
             lower-case hexadecimal digits",
        );
    }
    parsed
}
