//! The records of this process's builds.
//!
//! A build is recorded from the verification of its signature on. Records of ended builds are kept up to a limit; after
//! that, BuildKit's history is what is left of them, and the record store if there is one.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use function_host::ErrorChain;
use serde_json::{Map, Value};
use tokio::sync::{Semaphore, SemaphorePermit, watch};

use super::cancel::{CancellationWatch, PoolWatchGuard};
use super::log_copies::LogCopies;
use super::log_readers::LogReaders;
use super::newest::NewestBuilds;
use super::record::ATTEMPTS_OF_PROCESS_MAX;
use super::store::{BackgroundWriteHandle, StoreError};
use super::{BuildPhase, BuildRecord, RecordPlace, RecordStore, ResumableRequestHead};
use crate::buildkit::{Cancellation, DaemonPool};
use crate::context::SpoolSettings;
use crate::redact::SecretMask;

/// The limit on the records of ended builds.
const ENDED_BUILDS_MAX: usize = 1000;

/// The limit on the searches through the whole histories of daemons at the same time.
const CONCURRENT_HISTORY_SEARCHES_MAX: usize = 2;

/// The limit on the remembered references of builds in a daemon's history. At the limit, all are forgotten.
const REMEMBERED_BUILD_REFERENCES_MAX: usize = 10_000;

/// The records of this process's builds. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct BuildRecords(Arc<SharedRecords>);

/// The state that all clones of [`BuildRecords`] share.
#[derive(Debug)]
struct SharedRecords {
    state: Mutex<RecordsState>,
    store: Option<RecordStore>,
    cancellations: CancellationWatch,
    log_readers: LogReaders,
    /// The copies of logs that are being read; unset if there are none.
    log_copies: OnceLock<LogCopies>,
    searches: Semaphore,
    newest: NewestBuilds,
}

impl Default for SharedRecords {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            store: None,
            cancellations: CancellationWatch::default(),
            log_readers: LogReaders::default(),
            log_copies: OnceLock::new(),
            searches: Semaphore::new(CONCURRENT_HISTORY_SEARCHES_MAX),
            newest: NewestBuilds::default(),
        }
    }
}

/// The recorded builds.
#[derive(Debug, Default)]
struct RecordsState {
    builds: HashMap<RecordKey, RecordedBuild>,
    /// The ended builds, the first to end first.
    ended: VecDeque<RecordKey>,
    /// The references of builds that were found in a daemon's history.
    references: HashMap<RecordKey, String>,
}

/// The tenant and the call of a build: no tenant sees the builds of another, whatever their IDs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RecordKey {
    /// The name of the tenant; `None` without a policy.
    pub(crate) tenant: Option<String>,
    /// The ID of the call.
    pub(crate) id: String,
}

/// A build of this process.
struct RecordedBuild {
    record: watch::Sender<BuildRecord>,
    cancelled: watch::Sender<bool>,
    /// The mask of the secrets in the build's log; `None` while they are not known.
    mask: Option<SecretMask>,
    /// The number of deliveries of the call that are in progress.
    deliveries: usize,
}

/// A delivery of a call whose build is recorded. Dropping it before its end records that the build was given up, unless
/// the record store has what another process resumes it with.
#[derive(Debug)]
pub(crate) struct RecordedDelivery {
    shared: BuildRecords,
    key: RecordKey,
    cancelled: watch::Receiver<bool>,
    /// Whether the end of the delivery is recorded, or another delivery or process is responsible for the build.
    has_ended: AtomicBool,
    /// The place of the build's record in the record store, if there is one.
    place: Option<RecordPlace>,
    /// The greatest number that an attempt of a process that has gone may have, besides the recorded attempts.
    attempts_of_gone_processes: u32,
}

impl BuildRecords {
    /// Creates records that are kept in `store` as well.
    pub fn also_kept_in_store(store: RecordStore) -> Self {
        Self(Arc::new(SharedRecords {
            store: Some(store),
            ..SharedRecords::default()
        }))
    }

    /// Copies the logs that somebody reads to the folder of `spool`, where they use at most `limit` bytes. Without
    /// this, or with a limit of zero, each reader reads a log from BuildKit.
    pub fn copy_logs_to_unless_limit_is_zero(&self, spool: &SpoolSettings, limit: u64) {
        if limit > 0 {
            self.0.log_copies.get_or_init(|| LogCopies::new(spool, limit));
        }
    }

    /// Returns the store in which the records are kept as well.
    pub fn store(&self) -> Option<&RecordStore> {
        self.0.store.as_ref()
    }

