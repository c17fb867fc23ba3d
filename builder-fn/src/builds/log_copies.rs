//! The copies of the logs that somebody reads.
//!
//! BuildKit sends the log of a build only from its beginning on. A reader that is cut off again and again, or one of
//! many readers of a log, would have all of it sent, ordered and counted each time. So a log is read from the daemon
//! once while it has readers, and for a minute after that, into a [copy](LogCopy) on disk; a reader reads the copy from
//! the line on that it needs. A log for which there is no room is read from the daemon by each reader.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::log_copy::{CopyBudget, CopyEnd, CopyReader, LogCopy};
use super::log_readers::READERS_MAX;
use super::numbered_log::NumberedLog;
use crate::buildkit::{Connection, ListedBuild};
use crate::context::SpoolSettings;
use crate::redact::SecretMask;

/// The number by which the limit on all copies is divided, for the limit on one copy.
const BUDGET_DIVISOR_FOR_ONE_COPY: u64 = 4;

/// The copies of logs. Clones share them.
#[derive(Clone)]
pub(super) struct LogCopies(Arc<SharedCopies>);

/// The state that all clones of [`LogCopies`] share.
struct SharedCopies {
    spool: SpoolSettings,
    budget: Arc<CopyBudget>,
    copies: Mutex<HashMap<LogCopyKey, Arc<LogCopy>>>,
}

/// The key under which the copy of an attempt's log is found, by the readers of its tenant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct LogCopyKey {
    tenant: Option<String>,
    daemon: String,
    reference: String,
    /// The time at which the attempt began: one that BuildKit did not record begins again under the same reference.
    started_at: Option<SystemTime>,
}

impl LogCopyKey {
    /// Returns the key of the copy of an attempt's log.
    pub(super) fn of(attempt: &ListedBuild) -> Self {
        Self {
            tenant: attempt.attributes.tenant.clone(),
            daemon: attempt.daemon.address_for_messages().to_owned(),
            reference: attempt.reference.clone(),
            started_at: attempt.started_at,
        }
    }
}

impl LogCopies {
    /// Creates an empty set of copies in the spool folder, of at most `limit` bytes together. They also count against
    /// the quota of the spool.
    pub(super) fn new(spool: &SpoolSettings, limit: u64) -> Self {
        Self(Arc::new(SharedCopies {
            spool: spool.clone(),
            budget: Arc::new(CopyBudget::new(limit)),
            copies: Mutex::default(),
        }))
    }

    /// Returns a reader of the copy of a log, if there is one.
    pub(super) fn find(&self, log: &LogCopyKey) -> Option<CopyReader> {
        self.0.lock().get(log).map(LogCopy::open_reader)
    }

    /// Begins to copy the log of `attempt`, which is the attempt number `number`, in the background, unless that was
    /// begun for another reader. Returns a reader of the copy.
    pub(super) fn begin_or_join_copy(
        &self,
        connection: Connection,
        attempt: &ListedBuild,
        number: u64,
        mask: &SecretMask,
    ) -> CopyReader {
        let key = LogCopyKey::of(attempt);
        let mut copies = self.0.lock();
        if let Some(copy) = copies.get(&key) {
            return copy.open_reader();
        }
        if copies.len() >= READERS_MAX {
            // There are no more readers than that, so one of the copies has none.
            let unread = copies.iter().find(|(_, copy)| copy.has_no_reader_now());
            if let Some(unread) = unread.map(|(key, _)| key.clone())
                && let Some(evicted) = copies.remove(&unread)
            {
                evicted.mark_evicted();
            }
        }
        let spool = match &key.tenant {
            Some(tenant) => SpoolSettings {
                quota: self.0.spool.quota.share_of_tenant(tenant),
                ..self.0.spool.clone()
            },
            None => self.0.spool.clone(),
        };
        let budget = self.0.budget.clone();
        let limit = budget.limit() / BUDGET_DIVISOR_FOR_ONE_COPY;
        let copy = LogCopy::new(&spool, budget, limit);
        copies.insert(key.clone(), copy.clone());
        let reader = copy.open_reader();
        let log = NumberedLog::open(&connection, attempt, number, mask);
        tokio::spawn(
            self.0
                .clone()
                .copy_and_keep_while_needed(key, copy, connection, log),
        );
        reader
    }
}

impl SharedCopies {
    /// Copies `log`, and keeps the copy while it is needed. One without the whole log is not found by further readers.
    async fn copy_and_keep_while_needed(
        self: Arc<Self>,
        key: LogCopyKey,
        copy: Arc<LogCopy>,
        connection: Connection,
        log: NumberedLog,
    ) {
        if copy.copy_until_end_full_or_unneeded(log).await == CopyEnd::Complete {
            drop(connection);
            copy.wait_until_unneeded_or_evicted().await;
        }
        let mut copies = self.lock();
        if copies.get(&key).is_some_and(|found| Arc::ptr_eq(found, &copy)) {
            copies.remove(&key);
        }
        drop(copies);
        // The file of a copy that has no readers is freed with it.
        tokio::task::spawn_blocking(move || drop(copy));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<LogCopyKey, Arc<LogCopy>>> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for LogCopies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogCopies")
            .field("count", &self.0.lock().len())
            .finish_non_exhaustive()
    }
}
