//! Deletes records that are too many or too old, and what is left of builds without a record.

mod versions;

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use function_host::ErrorChain;

use super::document::{ArtifactManifest, digest_of};
use super::index_tag::{BODY_PREFIX, INDEX_PREFIX, INPUTS_PREFIX, IndexTag, RECORD_PREFIX};
use super::{RECORD_AGE_MAX, RECORDS_MAX_PER_TENANT, RecordStore, StoreError};

/// The time between two sweeps, to which up to as much is added at random.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30 * 60);

/// The limit on the records that one sweep deletes, and on the versions, and on what has no record.
const DELETIONS_MAX_PER_SWEEP: usize = 2000;

/// The age at which what was written for a build without a record is deleted. Before that, the record may still be
/// written.
const ORPHAN_AGE: Duration = Duration::from_secs(24 * 60 * 60);

impl RecordStore {
    /// Deletes records beyond the limits, now and then, for as long as the process runs. `tenants` returns the current
    /// ones.
    pub async fn sweep_periodically(self, tenants: impl Fn() -> Vec<Option<String>> + Send) {
        loop {
            // At first too, so that builders that start together do not sweep together.
            tokio::time::sleep(SWEEP_INTERVAL.mul_f64(1.0 + fastrand::f64())).await;
            self.sweep(&tenants(), SystemTime::now()).await;
        }
    }

    /// Deletes the records of these tenants that are beyond the limits at the time `now`. A failure is logged: the next
    /// sweep tries again.
    pub async fn sweep(&self, tenants: &[Option<String>], now: SystemTime) {
        for tenant in tenants {
            if self.0.repository.refuses_deletion(tenant) {
                continue;
            }
            let swept = [
                self.sweep_builds(tenant, now).await,
                self.sweep_versions(tenant, now).await,
            ];
            for error in swept.into_iter().filter_map(Result::err) {
                let tenant = tenant.as_deref().unwrap_or_default();
                tracing::warn!(tenant, error = %ErrorChain(&error), "could not list records of builds to delete old ones");
            }
        }
    }

    /// Deletes the records of a tenant's builds that are beyond the limits, and what belongs to builds without a
    /// record.
    async fn sweep_builds(&self, tenant: &Option<String>, now: SystemTime) -> Result<(), StoreError> {
        let repository = &self.0.repository;
        // Before the index: what is recorded meanwhile has its entry there.
        let mut parts = Vec::new();
        for prefix in [BODY_PREFIX, INPUTS_PREFIX] {
            parts.extend(
                repository
                    .list_tags_after_and_maybe_earlier(tenant, prefix, prefix)
                    .await?,
            );
        }
        let tags = repository
            .list_tags_after_and_maybe_earlier(tenant, INDEX_PREFIX, INDEX_PREFIX)
            .await?;
        let orphans = parts_without_entries(&parts, &tags);
        let ExcessEntries { entries, kept_builds } = excess_entries(&tags, now);
        for entry in entries.into_iter().take(DELETIONS_MAX_PER_SWEEP) {
            let mut tags = Vec::new();
            if !kept_builds.contains(entry.hash()) {
                tags.push(entry.body_tag());
                tags.push(entry.inputs_tag());
            }
            // Last, so that what is left by a failure is found again.
            tags.push(entry.to_string());
            for tag in tags {
                self.delete_tagged_if_registry_allows(tenant, &tag).await?;
            }
        }
        for part in orphans.into_iter().take(DELETIONS_MAX_PER_SWEEP) {
            let Some(manifest) = repository.get(tenant, &part.tag).await? else {
                continue;
            };
            let is_new = ArtifactManifest::created_at(&manifest)
                .is_some_and(|created| age_at(now, created) < ORPHAN_AGE);
            // The list of the index may have been cut.
            let has_record = repository.get(tenant, &part.record_tag).await?.is_some();
            if !is_new && !has_record {
                repository.delete(tenant, &digest_of(&manifest)).await;
            }
        }
        Ok(())
    }

    /// Deletes the manifest that has the tag, and with it all its tags. A newer record of the same build has another
    /// manifest.
    async fn delete_tagged_if_registry_allows(
        &self,
        tenant: &Option<String>,
        tag: &str,
    ) -> Result<(), StoreError> {
        if let Some(digest) = self.0.repository.digest_of_tag(tenant, tag).await? {
            self.0.repository.delete(tenant, &digest).await;
        }
        Ok(())
    }
}

