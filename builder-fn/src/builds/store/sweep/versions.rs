//! Deletes the versions of functions that have not been deployed for long, or that are beyond the limit.
//!
//! Tags order the versions and choose the functions. What is deleted depends on what the versions themselves say: a tag
//! has only the time that the caller gave, which may be wrong, and not whether its version was ready.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use super::super::version_tag::{VERSION_PREFIX, VersionTag};
use super::super::{RecordStore, StoreError};
use super::{DELETIONS_MAX_PER_SWEEP, age_at};
use crate::versions::{FunctionVersion, VersionState};

/// The limit on the functions of a tenant whose versions are kept.
const FUNCTIONS_MAX: usize = 2000;

/// The age of a function's newest version at which all its versions are deleted, except the last one that was ready.
const VERSION_AGE_MAX: Duration = Duration::from_secs(180 * 24 * 60 * 60);

/// The time after a deployment for which the versions of its function are kept, however many functions there are.
const RECENT_AGE: Duration = Duration::from_secs(24 * 60 * 60);

impl RecordStore {
    /// Deletes the versions of functions that have not been deployed for long, or that are beyond the limit.
    pub(super) async fn sweep_versions(
        &self,
        tenant: &Option<String>,
        now: SystemTime,
    ) -> Result<(), StoreError> {
        let tags = self
            .0
            .repository
            .list_tags_after_and_maybe_earlier(tenant, VERSION_PREFIX, VERSION_PREFIX)
            .await?;
        let mut deletions_left = DELETIONS_MAX_PER_SWEEP;
        for function in functions_undeployed_for_long_or_beyond_limit(&tags, now) {
            let mut versions = Vec::with_capacity(function.tags.len());
            for tag in &function.tags {
                versions.push(
                    self.read_version_unless_missing_or_unreadable(tenant, &tag.to_string())
                        .await?,
                );
            }
            for tag in function
                .tags_to_delete(&versions, now)
                .into_iter()
                .take(deletions_left)
            {
                self.delete_tagged_if_registry_allows(tenant, &tag.to_string())
                    .await?;
                deletions_left -= 1;
            }
            if deletions_left == 0 {
                break;
            }
        }
        Ok(())
    }
}

/// A function whose versions may have to be deleted.
#[derive(Debug)]
struct CheckedFunction {
    /// The tags of its versions, the newest first.
    tags: Vec<VersionTag>,
    /// Whether the functions that were deployed after this one fill the limit on kept functions.
    is_beyond_limit: bool,
}

impl CheckedFunction {
    /// Returns the age that the last deployment of the function has at least if its versions are deleted.
    fn last_deployment_age_max(&self) -> Duration {
        match self.is_beyond_limit {
            true => RECENT_AGE,
            false => VERSION_AGE_MAX,
        }
    }

    /// Returns the tags to delete, the oldest first. `versions` are those of the tags; `None` for one that cannot be
    /// read any more.
    fn tags_to_delete(&self, versions: &[Option<FunctionVersion>], now: SystemTime) -> Vec<&VersionTag> {
        // The caller's time is not believed alone: a clock that is behind made no version old.
        let deployed_at = |version: &FunctionVersion| version.submitted_at.max(version.built_at);
        let mut known = versions.iter().flatten();
        if known.any(|version| age_at(now, deployed_at(version)) <= self.last_deployment_age_max()) {
            return Vec::new();
        }
        // The function may still run, and a rollback needs its last good version.
        let is_ready = |version: &FunctionVersion| version.state == VersionState::Ready;
        let kept = versions
            .iter()
            .position(|version| version.as_ref().is_some_and(is_ready))
            .filter(|_| !self.is_beyond_limit);
        let tags = self.tags.iter().enumerate().rev();
        tags.filter(|(index, _)| Some(*index) != kept)
            .map(|(_, tag)| tag)
            .collect()
    }
}

