//! The record store: what BuildKit's history does not have of a build, in a repository of the operator's registry.
//!
//! The registry is there wherever images are pushed, it is reachable from every replica, and it survives both
//! builder-fn and BuildKit. NATS JetStream would add locks and redelivery, but the Community Edition has no JetStream,
//! and a second store to run, back up and secure. What a registry lacks is made up for here:
//!
//! - **A record is one manifest.** Its annotation has the record, so that it is written with one request and read with
//!   one. Registries redirect requests for blobs and delete blobs late, so the body of a request is a manifest too. The
//!   tag `r-HASH` names the current record of a build. HASH is derived from tenant and ID, so a look-up lists nothing.
//!   Each tenant has a repository of its own.
//! - **A list needs an order**, which tags do not have: each record has a second tag, [`IndexTag`], with the time of
//!   the acceptance and the owner, the process that runs the build. The second tag is written first, so that no record
//!   lacks it. `GET /builds` and the removal of old records find the newest records by the names of tags alone.
//! - **There is no compare-and-swap.** A success replaces everything and is replaced by nothing; a failure replaces
//!   what its own process wrote, or an end ([`StoredRecord::may_be_replaced_by`]). Of two writers at once, the last one
//!   counts. That two builders may run one call costs nothing: BuildKit builds a reference once, and the deployer
//!   deploys an image once.
//! - **Others may read the registry.** Records and the bodies of requests are sealed with keys derived from the secret
//!   `deploy-secret` ([`RecordSeal`]). A reader of the repository learns the number, the times and the sizes of builds.
//!   A writer can delete records, and cannot forge one. Callers seal build secrets besides.
//! - **What is replaced stays** until it is deleted or garbage is collected. The store deletes what it replaced, and
//!   records beyond [`RECORDS_MAX_PER_TENANT`] or older than [`RECORD_AGE_MAX`], if the registry allows it. Versions of
//!   functions have limits of their own (`sweep.rs`).
//! - **The record names the process that runs the build.** That process renews a sign in the registry while it lives
//!   (`lease.rs`). Other processes claim and resume the builds of one that has gone (`claim.rs`).
//!
//! - **A write that failed may take effect later.** A call whose acceptance may be in the registry is never rejected
//!   for now, so that no other builder runs it while its caller sends it again because of the 429: it is handed back,
//!   which includes another write of the acceptance, or waits on for a slot
//!   ([`RecordPlace::can_be_resumed_once_handed_back`]).
//!
//! Only asynchronous calls wait for the store, for a short time each at their acceptance and before their answer. A
//! registry that fails costs records and no build.

mod claim;
mod document;
mod error;
mod index_tag;
mod inputs;
mod lease;
mod repository;
mod seal;
mod sweep;
mod version_tag;
mod versions;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use function_host::registry::AdditionalTokenHosts;
use function_host::{ErrorChain, Secrets};
use futures_util::StreamExt;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::{BuildRecord, RecordKey};
use crate::buildkit::CredentialStore;
use crate::metrics::RecordWriteCounter;
use crate::registry::OperatorRepository;
pub(crate) use claim::{ClaimSearchState, ClaimedBuild};
pub(crate) use document::ResumableRequestHead;
use document::{ArtifactManifest, StoredBodyDigest, StoredRecord, digest_of};
pub(crate) use error::StoreError;
use index_tag::{INDEX_PREFIX, IndexTag, RELEASED_OWNER};
pub use lease::LeaseTimes;
use repository::RecordRepository;
use seal::{RecordSeal, SealedContent};
pub(crate) use versions::DeploymentRecording;

/// The limit on the records of one tenant.
const RECORDS_MAX_PER_TENANT: usize = 1000;

/// The age at which a record is deleted.
const RECORD_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The longest body that is stored with the record of its request, in bytes. NATS accepts no larger message unless it
/// is set up to; the queue of the Community Edition accepts a quarter.
pub const STORED_BODY_MAX_BYTES: u64 = 1 << 20;

/// The longest wait for the registry to take a build back when the process ends, two seconds after builds are
/// interrupted.
const HAND_BACK_TIMEOUT_AT_PROCESS_END: Duration = Duration::from_millis(1500);

/// The limit on the ends of builds, inputs of builds and versions of functions that are written at the same time.
const CONCURRENT_WRITERS_MAX: usize = 4;