/// Returns the age at the time `now` of something from the time `then`; zero if that is later.
fn age_at(now: SystemTime, then: SystemTime) -> Duration {
    now.duration_since(then).unwrap_or_default()
}

/// Something that belongs to a build: the body of its request, or what it was made from.
#[derive(Debug, PartialEq, Eq)]
struct BodyOrInputsTag {
    tag: String,
    /// The tag that the current record of the same build would have.
    record_tag: String,
}

/// Returns those among the tags `parts` whose builds have no entry among the tags of the index.
fn parts_without_entries(parts: &[String], index: &[String]) -> Vec<BodyOrInputsTag> {
    let entries = index.iter().filter_map(|tag| IndexTag::parse(tag));
    let recorded: HashSet<_> = entries.map(|entry| entry.hash().to_owned()).collect();
    let hash_of = |tag: &str| {
        let hash = tag
            .strip_prefix(BODY_PREFIX)
            .or_else(|| tag.strip_prefix(INPUTS_PREFIX))?;
        (!recorded.contains(hash)).then(|| hash.to_owned())
    };
    let orphans = parts.iter().filter_map(|tag| {
        Some(BodyOrInputsTag {
            record_tag: format!("{RECORD_PREFIX}{}", hash_of(tag)?),
            tag: tag.clone(),
        })
    });
    orphans.collect()
}

/// The entries of the index that are beyond the limits.
struct ExcessEntries {
    /// The entries, the oldest first.
    entries: Vec<IndexTag>,
    /// The hashes of builds that have other entries, which are kept.
    kept_builds: HashSet<String>,
}

/// Returns the entries among `tags` that are beyond the limits.
fn excess_entries(tags: &[String], now: SystemTime) -> ExcessEntries {
    let mut entries: Vec<_> = tags.iter().filter_map(|tag| IndexTag::parse(tag)).collect();
    entries.sort_unstable_by(|one, other| other.cmp(one));
    let is_old = |entry: &IndexTag| {
        now.duration_since(entry.accepted_claimed_or_handed_back_at())
            .is_ok_and(|age| age > RECORD_AGE_MAX)
    };
    let kept = entries
        .iter()
        .take(RECORDS_MAX_PER_TENANT)
        .filter(|entry| !is_old(entry));
    let kept: HashSet<_> = kept.cloned().collect();
    entries.retain(|entry| !kept.contains(entry));
    entries.reverse();
    ExcessEntries {
        entries,
        kept_builds: kept.iter().map(|entry| entry.hash().to_owned()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builds::RecordKey;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    #[test]
    fn parts_of_builds_without_an_entry_are_found_by_their_hashes() {
        let key = |id: &str| RecordKey {
            tenant: None,
            id: id.to_owned(),
        };
        let entry = IndexTag::new(&key("recorded"), now(), "0123456789abcdef");
        let orphan = IndexTag::new(&key("orphan"), now(), "0123456789abcdef");
        let parts = [
            entry.body_tag(),
            entry.inputs_tag(),
            orphan.body_tag(),
            orphan.inputs_tag(),
        ];
        let found = parts_without_entries(&parts, &[entry.to_string(), "i-broken".to_owned()]);
        let expected = [orphan.body_tag(), orphan.inputs_tag()].map(|tag| BodyOrInputsTag {
            tag,
            record_tag: orphan.record_tag(),
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn excess_entries_are_those_too_old_or_too_many_the_oldest_first() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let tag = |number: u64| {
            let key = RecordKey {
                tenant: None,
                id: number.to_string(),
            };
            let age = Duration::from_secs(number);
            IndexTag::new(&key, now.checked_sub(age).unwrap(), "0123456789abcdef").to_string()
        };
        let few: Vec<_> = [0, 1, RECORD_AGE_MAX.as_secs(), RECORD_AGE_MAX.as_secs() + 1]
            .map(tag)
            .into_iter()
            .chain(["latest".to_owned()])
            .collect();
        let excess: Vec<_> = excess_entries(&few, now)
            .entries
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(excess, [tag(RECORD_AGE_MAX.as_secs() + 1)]);

        let many: Vec<_> = (0..RECORDS_MAX_PER_TENANT as u64 + 2).map(tag).collect();
        let excess: Vec<_> = excess_entries(&many, now)
            .entries
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            excess,
            [
                tag(RECORDS_MAX_PER_TENANT as u64 + 1),
                tag(RECORDS_MAX_PER_TENANT as u64)
            ]
        );
    }
}
