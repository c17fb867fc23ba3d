//! The pool of shared keys, and the memory that all of them take.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use function_host::prometheus::IntCounter;

use super::announcements::AnnouncedEntries;

/// The limit on the memory for announcements of running and earlier builds, in bytes: 300,000 files of one or many
/// contexts.
pub(super) const ANNOUNCEMENT_MEMORY_MAX_BYTES: usize = 6 << 20;

/// The limit on the number of idle keys in the pool.
const IDLE_KEYS_MAX: usize = 256;

/// A pool of shared keys that builds lease one after another. Clones share the pool.
#[derive(Clone)]
pub struct SharedKeyPool {
    pool: Arc<Mutex<IdleKeyPool>>,
    /// The limit on the memory for announcements under idle and leased keys, in bytes.
    pub(super) memory_max: usize,
    /// The metric of file bytes that were sent to daemons.
    pub(super) sent_bytes: IntCounter,
}

/// The idle keys, and the memory that the keys in use reserve.
#[derive(Default)]
pub(super) struct IdleKeyPool {
    /// The keys that no build uses, the most recently used last.
    pub(super) idle: Vec<KeyAndAnnouncements>,
    /// The memory that is reserved for the keys in use, in bytes.
    pub(super) reserved: usize,
}

/// A shared key, and the entries that were announced under it.
pub(super) struct KeyAndAnnouncements {
    /// The image whose builds may use the key.
    pub(super) image: String,
    pub(super) key: String,
    pub(super) announcements: AnnouncedEntries,
    /// The size of all files that were forced under the key so far, in bytes.
    pub(super) forced_bytes: u64,
}

/// A reservation of memory for a key in use. Dropping it releases the memory.
pub(super) struct MemoryReservation {
    keys: SharedKeyPool,
    bytes: usize,
}

impl SharedKeyPool {
    /// Creates an empty pool of shared keys. `sent_bytes` counts the bytes of files that are sent to daemons.
    pub fn new(sent_bytes: IntCounter) -> Self {
        Self {
            pool: Arc::default(),
            memory_max: ANNOUNCEMENT_MEMORY_MAX_BYTES,
            sent_bytes,
        }
    }

    /// Takes the most recently used key of `image` out of the pool, and reserves its memory; `None` if it has no idle
    /// key.
    pub(super) fn take_key_of_image(&self, image: &str) -> Option<(KeyAndAnnouncements, MemoryReservation)> {
        let mut pool = self.lock_pool();
        let at = pool.idle.iter().rposition(|record| record.image == image)?;
        let record = pool.idle.remove(at);
        let bytes = record.announcements.memory_bytes();
        pool.reserved += bytes;
        let keys = self.clone();
        Some((record, MemoryReservation { keys, bytes }))
    }

    /// Puts a key back into the pool and releases its reservation; evicts the least recently used keys if there are too
    /// many or they are too large. Only for a key under which no transfer was broken off or goes on.
    pub(super) fn put_back_key_of_complete_transfers(
        &self,
        record: KeyAndAnnouncements,
        reservation: MemoryReservation,
    ) {
        drop(reservation);
        let mut pool = self.lock_pool();
        pool.idle.push(record);
        let excess = pool.idle.len().saturating_sub(IDLE_KEYS_MAX);
        pool.idle.drain(..excess);
        pool.evict_until_fits(0, self.memory_max);
    }

    pub(super) fn lock_pool(&self) -> MutexGuard<'_, IdleKeyPool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl IdleKeyPool {
    /// Evicts the least recently used idle keys until `more_bytes` fit within `bytes_max` or no key is left.
    ///
    /// Returns whether the bytes fit then.
    fn evict_until_fits(&mut self, more_bytes: usize, bytes_max: usize) -> bool {
        let needed = self.reserved.saturating_add(more_bytes);
        let mut idle: usize = self
            .idle
            .iter()
            .map(|record| record.announcements.memory_bytes())
            .sum();
        let mut evicted = 0;
        for record in &self.idle {
            if idle.saturating_add(needed) <= bytes_max {
                break;
            }
            idle -= record.announcements.memory_bytes();
            evicted += 1;
        }
        self.idle.drain(..evicted);
        needed <= bytes_max
    }
}

impl MemoryReservation {
    /// Reserves `bytes` of memory, or returns `None` if other keys in use leave too little.
    pub(super) fn new(keys: &SharedKeyPool, bytes: usize) -> Option<Self> {
        let keys = keys.clone();
        Self { keys, bytes: 0 }.grow_or_release(bytes)
    }

    /// Adds `more` bytes to the reservation; on failure releases all of it and returns `None`.
    pub(super) fn grow_or_release(mut self, more: usize) -> Option<Self> {
        {
            let mut pool = self.keys.lock_pool();
            if !pool.evict_until_fits(more, self.keys.memory_max) {
                return None;
            }
            pool.reserved += more;
        }
        self.bytes += more;
        Some(self)
    }
}

impl Drop for MemoryReservation {
    fn drop(&mut self) {
        self.keys.lock_pool().reserved -= self.bytes;
    }
}

impl fmt::Debug for SharedKeyPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedKeyPool")
            .field("idle", &self.lock_pool().idle.len())
            .finish_non_exhaustive()
    }
}
