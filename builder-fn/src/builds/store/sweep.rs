//! Deletes records that are too many or too old.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use function_host::ErrorChain;

use super::index_tag::{INDEX_PREFIX, IndexTag};
use super::{RECORD_AGE_MAX, RECORDS_MAX_PER_TENANT, RecordStore, StoreError};

/// The time between two sweeps, to which up to as much is added at random.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30 * 60);

/// The limit on the records that one sweep deletes.
const DELETIONS_MAX_PER_SWEEP: usize = 2000;

impl RecordStore {
    /// Deletes records beyond the limits, now and then, for as long as the process runs. `tenants` returns the current
    /// ones.
    pub async fn sweep_periodically(self, tenants: impl Fn() -> Vec<Option<String>> + Send) {
        loop {
            // At first too, so that builders that start together do not sweep together.
            tokio::time::sleep(SWEEP_INTERVAL.mul_f64(1.0 + fastrand::f64())).await;
            for tenant in tenants() {
                if let Err(error) = self.sweep(&tenant, SystemTime::now()).await {
                    let tenant = tenant.unwrap_or_default();
                    tracing::warn!(tenant, error = %ErrorChain(&error), "could not list records of builds to delete old ones");
                }
            }
        }
    }

    /// Deletes the records of a tenant that are beyond the limits at the time `now`.
    async fn sweep(&self, tenant: &Option<String>, now: SystemTime) -> Result<(), StoreError> {
        let repository = &self.0.repository;
        if repository.refuses_deletion(tenant) {
            return Ok(());
        }
        let tags = repository.list_tags(tenant, INDEX_PREFIX, INDEX_PREFIX).await?;
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
                // With the manifest, all its tags are deleted. A newer record of the same build has another manifest.
                if let Some(digest) = repository.digest_of_tag(tenant, &tag).await? {
                    repository.delete(tenant, &digest).await;
                }
            }
        }
        Ok(())
    }
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
        now.duration_since(entry.accepted_at())
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
