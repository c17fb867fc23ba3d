//! The tags of records.
//!
//! `r-HASH` is the current record of a build, and `i-TIME-OWNER-HASH` its entry in the index. TIME is that of the
//! acceptance in milliseconds since 1970, OWNER the process that accepted the call, and HASH the SHA-256 of tenant and
//! ID; all of them in hexadecimal digits of a fixed length. `b-HASH` is the body of a request, `m-HASH` what the
//! build was made from, and `o-OWNER` the sign that a process lives. A tag has at most 128 characters.

use std::collections::HashSet;
use std::fmt;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use crate::builds::RecordKey;

/// The beginning of the tags of entries in the index.
pub(super) const INDEX_PREFIX: &str = "i-";

/// The beginning of the tags of current records.
pub(super) const RECORD_PREFIX: &str = "r-";

/// The beginning of the tags of bodies of requests.
pub(super) const BODY_PREFIX: &str = "b-";

/// The beginning of the tags of what builds were made from.
pub(super) const INPUTS_PREFIX: &str = "m-";

/// The number of digits of a time: enough for 8,900 years.
const TIME_DIGITS: usize = 12;

/// The number of digits of an owner's name.
const OWNER_DIGITS: usize = 16;

/// The number of digits of a hash.
const HASH_DIGITS: usize = 40;

/// The owner of builds that their builder has handed back. No process has this name.
pub(super) const RELEASED_OWNER: &str = "0000000000000000";

/// The tag of a record's entry in the index. They are ordered by the times of the acceptances.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct IndexTag {
    milliseconds: u64,
    owner: String,
    hash: String,
}

impl IndexTag {
    /// Returns the tag for a build that was accepted at the time `accepted_at` by the process `owner`.
    pub(super) fn new(key: &RecordKey, accepted_at: SystemTime, owner: &str) -> Self {
        let since = accepted_at.duration_since(SystemTime::UNIX_EPOCH);
        Self {
            milliseconds: u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or_default(),
            owner: owner.to_owned(),
            hash: hash_of(key),
        }
    }

    /// Parses a tag. Returns `None` for any other tag of the repository.
    pub(super) fn parse(tag: &str) -> Option<Self> {
        let mut parts = tag.strip_prefix(INDEX_PREFIX)?.split('-');
        let mut part = |digits| {
            let is_hex = |part: &&str| {
                part.len() == digits && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
            };
            parts.next().filter(is_hex)
        };
        let (time, owner, hash) = (part(TIME_DIGITS)?, part(OWNER_DIGITS)?, part(HASH_DIGITS)?);
        parts.next().is_none().then_some(Self {
            milliseconds: u64::from_str_radix(time, 16).ok()?,
            owner: owner.to_owned(),
            hash: hash.to_owned(),
        })
    }

    /// Returns the tag of the current record of the same build.
    pub(super) fn record_tag(&self) -> String {
        format!("{RECORD_PREFIX}{}", self.hash)
    }

    /// Returns the tag of the body of the same build's request.
    pub(super) fn body_tag(&self) -> String {
        format!("{BODY_PREFIX}{}", self.hash)
    }

    /// Returns the tag of what the same build was made from.
    pub(super) fn inputs_tag(&self) -> String {
        format!("{INPUTS_PREFIX}{}", self.hash)
    }

    /// Returns the hash of the build's tenant and ID.
    pub(super) fn hash(&self) -> &str {
        &self.hash
    }

    /// Returns the process that has accepted the build, or has taken it over.
    pub(super) fn owner(&self) -> &str {
        &self.owner
    }

    /// Returns the time at which the build was accepted, claimed or handed back.
    pub(super) fn accepted_claimed_or_handed_back_at(&self) -> SystemTime {
        let since = Duration::from_millis(self.milliseconds);
        SystemTime::UNIX_EPOCH
            .checked_add(since)
            .unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

impl fmt::Display for IndexTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            milliseconds,
            owner,
            hash,
        } = self;
        write!(f, "{INDEX_PREFIX}{milliseconds:0TIME_DIGITS$x}-{owner}-{hash}")
    }
}

