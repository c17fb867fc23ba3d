//! The tags of versions of functions.
//!
//! `v-FUNCTION-TIME-ID` is a version. FUNCTION is the SHA-256 of tenant and function, TIME the time of the submission in
//! milliseconds subtracted from the largest one, and ID the SHA-256 of the ID; all of them in hexadecimal digits of a
//! fixed length. By name, the newest version of a function is therefore the first of its tags.

use std::fmt;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use crate::versions::FunctionVersion;

/// The beginning of the tags of versions.
pub(super) const VERSION_PREFIX: &str = "v-";

/// The largest time in a tag, in milliseconds since 1970.
const TIME_MAX: u64 = (1 << 48) - 1;

/// The number of digits of the hash of a function.
const FUNCTION_DIGITS: usize = 40;

/// The number of digits of a time.
const TIME_DIGITS: usize = 12;

/// The number of digits of the hash of an ID.
const ID_DIGITS: usize = 24;

/// The tag of a version of a function. The newest version of a function is the least.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct VersionTag {
    function_hash: String,
    milliseconds_left: u64,
    id_hash: String,
}

impl VersionTag {
    /// Returns the tag of a version.
    pub(super) fn new(tenant: &Option<String>, version: &FunctionVersion) -> Self {
        let since = version.submitted_at.duration_since(SystemTime::UNIX_EPOCH);
        let milliseconds = u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(TIME_MAX);
        Self {
            function_hash: hash_of_function(tenant, &version.function),
            milliseconds_left: TIME_MAX.saturating_sub(milliseconds),
            id_hash: hash_of(&[&version.id], ID_DIGITS),
        }
    }

    /// Parses a tag. Returns `None` for any other tag of the repository.
    pub(super) fn parse(tag: &str) -> Option<Self> {
        let mut parts = tag.strip_prefix(VERSION_PREFIX)?.split('-');
        let mut part = |digits| {
            let is_hex = |part: &&str| {
                part.len() == digits && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
            };
            parts.next().filter(is_hex)
        };
        let (function, left, id) = (part(FUNCTION_DIGITS)?, part(TIME_DIGITS)?, part(ID_DIGITS)?);
        parts.next().is_none().then_some(Self {
            function_hash: function.to_owned(),
            milliseconds_left: u64::from_str_radix(left, 16).ok()?,
            id_hash: id.to_owned(),
        })
    }

    /// Returns the hash of the version's tenant and function.
    pub(super) fn function_hash(&self) -> &str {
        &self.function_hash
    }

    /// Returns the time at which the version was submitted.
    pub(super) fn submitted_at(&self) -> SystemTime {
        let since = Duration::from_millis(TIME_MAX.saturating_sub(self.milliseconds_left));
        SystemTime::UNIX_EPOCH
            .checked_add(since)
            .unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

impl fmt::Display for VersionTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            function_hash,
            milliseconds_left,
            id_hash,
        } = self;
        write!(
            f,
            "{VERSION_PREFIX}{function_hash}-{milliseconds_left:0TIME_DIGITS$x}-{id_hash}"
        )
    }
}

/// Returns what the tags of a function's versions begin with.
pub(super) fn version_tag_prefix(tenant: &Option<String>, function: &str) -> String {
    format!("{VERSION_PREFIX}{}-", hash_of_function(tenant, function))
}

fn hash_of_function(tenant: &Option<String>, function: &str) -> String {
    // The name of a tenant has no NUL, so no two pairs have the same text.
    hash_of(
        &[tenant.as_deref().unwrap_or_default(), function],
        FUNCTION_DIGITS,
    )
}

fn hash_of(parts: &[&str], digits: usize) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
        hash.update([0]);
    }
    let mut text = hex::encode(hash.finalize());
    text.truncate(digits);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::versions::VersionState;
    use crate::versions::tests::version;

    #[test]
    fn the_tag_of_a_newer_version_comes_first_and_begins_as_those_of_its_function_only() {
        let tag = |id: &str, seconds| {
            VersionTag::new(&None, &version(id, seconds, VersionState::Ready)).to_string()
        };
        assert!(tag("a", 2_000_000_000) < tag("b", 1_999_999_999));
        assert!(tag("a", 2_000_000_000).len() <= 128);
        assert_ne!(tag("a", 1), tag("b", 1));
        let prefix = version_tag_prefix(&None, "hello.openfaas-fn");
        assert!(tag("a", 1).starts_with(&prefix));
        for (tenant, function) in [
            (Some("hello.openfaas-fn".to_owned()), ""),
            (Some("acme".to_owned()), "hello.openfaas-fn"),
            (None, "hello.other"),
        ] {
            assert_ne!(version_tag_prefix(&tenant, function), prefix);
        }
    }

    #[test]
    fn a_tag_is_read_back_with_the_time_of_its_version_and_no_other_tag_is_one() {
        let version = version("a", 2_000_000_000, VersionState::Ready);
        let tag = VersionTag::new(&None, &version);
        let text = tag.to_string();
        assert_eq!(VersionTag::parse(&text), Some(tag.clone()));
        assert_eq!(tag.submitted_at(), version.submitted_at);
        for other in [
            "",
            "v-",
            "latest",
            &text[2..],
            &text[..text.len() - 1],
            &format!("{text}0"),
            &format!("{text}-0"),
            &text.to_uppercase(),
            &text.replacen("v-", "i-", 1),
        ] {
            assert_eq!(VersionTag::parse(other), None, "{other}");
        }
    }
}
