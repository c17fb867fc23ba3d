//! Takes over the builds of processes that have gone.
//!
//! A registry has no locks, so a claim is written, and counts if it is still there a moment later. Two processes that
//! both count theirs run the same build, which BuildKit builds once.
//!
//! The entries in the index say where to look, and the record itself says who runs the build: of two processes that
//! claim a build, one writes the record last, whatever entry is the newest.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use function_host::ErrorChain;
use futures_util::{StreamExt, stream};
use serde_json::{Map, Value};

use super::document::{ArtifactManifest, StoredBodyDigest, StoredRecord};
use super::index_tag::{self, IndexTag, RELEASED_OWNER};
use super::lease::{DISTINCT_SIGNS_OF_LIFE, ObservedOwners};
use super::{
    CONCURRENT_READS, RECORD_AGE_MAX, RECORDS_MAX_PER_TENANT, RecordPlace, RecordStore, ResumableRequestHead,
    SealedContent, StoreError, lock,
};
use crate::builds::{BuildPhase, BuildRecord, RecordKey};

/// The age up to which an unfinished build is resumed. After that, nobody waits for it.
const RESUMED_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The age from which an entry without a record counts as settled: its record was never written.
const MISSING_RECORD_SETTLED_AGE: Duration = Duration::from_secs(60 * 60);

/// The largest number of builds that one process claims at a time, so that others get their share.
const CLAIMS_MAX: usize = 16;

/// The largest number of times that a build is resumed after its builder has gone. One whose builders all went may be
/// the reason.
const RESUMPTIONS_MAX: u32 = 3;

/// The error of a build that no builder has resumed in time.
const NOT_RESUMED_IN_TIME_ERROR: &str = "the builder that accepted this build stopped before its end, and no other has resumed it within 24 hours; \
                          send it again";

/// The error of a build whose builders have all stopped, as often as it may be resumed.
const RESUMED_TOO_OFTEN_ERROR: &str =
    "every builder that ran this build stopped before its end; it is not resumed any more";

/// The error of a build whose builder has gone, and that cannot be resumed.
const NOT_RESUMABLE_ERROR: &str = "the builder that accepted this build stopped before its end, and the request cannot be resumed: \
                          its body is too large for a record, or not signed, or its answer carries the hand-over; send it again";

/// The error of a rollback whose builder has gone.
const LOST_ROLLBACK_ERROR: &str = "the builder that ran this rollback stopped before its end; the deployer may have finished it: \
                                   see what runs, and roll back again if it is another version";

/// The error of a build whose builder has gone, and whose request the registry has lost.
const REQUEST_BODY_LOST_ERROR: &str = "the builder that accepted this build stopped before its end, and the registry does not have its \
                             request any more; send it again";

/// A build of a process that has gone, which this process resumes.
#[derive(Debug)]
pub(crate) struct ClaimedBuild {
    /// The tenant and the ID of the build.
    pub(crate) key: RecordKey,
    /// The number of attempts that the build's record has.
    pub(crate) attempts: u32,
    /// What the build is resumed with.
    pub(crate) request: ResumableRequestHead,
    /// The body of the request.
    pub(crate) body: Bytes,
    /// The place of the build's record.
    pub(crate) place: RecordPlace,
}

/// A claim that is not confirmed yet.
#[derive(Debug)]
struct ClaimInProgress {
    build: BuildRecord,
    request: ResumableRequestHead,
    body: StoredBodyDigest,
    place: RecordPlace,
    /// The process that left the build unfinished.
    owner: String,
    /// The digest of the record that the claim replaces.
    replaced: String,
    is_written: bool,
}

/// What a process knows of the records of others, from one search to the next.
#[derive(Debug, Default)]
pub(crate) struct ClaimSearchState {
    owners: ObservedOwners,
    /// Entries of builds that have ended, or whose records were never written.
    settled: HashSet<(Option<String>, IndexTag)>,
    /// Claims of this process that the registry has not let it write or confirm yet, by tenant.
    claims: HashMap<Option<String>, Vec<ClaimInProgress>>,
    /// The number of the current pass over the records of all tenants.
    pass: u64,
}

