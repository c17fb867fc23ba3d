//! The record store: what BuildKit's history does not have of a build, in a repository of the operator's registry.
//!
//! The registry is there wherever images are pushed, it is reachable from every replica, and it survives both builder-fn and
//! BuildKit. NATS JetStream would add locks and redelivery, but the Community Edition has no JetStream, and a second store
//! to run, back up and secure. What a registry lacks is made up for here:
//!
//! - **A record is one manifest.** Its annotation has the record, so that it is written with one request and read with one.
//!   The tag `r-HASH` names the current record of a build. HASH is derived from tenant and ID, so that a look-up lists
//!   nothing. Tenants have repositories of their own.
//! - **A list needs an order**, which tags do not have: each record has a second tag, [`IndexTag`], with the time of the
//!   acceptance and the owner, the process that runs the build. So `GET /builds` and the removal of old records find the
//!   newest ones by names alone.
//! - **There is no compare-and-swap.** A success replaces everything and is replaced by nothing; a failure replaces what its
//!   own process wrote, or an end ([`StoredRecord::may_be_replaced_by`]). Of two writers at once, the last one counts. That
//!   two builders may run one call costs nothing: BuildKit builds a reference once, and the deployer deploys an image once.
//! - **A registry is read by more than builder-fn.** So a record and the body of a request are sealed with a key from the
//!   secret `deploy-secret` ([`RecordSeal`]). Whoever reads the repository sees how many builds there were, when, and of
//!   what size; whoever writes to it can delete records, but invent none. Build secrets are sealed by the caller besides.
//! - **What is replaced stays** until it is deleted or garbage is collected. The store deletes what it replaced, and records
//!   beyond [`RECORDS_MAX`] or older than [`AGE_MAX`], if the registry allows it.
//!
//! - **Who runs a build** is written in its record; that he lives, in the registry too (`lease.rs`). The builds of a process
//!   that has gone are claimed and resumed by others (`claim.rs`).
//!
//! Nothing waits for the store but an asynchronous call at its acceptance, and at its answer, each for a short time. A
//! registry that fails costs records and no build.

mod claim;
mod document;
mod error;
mod index_tag;
mod lease;
mod repository;
mod seal;
mod sweep;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use function_host::registry::AllowedTokenHosts;
use function_host::{ErrorChain, Secrets};
use futures_util::StreamExt;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::{BuildRecord, RecordKey};
use crate::buildkit::CredentialStore;
use crate::metrics::RecordWrites;
use crate::registry::OperatorRepository;
pub(crate) use claim::{ClaimSearch, ClaimedBuild};
pub(crate) use document::ResumableRequest;
use document::StoredBody;
use document::{RecordManifest, StoredRecord};
pub(crate) use error::StoreError;
use index_tag::{IndexTag, RELEASED_OWNER};
pub use lease::LeaseTimes;
use repository::RecordRepository;
use seal::RecordSeal;

/// The limit on the records of one tenant.
const RECORDS_MAX: usize = 1000;

/// The age at which a record is deleted.
const AGE_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The longest body that is stored with the record of its request, in bytes. NATS accepts no larger message unless it is
/// set up to; the queue of the Community Edition accepts a quarter.
pub const STORED_BODY_MAX: u64 = 1 << 20;

/// The longest wait for the registry to store or to return a record.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest wait for the registry to take a build back. The process ends two seconds after builds are interrupted.
const HAND_BACK_TIMEOUT: Duration = Duration::from_millis(1500);

/// The limit on the records that are written at the same time.
const WRITERS_MAX: usize = 4;

/// The limit on the records that wait to be written. Further ones are dropped.
const PENDING_MAX: usize = 500;

/// The number of records that are read at the same time for a list.
const READERS: usize = 16;

/// The limit on the records of ended builds that are kept in memory for lists.
const CACHED_MAX: usize = 2 * RECORDS_MAX;

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
    pub token_realms: AllowedTokenHosts,
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
    pending: AtomicUsize,
    /// The number of builds of this process that are recorded as accepted and have not ended.
    unfinished: AtomicUsize,
    writes: RecordWrites,
    /// Records of ended builds, by tenant and index tag: another acceptance has another tag.
    ended: Mutex<HashMap<(Option<String>, IndexTag), BuildRecord>>,
}

/// The place of a build's record, as the process that accepted the build knows it.
#[derive(Debug)]
pub(crate) struct RecordPlace {
    key: RecordKey,
    index: IndexTag,
    /// The digest of the manifest that this process wrote last.
    written: Option<String>,
    /// What the build is resumed with, if it can be resumed.
    request: Option<(ResumableRequest, StoredBody)>,
    /// Counts the build as unfinished.
    unfinished: Option<UnfinishedBuild>,
}

/// A guard that counts a build as unfinished until it is dropped.
struct UnfinishedBuild(RecordStore);