/// The limit on the records of one tenant that wait to be written. Beyond it, records of calls that were not accepted
/// are dropped.
const PENDING_RECORDS_MAX_PER_TENANT: usize = 100;

/// The number of attempts to write the end of an accepted call's build while more than
/// [`PENDING_RECORDS_MAX_PER_TENANT`] records wait. With fewer, it is tried for as long as the process runs.
const END_WRITE_ATTEMPTS_WHILE_CROWDED: u32 = 5;

/// The base-2 logarithm of the longest pause between two attempts to write the end of a build, in
/// [`LeaseTimes::end_pause`].
const END_PAUSE_EXPONENT_MAX: u32 = 6;

/// The longest wait for one attempt to write the end of a build, with its turn.
const WRITE_ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// The number of records that are read at the same time for a list, or in a search for unfinished builds.
const CONCURRENT_READS: usize = 16;

/// The limit on the records of ended builds that are kept in memory for lists.
const CACHED_ENDED_RECORDS_MAX: usize = 2 * RECORDS_MAX_PER_TENANT;

/// The access to the registry that has the records.
#[derive(Clone, Debug)]
pub struct RecordStoreAccess {
    /// The repository for records.
    pub repository: OperatorRepository,
    /// The operator's credentials for registries.
    pub credentials: Arc<dyn CredentialStore>,
    /// The secrets, among them the one that records are sealed with.
    pub secrets: Secrets,
    /// Whether registries speak plain HTTP.
    pub insecure: bool,
    /// The hosts that registry tokens may be fetched from, besides those of the registries.
    pub token_realms: AdditionalTokenHosts,
    /// The times after which builds of other processes are resumed.
    pub times: LeaseTimes,
}

/// The records of builds in the operator's registry. Clones share them.
#[derive(Clone)]
pub struct RecordStore(Arc<SharedStore>);

struct SharedStore {
    repository: RecordRepository,
    seal: RecordSeal,
    times: LeaseTimes,
    /// The name of this process in records.
    owner: String,
    writers: Semaphore,
    /// The records that wait to be written, by tenant.
    pending: Mutex<HashMap<Option<String>, usize>>,
    /// The builds of this process that are recorded as accepted and whose ends are not recorded yet, by their hashes.
    unfinished: Mutex<HashMap<String, usize>>,
    /// The number of the next sign that this process lives.
    beat: AtomicU64,
    writes: RecordWriteCounter,
    /// Records of ended builds, by tenant and index tag: another acceptance has another tag.
    ended: Mutex<HashMap<(Option<String>, IndexTag), BuildRecord>>,
}

/// The place of a build's record, as the process that has accepted or claimed the build knows it.
#[derive(Debug)]
pub(crate) struct RecordPlace {
    key: RecordKey,
    index: IndexTag,
    /// The digest of the manifest that this process wrote last.
    written: Option<String>,
    /// What the build is resumed with, if the registry has it.
    request: Option<(ResumableRequestHead, StoredBodyDigest)>,
    /// What the build is to be resumed with, if the registry may have it or not.
    unconfirmed: Option<(ResumableRequestHead, Bytes)>,
    /// Counts the build as unfinished.
    unfinished: Option<UnfinishedBuildGuard>,
}

/// A guard for a build of this process that is recorded as accepted, until its end is recorded.
struct UnfinishedBuildGuard {
    store: RecordStore,
    hash: String,
}

impl UnfinishedBuildGuard {
    /// Counts a build as unfinished, and returns whether it is the only one.
    fn new_and_is_only_unfinished_build(store: &RecordStore, hash: &str) -> (Self, bool) {
        let mut unfinished = lock(&store.0.unfinished);
        let is_first = unfinished.is_empty();
        *unfinished.entry(hash.to_owned()).or_default() += 1;
        let guard = Self {
            store: store.clone(),
            hash: hash.to_owned(),
        };
        (guard, is_first)
    }
}

impl Drop for UnfinishedBuildGuard {
    fn drop(&mut self) {
        decrement_or_remove(&mut lock(&self.store.0.unfinished), &self.hash);
    }
}

impl fmt::Debug for UnfinishedBuildGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnfinishedBuildGuard")
    }
}

