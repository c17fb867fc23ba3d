//! Image references that are pinned by digest.
//!
//! Between a build and its deployment another build may move the tag (docs/pitfalls.md#tags-move). A hand-over
//! therefore has to name its image by `@sha256:…`, and the image in a provider's answer is compared by repository and
//! digest, never by tag.

use std::fmt;

/// The registry of an image reference that names none.
const DEFAULT_REGISTRY: &str = "docker.io";
/// The number of hex digits of a SHA-256 digest.
const SHA256_HEX_DIGITS: usize = 64;

/// An image reference with a digest: the text, and the parts that are compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedImage {
    text: String,
    repository: String,
    digest: String,
}

impl PinnedImage {
    /// Parses a reference of the form `[registry/]path[:tag]@sha256:<64 hex digits>`.
    ///
    /// # Errors
    /// The problem, as the rest of a sentence that begins with the field's name.
    pub fn parse_pinned(text: &str) -> Result<Self, String> {
        let Some((name, digest)) = text.split_once('@') else {
            return Err(format!("must be pinned by digest (name@sha256:…), is {text:?}"));
        };
        let hex = digest
            .strip_prefix("sha256:")
            .ok_or_else(|| format!("has a digest that does not begin with \"sha256:\": {digest:?}"))?;
        if hex.len() != SHA256_HEX_DIGITS || !hex.bytes().all(is_lower_case_hex) {
            return Err(format!(
                "has a digest that is not 64 lower-case hex digits: {digest:?}"
            ));
        }
        let repository =
            repository_of_image_name(name).ok_or_else(|| format!("does not name a repository: {name:?}"))?;
        Ok(Self {
            text: text.to_owned(),
            repository,
            digest: digest.to_owned(),
        })
    }

    /// Returns a stand-in for the reference of an image that is not built yet: the name that it will be pushed with, or
    /// `unbuilt` if that is not known, and a digest of zeros.
    ///
    /// # Errors
    /// The problem, as the rest of a sentence that begins with the field's name.
    pub(super) fn stand_in_for_unbuilt(tag: Option<&str>) -> Result<Self, String> {
        let name = tag.unwrap_or("unbuilt");
        Self::parse_pinned(&format!("{name}@sha256:{}", "0".repeat(SHA256_HEX_DIGITS)))
            .map_err(|_| format!("is not the name of an image: {name:?}"))
    }

    /// Returns the image reference as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the image's digest, `sha256:…`.
    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }

    /// Returns the image's repository with its registry, without tag and digest.
    pub(crate) fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns the image's registry, and the path of its repository in that registry.
    pub(crate) fn registry_and_path(&self) -> (&str, &str) {
        self.repository
            .split_once('/')
            .unwrap_or((DEFAULT_REGISTRY, &self.repository))
    }

    /// Returns whether an image reference in a provider's answer names this image. Providers write the same
    /// image differently: faasd adds `docker.io/library/`, faas-netes returns the text that it was given.
    fn is_named_by(&self, reference: &str) -> bool {
        reference == self.text
            || Self::parse_pinned(reference)
                .is_ok_and(|other| other.digest == self.digest && other.repository == self.repository)
    }
}

/// Returns whether two image references, as providers write them, name the same image. References without a
/// digest are the same only if their texts are: a tag does not identify an image.
pub(crate) fn names_same_image(one: &str, other: &str) -> bool {
    one == other || PinnedImage::parse_pinned(one).is_ok_and(|image| image.is_named_by(other))
}

impl fmt::Display for PinnedImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn is_lower_case_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// Returns the repository, with its registry and without its tag, of an image name; `None` if the name is not
/// valid.
///
/// The grammar, and the rule for which first component is a registry, are those of
/// <https://github.com/distribution/reference>.
fn repository_of_image_name(name: &str) -> Option<String> {
    let (registry, rest) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => (DEFAULT_REGISTRY, name),
    };
    let path = match rest.split_once(':') {
        Some((path, tag)) if is_valid_tag(tag) => path,
        Some(_) => return None,
        None => rest,
    };
    if !is_valid_registry_host(registry) || !path.split('/').all(is_path_component) {
        return None;
    }
    let registry = if registry == "index.docker.io" {
        DEFAULT_REGISTRY
    } else {
        registry
    };
    if registry == DEFAULT_REGISTRY && !path.contains('/') {
        return Some(format!("{registry}/library/{path}"));
    }
    Some(format!("{registry}/{path}"))
}

