//! The name of an image without tag and digest: its registry and repository.

use std::fmt;

use crate::host_port;

/// The registry of Docker Hub in image names, and the hosts that it has in its API.
const DOCKER_HUB_NAME_AND_API_HOSTS: (&str, [&str; 2]) =
    ("docker.io", ["index.docker.io", "registry-1.docker.io"]);

/// The name of an image without tag and digest: its registry and repository.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageName {
    /// The registry's host and port, in lower case.
    registry: String,
    /// The path of the repository in the registry, such as `library/alpine`.
    repository: String,
}

impl ImageName {
    /// Parses the full name of an image, which may have a tag and a digest. Returns `None` if it has no registry or no
    /// repository, or a malformed one.
    pub fn parse_with_registry(text: &str) -> Option<Self> {
        let name = text.split_once('@').map_or(text, |(name, _)| name);
        let (registry, path) = name.split_once('/')?;
        let repository = path.split_once(':').map_or(path, |(path, _)| path);
        let is_component = |part: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
            !matches!(part, "" | "." | "..") && part.bytes().all(allowed)
        };
        let is_host_byte = |byte: u8| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':' | b'[' | b']')
        };
        let is_registry = !registry.is_empty()
            && registry.bytes().all(is_host_byte)
            && host_port::split_host_with_brackets_and_port(registry)
                .is_some_and(|(host, _)| !host.is_empty());
        (is_registry && repository.split('/').all(is_component)).then(|| Self {
            registry: canonical_registry(registry),
            repository: repository.to_owned(),
        })
    }

    /// Returns the registry's host and port, in lower case, as image names have it.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Returns the path of the repository in its registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns the registry's host; an IPv6 address in brackets.
    pub fn host(&self) -> &str {
        host_port::split_host_with_brackets_and_port(&self.registry).map_or(&*self.registry, |(host, _)| host)
    }

    /// Returns the registry's port: 443 if the name has none.
    pub fn port_or_443(&self) -> u16 {
        host_port::split_host_with_brackets_and_port(&self.registry)
            .and_then(|(_, port)| port)
            .unwrap_or(443)
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)
    }
}

/// Returns the name that a registry has in image names, for its host in an image name or in its API.
pub(super) fn canonical_registry(host: &str) -> String {
    let host = host.to_ascii_lowercase();
    let (hub, hosts) = DOCKER_HUB_NAME_AND_API_HOSTS;
    match hosts.contains(&host.as_str()) {
        true => hub.to_owned(),
        false => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_registry_and_repository_of_a_reference() {
        for (text, expected) in [
            ("docker.io/library/alpine:3@sha256:00", "docker.io/library/alpine"),
            ("registry-1.docker.io/library/alpine", "docker.io/library/alpine"),
            ("Registry.Example:5000/a/b:c", "registry.example:5000/a/b"),
            ("10.0.0.1:5000/x@sha256:00", "10.0.0.1:5000/x"),
            ("[::1]:5000/x", "[::1]:5000/x"),
        ] {
            let name = ImageName::parse_with_registry(text).expect(text);
            assert_eq!(name.to_string(), expected);
            assert_eq!(
                ImageName::parse_with_registry(expected),
                Some(name),
                "the name of a name is the name"
            );
        }
        let name = ImageName::parse_with_registry("[::1]:5000/x").unwrap();
        assert_eq!((name.host(), name.port_or_443()), ("[::1]", 5000));
        let name = ImageName::parse_with_registry("r.example/x").unwrap();
        assert_eq!((name.host(), name.port_or_443()), ("r.example", 443));
    }

    #[test]
    fn a_malformed_image_name_is_not_parsed() {
        for text in [
            "",
            "alpine",
            "/alpine",
            "r.example/",
            "r.example/../victim",
            "r.example/a//b",
            "r.example/a%2fb",
            "user@r.example/a",
            "r.example:x/a",
            "r.example:99999/a",
            ":5000/a",
            "r example/a",
        ] {
            assert_eq!(ImageName::parse_with_registry(text), None, "{text}");
        }
    }
}
