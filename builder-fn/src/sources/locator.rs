//! The sources of a build, parsed from BuildKit's identifiers: images, files from the web, git repositories, and
//! folders of the context.
//!
//! An identifier is BuildKit's own form of an address (`source/*/identifier.go`), and the attributes of a source may
//! name more addresses. What cannot be parsed here is rejected, so that BuildKit never reads an address otherwise than
//! this module does.

use std::collections::BTreeMap;

use super::host::{Host, MalformedHost};
use crate::host_port;
use crate::registry::ImageName;

/// The attribute with the full address of a git repository; the identifier has no scheme.
pub(super) const GIT_FULL_URL_ATTRIBUTE: &str = "git.fullurl";
/// The attribute with an image's blob from which a git repository is read.
pub(super) const GIT_BUNDLE_ATTRIBUTE: &str = "git.bundle";
/// The attribute that says whether submodules, whose addresses the repository names, are left out.
pub(super) const GIT_SKIP_SUBMODULES_ATTRIBUTE: &str = "git.skipsubmodules";

/// A source that a build wants to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CheckableSource {
    /// A folder of the build's own context, from this session.
    Context,
    /// An image.
    Image(ImageName),
    /// A blob of an image's repository.
    Blob(ImageName),
    /// A file from the web.
    Http(Url),
    /// A git repository, with the image that has a bundle of its commits, if any.
    Git {
        /// The address of the git repository.
        url: Url,
        /// The image that the commits are read from instead.
        bundle: Option<ImageName>,
    },
}

/// A normalised address: no user information, no default port, scheme and host in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Url {
    scheme: String,
    pub(super) host: Host,
    /// The port, unless it is the default port of the scheme.
    port: Option<u16>,
    default_port: u16,
    /// The path, with a slash at its start, and the query.
    rest: String,
}

/// The reason why a source cannot be checked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum LocatorError {
    /// The identifier has no scheme, or one that no build here may use.
    #[error("sources of this kind are not offered to builds")]
    Scheme,
    /// The name of the image has no registry or no repository.
    #[error("the image should have a registry and a repository")]
    Image,
    /// The user information, host or port of the address is malformed, or not that of the identifier.
    #[error(
        "the address should be SCHEME://HOST[:PORT]/PATH, with an optional USER:PASSWORD@ before the host"
    )]
    Authority,
    /// The host of the address is malformed.
    #[error("the host of the address {0}")]
    Host(#[from] MalformedHost),
    /// The path of the address could be read by a server as another path.
    #[error(
        "the path of the address should have no '.' or '..' segments, no backslashes, and no encoded dots or slashes"
    )]
    Path,
}

impl CheckableSource {
    /// Parses a source from BuildKit's identifier and attributes.
    pub(super) fn parse(
        identifier: &str,
        attributes: &BTreeMap<String, String>,
    ) -> Result<Self, LocatorError> {
        let (scheme, rest) = identifier.split_once("://").ok_or(LocatorError::Scheme)?;
        match scheme {
            "local" => Ok(Self::Context),
            "docker-image" => ImageName::parse_with_registry(rest)
                .map(Self::Image)
                .ok_or(LocatorError::Image),
            "docker-image+blob" => ImageName::parse_with_registry(rest)
                .map(Self::Blob)
                .ok_or(LocatorError::Image),
            "http" | "https" => Url::parse_without_user_and_fragment(identifier).map(Self::Http),
            "git" => Self::parse_git(rest, attributes),
            _ => Err(LocatorError::Scheme),
        }
    }

    /// Parses a git source from its identifier without the scheme. The address that git fetches, in the attributes,
    /// must have the host and port of the identifier.
    fn parse_git(rest: &str, attributes: &BTreeMap<String, String>) -> Result<Self, LocatorError> {
        if rest.contains("://") {
            // BuildKit takes an identifier in this form for another address, and then normalises it.
            return Err(LocatorError::Scheme);
        }
        let named = Url::parse_without_user_and_fragment(&format!("https://{rest}"))?.without_query();
        let url = match attributes.get(GIT_FULL_URL_ATTRIBUTE) {
            // The identifier is what BuildKit compares; the attribute is what git fetches.
            Some(full) => Url::parse_git_remote(full)?,
            None => named.clone(),
        };
        if url.host != named.host || url.port != named.port {
            return Err(LocatorError::Authority);
        }
        let bundle = attributes.get(GIT_BUNDLE_ATTRIBUTE).map(|bundle| {
            let name = bundle.strip_prefix("docker-image+blob://");
            ImageName::parse_with_registry(name.ok_or(LocatorError::Scheme)?).ok_or(LocatorError::Image)
        });
        Ok(Self::Git {
            url,
            bundle: bundle.transpose()?,
        })
    }
}

