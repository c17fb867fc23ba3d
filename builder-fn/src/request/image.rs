//! The reference under which an image is pushed: the grammar of `github.com/distribution/reference`, normalised as Docker
//! does. A reference that is pushed to has no digest.

use std::fmt;

/// An image reference in full: `registry/repository:tag`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRef {
    registry: String,
    repository: String,
    tag: String,
}

/// The default registry of image references.
const DEFAULT_REGISTRY: &str = "docker.io";
/// The default tag of image references.
const DEFAULT_TAG: &str = "latest";
/// The length of the longest `registry/repository`, in bytes.
const NAME_BYTES_MAX: usize = 255;
/// The length of the longest tag, in bytes.
const TAG_BYTES_MAX: usize = 128;

/// The part of an image reference that is wrong. The texts follow "not an image reference: ".
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageRefError {
    /// The image reference is empty.
    #[error("it is empty; it should be like registry.example.com/team/name:tag")]
    Empty,
    /// The image reference has a digest, which is known only after the push.
    #[error("it has a digest; a reference to push to should have a tag instead")]
    Digest,
    /// The repository of the image reference has capital letters.
    #[error("repository {0:?} has capital letters; it should be lowercase")]
    Uppercase(String),
    /// The registry of the image reference, the part before the first slash, is malformed.
    #[error("registry {0:?} is not a host name with an optional port")]
    Registry(String),
    /// The repository of the image reference, between registry and tag, is malformed.
    #[error(
        "repository {0:?} is malformed; it should be lowercase letters and digits in components separated by '/', \
         with single '.', '_', or '-' within them"
    )]
    Repository(String),
    /// The tag of the image reference, the part after the repository's colon, is malformed.
    #[error(
        "tag {0:?} is malformed; it should be up to 128 letters, digits, '_', '.' and '-', and not begin with the last two"
    )]
    Tag(String),
    /// The `registry/repository` of the image reference is too long.
    #[error("it is longer than {NAME_BYTES_MAX} bytes without its tag")]
    TooLong,
    /// The repository looks like an image id, which Docker reserves.
    #[error("repository {0:?} could be taken for an image id, which is 64 hexadecimal digits")]
    LikeAnId(String),
}

impl ImageRef {
    /// Parses an image reference as `docker push` does.
    ///
    /// # Errors
    /// The first part that is wrong.
    pub fn parse(text: &str) -> Result<Self, ImageRefError> {
        if text.is_empty() {
            return Err(ImageRefError::Empty);
        }
        if text.contains('@') {
            return Err(ImageRefError::Digest);
        }
        let (registry, rest) = split_registry(text);
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, tag),
            None => (rest, DEFAULT_TAG),
        };
        if !is_empty_or_valid_registry(registry) {
            return Err(ImageRefError::Registry(registry.to_owned()));
        }
        if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(ImageRefError::Uppercase(repository.to_owned()));
        }
        if !repository.split('/').all(is_valid_repository_component) {
            return Err(ImageRefError::Repository(repository.to_owned()));
        }
        if !is_valid_tag(tag) {
            return Err(ImageRefError::Tag(tag.to_owned()));
        }
        let (registry, repository) = match registry {
            "" | "index.docker.io" | DEFAULT_REGISTRY => {
                if repository.len() == 64 && repository.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    return Err(ImageRefError::LikeAnId(repository.to_owned()));
                }
                let prefix = if repository.contains('/') { "" } else { "library/" };
                (DEFAULT_REGISTRY, format!("{prefix}{repository}"))
            }
            _ => (registry, repository.to_owned()),
        };
        if registry.len() + 1 + repository.len() > NAME_BYTES_MAX {
            return Err(ImageRefError::TooLong);
        }
        Ok(Self {
            registry: registry.to_owned(),
            repository,
            tag: tag.to_owned(),
        })
    }

    /// Returns the image's reference under another tag. `tag` has passed [`check_tag`].
    pub(super) fn with_tag(&self, tag: String) -> Self {
        Self { tag, ..self.clone() }
    }

    /// Returns the image's reference without its tag: `registry/repository`.
    pub(crate) fn without_tag(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// Returns `registry/repository@digest`, which names the pushed image even after the tag has moved.
    pub(crate) fn with_digest(&self, digest: &str) -> String {
        format!("{}/{}@{digest}", self.registry, self.repository)
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.registry, self.repository, self.tag)
    }
}

/// Splits off the registry of an image reference: the part before the first slash, if it cannot be a part of a
/// repository.
fn split_registry(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.chars().any(char::is_uppercase) =>
        {
            (first, rest)
        }
        _ => ("", text),
    }
}

/// Returns whether `text` is empty, or a host name, IPv4 address or bracketed IPv6 address with an optional
/// port.
fn is_empty_or_valid_registry(text: &str) -> bool {
    let address_end = text.rfind(']').map_or(0, |at| at + 1);
    let (host, port) = match text[address_end..].find(':') {
        Some(at) => (&text[..address_end + at], Some(&text[address_end + at + 1..])),
        None => (text, None),
    };
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    let is_host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(is_valid_host_label),
    };
    text.is_empty() || is_host && port.is_none_or(is_port)
}