    /// Records a delivery of a call. The record of a build that failed begins anew, and that of any other build stays.
    pub(crate) fn accept(&self, key: RecordKey, submitted_at: SystemTime) -> RecordedDelivery {
        let mut state = self.lock();
        let fresh = || BuildRecord::accepted(&key.id, submitted_at);
        let build = state.builds.entry(key.clone()).or_insert_with(|| RecordedBuild {
            record: watch::Sender::new(fresh()),
            cancelled: watch::Sender::new(false),
            mask: None,
            deliveries: 0,
        });
        build.deliveries += 1;
        // A redelivery of a build that failed may succeed. One of a build that succeeded reports the same again.
        build.record.send_if_modified(|record| {
            let begins_again = record.phase == BuildPhase::Failed;
            if begins_again {
                *record = BuildRecord {
                    attempts: record.attempts,
                    ..fresh()
                };
            }
            begins_again
        });
        let cancelled = build.cancelled.subscribe();
        state.ended.retain(|ended| *ended != key);
        drop(state);
        RecordedDelivery {
            shared: self.clone(),
            place: self
                .store()
                .map(|store| store.new_place(key.clone(), submitted_at)),
            key,
            cancelled,
            has_ended: AtomicBool::new(false),
            attempts_of_gone_processes: 0,
        }
    }

    /// Returns a receiver of a build's record, and the mask of its log if this process knows its secrets; `None` for a
    /// build without a record here.
    pub(crate) fn find_receiver_and_mask(
        &self,
        key: &RecordKey,
    ) -> Option<(watch::Receiver<BuildRecord>, Option<SecretMask>)> {
        let state = self.lock();
        let build = state.builds.get(key)?;
        Some((build.record.subscribe(), build.mask.clone()))
    }

    /// Returns the records of a tenant's builds.
    pub(crate) fn list(&self, tenant: Option<&str>) -> Vec<BuildRecord> {
        let state = self.lock();
        let builds = state.builds.iter();
        builds
            .filter(|(key, _)| key.tenant.as_deref() == tenant)
            .map(|(_, build)| build.record.borrow().clone())
            .collect()
    }

    /// Returns the reference of a build that was found in a daemon's history before.
    pub(super) fn known_reference(&self, key: &RecordKey) -> Option<String> {
        self.lock().references.get(key).cloned()
    }

    /// Remembers the reference of a build that was found in a daemon's history.
    pub(super) fn remember_reference(&self, key: &RecordKey, reference: &str) {
        let mut state = self.lock();
        let references = &mut state.references;
        if references.len() >= REMEMBERED_BUILD_REFERENCES_MAX {
            references.clear();
        }
        references.insert(key.clone(), reference.to_owned());
    }

    /// Returns the newest builds in the histories of daemons.
    pub(super) fn newest(&self) -> &NewestBuilds {
        &self.0.newest
    }