/// Returns the tag of a build's current record.
pub(super) fn record_tag(key: &RecordKey) -> String {
    format!("{RECORD_PREFIX}{}", hash_of(key))
}

/// Returns the tag of what a build was made from.
pub(super) fn inputs_tag(key: &RecordKey) -> String {
    format!("{INPUTS_PREFIX}{}", hash_of(key))
}

/// Returns a tag after which come the entries that were accepted since `time`, in the order of tags by name.
pub(super) fn tag_before_entries_since(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{INDEX_PREFIX}{:0TIME_DIGITS$x}", since.as_millis())
}

/// Returns the tag of the sign of life of the process `owner`.
pub(super) fn sign_of_life_tag_of_owner(owner: &str) -> String {
    format!("o-{owner}")
}

/// Returns a new random name for a process, which no other process has.
pub(super) fn random_owner() -> String {
    let mut name = uuid::Uuid::new_v4().simple().to_string();
    name.truncate(OWNER_DIGITS);
    name
}

/// Returns the newest entry of each build among `tags`, the newest first, and at most `limit` of them.
pub(super) fn newest_entry_of_each_build(tags: &[String], limit: usize) -> Vec<IndexTag> {
    let mut entries: Vec<_> = tags.iter().filter_map(|tag| IndexTag::parse(tag)).collect();
    entries.sort_unstable_by(|one, other| other.cmp(one));
    let mut seen = HashSet::new();
    entries.retain(|entry| seen.insert(entry.hash.clone()));
    entries.truncate(limit);
    entries
}

fn hash_of(key: &RecordKey) -> String {
    let mut hash = Sha256::new();
    // The name of a tenant has no NUL, so no two pairs have the same text.
    hash.update(key.tenant.as_deref().unwrap_or_default());
    hash.update([0]);
    hash.update(&key.id);
    let mut digits = hex::encode(hash.finalize());
    digits.truncate(HASH_DIGITS);
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(tenant: Option<&str>, id: &str) -> RecordKey {
        RecordKey {
            tenant: tenant.map(str::to_owned),
            id: id.to_owned(),
        }
    }

    fn tag_at(id: &str, milliseconds: u64) -> IndexTag {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds);
        IndexTag::new(&key(None, id), time, "0123456789abcdef")
    }

    #[test]
    fn a_tag_of_any_id_is_valid_in_a_registry_and_read_back_and_other_tags_are_not_parsed() {
        let long = "x".repeat(5000);
        for id in ["a", "build/7 of a\u{e4}\n", "", &long] {
            let tag = tag_at(id, 1_795_948_800_123);
            let text = tag.to_string();
            assert!(text.len() <= 128, "{text}");
            assert!(
                text.bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'),
                "{text}"
            );
            assert_eq!(IndexTag::parse(&text), Some(tag));
        }
        for text in [
            "",
            "latest",
            "i-",
            "r-00",
            "i-1-2-3",
            "i-00000000000g-0123456789abcdef-0",
        ] {
            assert_eq!(IndexTag::parse(text), None, "{text}");
        }
    }

    #[test]
    fn record_tags_differ_for_each_tenant_and_id() {
        let keys = [
            key(None, "a"),
            key(Some("a"), ""),
            key(Some("a"), "a"),
            key(None, "\0a"),
            key(Some("aa"), ""),
        ];
        let tags: HashSet<_> = keys.iter().map(record_tag).collect();
        assert_eq!(tags.len(), keys.len());
    }

    #[test]
    fn the_newest_entry_of_each_build_is_listed_newest_first() {
        let tags: Vec<_> = [("a", 1), ("b", 2), ("a", 3), ("c", 0)]
            .map(|(id, time)| tag_at(id, time).to_string())
            .into_iter()
            .chain(["latest".to_owned()])
            .collect();
        assert_eq!(
            newest_entry_of_each_build(&tags, 10),
            [tag_at("a", 3), tag_at("b", 2), tag_at("c", 0)]
        );
        assert_eq!(newest_entry_of_each_build(&tags, 1), [tag_at("a", 3)]);
    }
}