fn is_valid_host_label(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Returns whether `text` is runs of letters and digits, separated by one `.`, one or two `_`, or any number of
/// `-`.
fn is_valid_repository_component(text: &str) -> bool {
    let is_word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_separator =
        |run: &[u8]| matches!(run, b"." | b"_" | b"__") || run.iter().all(|byte| *byte == b'-');
    let bytes = text.as_bytes();
    let ends_well = bytes.first().is_some_and(is_word) && bytes.last().is_some_and(is_word);
    let mut runs = bytes.chunk_by(|left, right| is_word(left) == is_word(right));
    ends_well && runs.all(|run| is_word(&run[0]) || is_separator(run))
}

/// Fails if `text` is not a valid tag.
pub(super) fn check_tag(text: &str) -> Result<(), ImageRefError> {
    match is_valid_tag(text) {
        true => Ok(()),
        false => Err(ImageRefError::Tag(text.to_owned())),
    }
}

fn is_valid_tag(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    (1..=TAG_BYTES_MAX).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with(['.', '-'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_references_are_completed_with_registry_and_tag_as_by_docker() {
        for (text, full) in [
            ("hello", "docker.io/library/hello:latest"),
            ("hello:1.2", "docker.io/library/hello:1.2"),
            ("team/hello", "docker.io/team/hello:latest"),
            ("docker.io/hello", "docker.io/library/hello:latest"),
            ("index.docker.io/team/hello:x", "docker.io/team/hello:x"),
            ("localhost/hello", "localhost/hello:latest"),
            ("localhost:5000/hello:v1", "localhost:5000/hello:v1"),
            ("10.63.1.2:5000/a/b/c:v1", "10.63.1.2:5000/a/b/c:v1"),
            ("[::1]:5000/hello", "[::1]:5000/hello:latest"),
            ("[2001:db8::1]/hello", "[2001:db8::1]/hello:latest"),
            ("Registry.Example.com/hello", "Registry.Example.com/hello:latest"),
            ("registry:5000/hello", "registry:5000/hello:latest"),
            ("registry/hello", "docker.io/registry/hello:latest"),
            ("ghcr.io/a__b/c-d--e/f.g:_T.-x", "ghcr.io/a__b/c-d--e/f.g:_T.-x"),
            ("hello:5000", "docker.io/library/hello:5000"),
            ("ttl.sh/x:1h", "ttl.sh/x:1h"),
        ] {
            let image = ImageRef::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(image.to_string(), full, "{text}");
        }
    }

    #[test]
    fn the_tag_of_an_image_reference_can_be_replaced_by_another_tag_or_a_digest() {
        let image = ImageRef::parse("localhost:5000/team/hello:v1").unwrap();
        assert_eq!(image.without_tag(), "localhost:5000/team/hello");
        assert_eq!(
            image.with_digest("sha256:00"),
            "localhost:5000/team/hello@sha256:00"
        );
        assert_eq!(
            image.with_tag("v2".to_owned()).to_string(),
            "localhost:5000/team/hello:v2"
        );
        assert_eq!(check_tag("v2"), Ok(()));
        assert_eq!(check_tag("-"), Err(ImageRefError::Tag("-".to_owned())));
    }

    #[test]
    fn an_invalid_image_reference_is_rejected_with_the_part_that_is_wrong() {
        let long = format!("example.com/{}", "a/".repeat(125));
        let tag = format!("hello:{}", "t".repeat(129));
        let id = "0123456789abcdef".repeat(4);
        for (text, part) in [
            ("", "empty"),
            ("hello@sha256:0123", "digest"),
            ("hello:v1@sha256:0123", "digest"),
            ("Hello", "lowercase"),
            ("team/Hello:v1", "lowercase"),
            ("example.com/team/hellO", "lowercase"),
            ("exa_mple.com/hello", "registry"),
            ("-example.com/hello", "registry"),
            ("example..com/hello", "registry"),
            ("example.com:/hello", "registry"),
            ("example.com:x/hello", "registry"),
            ("example.com:99999/hello", "registry"),
            ("[::g]:5000/hello", "registry"),
            ("https://example.com/hello", "registry"),
            ("example.com/", "repository"),
            ("/hello", "repository"),
            ("a//b", "repository"),
            ("hello/", "repository"),
            ("a..b", "repository"),
            ("a___b", "repository"),
            ("a._b", "repository"),
            ("_a", "repository"),
            ("a-", "repository"),
            ("hel lo", "repository"),
            ("héllo", "repository"),
            (" hello", "repository"),
            ("hello\n", "repository"),
            ("hello:", "tag"),
            ("hello:-x", "tag"),
            ("hello:.x", "tag"),
            ("hello:a:b", "tag"),
            ("hello:a/b", "registry"),
            ("hello: x", "tag"),
            (&tag, "tag"),
            (&format!("{long}a"), "255"),
            (&id, "image id"),
        ] {
            let error = ImageRef::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }
}