impl Url {
    /// Parses a URL with the scheme `http`, `https`, `ssh` or `git`, and normalises it: without user information and
    /// fragment.
    pub(super) fn parse_without_user_and_fragment(text: &str) -> Result<Self, LocatorError> {
        let (scheme, rest) = text.split_once("://").ok_or(LocatorError::Scheme)?;
        let end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(end);
        let (host, port) = parse_host_and_port_dropping_user(authority)?;
        let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
        let rest = if rest.starts_with('/') {
            rest.to_owned()
        } else {
            format!("/{rest}")
        };
        let path = rest.split_once('?').map_or(&*rest, |(path, _)| path);
        if !is_unambiguous_path(path) {
            return Err(LocatorError::Path);
        }
        let scheme = scheme.to_ascii_lowercase();
        let default_port = match scheme.as_str() {
            "http" => 80,
            "https" => 443,
            "ssh" => 22,
            "git" => 9418,
            _ => return Err(LocatorError::Scheme),
        };
        Ok(Self {
            scheme,
            host,
            port: port.filter(|port| *port != default_port),
            default_port,
            rest,
        })
    }

    /// Returns the port that the address is read from.
    pub(super) fn port(&self) -> u16 {
        self.port.unwrap_or(self.default_port)
    }

    /// Parses the address of a git repository: a URL, or `[USER@]HOST:PATH` for SSH.
    fn parse_git_remote(text: &str) -> Result<Self, LocatorError> {
        if text.contains("://") {
            return Self::parse_without_user_and_fragment(text).map(Self::without_query);
        }
        let (before, path) = match text.find(']') {
            Some(end) => text.split_at(end + 1),
            None => text.split_at(text.find(':').unwrap_or(text.len())),
        };
        let path = path.strip_prefix(':').ok_or(LocatorError::Authority)?;
        if path.is_empty() || before.contains('/') {
            return Err(LocatorError::Authority);
        }
        Self::parse_without_user_and_fragment(&format!("ssh://{before}/{}", path.trim_start_matches('/')))
            .map(Self::without_query)
    }

    /// Returns the address without its query.
    pub(super) fn without_query(mut self) -> Self {
        if let Some(at) = self.rest.find('?') {
            self.rest.truncate(at);
        }
        self
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", self.scheme, self.host)?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        f.write_str(&self.rest)
    }
}

/// Parses `[USER[:PASSWORD]@]HOST[:PORT]`. More than one `@` is rejected: programs disagree about which of them ends
/// the user information.
fn parse_host_and_port_dropping_user(text: &str) -> Result<(Host, Option<u16>), LocatorError> {
    let host = match text.split_once('@') {
        Some((user, host)) => {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:".contains(&byte);
            if !user.bytes().all(allowed) || host.contains('@') {
                return Err(LocatorError::Authority);
            }
            host
        }
        None => text,
    };
    let (host, port) = host_port::split_host_with_brackets_and_port(host).ok_or(LocatorError::Authority)?;
    Ok((Host::parse_with_ipv6_in_brackets(host)?, port))
}

