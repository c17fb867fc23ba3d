//! Image references that name one image and no other: pinned by digest.
//!
//! Tags race: between a build and its deployment, another build may have moved the tag (pitfall 28). The hand-over
//! therefore has to say `@sha256:…`, and what a provider says it runs is compared by repository and digest, never by
//! tag.

use std::fmt;

/// Where an image is when its reference names no registry.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Hex digits of a SHA-256.
const DIGITS: usize = 64;

/// An image reference with a digest, kept as it was written and as it is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedImage {
    written: String,
    repository: String,
    digest: String,
}

impl PinnedImage {
    /// Reads a reference of the form `[registry/]path[:tag]@sha256:<64 hex digits>`.
    ///
    /// # Errors
    /// What is wrong with it, in words that finish a sentence beginning with the field's name.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some((name, digest)) = text.split_once('@') else {
            return Err(format!("must be pinned by digest (name@sha256:…), is {text:?}"));
        };
        let hex = digest
            .strip_prefix("sha256:")
            .ok_or_else(|| format!("has a digest that does not begin with \"sha256:\": {digest:?}"))?;
        if hex.len() != DIGITS || !hex.bytes().all(is_hex) {
            return Err(format!(
                "has a digest that is not 64 lower-case hex digits: {digest:?}"
            ));
        }
        let repository =
            repository_of(name).ok_or_else(|| format!("does not name a repository: {name:?}"))?;
        Ok(Self {
            written: text.to_owned(),
            repository,
            digest: digest.to_owned(),
        })
    }

    /// The reference as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.written
    }

    /// `sha256:…`
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The registry, and the path of the repository in it.
    #[must_use]
    pub fn registry_and_path(&self) -> (&str, &str) {
        self.repository
            .split_once('/')
            .unwrap_or((DEFAULT_REGISTRY, &self.repository))
    }

    /// Whether a reference, as a provider gives it back, means this image. Providers write the same one differently:
    /// faasd adds `docker.io/library/`, faas-netes returns what it was given.
    #[must_use]
    pub fn is_named_by(&self, reference: &str) -> bool {
        reference == self.written
            || Self::parse(reference)
                .is_ok_and(|other| other.digest == self.digest && other.repository == self.repository)
    }
}

/// Whether two references, as providers write them, name the same image. References without a digest are compared as
/// they are written: what a tag means is not known here.
#[must_use]
pub fn same_image(one: &str, other: &str) -> bool {
    one == other || PinnedImage::parse(one).is_ok_and(|image| image.is_named_by(other))
}

impl fmt::Display for PinnedImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

fn is_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// The repository with its registry spelled out and without tag; `None` where the name is not one.
/// Grammar: <https://github.com/distribution/reference>, whose reading of the first component is followed here.
fn repository_of(name: &str) -> Option<String> {
    let (registry, rest) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => (DEFAULT_REGISTRY, name),
    };
    let path = match rest.split_once(':') {
        Some((path, tag)) if is_tag(tag) => path,
        Some(_) => return None,
        None => rest,
    };
    if !is_registry(registry) || !path.split('/').all(is_component) {
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

fn is_registry(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let host_is_right = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        }),
    };
    host_is_right && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

fn is_tag(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= 128
        && text.bytes().next().is_some_and(is_word)
        && text.bytes().all(|b| is_word(b) || b == b'.' || b == b'-')
}

/// Lower-case letters and digits, parted by one `.`, one or two `_`, or any number of `-`.
fn is_component(text: &str) -> bool {
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

    const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn pinned(name: &str) -> PinnedImage {
        PinnedImage::parse(&format!("{name}@{DIGEST}")).unwrap()
    }

    #[test]
    fn a_reference_without_a_digest_is_refused() {
        let problem = PinnedImage::parse("registry.example:5000/team/hello:1.0").unwrap_err();
        assert!(problem.contains("pinned by digest"), "{problem}");
    }

    #[test]
    fn a_digest_has_to_be_sha256_in_full_and_in_lower_case() {
        for wrong in ["md5:00", "sha256:00", &DIGEST.to_uppercase(), "sha256:", ""] {
            assert!(PinnedImage::parse(&format!("hello@{wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_that_registries_accept_are_accepted() {
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
            assert_eq!(pinned(name).as_str(), format!("{name}@{DIGEST}"));
        }
        assert_eq!(
            pinned("hello").registry_and_path(),
            ("docker.io", "library/hello")
        );
        assert_eq!(
            pinned("10.63.1.2:5000/team/hello:1").registry_and_path(),
            ("10.63.1.2:5000", "team/hello")
        );
    }

    #[test]
    fn names_that_registries_refuse_are_refused() {
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
                PinnedImage::parse(&format!("{name}@{DIGEST}")).is_err(),
                "{name:?}"
            );
        }
    }

    #[test]
    fn one_image_written_in_several_ways_is_one_image() {
        let short = pinned("hello");
        for other in [
            "hello:1.0",
            "library/hello",
            "docker.io/library/hello:2",
            "index.docker.io/library/hello",
        ] {
            assert!(short.is_named_by(pinned(other).as_str()), "{other}");
        }
    }

    #[test]
    fn another_repository_or_digest_is_another_image() {
        let image = pinned("registry.example/hello");
        let other_digest = DIGEST.replace('0', "f");
        assert!(!image.is_named_by(&format!("registry.example/hello@{other_digest}")));
        assert!(!image.is_named_by(pinned("registry.example/world").as_str()));
        assert!(!image.is_named_by("registry.example/hello:1.0"));
        assert!(!image.is_named_by(""));
    }
}