impl RecordStore {
    /// Renews the sign that this process lives, again and again while it has builds that are not finished. Runs until
    /// it is dropped.
    pub(crate) async fn renew_sign_of_life_forever_when_builds_are_unfinished(&self) {
        loop {
            let has_unfinished = !lock(&self.0.unfinished).is_empty();
            if has_unfinished && let Err(error) = self.renew_sign_of_life().await {
                let error = ErrorChain(&error).to_string();
                tracing::warn!(error, "could not renew the sign that this builder lives");
            }
            tokio::time::sleep(self.0.times.beat).await;
        }
    }

    /// Renews the sign that this process lives.
    ///
    /// # Errors
    /// Fails if the registry does not store it in a short time.
    pub(super) async fn renew_sign_of_life(&self) -> Result<(), StoreError> {
        let manifest = ArtifactManifest::of_sign_of_life(
            self.0.beat.fetch_add(1, Ordering::Relaxed) % DISTINCT_SIGNS_OF_LIFE,
        );
        let tag = index_tag::sign_of_life_tag_of_owner(&self.0.owner);
        let limit = self.0.times.beat;
        let put = self.0.repository.put(&None, &tag, &manifest);
        match tokio::time::timeout(limit, put).await {
            Ok(put) => put,
            Err(_) => Err(StoreError::Timeout { limit }),
        }
    }

    /// Returns the time between two searches for unfinished builds.
    pub(crate) fn search_interval(&self) -> Duration {
        self.0.times.search
    }

    /// Claims up to `limit` builds of a tenant that processes which have gone left unfinished, and returns those that
    /// this process now has to resume.
    ///
    /// # Errors
    /// Fails if the registry cannot be read. What was claimed before is confirmed by the next search.
    pub(crate) async fn claim_and_confirm_unfinished_builds(
        &self,
        search: &mut ClaimSearchState,
        tenant: &Option<String>,
        limit: usize,
    ) -> Result<Vec<ClaimedBuild>, StoreError> {
        let mut claims = search.claims.remove(tenant).unwrap_or_default();
        let limit = limit.min(CLAIMS_MAX);
        let searched = self.search_for_claims(search, tenant, &mut claims, limit).await;
        if claims.is_empty() {
            return searched.map(|()| Vec::new());
        }
        let mut open = Vec::new();
        for mut claim in claims {
            if !claim.is_written {
                match self.write_claim_if_open(&mut claim).await {
                    Ok(true) => claim.is_written = true,
                    Ok(false) => continue,
                    Err(error) => log_claim_error(&claim.place.key, &error),
                }
            }
            open.push(claim);
        }
        tokio::time::sleep(self.0.times.settle).await;
        let mut builds = Vec::new();
        for claim in open {
            if claim.is_written {
                match self.confirm_claim_and_read_body_or_record_loss(&claim).await {
                    Ok(None) => continue,
                    Ok(Some(body)) => {
                        // Builds may be handed back and claimed again for a day.
                        self.0.repository.delete(tenant, &claim.replaced).await;
                        builds.push(ClaimedBuild {
                            key: claim.place.key.clone(),
                            attempts: claim.build.attempts,
                            request: claim.request,
                            body,
                            place: claim.place,
                        });
                        continue;
                    }
                    Err(error) => log_claim_error(&claim.place.key, &error),
                }
            }
            search.claims.entry(tenant.clone()).or_default().push(claim);
        }
        Ok(builds)
    }

    /// Looks for unfinished builds whose processes have gone, and adds them to `claims`.
    async fn search_for_claims(
        &self,
        search: &mut ClaimSearchState,
        tenant: &Option<String>,
        claims: &mut Vec<ClaimInProgress>,
        limit: usize,
    ) -> Result<(), StoreError> {
        let tags = self.list_unexpired_and_maybe_older_index_tags(tenant).await?;
        let mut of_owners: HashMap<String, Vec<IndexTag>> = HashMap::new();
        // First the one that was accepted, claimed or handed back first.
        for entry in index_tag::newest_entry_of_each_build(&tags, RECORDS_MAX_PER_TENANT)
            .into_iter()
            .rev()
        {
            let is_settled = search.settled.contains(&(tenant.clone(), entry.clone()));
            if !is_settled && !self.is_unfinished_here(&entry) {
                of_owners.entry(entry.owner().to_owned()).or_default().push(entry);
            }
        }
        for (owner, entries) in of_owners {
            if claims.len() >= limit {
                break;
            }
            if self.observe_owner_and_check_may_take_over(search, &owner).await? {
                self.prepare_claims_of_orphaned_entries(search, tenant, entries, claims, limit)
                    .await?;
            }
        }
        Ok(())
    }

