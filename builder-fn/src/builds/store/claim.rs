//! Takes over the builds of processes that have gone.
//!
//! A registry has no locks, so a claim is written, and counts if it is still there a moment later. Two processes that both
//! count theirs run the same build, which BuildKit builds once.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::{Map, Value};

use super::document::{RecordManifest, StoredBody, StoredRecord};
use super::index_tag::{self, IndexTag, RELEASED_OWNER};
use super::lease::{BEATS, ObservedOwners};
use super::{AGE_MAX, READERS, RECORDS_MAX, RecordPlace, RecordStore, ResumableRequest, StoreError};
use crate::builds::{BuildPhase, RecordKey};

/// The age up to which an unfinished build is resumed. After that, nobody waits for it.
const RESUMED_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The number of builds that one process claims at a time, so that others get their share.
pub(super) const CLAIMS_MAX: usize = 16;

/// The number of times that a build is resumed after its builder has gone. One that has gone with so many may be the reason.
const RESUMPTIONS_MAX: u32 = 3;

/// The error of a build that no builder has resumed in time.
const LATE_ERROR: &str = "the builder that accepted this build stopped before its end, and no other has resumed it within 24 hours; \
                          send it again";

/// The error of a build that ends every builder.
const FATAL_ERROR: &str =
    "every builder that ran this build stopped before its end; it is not resumed any more";

/// The error of a build whose builder has gone, and that cannot be resumed.
const LOST_ERROR: &str = "the builder that accepted this build stopped before its end, and the request cannot be resumed: \
                          its body is too large for a record, or not signed, or its answer carries the hand-over; send it again";

/// A build of a process that has gone, which this process resumes.
#[derive(Debug)]
pub(crate) struct ClaimedBuild {
    /// The tenant and the ID of the build.
    pub(crate) key: RecordKey,
    /// What the build is resumed with.
    pub(crate) request: ResumableRequest,
    /// The body of the request.
    pub(crate) body: Bytes,
    /// The place of the build's record.
    pub(crate) place: RecordPlace,
}

/// What a process knows of the records of others, from one search to the next.
#[derive(Debug, Default)]
pub(crate) struct ClaimSearch {
    owners: ObservedOwners,
    /// Entries of builds that have ended, or that another process has taken over.
    settled: HashSet<(Option<String>, IndexTag)>,
}