/// Returns the functions among `tags` whose newest version is too old by its tag, or that are beyond the limit and were
/// not deployed a short time ago. The function that was deployed the longest time ago comes first.
fn functions_undeployed_for_long_or_beyond_limit(tags: &[String], now: SystemTime) -> Vec<CheckedFunction> {
    let mut by_function: BTreeMap<String, Vec<VersionTag>> = BTreeMap::new();
    for tag in tags.iter().filter_map(|tag| VersionTag::parse(tag)) {
        by_function
            .entry(tag.function_hash().to_owned())
            .or_default()
            .push(tag);
    }
    let newest = |versions: &[VersionTag]| versions.iter().map(VersionTag::submitted_at).max();
    let mut functions: Vec<_> = by_function
        .into_values()
        .filter_map(|versions| Some((newest(&versions)?, versions)))
        .collect();
    functions.sort_by_key(|(newest, _)| Reverse(*newest));
    let functions = functions.into_iter().enumerate().rev();
    let checked = functions.filter_map(|(rank, (newest, mut tags))| {
        tags.sort_unstable();
        tags.dedup();
        let function = CheckedFunction {
            tags,
            is_beyond_limit: rank >= FUNCTIONS_MAX,
        };
        (age_at(now, newest) > function.last_deployment_age_max()).then_some(function)
    });
    checked.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::versions::tests::version;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    /// Returns a version of `function` that was submitted and built `age` before [`now`].
    fn aged_version(function: &str, id: &str, age: Duration, state: VersionState) -> FunctionVersion {
        let mut version = version(id, 0, state);
        version.function = function.to_owned();
        version.submitted_at = now() - age;
        version.built_at = now() - age;
        version
    }

    fn ready(function: &str, id: &str, age: Duration) -> FunctionVersion {
        aged_version(function, id, age, VersionState::Ready)
    }

    fn tag_of(version: &FunctionVersion) -> String {
        VersionTag::new(&None, version).to_string()
    }

    /// Returns the IDs of the versions that a sweep at the time `now` deletes, in this order. `None` for those in
    /// `unreadable`.
    fn ids_of_deleted_versions(
        versions: &[FunctionVersion],
        unreadable: &[&str],
        now: SystemTime,
    ) -> Vec<String> {
        let mut tags: Vec<_> = versions.iter().map(tag_of).collect();
        tags.extend(["latest".to_owned(), "v-".to_owned()]);
        let find = |tag: &VersionTag| {
            let found = versions.iter().find(|version| tag_of(version) == tag.to_string());
            found.expect("a version with the tag")
        };
        let mut ids = Vec::new();
        for function in functions_undeployed_for_long_or_beyond_limit(&tags, now) {
            let read = function.tags.iter().map(find);
            let read: Vec<_> = read
                .map(|version| (!unreadable.contains(&version.id.as_str())).then(|| version.clone()))
                .collect();
            let deleted = function.tags_to_delete(&read, now);
            ids.extend(deleted.into_iter().map(|tag| find(tag).id.clone()));
        }
        ids
    }

    #[test]
    fn half_a_year_after_the_last_deployment_only_the_last_ready_version_of_a_function_is_kept() {
        use VersionState::{Deploying, Sent, Unverified};
        let days = |days: u32| DAY * days;
        let versions = [
            ready("used", "used-new", days(179)),
            ready("used", "used-old", days(400)),
            aged_version("old", "old-unverified", days(181), Unverified),
            ready("old", "old-ready", days(182)),
            ready("old", "old-first", days(183)),
            aged_version("unknown", "unknown-new", days(190), Sent),
            aged_version("unknown", "unknown-old", days(191), Deploying),
        ];
        assert_eq!(
            ids_of_deleted_versions(&versions, &[], now()),
            ["unknown-old", "unknown-new", "old-first", "old-unverified"]
        );
        assert_eq!(
            ids_of_deleted_versions(&versions, &["old-ready"], now()),
            ["unknown-old", "unknown-new", "old-ready", "old-unverified"],
            "what no key opens cannot be deployed again"
        );
        assert_eq!(ids_of_deleted_versions(&versions, &[], now() - days(11)), [""; 0]);
    }

    #[test]
    fn a_version_that_was_built_recently_is_new_however_old_the_callers_time_is() {
        let mut behind = ready("hello", "behind", DAY * 1000);
        behind.built_at = now() - DAY;
        let older = ready("hello", "older", DAY * 2000);
        let versions = [behind, older];
        assert_eq!(ids_of_deleted_versions(&versions, &[], now()), [""; 0]);
        assert_eq!(
            ids_of_deleted_versions(&versions, &[], now() + DAY * 178),
            [""; 0]
        );
        assert_eq!(
            ids_of_deleted_versions(&versions, &[], now() + DAY * 180),
            ["older"]
        );
    }

    #[test]
    fn a_version_from_ahead_of_the_clock_is_as_new_as_one_from_now() {
        let mut ahead = ready("hello", "ahead", Duration::ZERO);
        ahead.submitted_at = now() + DAY;
        assert_eq!(ids_of_deleted_versions(&[ahead], &[], now()), [""; 0]);
    }

    #[test]
    fn functions_beyond_the_limit_lose_their_versions_the_longest_undeployed_first_and_none_of_the_last_day()
    {
        let count = FUNCTIONS_MAX as u32;
        let name = |number: u32| format!("function-{number}");
        let mut versions: Vec<_> = (0..count)
            .map(|number| {
                let age = DAY * 2 + Duration::from_secs(number.into());
                ready(&name(number), &name(number), age)
            })
            .collect();
        assert_eq!(ids_of_deleted_versions(&versions, &[], now()), [""; 0]);
        // Deployed first, and again today: what was deployed in between is kept for that.
        versions.push(ready("busy", "busy-old", DAY * 100));
        versions.push(ready("busy", "busy-new", Duration::ZERO));
        versions.push(ready("older", "older-new", DAY * 3));
        versions.push(ready("older", "older-old", DAY * 4));
        assert_eq!(
            ids_of_deleted_versions(&versions, &[], now()),
            ["older-old", "older-new", &name(count - 1)]
        );
        versions[FUNCTIONS_MAX - 1].built_at = now();
        assert_eq!(
            ids_of_deleted_versions(&versions, &[], now()),
            ["older-old", "older-new"]
        );

        let today: Vec<_> = (0..count + 10)
            .map(|number| ready(&name(number), &name(number), DAY))
            .collect();
        assert_eq!(ids_of_deleted_versions(&today, &[], now()), [""; 0]);
    }

    proptest! {
        #[test]
        fn a_sweep_keeps_the_last_ready_version_of_every_function_and_all_of_one_that_was_deployed_recently(
            ages in proptest::collection::vec((0_u32..3, 0_u32..400, 0_u32..400, any::<bool>()), 0..30)
        ) {
            let versions: Vec<_> = ages
                .iter()
                .enumerate()
                .map(|(number, (function, submitted, built, is_ready))| {
                    let state = if *is_ready { VersionState::Ready } else { VersionState::Unverified };
                    let id = number.to_string();
                    let mut version = aged_version(&function.to_string(), &id, DAY * *submitted, state);
                    version.built_at = now() - DAY * *built;
                    version
                })
                .collect();
            let deleted = ids_of_deleted_versions(&versions, &[], now());
            for function in ["0", "1", "2"] {
                let own = || versions.iter().filter(|version| version.function == function);
                let is_deleted = |version: &FunctionVersion| deleted.contains(&version.id);
                let is_recent = |version: &FunctionVersion| {
                    now() - VERSION_AGE_MAX <= version.submitted_at.max(version.built_at)
                };
                if own().any(is_recent) {
                    prop_assert!(!own().any(is_deleted));
                    continue;
                }
                let ready = own().filter(|version| version.state == VersionState::Ready);
                let last = ready.map(|version| version.submitted_at).max();
                let kept: Vec<_> = own().filter(|version| !is_deleted(version)).collect();
                prop_assert_eq!(kept.len(), usize::from(last.is_some()));
                prop_assert_eq!(kept.first().map(|version| version.submitted_at), last);
            }
        }
    }
}