/// Returns whether `text` is a host name or an IPv6 address in brackets, with a port if it has one.
fn is_valid_registry_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let host_is_valid = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        }),
    };
    host_is_valid && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// Returns whether `text` is a tag: at most 128 letters, digits, `_`, `.` and `-`, not beginning with the last two.
fn is_valid_tag(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= 128
        && text.bytes().next().is_some_and(is_word)
        && text.bytes().all(|b| is_word(b) || b == b'.' || b == b'-')
}

/// Returns whether `text` is a valid component of a repository's path: lower-case letters and digits, separated
/// by one `.`, one or two `_`, or any number of `-`.
fn is_path_component(text: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.starts_with(is_word)
        && text.ends_with(is_word)
        && text
            .split(is_word)
            .filter(|between| !between.is_empty())
            .all(|between| matches!(between, "." | "_" | "__") || between.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEST_DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn pinned_image(name: &str) -> PinnedImage {
        PinnedImage::parse_pinned(&format!("{name}@{TEST_DIGEST}")).unwrap()
    }

    #[test]
    fn an_image_reference_without_a_digest_is_rejected() {
        let problem = PinnedImage::parse_pinned("registry.example:5000/team/hello:1.0").unwrap_err();
        assert!(problem.contains("pinned by digest"), "{problem}");
    }

    #[test]
    fn only_a_full_lower_case_sha256_is_a_digest() {
        for wrong in ["md5:00", "sha256:00", &TEST_DIGEST.to_uppercase(), "sha256:", ""] {
            assert!(
                PinnedImage::parse_pinned(&format!("hello@{wrong}")).is_err(),
                "{wrong}"
            );
        }
    }

    #[test]
    fn image_names_that_registries_accept_are_accepted() {
        for name in [
            "hello",
            "team/hello",
            "localhost/hello",
            "localhost:5000/hello",
            "10.63.1.2:5000/team/hello:1.0",
            "[::1]:5000/hello",
            "ghcr.io/a/b/c/d:V1.0_rc-1",
            "a__b/c-d--e.f",
        ] {
            assert_eq!(pinned_image(name).as_str(), format!("{name}@{TEST_DIGEST}"));
        }
        assert_eq!(
            pinned_image("hello").registry_and_path(),
            ("docker.io", "library/hello")
        );
        assert_eq!(
            pinned_image("10.63.1.2:5000/team/hello:1").registry_and_path(),
            ("10.63.1.2:5000", "team/hello")
        );
    }

    #[test]
    fn image_names_that_registries_reject_are_rejected() {
        for name in [
            "",
            "/hello",
            "hello/",
            "Hello",
            "a//b",
            "a/../b",
            "host:port/x",
            "x:",
            "x:-1",
            "-a.b/x",
            "a b",
        ] {
            assert!(
                PinnedImage::parse_pinned(&format!("{name}@{TEST_DIGEST}")).is_err(),
                "{name:?}"
            );
        }
    }

    #[test]
    fn different_spellings_of_a_reference_name_the_same_image() {
        let short = pinned_image("hello");
        for other in [
            "hello:1.0",
            "library/hello",
            "docker.io/library/hello:2",
            "index.docker.io/library/hello",
        ] {
            assert!(short.is_named_by(pinned_image(other).as_str()), "{other}");
        }
    }

    #[test]
    fn another_repository_or_digest_names_another_image() {
        let image = pinned_image("registry.example/hello");
        let other_digest = TEST_DIGEST.replace('0', "f");
        assert!(!image.is_named_by(&format!("registry.example/hello@{other_digest}")));
        assert!(!image.is_named_by(pinned_image("registry.example/world").as_str()));
        assert!(!image.is_named_by("registry.example/hello:1.0"));
        assert!(!image.is_named_by(""));
    }
}