/// Returns whether the path has no part that servers interpret in different ways.
fn is_unambiguous_path(path: &str) -> bool {
    let lower = path.to_ascii_lowercase();
    let is_dots = |segment: &str| matches!(segment, "." | "..");
    let has_encoded = ["%2e", "%2f", "%5c", "%00"]
        .iter()
        .any(|code| lower.contains(code));
    let has_control = path.chars().any(char::is_control);
    !path.split('/').any(is_dots) && !path.contains('\\') && !has_encoded && !has_control
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(identifier: &str, attributes: &[(&str, &str)]) -> Result<CheckableSource, LocatorError> {
        let attributes = attributes
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()));
        CheckableSource::parse(identifier, &attributes.collect())
    }

    fn normalised_url(identifier: &str, attributes: &[(&str, &str)]) -> String {
        match parse(identifier, attributes).unwrap_or_else(|error| panic!("{identifier}: {error}")) {
            CheckableSource::Http(url) | CheckableSource::Git { url, .. } => url.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn addresses_are_normalised() {
        for (identifier, expected) in [
            (
                "https://Example.COM/Files/a?b=/../c#d",
                "https://example.com/Files/a?b=/../c",
            ),
            ("https://example.com:443/a", "https://example.com/a"),
            ("https://example.com:/a", "https://example.com/a"),
            ("http://example.com:8080", "http://example.com:8080/"),
            ("http://example.com.?q", "http://example.com/?q"),
            ("https://user:p%40ss@example.com/a", "https://example.com/a"),
            ("https://[2606:4700:0::1]:8443/a", "https://[2606:4700::1]:8443/a"),
            (
                "git://github.com/acme/app.git#main:sub",
                "https://github.com/acme/app.git",
            ),
        ] {
            assert_eq!(normalised_url(identifier, &[]), expected);
        }
    }

    #[test]
    fn the_address_of_a_git_source_is_the_one_that_git_fetches() {
        for (full, expected) in [
            (
                "https://github.com/acme/app.git",
                "https://github.com/acme/app.git",
            ),
            (
                "http://token@github.com/acme/app.git",
                "http://github.com/acme/app.git",
            ),
            ("git@github.com:acme/app.git", "ssh://github.com/acme/app.git"),
            ("github.com:/acme/app.git", "ssh://github.com/acme/app.git"),
            (
                "ssh://git@github.com/acme/app.git",
                "ssh://github.com/acme/app.git",
            ),
        ] {
            assert_eq!(
                normalised_url("git://github.com/acme/app.git", &[(GIT_FULL_URL_ATTRIBUTE, full)]),
                expected
            );
        }
        for full in [
            "https://evil.example/acme/app.git",
            "https://github.com@evil.example/acme/app.git",
            "https://github.com:8443/acme/app.git",
            "git@evil.example:acme/app.git",
            "git@github.com",
            "ext::sh -c id",
            "file:///etc",
            "/etc",
        ] {
            let parsed = parse("git://github.com/acme/app.git", &[(GIT_FULL_URL_ATTRIBUTE, full)]);
            assert!(parsed.is_err(), "{full}: {parsed:?}");
        }
    }

    #[test]
    fn the_bundle_of_a_git_source_is_an_image_of_a_registry_and_no_oci_layout() {
        let bundle = |locator| parse("git://github.com/a/b", &[("git.bundle", locator)]);
        let Ok(CheckableSource::Git {
            bundle: Some(image), ..
        }) = bundle("docker-image+blob://registry.example/team/x@sha256:00")
        else {
            panic!("no bundle");
        };
        assert_eq!(image.to_string(), "registry.example/team/x");
        assert_eq!(
            bundle("oci-layout+blob://store@sha256:00"),
            Err(LocatorError::Scheme)
        );
    }

    #[test]
    fn an_image_or_a_blob_is_a_source_of_its_repository_without_tag_and_digest() {
        for scheme in ["docker-image", "docker-image+blob"] {
            match parse(&format!("{scheme}://Registry.Example/a/b:c@sha256:00"), &[]) {
                Ok(CheckableSource::Image(image) | CheckableSource::Blob(image)) => {
                    assert_eq!(image.to_string(), "registry.example/a/b");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_source_that_cannot_be_checked_is_rejected() {
        for identifier in [
            "",
            "alpine",
            "docker-image://alpine",
            "docker-image://r.example/../victim",
            "docker-image://r.example/a//b",
            "docker-image://user@r.example/a",
            "docker-image://r.example:x/a",
            "oci-layout://r.example/a@sha256:00",
            "oci-layout+blob://r.example/a@sha256:00",
            "ftp://example.com/",
            "HTTP://example.com/",
            "http://",
            "http:///a",
            "http://a@b@example.com/",
            "http://good.example\\@evil.example/",
            "http://example.com:80:80/",
            "http://example.com:+80/",
            "http://example.com:99999/",
            "http://exa mple.com/",
            "http://example.com/files/../x",
            "http://example.com/files/%2E%2e/x",
            "http://example.com/files/..%2fx",
            "http://example.com/files\\..\\x",
            "http://example.com/a\nb",
            "git://",
            "git://ssh://10.0.0.1/x",
        ] {
            assert!(parse(identifier, &[]).is_err(), "{identifier}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(identifier in "\\PC{0,60}", full in "\\PC{0,60}") {
            let _ = parse(&identifier, &[]);
            for scheme in ["http", "https", "git", "docker-image"] {
                let _ = parse(&format!("{scheme}://{identifier}"), &[(GIT_FULL_URL_ATTRIBUTE, &full), (GIT_BUNDLE_ATTRIBUTE, &full)]);
            }
        }

        #[test]
        fn a_normalised_address_is_its_own_normal_form(text in "https?://[a-zA-Z0-9.\\[\\]:@%/?#~_-]{1,40}") {
            if let Ok(parsed) = Url::parse_without_user_and_fragment(&text) {
                prop_assert_eq!(Url::parse_without_user_and_fragment(&parsed.to_string()), Ok(parsed));
            }
        }
    }
}