    /// Waits for a permit to search the whole histories of daemons.
    pub(super) async fn wait_without_limit_for_search_permit(&self) -> Option<SemaphorePermit<'_>> {
        self.0.searches.acquire().await.ok()
    }

    /// Returns the readers of logs.
    pub(super) fn log_readers(&self) -> &LogReaders {
        &self.0.log_readers
    }

    /// Returns the copies of logs that are being read; `None` if logs are not copied.
    pub(super) fn log_copies(&self) -> Option<&LogCopies> {
        self.0.log_copies.get()
    }

    /// Cancels the build of a call in this process, and its later redeliveries. Returns whether the process has a
    /// record of the build.
    pub(crate) fn cancel_if_recorded(&self, key: &RecordKey) -> bool {
        let state = self.lock();
        let Some(build) = state.builds.get(key) else {
            return false;
        };
        build.cancelled.send_replace(true);
        true
    }

    /// Returns the cancellations of the builds in progress: what a request to cancel one of them looks like.
    fn cancellations_of_builds_in_progress(&self) -> Vec<Cancellation> {
        let state = self.lock();
        let in_progress = state.builds.iter().filter(|(_, build)| build.deliveries > 0);
        in_progress.map(|(key, _)| key.to_cancellation()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, RecordsState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RecordKey {
    /// Returns the request to cancel the build.
    pub(super) fn to_cancellation(&self) -> Cancellation {
        Cancellation {
            tenant: self.tenant.clone(),
            call_id: self.id.clone(),
        }
    }
}

impl RecordsState {
    /// Removes the builds that ended first, until there are no more than the limit.
    fn evict_ended_above_limit(&mut self) {
        while self.ended.len() > ENDED_BUILDS_MAX {
            if let Some(key) = self.ended.pop_front() {
                self.builds.remove(&key);
            }
        }
    }
}

impl RecordedDelivery {
    /// Changes the record of the build, unless it says already that the build succeeded.
    pub(crate) fn update_unless_succeeded(&self, change: impl FnOnce(&mut BuildRecord)) {
        let state = self.shared.lock();
        if let Some(build) = state.builds.get(&self.key) {
            build.record.send_if_modified(|record| {
                let is_open = record.phase != BuildPhase::Success;
                if is_open {
                    change(record);
                }
                is_open
            });
        }
    }

    /// Sets the mask of the secrets in the build's log.
    pub(crate) fn set_mask(&self, mask: SecretMask) {
        if let Some(build) = self.shared.lock().builds.get_mut(&self.key) {
            build.mask = Some(mask);
        }
    }

    /// Sets the state of the build, unless its record says already that it succeeded.
    pub(crate) fn set_phase_unless_succeeded(&self, phase: BuildPhase) {
        self.update_unless_succeeded(|record| record.phase = phase);
    }

    /// Returns the tenant of the build.
    pub(crate) fn tenant(&self) -> Option<&str> {
        self.key.tenant.as_deref()
    }

    /// Returns the request to cancel the build.
    pub(crate) fn to_cancellation(&self) -> Cancellation {
        self.key.to_cancellation()
    }

    /// Follows requests to cancel builds of this process that reach other builders of `pool`, until the returned guard
    /// and those of other builds are dropped.
    pub(crate) fn watch_cancellations_of_any_build(&self, pool: &DaemonPool) -> PoolWatchGuard {
        let (listed, cancelled) = (self.shared.clone(), self.shared.clone());
        self.shared.0.cancellations.begin_or_join_watch(
            pool,
            move || listed.cancellations_of_builds_in_progress(),
            move |Cancellation { tenant, call_id }| {
                cancelled.cancel_if_recorded(&RecordKey { tenant, id: call_id });
            },
        )
    }

    /// Waits until the build is cancelled.
    pub(crate) async fn wait_until_cancelled(&self) {
        let mut cancelled = self.cancelled.clone();
        if cancelled.wait_for(|is_cancelled| *is_cancelled).await.is_err() {
            // Does not happen: a build with deliveries is not removed.
            std::future::pending().await
        }
    }

    /// Records in the record store that the call was accepted, and what its build is resumed with. It is durable when
    /// this returns. Without a store, nothing is recorded.
    ///
    /// # Errors
    /// Fails if the registry does not store the record in a short time.
    pub(crate) async fn store_acceptance_if_store_exists(
        &mut self,
        request: Option<(ResumableRequestHead, Bytes)>,
    ) -> Result<(), StoreError> {
        let record = {
            let state = self.shared.lock();
            let build = state.builds.get(&self.key);
            build.map(|build| build.record.borrow().clone())
        };
        match (self.shared.store(), &mut self.place, record) {
            // On the heap: the future of an upload is much larger than that of the build which awaits it here.
            (Some(store), Some(place), Some(record)) => {
                Box::pin(store.store_acceptance_unless_outranked(place, record, request)).await
            }
            _ => Ok(()),
        }
    }

    /// Puts the record of the build where this process has claimed it.
    pub(crate) fn use_claimed_place(&mut self, claimed: RecordPlace) {
        self.place = Some(claimed);
    }

    /// Goes on with the counts of the processes that ran the build before: `attempts` are recorded, and `gone`
    /// processes stopped without recording theirs.
    pub(crate) fn continue_counts_of_other_processes(&mut self, attempts: u32, gone: u32) {
        self.update_unless_succeeded(|record| record.attempts = record.attempts.max(attempts));
        self.attempts_of_gone_processes = gone * ATTEMPTS_OF_PROCESS_MAX;
    }

    /// Returns the number of the current attempt, from 1: greater than those of all earlier ones that this process
    /// knows of.
    pub(crate) fn attempt_number(&self) -> u32 {
        self.recorded_attempts() + self.attempts_of_gone_processes
    }

    /// Returns the number of attempts that the record has, at least 1.
    pub(crate) fn recorded_attempts(&self) -> u32 {
        let state = self.shared.lock();
        let recorded = state.builds.get(&self.key);
        recorded.map_or(1, |build| build.record.borrow().attempts.max(1))
    }

    /// Returns whether another process can resume the build once it was handed back.
    pub(crate) fn can_be_resumed_once_handed_back(&self) -> bool {
        self.place
            .as_ref()
            .is_some_and(RecordPlace::can_be_resumed_once_handed_back)
    }

    /// Hands the build back, which this process cannot run now: any process resumes it. `is_process_ending` says that
    /// this process ends in a moment. The build of another delivery of the call goes on.
    ///
    /// # Errors
    /// Fails if it is not known whether another process resumes the build.
    pub(crate) async fn hand_back_or_leave_resumable(
        &self,
        is_process_ending: bool,
    ) -> Result<(), StoreError> {
        if self.leave_to_another_delivery_if_any() {
            return Ok(());
        }
        let record = {
            let mut state = self.shared.lock();
            match state.builds.get_mut(&self.key) {
                Some(build) => {
                    build.record.send_if_modified(|record| {
                        let is_open = !record.is_success();
                        if is_open {
                            record.phase = BuildPhase::Waiting;
                        }
                        is_open
                    });
                    let record = build.record.borrow().clone();
                    (!record.is_success()).then_some(record)
                }
                None => None,
            }
        };
        let (Some(store), Some(place), Some(record)) = (self.shared.store(), &self.place, record) else {
            return Ok(());
        };
        let handed_back = Box::pin(store.hand_back_unless_outranked(place, record, is_process_ending)).await;
        match handed_back {
            Err(error) if place.has_stored_request() => {
                let error = ErrorChain(&error).to_string();
                tracing::warn!(error, "could not hand a build back; it is resumed later");
                Ok(())
            }
            handed_back => handed_back,
        }
    }

    /// Ends this delivery if another one of the call is in progress, whose build goes on. Returns whether there is one.
    pub(crate) fn leave_to_another_delivery_if_any(&self) -> bool {
        let mut state = self.shared.lock();
        let Some(build) = state.builds.get_mut(&self.key) else {
            return false;
        };
        let has_another = build.deliveries > 1;
        if has_another && !self.has_ended.swap(true, Ordering::Relaxed) {
            build.deliveries -= 1;
        }
        has_another
    }

    /// Ends the delivery of a build that was handed back. Other processes know more of the build from now on.
    pub(crate) fn leave_to_other_processes(self) {
        if self.has_ended.swap(true, Ordering::Relaxed) {
            return;
        }
        let mut state = self.shared.lock();
        let Some(build) = state.builds.get_mut(&self.key) else {
            return;
        };
        build.deliveries -= 1;
        if build.deliveries == 0 {
            let is_success = build.record.borrow().is_success();
            match is_success {
                true => {
                    state.ended.push_back(self.key.clone());
                    state.evict_ended_above_limit();
                }
                false => drop(state.builds.remove(&self.key)),
            }
        }
    }

    /// Records the end of the build, with the fields of its answer. While another delivery of the call is in progress,
    /// only a success is recorded: otherwise the outcome of the other one counts.
    ///
    /// The record store is written in the background; the result says when that has ended.
    pub(crate) fn record_end_if_success_or_last_delivery(
        mut self,
        phase: BuildPhase,
        outcome: Map<String, Value>,
    ) -> BackgroundWriteHandle {
        self.record_end_once_if_success_or_last_delivery(phase, outcome)
    }

    /// Records that the request is rejected for now: in the record store only if this process has recorded the
    /// acceptance of the call there, because the same request is to be sent again.
    pub(crate) fn reject_for_now(mut self, outcome: Map<String, Value>) -> BackgroundWriteHandle {
        if self
            .place
            .as_ref()
            .is_some_and(|place| !place.was_written_by_this_process())
        {
            self.place = None;
        }
        self.record_end_once_if_success_or_last_delivery(BuildPhase::Failed, outcome)
    }

    /// Records the end of the delivery once.
    fn record_end_once_if_success_or_last_delivery(
        &mut self,
        phase: BuildPhase,
        outcome: Map<String, Value>,
    ) -> BackgroundWriteHandle {
        if self.has_ended.swap(true, Ordering::Relaxed) {
            return BackgroundWriteHandle::none();
        }
        let mut state = self.shared.lock();
        let Some(build) = state.builds.get_mut(&self.key) else {
            return BackgroundWriteHandle::none();
        };
        let mut ended = None;
        build.deliveries -= 1;
        let is_last = build.deliveries == 0;
        if is_last || phase == BuildPhase::Success {
            build.record.send_if_modified(|record| {
                let is_open = record.phase != BuildPhase::Success;
                if is_open {
                    record.phase = phase;
                    record.outcome = outcome;
                    record.ended_at = Some(SystemTime::now());
                    ended = Some(record.clone());
                }
                is_open
            });
        }
        if is_last {
            state.ended.push_back(self.key.clone());
            state.evict_ended_above_limit();
        }
        drop(state);
        match (self.shared.store(), self.place.take(), ended) {
            (Some(store), Some(place), Some(record)) => store.store_end(place, record),
            _ => BackgroundWriteHandle::none(),
        }
    }
}

impl Drop for RecordedDelivery {
    fn drop(&mut self) {
        let error = match std::thread::panicking() {
            true => "the builder has a defect, which ended the build",
            // The process ends. Another one resumes the build.
            false if self.place.as_ref().is_some_and(RecordPlace::has_stored_request) => return,
            false => "the caller disconnected, and the build was given up",
        };
        let outcome = Map::from_iter([("error".to_owned(), Value::from(error))]);
        self.record_end_once_if_success_or_last_delivery(BuildPhase::Failed, outcome);
    }
}

impl fmt::Debug for RecordedBuild {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordedBuild")
            .field("record", &*self.record.borrow())
            .field("deliveries", &self.deliveries)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> RecordKey {
        RecordKey {
            tenant: None,
            id: id.into(),
        }
    }

    fn accept(records: &BuildRecords, id: &str) -> RecordedDelivery {
        records.accept(key(id), SystemTime::UNIX_EPOCH)
    }

    fn phase(records: &BuildRecords, id: &str) -> Option<BuildPhase> {
        Some(records.find_receiver_and_mask(&key(id))?.0.borrow().phase)
    }

    #[test]
    fn the_log_of_a_build_has_no_mask_before_its_secrets_are_known() {
        let records = BuildRecords::default();
        let build = accept(&records, "a");
        let has_mask = || {
            records
                .find_receiver_and_mask(&key("a"))
                .is_some_and(|(_, mask)| mask.is_some())
        };
        assert!(!has_mask(), "a default mask would hide nothing");
        build.set_mask(SecretMask::default());
        assert!(has_mask());
    }

    #[test]
    fn a_failed_delivery_hides_neither_another_one_that_builds_nor_a_success() {
        let records = BuildRecords::default();
        let first = accept(&records, "a");
        first.set_phase_unless_succeeded(BuildPhase::Running);

        accept(&records, "a").record_end_if_success_or_last_delivery(BuildPhase::Failed, Map::new());
        assert_eq!(phase(&records, "a"), Some(BuildPhase::Running));
        first.record_end_if_success_or_last_delivery(BuildPhase::Success, Map::new());
        let late = accept(&records, "a");
        late.set_phase_unless_succeeded(BuildPhase::Waiting);
        drop(late);

        assert_eq!(phase(&records, "a"), Some(BuildPhase::Success));
    }

    #[test]
    fn a_build_that_is_dropped_is_recorded_as_failed_and_may_begin_again() {
        let records = BuildRecords::default();
        drop(accept(&records, "a"));
        assert_eq!(phase(&records, "a"), Some(BuildPhase::Failed));
        let again = accept(&records, "a");
        assert_eq!(phase(&records, "a"), Some(BuildPhase::Waiting));
        again.record_end_if_success_or_last_delivery(BuildPhase::Cancelled, Map::new());
        assert_eq!(phase(&records, "a"), Some(BuildPhase::Cancelled));
    }

    #[test]
    fn a_cancelled_call_stays_cancelled_for_its_redeliveries() {
        let records = BuildRecords::default();
        let first = accept(&records, "a");
        assert!(!*first.cancelled.borrow());
        assert!(records.cancel_if_recorded(&key("a")));
        assert!(*first.cancelled.borrow());
        drop(first);
        assert!(*accept(&records, "a").cancelled.borrow());
        assert!(!records.cancel_if_recorded(&key("b")));
    }

    #[test]
    fn records_of_ended_builds_are_limited_and_running_ones_are_kept() {
        let records = BuildRecords::default();
        let running = accept(&records, "running");
        for number in 0..=ENDED_BUILDS_MAX {
            accept(&records, &number.to_string())
                .record_end_if_success_or_last_delivery(BuildPhase::Success, Map::new());
        }
        assert_eq!(records.list(None).len(), ENDED_BUILDS_MAX + 1);
        assert_eq!(phase(&records, "0"), None);
        assert_eq!(phase(&records, "running"), Some(BuildPhase::Waiting));
        drop(running);
    }
}