    /// Returns whether the entry is that of a build that this process runs, or whose end it records.
    fn is_unfinished_here(&self, entry: &IndexTag) -> bool {
        lock(&self.0.unfinished).contains_key(entry.hash())
    }

    /// Returns whether `owner` does not run the builds that it has not finished. This process runs those that it knows.
    async fn observe_owner_and_check_may_take_over(
        &self,
        search: &mut ClaimSearchState,
        owner: &str,
    ) -> Result<bool, StoreError> {
        if owner == self.0.owner || owner == RELEASED_OWNER {
            return Ok(true);
        }
        let tag = index_tag::sign_of_life_tag_of_owner(owner);
        let digest = self.0.repository.digest_of_tag(&None, &tag).await?;
        let stale_after = self.0.times.stale_after;
        Ok(search
            .owners
            .record_and_check_gone(owner, digest, stale_after, search.pass))
    }

    /// Reads the records of entries whose owners have gone, and adds claims of those that nobody runs to `claims`. The
    /// claims are still to be written.
    async fn prepare_claims_of_orphaned_entries(
        &self,
        search: &mut ClaimSearchState,
        tenant: &Option<String>,
        entries: Vec<IndexTag>,
        claims: &mut Vec<ClaimInProgress>,
        limit: usize,
    ) -> Result<(), StoreError> {
        let mut records = stream::iter(entries)
            .map(|entry| async move {
                let record = self.read_tag_and_digest(tenant, &entry.record_tag()).await;
                (entry, record)
            })
            .buffered(CONCURRENT_READS);
        while let Some((entry, record)) = records.next().await {
            let record = match record {
                Ok(record) => record,
                Err(StoreError::OtherKey | StoreError::Malformed) => None,
                Err(error) => return Err(error),
            };
            let is_settled = match &record {
                Some((record, _)) => record.build.phase.is_terminal(),
                None => SystemTime::now()
                    .duration_since(entry.accepted_claimed_or_handed_back_at())
                    .is_ok_and(|age| age > MISSING_RECORD_SETTLED_AGE),
            };
            if is_settled {
                search.settled.insert((tenant.clone(), entry));
                continue;
            }
            let Some((record, digest)) = record else { continue };
            // Another process may have written the record last, or this one a moment ago.
            let is_orphaned = (record.owner == entry.owner()
                || self
                    .observe_owner_and_check_may_take_over(search, &record.owner)
                    .await?)
                && !self.is_unfinished_here(&entry);
            if is_orphaned {
                claims.extend(self.prepare_claim_or_record_loss(tenant, record, digest).await?);
            }
            if claims.len() >= limit {
                break;
            }
        }
        Ok(())
    }

    /// Returns the claim of a build, which is still to be written; or records why the build cannot be resumed, and
    /// returns `None`.
    async fn prepare_claim_or_record_loss(
        &self,
        tenant: &Option<String>,
        record: StoredRecord,
        digest: String,
    ) -> Result<Option<ClaimInProgress>, StoreError> {
        let StoredRecord {
            owner,
            build,
            request,
            body,
            ..
        } = record;
        let key = RecordKey {
            tenant: tenant.clone(),
            id: build.id.clone(),
        };
        let mut place = self.new_place(key, SystemTime::now());
        // The time in the tag does not count: every writer to the registry can choose it.
        let is_old = |request: &ResumableRequestHead| {
            let age = SystemTime::now().duration_since(request.arrived);
            age.is_ok_and(|age| age > RESUMED_AGE_MAX)
        };
        match request.zip(body) {
            None if build.rollback.is_some() => {
                self.record_loss_unless_ended(&mut place, build, LOST_ROLLBACK_ERROR)
                    .await?;
            }
            None => {
                self.record_loss_unless_ended(&mut place, build, NOT_RESUMABLE_ERROR)
                    .await?
            }
            Some((request, _)) if is_old(&request) => {
                self.record_loss_unless_ended(&mut place, build, NOT_RESUMED_IN_TIME_ERROR)
                    .await?;
            }
            Some((request, _)) if request.resumptions >= RESUMPTIONS_MAX => {
                self.record_loss_unless_ended(&mut place, build, RESUMED_TOO_OFTEN_ERROR)
                    .await?;
            }
            Some((mut request, body)) => {
                // A build of this process that it does not run was to be handed back.
                let is_handed_back = owner == RELEASED_OWNER || owner == self.0.owner;
                request.resumptions += u32::from(!is_handed_back);
                return Ok(Some(ClaimInProgress {
                    owner,
                    replaced: digest,
                    build,
                    request,
                    body,
                    place,
                    is_written: false,
                }));
            }
        }
        Ok(None)
    }