impl RecordStore {
    /// Renews the sign that this process lives, for as long as it has builds that are not finished.
    pub(crate) async fn renew_sign_periodically(&self) {
        for beat in (0..BEATS).cycle() {
            if self.0.unfinished.load(std::sync::atomic::Ordering::Relaxed) > 0 {
                let manifest = RecordManifest::of_sign(beat);
                let tag = index_tag::owner_tag(&self.0.owner);
                let put = self.0.repository.put(&None, &tag, &manifest);
                match tokio::time::timeout(self.0.times.beat, put).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        let error = function_host::ErrorChain(&error).to_string();
                        tracing::warn!(error, "could not renew the sign that this builder lives");
                    }
                    Err(_) => tracing::warn!(
                        "the registry takes too long to renew the sign that this builder lives"
                    ),
                }
            }
            tokio::time::sleep(self.0.times.beat).await;
        }
    }

    /// Returns the time between two searches for unfinished builds.
    pub(crate) fn search_interval(&self) -> Duration {
        self.0.times.search
    }

    /// Claims builds of a tenant that processes which have gone left unfinished, and returns those that this process now has
    /// to resume.
    ///
    /// # Errors
    /// Fails if the registry cannot be read.
    pub(crate) async fn claim_unfinished(
        &self,
        search: &mut ClaimSearch,
        tenant: &Option<String>,
    ) -> Result<Vec<ClaimedBuild>, StoreError> {
        let tags = self.0.repository.list_tags(tenant).await?;
        let entries = index_tag::newest_of_each(&tags, RECORDS_MAX);
        let mut of_owners: HashMap<String, Vec<IndexTag>> = HashMap::new();
        for entry in entries {
            let is_settled = search.settled.contains(&(tenant.clone(), entry.clone()));
            if !is_settled && entry.owner() != self.0.owner {
                of_owners.entry(entry.owner().to_owned()).or_default().push(entry);
            }
        }
        let mut claimed = Vec::new();
        for (owner, entries) in of_owners {
            let digest = self
                .0
                .repository
                .digest(&None, &index_tag::owner_tag(&owner))
                .await?;
            if search.owners.observe(&owner, digest, self.0.times.stale_after) {
                self.claim_of_owner(search, tenant, &owner, entries, &mut claimed)
                    .await?;
            }
            if claimed.len() >= CLAIMS_MAX {
                break;
            }
        }
        if claimed.is_empty() {
            return Ok(Vec::new());
        }
        tokio::time::sleep(self.0.times.settle).await;
        let mut builds = Vec::new();
        for (request, body, place) in claimed {
            builds.extend(self.confirm_claim(request, &body, place).await?);
        }
        Ok(builds)
    }

    /// Claims builds that `owner`, which has gone, left unfinished.
    async fn claim_of_owner(
        &self,
        search: &mut ClaimSearch,
        tenant: &Option<String>,
        owner: &str,
        entries: Vec<IndexTag>,
        claimed: &mut Vec<(ResumableRequest, StoredBody, RecordPlace)>,
    ) -> Result<(), StoreError> {
        let mut records = stream::iter(entries)
            .map(|entry| async move {
                let record = self.read_tag(tenant, &entry.record_tag()).await;
                (entry, record)
            })
            .buffer_unordered(READERS);
        while let Some((entry, record)) = records.next().await {
            let record = match record {
                Ok(record) => record,
                Err(StoreError::OtherKey | StoreError::Malformed) => None,
                Err(error) => return Err(error),
            };
            let open = record.filter(|record| record.owner == owner && !record.build.phase.is_terminal());
            let Some(record) = open else {
                search.settled.insert((tenant.clone(), entry));
                continue;
            };
            let key = RecordKey {
                tenant: tenant.clone(),
                id: record.build.id.clone(),
            };
            let mut place = self.place(key, SystemTime::now());
            let StoredRecord {
                mut build,
                request,
                body,
                ..
            } = record;
            // Not by the tag, which whoever writes to the registry can choose.
            let is_old = |request: &ResumableRequest| {
                let age = SystemTime::now().duration_since(request.arrived);
                age.is_ok_and(|age| age > RESUMED_AGE_MAX)
            };
            let resumed = match request.zip(body) {
                None => Err(LOST_ERROR),
                Some((request, _)) if is_old(&request) => Err(LATE_ERROR),
                Some((request, _)) if request.resumptions >= RESUMPTIONS_MAX => Err(FATAL_ERROR),
                Some((mut request, body)) => {
                    request.resumptions += u32::from(owner != RELEASED_OWNER);
                    Ok((request, body))
                }
            };
            match resumed {
                Ok((request, body)) => {
                    let claim = Some((request.clone(), body.clone()));
                    self.write(&mut place, build, claim).await?;
                    claimed.push((request, body, place));
                }
                Err(error) => {
                    tracing::warn!(call_id = build.id, reason = error, "an accepted build is lost");
                    build.phase = BuildPhase::Failed;
                    build.ended_at = Some(SystemTime::now());
                    build.outcome = Map::from_iter([("error".to_owned(), Value::from(error))]);
                    self.write(&mut place, build, None).await?;
                }
            }
            if claimed.len() >= CLAIMS_MAX {
                break;
            }
        }
        Ok(())
    }

    /// Returns a claimed build with what it is resumed with, unless another process has claimed it since.
    async fn confirm_claim(
        &self,
        request: ResumableRequest,
        body: &StoredBody,
        place: RecordPlace,
    ) -> Result<Option<ClaimedBuild>, StoreError> {
        let current = self.read_stored(&place.key).await?;
        let is_own = current
            .is_some_and(|current| current.owner == self.0.owner && !current.build.phase.is_terminal());
        if !is_own {
            return Ok(None);
        }
        let sealed = self.0.repository.get_blob(&place.key.tenant, body).await?;
        let Some(sealed) = sealed else {
            tracing::warn!(
                call_id = place.key.id,
                "a build cannot be resumed: the registry has lost its request"
            );
            return Ok(None);
        };
        let body = self.0.seal.open(&place.key.tenant, &sealed)?;
        Ok(Some(ClaimedBuild {
            key: place.key.clone(),
            request,
            body: body.into(),
            place,
        }))
    }
}

impl ClaimSearch {
    /// Forgets what is of no use any more, so that a search takes no more memory with time.
    pub(crate) fn forget_old(&mut self) {
        let now = SystemTime::now();
        self.owners.forget_older_than(RESUMED_AGE_MAX);
        self.settled.retain(|(_, entry)| {
            now.duration_since(entry.accepted_at())
                .is_ok_and(|age| age < AGE_MAX)
        });
    }
}
