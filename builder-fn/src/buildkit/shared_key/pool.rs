//! The keys that no build uses, and the memory that all keys take.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use function_host::prometheus::IntCounter;

use super::announcements::Announcements;

/// The most memory for announcements of running and earlier builds, in bytes: 300,000 files of one or many contexts.
pub(super) const MEMORY_MAX: usize = 6 << 20;

/// The most idle keys, however little is remembered of each.
const IDLE_MAX: usize = 256;

/// The pool of shared keys. Clones share it.
#[derive(Clone)]
pub struct SharedKeys {
    pool: Arc<Mutex<Pool>>,
    pub(super) memory_max: usize,
    pub(super) sent_bytes: IntCounter,
}

#[derive(Default)]
pub(super) struct Pool {
    /// Keys that no build uses, the most recently used at the end.
    pub(super) idle: Vec<KeyRecord>,
    /// Bytes that are reserved for the keys in use.
    pub(super) reserved: usize,
}

/// A key, and the entries that were announced under it.
pub(super) struct KeyRecord {
    /// The image whose builds may use the key.
    pub(super) image: String,
    pub(super) key: String,
    pub(super) announcements: Announcements,
    /// Bytes of the files that were forced so far.
    pub(super) forced_bytes: u64,
}

/// Memory that is reserved for a key in use. Dropping it releases the memory.
pub(super) struct Reservation {
    keys: SharedKeys,
    bytes: usize,
}

impl SharedKeys {
    /// Creates an empty pool. `sent_bytes` counts the bytes of files that are sent to daemons.
    pub fn new(sent_bytes: IntCounter) -> Self {
        Self {
            pool: Arc::default(),
            memory_max: MEMORY_MAX,
            sent_bytes,
        }
    }

    /// Takes the most recently used key of `image` out of the pool, with the memory that it takes.
    pub(super) fn take(&self, image: &str) -> Option<(KeyRecord, Reservation)> {
        let mut pool = self.lock();
        let at = pool.idle.iter().rposition(|record| record.image == image)?;
        let record = pool.idle.remove(at);
        let bytes = record.announcements.bytes();
        pool.reserved += bytes;
        let keys = self.clone();
        Some((record, Reservation { keys, bytes }))
    }

    /// Returns a key to the pool, and evicts the least recently used ones if there are too many or they are too large.
    pub(super) fn put_back(&self, record: KeyRecord, reservation: Reservation) {
        drop(reservation);
        let mut pool = self.lock();
        pool.idle.push(record);
        let excess = pool.idle.len().saturating_sub(IDLE_MAX);
        pool.idle.drain(..excess);
        pool.evict(0, self.memory_max);
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// Evicts as many of the least recently used idle keys as `more` bytes within `limit` need.
    ///
    /// Returns whether the bytes are available then.
    fn evict(&mut self, more: usize, limit: usize) -> bool {
        let needed = self.reserved.saturating_add(more);
        let mut idle: usize = self.idle.iter().map(|record| record.announcements.bytes()).sum();
        let mut evicted = 0;
        for record in &self.idle {
            if idle.saturating_add(needed) <= limit {
                break;
            }
            idle -= record.announcements.bytes();
            evicted += 1;
        }
        self.idle.drain(..evicted);
        needed <= limit
    }
}

impl Reservation {
    /// Reserves `bytes`, or returns `None` if the memory is in use by other keys.
    pub(super) fn new(keys: &SharedKeys, bytes: usize) -> Option<Self> {
        let keys = keys.clone();
        Self { keys, bytes: 0 }.grow(bytes)
    }

    /// Reserves `more` bytes; on failure releases the whole reservation and returns `None`.
    pub(super) fn grow(mut self, more: usize) -> Option<Self> {
        {
            let mut pool = self.keys.lock();
            if !pool.evict(more, self.keys.memory_max) {
                return None;
            }
            pool.reserved += more;
        }
        self.bytes += more;
        Some(self)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.keys.lock().reserved -= self.bytes;
    }
}

impl fmt::Debug for SharedKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedKeys")
            .field("idle", &self.lock().idle.len())
            .finish_non_exhaustive()
    }
}