/// A guard that counts a record which waits to be written towards the limit of its tenant.
struct PendingRecordGuard {
    store: RecordStore,
    tenant: Option<String>,
}

impl Drop for PendingRecordGuard {
    fn drop(&mut self) {
        decrement_or_remove(&mut lock(&self.store.0.pending), &self.tenant);
    }
}

/// Counts one less of `key`, and removes it with the last one.
fn decrement_or_remove<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A write of a record in the background, whose end can be awaited.
#[derive(Debug)]
pub(crate) struct BackgroundWriteHandle(Option<JoinHandle<()>>);

impl RecordPlace {
    /// Returns whether the build can be resumed by another process, once it was handed back.
    pub(super) fn can_be_resumed_once_handed_back(&self) -> bool {
        self.request.is_some() || self.unconfirmed.is_some()
    }

    /// Returns whether the record has what another process resumes the build with.
    pub(super) fn has_stored_request(&self) -> bool {
        self.request.is_some()
    }

    /// Returns whether this process has written the record, which says that the build was accepted.
    pub(super) fn was_written_by_this_process(&self) -> bool {
        self.written.is_some()
    }
}

impl RecordStore {
    /// Creates the store of a process, which counts what it writes in `writes`.
    pub fn new(access: RecordStoreAccess, writes: RecordWriteCounter) -> Self {
        Self(Arc::new(SharedStore {
            seal: RecordSeal::new(access.secrets.clone()),
            times: access.times,
            repository: RecordRepository::new(access),
            owner: index_tag::random_owner(),
            writers: Semaphore::new(CONCURRENT_WRITERS_MAX),
            pending: Mutex::default(),
            unfinished: Mutex::default(),
            beat: AtomicU64::new(0),
            writes,
            ended: Mutex::default(),
        }))
    }

    /// Returns the key of content hashes that all builders with the same `deploy-secret` have, if there is one.
    pub fn content_hash_key(&self) -> Option<[u8; 32]> {
        self.0.seal.content_hash_key()
    }

    /// Returns the place for the record of a build that was accepted at the time `accepted_at`.
    pub(super) fn new_place(&self, key: RecordKey, accepted_at: SystemTime) -> RecordPlace {
        RecordPlace {
            index: IndexTag::new(&key, accepted_at, &self.0.owner),
            key,
            written: None,
            request: None,
            unconfirmed: None,
            unfinished: None,
        }
    }

    /// Stores that a call was accepted, with what its build is resumed with, unless a record is stored that it must not
    /// replace. It is durable when this returns.
    ///
    /// # Errors
    /// Fails if the registry does not store it in a short time. It may store it later.
    pub(super) async fn store_acceptance_unless_outranked(
        &self,
        place: &mut RecordPlace,
        build: BuildRecord,
        request: Option<(ResumableRequestHead, Bytes)>,
    ) -> Result<(), StoreError> {
        let (unconfirmed, limit) = (request.clone(), self.0.times.exchange);
        let storing = async {
            if let Some(current) = self.read_stored(&place.key).await?
                && !current.may_be_replaced_by(&build, &self.0.owner)
            {
                return Ok(false);
            }
            let request = match request {
                Some((request, body)) => Some((request, self.seal_and_write_body(place, &body).await?)),
                None => None,
            };
            self.write_as_this_process(place, build, request).await?;
            Ok(true)
        };
        let stored = match tokio::time::timeout(limit, storing).await {
            Ok(stored) => stored,
            Err(_) => Err(StoreError::Timeout { limit }),
        };
        if stored.is_err() {
            place.unconfirmed = unconfirmed;
        }
        // What was not written, because the record of another delivery stays, is no write.
        if !matches!(stored, Ok(false)) {
            self.0.writes.count(stored.is_ok());
        }
        stored.map(drop)
    }

    /// Writes the body of a request.
    async fn seal_and_write_body(
        &self,
        place: &RecordPlace,
        body: &Bytes,
    ) -> Result<StoredBodyDigest, StoreError> {
        let tenant = &place.key.tenant;
        let sealed = self.0.seal.seal(SealedContent::Body, tenant, body)?;
        let manifest = ArtifactManifest::of_body(&sealed, SystemTime::now());
        let tag = place.index.body_tag();
        self.0.repository.put(tenant, &tag, &manifest).await?;
        let digest = manifest.digest();
        Ok(StoredBodyDigest { digest })
    }