    /// Records that a build ends without a result.
    async fn record_loss_unless_ended(
        &self,
        place: &mut RecordPlace,
        mut build: BuildRecord,
        error: &str,
    ) -> Result<(), StoreError> {
        // Another process may have ended it meanwhile.
        let current = self.read_stored(&place.key).await?;
        if current.is_some_and(|current| current.build.phase.is_terminal()) {
            return Ok(());
        }
        tracing::warn!(call_id = build.id, reason = error, "an accepted build is lost");
        build.phase = BuildPhase::Failed;
        build.ended_at = Some(SystemTime::now());
        build.outcome = Map::from_iter([("error".to_owned(), Value::from(error))]);
        self.write_as_this_process(place, build, None).await
    }

    /// Hands back the claims that were written and not confirmed, when the process ends.
    pub(crate) async fn hand_back_written_unconfirmed_claims(&self, search: ClaimSearchState) {
        let claims = search.claims.into_values().flatten();
        for claim in claims.filter(|claim| claim.is_written) {
            if let Err(error) = self
                .hand_back_unless_outranked(&claim.place, claim.build, true)
                .await
            {
                log_claim_error(&claim.place.key, &error);
            }
        }
    }

    /// Writes a claim. Returns `false`, and writes nothing, if the build has ended meanwhile or another process has
    /// claimed it.
    async fn write_claim_if_open(&self, claim: &mut ClaimInProgress) -> Result<bool, StoreError> {
        let is_open = self.read_stored(&claim.place.key).await?.is_some_and(|current| {
            let is_unclaimed = current.owner == claim.owner || current.owner == self.0.owner;
            is_unclaimed && !current.build.phase.is_terminal()
        });
        if is_open {
            let request = (claim.request.clone(), claim.body.clone());
            self.write_as_this_process(&mut claim.place, claim.build.clone(), Some(request))
                .await?;
        }
        Ok(is_open)
    }

    /// Returns the body of a claimed build's request; `None` if another process has claimed the build since, or it
    /// cannot be resumed.
    async fn confirm_claim_and_read_body_or_record_loss(
        &self,
        claim: &ClaimInProgress,
    ) -> Result<Option<Bytes>, StoreError> {
        let key = &claim.place.key;
        let current = self.read_stored(key).await?;
        let is_own = current
            .is_some_and(|current| current.owner == self.0.owner && !current.build.phase.is_terminal());
        if !is_own {
            return Ok(None);
        }
        let manifest = self
            .0
            .repository
            .get_by_digest(&key.tenant, &claim.body.digest)
            .await?;
        let opened = manifest.map(|manifest| {
            let sealed = ArtifactManifest::sealed_content(&manifest)?;
            self.0.seal.open(SealedContent::Body, &key.tenant, &sealed)
        });
        match opened.transpose() {
            Ok(Some(body)) => Ok(Some(body.into())),
            Ok(None) | Err(StoreError::OtherKey | StoreError::Malformed) => {
                let mut place = self.new_place(key.clone(), SystemTime::now());
                self.record_loss_unless_ended(&mut place, claim.build.clone(), REQUEST_BODY_LOST_ERROR)
                    .await?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl ClaimSearchState {
    /// Begins the next pass over the records of all tenants.
    pub(crate) fn begin_pass(&mut self) {
        self.pass += 1;
    }

    /// Forgets what is of no use any more, so that a search takes no more memory with time.
    pub(crate) fn forget_old(&mut self) {
        let now = SystemTime::now();
        self.owners.forget_older_than(RESUMED_AGE_MAX);
        self.settled.retain(|(_, entry)| {
            now.duration_since(entry.accepted_claimed_or_handed_back_at())
                .is_ok_and(|age| age < RECORD_AGE_MAX)
        });
    }
}

fn log_claim_error(key: &RecordKey, error: &StoreError) {
    let error = ErrorChain(error).to_string();
    tracing::warn!(
        call_id = key.id,
        error,
        "could not claim an accepted build yet; it is tried again"
    );
}
