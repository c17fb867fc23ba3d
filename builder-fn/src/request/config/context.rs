//! Reads the key `context` of a JSON request: the reference to a context, in place of a tar.

use serde_json::{Map, Value};

use super::error::escape_and_shorten_key;
use super::fields::ConfigFields;
use super::git::{GitContext, read_git};
use crate::registry::ImageName;
use crate::request::Sha256Digest;
use crate::sources::WebUrl;

/// The kinds of references, which are keys of `context`.
const CONTEXT_KINDS: [&str; 3] = ["oci", "url", "git"];

/// The keys of `context`: the kinds of references, and what belongs to one of them.
const CONTEXT_KEYS: [&str; 4] = ["oci", "url", "sha256", "git"];

/// A reference to the tar of a context, in a registry or on a web server, that the builder fetches when the build
/// begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContextTarReference {
    /// A context in a registry.
    Oci(ContextArtifactReference),
    /// A context on a web server.
    Url(UrlContext),
}

impl ContextTarReference {
    /// Returns the repository of a context in a registry.
    pub(crate) fn image(&self) -> Option<&ImageName> {
        match self {
            Self::Oci(artifact) => Some(&artifact.image),
            Self::Url(_) => None,
        }
    }
}

/// The context that a JSON request names in place of a tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NamedContext {
    /// A tar that the builder fetches.
    Tar(ContextTarReference),
    /// A git repository, which BuildKit reads.
    Git(GitContext),
}

/// A reference to an artifact in a registry, whose only layer is the tar of a context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextArtifactReference {
    /// The registry and repository of the artifact.
    pub image: ImageName,
    /// The digest of the artifact's manifest.
    pub digest: Sha256Digest,
}

/// A reference to the tar of a context on a web server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UrlContext {
    /// The URL of the tar.
    pub url: WebUrl,
    /// The digest of the tar as it is sent: compressed, if it is compressed.
    pub digest: Sha256Digest,
}

impl std::fmt::Display for ContextArtifactReference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.image, self.digest)
    }
}

impl std::fmt::Display for ContextTarReference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Oci(oci) => oci.fmt(f),
            Self::Url(context) => context.url.fmt(f),
        }
    }
}

/// Reads the key `context`, which has to be there.
pub(super) fn read_named_context(fields: &mut ConfigFields) -> Option<NamedContext> {
    if !fields.has_unread_key("context") {
        fields.record_wrong_key(
            "context",
            "is missing; a JSON request should refer to its context, like {\"oci\": \"registry/repository@sha256:…\"} or \
             {\"url\": \"https://…\", \"sha256\": \"…\"}",
        );
        return None;
    }
    let context = fields.read_object_with_known_keys_in_any_case("context", &CONTEXT_KEYS)?;
    for key in context.keys().filter(|key| !CONTEXT_KEYS.contains(&key.as_str())) {
        fields.record_wrong_key(
            format_args!("context.{}", escape_and_shorten_key(key)),
            format_args!(
                "is unknown; context should have one of {}",
                CONTEXT_KINDS.join(", ")
            ),
        );
    }
    let given: Vec<&str> = CONTEXT_KINDS
        .into_iter()
        .filter(|kind| context.contains_key(*kind))
        .collect();
    match given[..] {
        ["oci"] => read_oci(fields, &context).map(|oci| NamedContext::Tar(ContextTarReference::Oci(oci))),
        ["url"] => read_url(fields, &context).map(|url| NamedContext::Tar(ContextTarReference::Url(url))),
        ["git"] => {
            report_needless_digest(fields, &context, "context.git has its commit in ref");
            let git = context.get("git")?;
            read_git(fields, git).map(NamedContext::Git)
        }
        _ => {
            let problem = format!("should have exactly one of {}", CONTEXT_KINDS.join(", "));
            fields.record_wrong_key("context", problem);
            None
        }
    }
}

/// Reads the value of `context.oci`.
fn read_oci(fields: &mut ConfigFields, context: &Map<String, Value>) -> Option<ContextArtifactReference> {
    report_needless_digest(fields, context, "context.oci has its digest after the @");
    let text = context.get("oci").and_then(Value::as_str).unwrap_or_default();
    let parsed = text.rsplit_once('@').and_then(|(name, digest)| {
        // A tag beside the digest would be ignored, as the digest alone says what is fetched.
        let image = ImageName::parse_with_registry(name).filter(|image| image.to_string() == name)?;
        let digest = Sha256Digest::parse(digest)?;
        Some(ContextArtifactReference { image, digest })
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

/// Reports `context.sha256` beside a reference that it does not belong to.
fn report_needless_digest(fields: &mut ConfigFields, context: &Map<String, Value>, instead: &str) {
    if context.contains_key("sha256") {
        fields.record_wrong_key(
            "context.sha256",
            format_args!("belongs to context.url; {instead}"),
        );
    }
}

fn read_url(fields: &mut ConfigFields, context: &Map<String, Value>) -> Option<UrlContext> {
    let text_of = |key: &str| context.get(key).and_then(Value::as_str).unwrap_or_default();
    let url = match WebUrl::parse(text_of("url")) {
        Ok(url) => Some(url),
        Err(problem) => {
            fields.record_wrong_key("context.url", problem);
            None
        }
    };
    let digest = Sha256Digest::parse_hex(text_of("sha256"));
    if digest.is_none() {
        fields.record_wrong_key(
            "context.sha256",
            "should be the SHA-256 of the file at context.url: 64 lower-case hexadecimal digits, as sha256sum prints them",
        );
    }
    Some(UrlContext {
        url: url?,
        digest: digest?,
    })
}