    /// Counts a record that waits to be written towards its tenant's limit. Returns the guard, and whether there are
    /// more records than the limit.
    fn count_pending_record_and_is_crowded(&self, tenant: &Option<String>) -> (PendingRecordGuard, bool) {
        let count = {
            let mut pending = lock(&self.0.pending);
            let count = pending.entry(tenant.clone()).or_default();
            *count += 1;
            *count
        };
        let guard = PendingRecordGuard {
            store: self.clone(),
            tenant: tenant.clone(),
        };
        (guard, count > PENDING_RECORDS_MAX_PER_TENANT)
    }

    /// Stores the end of a build in the background. That of an accepted call's build is tried again if it fails.
    pub(super) fn store_end(&self, place: RecordPlace, build: BuildRecord) -> BackgroundWriteHandle {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return BackgroundWriteHandle(None);
        };
        let may_be_stored = place.was_written_by_this_process() || place.can_be_resumed_once_handed_back();
        let attempts = if may_be_stored {
            END_WRITE_ATTEMPTS_WHILE_CROWDED
        } else {
            1
        };
        let tenant = place.key.tenant.clone();
        let (guard, is_one_too_many) = self.count_pending_record_and_is_crowded(&tenant);
        if is_one_too_many && !may_be_stored {
            self.0.writes.count(false);
            tracing::warn!("the end of a build was not recorded: too many records wait for the registry");
            return BackgroundWriteHandle(None);
        }
        let store = self.clone();
        BackgroundWriteHandle(Some(runtime.spawn(async move {
            let _guard = guard;
            let mut place = place;
            // While it is tried, this process counts as the one that runs the build, which would begin again otherwise.
            for attempt in 1.. {
                let written = tokio::time::timeout(
                    WRITE_ATTEMPT_TIMEOUT,
                    store.write_end_unless_outranked(&mut place, &build),
                )
                .await;
                let error = match written {
                    Ok(Ok(())) => return store.0.writes.count(true),
                    Ok(Err(error)) => error,
                    Err(_) => StoreError::Timeout {
                        limit: WRITE_ATTEMPT_TIMEOUT,
                    },
                };
                let error = ErrorChain(&error).to_string();
                tracing::warn!(
                    attempt,
                    error,
                    "could not record the end of a build in the registry"
                );
                store.0.writes.count(false);
                let is_crowded = lock(&store.0.pending)
                    .get(&tenant)
                    .is_some_and(|pending| *pending > PENDING_RECORDS_MAX_PER_TENANT);
                if attempt >= attempts && (!may_be_stored || is_crowded) {
                    return;
                }
                let pauses = 1 << attempt.min(END_PAUSE_EXPONENT_MAX);
                tokio::time::sleep(store.0.times.end_pause * pauses).await;
            }
        })))
    }

    async fn write_end_unless_outranked(
        &self,
        place: &mut RecordPlace,
        build: &BuildRecord,
    ) -> Result<(), StoreError> {
        let _writer = self.0.writers.acquire().await;
        let body = place.request.as_ref().map(|(_, body)| body.digest.clone());
        if !build.is_success()
            && let Some(current) = self.read_stored(&place.key).await?
            && !current.may_be_replaced_by(build, &self.0.owner)
        {
            return Ok(());
        }
        let replaced = place.written.clone();
        self.write_as_this_process(place, build.clone(), None).await?;
        for digest in replaced.into_iter().chain(body) {
            self.0.repository.delete(&place.key.tenant, &digest).await;
        }
        Ok(())
    }

    /// Hands a build back: any process may resume it at once. `is_process_ending` says that this process ends in a
    /// moment.
    ///
    /// # Errors
    /// Fails if the registry does not store it in a short time. It may store it later.
    pub(super) async fn hand_back_unless_outranked(
        &self,
        place: &RecordPlace,
        build: BuildRecord,
        is_process_ending: bool,
    ) -> Result<(), StoreError> {
        let mut released = RecordPlace {
            key: place.key.clone(),
            index: IndexTag::new(&place.key, SystemTime::now(), RELEASED_OWNER),
            written: None,
            request: None,
            unconfirmed: None,
            unfinished: None,
        };
        let limit = match is_process_ending {
            true => HAND_BACK_TIMEOUT_AT_PROCESS_END,
            false => self.0.times.exchange,
        };
        let writing = async {
            let current = self.read_stored(&place.key).await?;
            if current.is_some_and(|current| !current.may_be_replaced_by(&build, &self.0.owner)) {
                // Another delivery of the call has finished the build, or it was cancelled.
                return Ok(());
            }
            let request = match (&place.request, &place.unconfirmed) {
                (Some(stored), _) => Some(stored.clone()),
                (None, Some((request, body))) => {
                    Some((request.clone(), self.seal_and_write_body(place, body).await?))
                }
                (None, None) => None,
            };
            self.write_record_owned_by(RELEASED_OWNER, &mut released, build, request)
                .await
        };
        match tokio::time::timeout(limit, writing).await {
            Ok(written) => written?,
            Err(_) => return Err(StoreError::Timeout { limit }),
        }
        if let Some(replaced) = place.written.as_ref().filter(|_| !is_process_ending) {
            let deleting = self.0.repository.delete(&place.key.tenant, replaced);
            // What is left is deleted with the old records.
            let _ = tokio::time::timeout(limit, deleting).await;
        }
        Ok(())
    }

    /// Writes a record with this process as its owner. Counts a build that has not ended as unfinished before.
    async fn write_as_this_process(
        &self,
        place: &mut RecordPlace,
        build: BuildRecord,
        request: Option<(ResumableRequestHead, StoredBodyDigest)>,
    ) -> Result<(), StoreError> {
        if !build.phase.is_terminal() && place.unfinished.is_none() {
            let (guard, is_first) =
                UnfinishedBuildGuard::new_and_is_only_unfinished_build(self, place.index.hash());
            place.unfinished = Some(guard);
            if is_first {
                // Before others can see the build: while there was none, the sign was not renewed.
                self.renew_sign_of_life().await?;
            }
        }
        self.write_record_owned_by(&self.0.owner, place, build, request)
            .await
    }

    /// Writes a record that names `owner` as its owner: first its entry in the index, and then the current one.
    async fn write_record_owned_by(
        &self,
        owner: &str,
        place: &mut RecordPlace,
        build: BuildRecord,
        request: Option<(ResumableRequestHead, StoredBodyDigest)>,
    ) -> Result<(), StoreError> {
        let tenant = &place.key.tenant;
        let (request, body) = request.unzip();
        let record = StoredRecord {
            tenant: tenant.clone(),
            owner: owner.to_owned(),
            build,
            request,
            body,
        };
        let sealed = self
            .0
            .seal
            .seal(SealedContent::Record, tenant, &record.to_json_within_limit())?;
        let manifest = ArtifactManifest::of_record(&sealed);
        for tag in [place.index.to_string(), index_tag::record_tag(&place.key)] {
            self.0.repository.put(tenant, &tag, &manifest).await?;
        }
        place.written = Some(manifest.digest());
        place.request = record.request.zip(record.body);
        Ok(())
    }

    /// Reads the record of a build.
    ///
    /// # Errors
    /// Fails if the registry does not answer in a short time, or has a record that is not the store's.
    pub(crate) async fn read(&self, key: &RecordKey) -> Result<Option<BuildRecord>, StoreError> {
        let (reading, limit) = (self.read_stored(key), self.0.times.exchange);
        match tokio::time::timeout(limit, reading).await {
            Ok(record) => Ok(record?.map(|record| record.build)),
            Err(_) => Err(StoreError::Timeout { limit }),
        }
    }

    async fn read_stored(&self, key: &RecordKey) -> Result<Option<StoredRecord>, StoreError> {
        let record = self.read_tag(&key.tenant, &index_tag::record_tag(key)).await?;
        // A record that was copied to another tag is not the record of that tag.
        Ok(record.filter(|record| record.build.id == key.id))
    }

    async fn read_tag(&self, tenant: &Option<String>, tag: &str) -> Result<Option<StoredRecord>, StoreError> {
        let read = self.read_tag_and_digest(tenant, tag).await?;
        Ok(read.map(|(record, _)| record))
    }

    /// Reads the record with this tag, and the digest of its manifest.
    async fn read_tag_and_digest(
        &self,
        tenant: &Option<String>,
        tag: &str,
    ) -> Result<Option<(StoredRecord, String)>, StoreError> {
        let Some(manifest) = self.0.repository.get(tenant, tag).await? else {
            return Ok(None);
        };
        let sealed = ArtifactManifest::sealed_content(&manifest)?;
        let opened = self.0.seal.open(SealedContent::Record, tenant, &sealed)?;
        let record = StoredRecord::parse(&opened)?;
        match record.tenant == *tenant {
            true => Ok(Some((record, digest_of(&manifest)))),
            false => Err(StoreError::Malformed),
        }
    }

    /// Lists the newest records of a tenant's builds, and says why some may be missing.
    pub(super) async fn list(&self, tenant: &Option<String>) -> (Vec<BuildRecord>, Option<StoreError>) {
        let limit = self.0.times.exchange;
        let deadline = tokio::time::Instant::now() + limit;
        let late = || StoreError::Timeout { limit };
        let listing = self.list_unexpired_and_maybe_older_index_tags(tenant);
        let listing = tokio::time::timeout_at(deadline, listing).await;
        let tags = match listing {
            Ok(Ok(tags)) => tags,
            Ok(Err(error)) => return (Vec::new(), Some(error)),
            Err(_) => return (Vec::new(), Some(late())),
        };
        let newest = index_tag::newest_entry_of_each_build(&tags, RECORDS_MAX_PER_TENANT);
        let mut records = futures_util::stream::iter(newest)
            .map(|tag| self.read_for_list_unless_unreadable(tenant, tag))
            .buffer_unordered(CONCURRENT_READS);
        let (mut builds, mut problem) = (Vec::new(), None);
        loop {
            match tokio::time::timeout_at(deadline, records.next()).await {
                Ok(Some(Ok(build))) => builds.extend(build),
                Ok(Some(Err(error))) => problem = Some(error),
                Ok(None) => return (builds, problem),
                Err(_) => return (builds, Some(late())),
            }
        }
    }

    /// Lists the tags of a tenant's index entries that are not older than [`RECORD_AGE_MAX`], however many there are.
    /// Some registries return older ones as well.
    async fn list_unexpired_and_maybe_older_index_tags(
        &self,
        tenant: &Option<String>,
    ) -> Result<Vec<String>, StoreError> {
        let oldest = SystemTime::now().checked_sub(RECORD_AGE_MAX);
        let after = index_tag::tag_before_entries_since(oldest.unwrap_or(SystemTime::UNIX_EPOCH));
        self.0
            .repository
            .list_tags_after_and_maybe_earlier(tenant, INDEX_PREFIX, &after)
            .await
    }

    async fn read_for_list_unless_unreadable(
        &self,
        tenant: &Option<String>,
        tag: IndexTag,
    ) -> Result<Option<BuildRecord>, StoreError> {
        let key = (tenant.clone(), tag);
        let cached = self.lock_ended_cache().get(&key).cloned();
        if cached.is_some() {
            return Ok(cached);
        }
        let record = match self.read_tag(tenant, &key.1.record_tag()).await {
            Ok(record) => record.map(|record| record.build),
            // Sealed with a key that is gone, or not a record: no reason to miss the others.
            Err(StoreError::OtherKey | StoreError::Malformed) => None,
            Err(error) => return Err(error),
        };
        if let Some(build) = record.as_ref().filter(|build| build.phase.is_terminal()) {
            let mut ended = self.lock_ended_cache();
            if ended.len() >= CACHED_ENDED_RECORDS_MAX {
                ended.clear();
            }
            ended.insert(key, build.clone());
        }
        Ok(record)
    }

    fn lock_ended_cache(&self) -> MutexGuard<'_, HashMap<(Option<String>, IndexTag), BuildRecord>> {
        lock(&self.0.ended)
    }
}

impl BackgroundWriteHandle {
    /// Returns a write that has ended already, because nothing is to be written.
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// Waits up to 10 s until the record was written, or could not be. The write goes on after that, and if this is
    /// dropped.
    pub(crate) async fn wait_up_to_10_seconds(self) {
        if let Some(task) = self.0 {
            // A write that panicked is reported where it panicked.
            let _ = tokio::time::timeout(WRITE_ATTEMPT_TIMEOUT, task).await;
        }
    }
}

impl fmt::Debug for RecordStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordStore")
            .field("repository", &self.0.repository)
            .finish_non_exhaustive()
    }
}
