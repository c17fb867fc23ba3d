//! Lists of allowed repositories of images.
//!
//! An entry is a registry, or a registry and the beginning of a path. It has no tag and no digest: whoever may read one
//! tag of a repository reads every manifest in it, by digest.

use std::fmt;

/// The registry of Docker Hub, whose repositories have at least two segments.
const DOCKER_HUB: &str = "docker.io";

/// The end of a pattern: how a repository may continue after the pattern's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllowedContinuation {
    /// The repository is the prefix, or is below it: `registry.example/acme`.
    Segment,
    /// The repository is below the prefix, which ends with a slash: `registry.example/acme/`.
    Below,
    /// The repository continues in any way: `registry.example/acme-*`.
    Any,
}

/// A pattern of image repositories: a registry with the beginning of a path, and how a repository may continue after
/// it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepositoryPattern {
    prefix: String,
    end: AllowedContinuation,
}

impl RepositoryPattern {
    /// Parses one pattern of repositories, as a policy lists it.
    ///
    /// # Errors
    /// What the entry should be.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (written, end) = match text.strip_suffix('*') {
            Some(prefix) => (prefix, AllowedContinuation::Any),
            None if text.ends_with('/') => (text, AllowedContinuation::Below),
            None => (text, AllowedContinuation::Segment),
        };
        let (host, rest) = written.split_at(written.find('/').unwrap_or(written.len()));
        let host = host.to_ascii_lowercase();
        let host = match host.as_str() {
            "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB,
            other => other,
        };
        let prefix = format!("{host}{rest}");
        let (registry, path) = match prefix.split_once('/') {
            Some((registry, path)) => (registry, Some(path)),
            None => (prefix.as_str(), None),
        };
        let names_registry = registry == "localhost" || registry.contains(['.', ':']);
        if text.is_empty() || registry.is_empty() || !names_registry {
            // `*` alone is for everything, in words: the list should be left out.
            return Err(format!(
                "should begin with a registry and end at a segment of the path or with \"*\", such as \"{DOCKER_HUB}/library/\""
            ));
        }
        if end == AllowedContinuation::Any && path.is_none() {
            // `registry.example*` would allow registry.example.attacker.org.
            return Err("should have a \"/\" after its registry".to_owned());
        }
        let path = path.unwrap_or_default();
        let is_path = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-' | b'/')
        };
        let is_registry =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':' | b'[' | b']');
        if !path.bytes().all(is_path)
            || !registry.bytes().all(is_registry)
            || path.starts_with('/')
            || path.contains("//")
        {
            return Err(
                "should be a repository without tag and digest, in lower case, with \"*\" only at its end"
                    .to_owned(),
            );
        }
        if registry == DOCKER_HUB
            && end == AllowedContinuation::Segment
            && !path.is_empty()
            && !path.contains('/')
        {
            return Err(format!(
                "should be \"{DOCKER_HUB}/library/{path}\" for the image, or \"{DOCKER_HUB}/{path}/\" for all images of the user"
            ));
        }
        Ok(Self { prefix, end })
    }

    /// Returns the pattern's prefix, with its registry.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Returns how a repository may continue after the prefix.
    #[must_use]
    pub fn allowed_continuation(&self) -> AllowedContinuation {
        self.end
    }

    /// Returns whether this repository matches the pattern. It is given in full: `registry/path` without tag and
    /// digest. The registry's letters may have any case.
    #[must_use]
    pub fn matches(&self, repository: &str) -> bool {
        let repository = repository.to_ascii_lowercase();
        let Some(rest) = repository.strip_prefix(&self.prefix) else {
            return false;
        };
        match self.end {
            AllowedContinuation::Any => true,
            AllowedContinuation::Below => !rest.is_empty(),
            AllowedContinuation::Segment => rest.is_empty() || rest.starts_with('/'),
        }
    }
}

impl fmt::Display for RepositoryPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.prefix)?;
        match self.end {
            AllowedContinuation::Any => f.write_str("*"),
            AllowedContinuation::Below | AllowedContinuation::Segment => Ok(()),
        }
    }
}

/// A list of patterns of repositories.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepositoryPatterns(Vec<RepositoryPattern>);

impl RepositoryPatterns {
    pub(super) fn new(patterns: Vec<RepositoryPattern>) -> Self {
        Self(patterns)
    }

    /// Returns whether one of this list's patterns matches a repository, which is given in full: `registry/path` without
    /// tag and digest.
    #[must_use]
    pub fn allows(&self, repository: &str) -> bool {
        self.0.iter().any(|pattern| pattern.matches(repository))
    }

    /// Returns the patterns of repositories, in the order of the policy.
    pub fn iter(&self) -> impl Iterator<Item = &RepositoryPattern> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_whole_segments_or_any_continuation_after_an_asterisk() {
        for (pattern, repository, has) in [
            ("registry.example/t", "registry.example/t", true),
            ("registry.example/t", "registry.example/t/hello", true),
            ("registry.example/t", "registry.example/team-b/hello", false),
            ("registry.example/t", "registry.example/t-b", false),
            ("registry.example/t/", "registry.example/t/hello", true),
            ("registry.example/t/", "registry.example/t", false),
            ("registry.example/t/*", "registry.example/t/hello", true),
            ("registry.example/t/*", "registry.example/tx", false),
            ("registry.example/t*", "registry.example/team/hello", true),
            ("registry.example/*", "registry.example/t", true),
            ("registry.example", "registry.example/t", true),
            ("registry.example", "registry.example.org/t", false),
            ("registry.example", "registry.example:5000/t", false),
            ("registry.example:500", "registry.example:5000/t", false),
            ("registry.example:5000", "registry.example:5000/t", true),
            ("localhost", "localhost:5000/t", false),
            ("[::1]:5000/t", "[::1]:5000/t/x", true),
            ("docker.io/library/", "docker.io/library/nginx", true),
            ("docker.io", "docker.io/library/nginx", true),
            ("index.docker.io/team/", "docker.io/team/hello", true),
            ("Registry.example/t/", "registry.EXAMPLE/t/x", true),
            ("docker.io/team/", "docker.io/team-b/hello", false),
        ] {
            let parsed = RepositoryPattern::parse(pattern).unwrap();
            assert_eq!(parsed.matches(repository), has, "{pattern} {repository}");
        }
    }

    #[test]
    fn a_malformed_or_misleading_pattern_is_rejected() {
        for (entry, hint) in [
            ("", "registry"),
            ("*", "registry"),
            ("/", "registry"),
            ("nginx", "registry"),
            ("team/hello", "registry"),
            ("registry.example*", "after its registry"),
            ("registry.example/t:1", "without tag"),
            ("registry.example/t@sha256:00", "without tag"),
            ("registry.example/a*b", "only at its end"),
            ("registry.example/Team", "lower case"),
            ("registry.example//t", "lower case"),
            ("https://registry.example/t", "without tag"),
            ("docker.io/nginx", "docker.io/library/nginx"),
        ] {
            let problem = RepositoryPattern::parse(entry).unwrap_err();
            assert!(problem.contains(hint), "{entry}: {problem}");
        }
    }
}
