//! The version that a BuildKit daemon reports, and the lowest release that tenants may share.

use std::fmt;

/// The lowest release of BuildKit without known advisories. Earlier ones have flaws by which one build changes what
/// another gets: `tests/stack/components.json`, whose entry a test compares with this.
pub const LOWEST_SHARED_BUILDKIT_RELEASE: &str = "0.34.2";

/// The version that a daemon reports of itself, as its build named it: releases have `v0.34.2`, and programs that were
/// built without a version `v0.0.0+unknown`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildkitVersion(String);

/// A release of BuildKit: its three numbers, and whether it is the release itself and not a pre-release of it.
type ReleaseNumbers = ([u64; 3], bool);

impl BuildkitVersion {
    /// Creates the version that a daemon reports as this text, which may be empty.
    pub fn new(reported: impl Into<String>) -> Self {
        Self(reported.into())
    }

    /// Returns whether the version is known to be at least [`LOWEST_SHARED_BUILDKIT_RELEASE`]. A version that is not
    /// that of a release, or of commits after one, is not known.
    pub fn may_be_shared(&self) -> bool {
        let own = parse_release(&self.0);
        own.is_some_and(|own| Some(own) >= parse_release(LOWEST_SHARED_BUILDKIT_RELEASE))
    }
}

impl fmt::Display for BuildkitVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match parse_release(&self.0) {
            Some(_) => f.write_str(&self.0),
            None => write!(f, "unknown ({:?})", self.0),
        }
    }
}

/// Parses a version such as `v0.34.2`, `0.34.2-rc1`, `v0.34.2-5-g0123abc` (5 commits after the release) or
/// `0.34.2+ds1`. Returns `None` for any other text, and for 0.0.0, which stands for an unknown version.
fn parse_release(text: &str) -> Option<ReleaseNumbers> {
    let text = text.strip_prefix('v').unwrap_or(text);
    let end = text.find(['-', '+', '~']).unwrap_or(text.len());
    let (numbers, suffix) = text.split_at(end);
    let numbers: Vec<u64> = numbers
        .split('.')
        .map(|number| number.parse().ok())
        .collect::<Option<_>>()?;
    let numbers: [u64; 3] = numbers.try_into().ok()?;
    // Pre-releases are named so: -rc1, ~rc1, -beta.2.
    let is_prerelease = ["rc", "beta", "alpha", "dev"]
        .iter()
        .any(|name| suffix.trim_start_matches(['-', '~']).starts_with(name));
    (numbers != [0; 3]).then_some((numbers, !is_prerelease))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_daemon_that_is_known_to_be_recent_enough_may_be_shared() {
        for (reported, expected) in [
            ("v0.34.2", true),
            ("0.34.2", true),
            ("v0.34.3", true),
            ("v0.35.0-rc1", true),
            ("v1.0.0", true),
            ("v0.34.10", true),
            ("v0.34.2-5-g0123abc.m", true),
            ("0.34.2+ds1", true),
            ("v0.34.1", false),
            ("v0.34.2-rc1", false),
            ("0.34.2~rc1", false),
            ("v0.9.9", false),
            ("v0.0.0+unknown", false),
            ("", false),
            ("master", false),
            ("v0.34", false),
            ("v0.34.x", false),
            ("0.34.2.1", false),
            ("v99999999999999999999.0.0", false),
        ] {
            assert_eq!(
                BuildkitVersion::new(reported).may_be_shared(),
                expected,
                "{reported:?}"
            );
        }
    }

    #[test]
    fn a_message_shows_a_version_that_is_not_known_as_such() {
        assert_eq!(BuildkitVersion::new("v0.33.0").to_string(), "v0.33.0");
        assert_eq!(BuildkitVersion::new("").to_string(), "unknown (\"\")");
        assert_eq!(
            BuildkitVersion::new("v0.0.0+unknown").to_string(),
            "unknown (\"v0.0.0+unknown\")"
        );
    }
}