impl UnfinishedBuild {
    fn new(store: &RecordStore) -> Self {
        store.0.unfinished.fetch_add(1, Ordering::Relaxed);
        Self(store.clone())
    }
}

impl Drop for UnfinishedBuild {
    fn drop(&mut self) {
        self.0.0.unfinished.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for UnfinishedBuild {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnfinishedBuild")
    }
}

/// The end of the write of a record in the background.
#[derive(Debug)]
pub(crate) struct PendingWrite(Option<JoinHandle<()>>);

impl RecordPlace {
    /// Returns whether the build can be resumed by another process.
    pub(super) fn is_resumable(&self) -> bool {
        self.request.is_some()
    }
}

impl RecordStore {
    /// Creates the store of a process, which counts what it writes in `writes`.
    pub fn new(access: RecordStoreAccess, writes: RecordWrites) -> Self {
        Self(Arc::new(SharedStore {
            seal: RecordSeal::new(access.secrets.clone()),
            times: access.times,
            repository: RecordRepository::new(access),
            owner: index_tag::random_owner(),
            writers: Semaphore::new(WRITERS_MAX),
            pending: AtomicUsize::new(0),
            unfinished: AtomicUsize::new(0),
            writes,
            ended: Mutex::default(),
        }))
    }

    /// Returns the place for the record of a build that was accepted at the time `accepted_at`.
    pub(super) fn place(&self, key: RecordKey, accepted_at: SystemTime) -> RecordPlace {
        RecordPlace {
            index: IndexTag::new(&key, accepted_at, &self.0.owner),
            key,
            written: None,
            request: None,
            unfinished: None,
        }
    }

    /// Stores that a call was accepted, with what its build is resumed with. It is durable when this returns.
    ///
    /// # Errors
    /// Fails if the registry does not store it in a short time.
    pub(super) async fn store_acceptance(
        &self,
        place: &mut RecordPlace,
        build: BuildRecord,
        request: Option<(ResumableRequest, Bytes)>,
    ) -> Result<(), StoreError> {
        let storing = async {
            if let Some(current) = self.read_stored(&place.key).await?
                && !current.may_be_replaced_by(&build, &self.0.owner)
            {
                return Ok(());
            }
            let request = match request {
                Some((request, body)) => {
                    let sealed = self.0.seal.seal(&place.key.tenant, &body)?;
                    let body = self.0.repository.put_blob(&place.key.tenant, sealed).await?;
                    Some((request, body))
                }
                None => None,
            };
            self.write(place, build, request).await
        };
        let stored = match tokio::time::timeout(EXCHANGE_TIMEOUT, storing).await {
            Ok(stored) => stored,
            Err(_) => Err(StoreError::Timeout {
                limit: EXCHANGE_TIMEOUT,
            }),
        };
        self.0.writes.count(stored.is_ok());
        stored
    }

    /// Stores the end of a build in the background.
    pub(super) fn store_end(&self, place: RecordPlace, build: BuildRecord) -> PendingWrite {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return PendingWrite(None);
        };
        if self.0.pending.fetch_add(1, Ordering::Relaxed) >= PENDING_MAX {
            self.0.pending.fetch_sub(1, Ordering::Relaxed);
            self.0.writes.count(false);
            tracing::warn!("the end of a build was not recorded: too many records wait for the registry");
            return PendingWrite(None);
        }
        let store = self.clone();
        PendingWrite(Some(runtime.spawn(async move {
            let written = store.write_end(place, build).await;
            store.0.pending.fetch_sub(1, Ordering::Relaxed);
            store.0.writes.count(written.is_ok());
            if let Err(error) = written {
                tracing::warn!(error = %ErrorChain(&error), "could not record the end of a build in the registry");
            }
        })))
    }

    async fn write_end(&self, mut place: RecordPlace, build: BuildRecord) -> Result<(), StoreError> {
        let _writer = self.0.writers.acquire().await;
        let writing = async {
            if !build.is_success()
                && let Some(current) = self.read_stored(&place.key).await?
                && !current.may_be_replaced_by(&build, &self.0.owner)
            {
                return Ok(());
            }
            let replaced = place.written.clone();
            self.write(&mut place, build, None).await?;
            if let Some(digest) = replaced {
                self.0.repository.delete(&place.key.tenant, &digest).await;
            }
            Ok(())
        };
        match tokio::time::timeout(EXCHANGE_TIMEOUT * 2, writing).await {
            Ok(written) => written,
            Err(_) => Err(StoreError::Timeout {
                limit: EXCHANGE_TIMEOUT * 2,
            }),
        }
    }

    /// Hands a build back: another process may resume it at once.
    ///
    /// # Errors
    /// Fails if the registry does not store it in a short time.
    pub(super) async fn hand_back(
        &self,
        mut place: RecordPlace,
        build: BuildRecord,
    ) -> Result<(), StoreError> {
        let request = place.request.take();
        place.index = IndexTag::new(&place.key, SystemTime::now(), RELEASED_OWNER);
        let writing = self.write_as(RELEASED_OWNER, &mut place, build, request);
        match tokio::time::timeout(HAND_BACK_TIMEOUT, writing).await {
            Ok(written) => written,
            Err(_) => Err(StoreError::Timeout {
                limit: HAND_BACK_TIMEOUT,
            }),
        }
    }

    /// Writes a record as this process.
    async fn write(
        &self,
        place: &mut RecordPlace,
        build: BuildRecord,
        request: Option<(ResumableRequest, StoredBody)>,
    ) -> Result<(), StoreError> {
        place.unfinished = match build.phase.is_terminal() {
            true => None,
            false => Some(UnfinishedBuild::new(self)),
        };
        self.write_as(&self.0.owner, place, build, request).await
    }

    /// Writes a record: first the current one, and then its entry in the index.
    async fn write_as(
        &self,
        owner: &str,
        place: &mut RecordPlace,
        build: BuildRecord,
        request: Option<(ResumableRequest, StoredBody)>,
    ) -> Result<(), StoreError> {
        place.request = request.clone();
        let tenant = &place.key.tenant;
        let (request, body) = request.unzip();
        let record = StoredRecord {
            tenant: tenant.clone(),
            owner: owner.to_owned(),
            build,
            request,
            body,
        };
        let sealed = self.0.seal.seal(tenant, &record.to_json())?;
        let manifest = RecordManifest::new(&sealed, record.body.as_ref());
        for tag in [index_tag::record_tag(&place.key), place.index.to_string()] {
            self.0.repository.put(tenant, &tag, &manifest).await?;
        }
        place.written = Some(manifest.digest());
        Ok(())
    }

    /// Reads the record of a build.
    ///
    /// # Errors
    /// Fails if the registry does not answer in a short time, or has a record that is not the store's.
    pub(super) async fn read(&self, key: &RecordKey) -> Result<Option<BuildRecord>, StoreError> {
        let reading = self.read_stored(key);
        match tokio::time::timeout(EXCHANGE_TIMEOUT, reading).await {
            Ok(record) => Ok(record?.map(|record| record.build)),
            Err(_) => Err(StoreError::Timeout {
                limit: EXCHANGE_TIMEOUT,
            }),
        }
    }

    async fn read_stored(&self, key: &RecordKey) -> Result<Option<StoredRecord>, StoreError> {
        let record = self.read_tag(&key.tenant, &index_tag::record_tag(key)).await?;
        // A record that was copied to another tag is not the record of that tag.
        Ok(record.filter(|record| record.build.id == key.id))
    }

    async fn read_tag(&self, tenant: &Option<String>, tag: &str) -> Result<Option<StoredRecord>, StoreError> {
        let Some(manifest) = self.0.repository.get(tenant, tag).await? else {
            return Ok(None);
        };
        let sealed = RecordManifest::sealed_record(&manifest)?;
        let record = StoredRecord::parse(&self.0.seal.open(tenant, &sealed)?)?;
        match record.tenant == *tenant {
            true => Ok(Some(record)),
            false => Err(StoreError::Malformed),
        }
    }

    /// Lists the newest records of a tenant's builds, and says why some may be missing.
    pub(super) async fn list(&self, tenant: &Option<String>) -> (Vec<BuildRecord>, Option<StoreError>) {
        let deadline = tokio::time::Instant::now() + EXCHANGE_TIMEOUT;
        let late = || StoreError::Timeout {
            limit: EXCHANGE_TIMEOUT,
        };
        let listing = tokio::time::timeout_at(deadline, self.0.repository.list_tags(tenant)).await;
        let tags = match listing {
            Ok(Ok(tags)) => tags,
            Ok(Err(error)) => return (Vec::new(), Some(error)),
            Err(_) => return (Vec::new(), Some(late())),
        };
        let newest = index_tag::newest_of_each(&tags, RECORDS_MAX);
        let mut records = futures_util::stream::iter(newest)
            .map(|tag| self.read_for_list(tenant, tag))
            .buffer_unordered(READERS);
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

    async fn read_for_list(
        &self,
        tenant: &Option<String>,
        tag: IndexTag,
    ) -> Result<Option<BuildRecord>, StoreError> {
        let key = (tenant.clone(), tag);
        let cached = self.ended().get(&key).cloned();
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
            let mut ended = self.ended();
            if ended.len() >= CACHED_MAX {
                ended.clear();
            }
            ended.insert(key, build.clone());
        }
        Ok(record)
    }

    fn ended(&self) -> std::sync::MutexGuard<'_, HashMap<(Option<String>, IndexTag), BuildRecord>> {
        self.0.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PendingWrite {
    /// The end of a write that there was not.
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// Waits until the record was written, or could not be. Dropping this instead does not end the write.
    pub(crate) async fn wait(self) {
        if let Some(task) = self.0 {
            // A write that panicked is reported where it panicked.
            let _ = task.await;
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
