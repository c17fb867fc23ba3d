//! Shared keys: what the daemon keeps transferred folders under, and what it may take out of them again.
//!
//! BuildKit keeps the folder that it was last sent under (name, hint, shared key), and the next time asks only for
//! files that differ from it in size, time, mode, owner or link name: never for those whose content alone does. So a key
//! decides which other builds' files a build can end up with. Here
//!
//! - a key is made by this process, at random, and used by one build at a time, and only for one image's builds;
//! - everything that was announced under a key is remembered, with a hash of its content ([`memory`]);
//! - a file that the daemon could take an older content for is announced with a mark that makes the daemon ask for it
//!   (`stat`), whatever it has;
//! - a key is thrown away when a transfer under it did not come to its end, or when the build did not: the daemon's
//!   checksums are then not those of its files. So it is when folders have changed, whose checksums BuildKit does not
//!   renew;
//! - when nothing is remembered (another image, a restart, no room), the key is a new one: cold, and right. Room is made before
//!   it is used, at the expense of the keys that were used least recently, so that what is remembered is bounded at all times.
//!
//! That the daemon prunes a folder, cannot use it because it is still in use, or is another daemon behind the same
//! address, makes a transfer colder, not wrong: whatever it has, it has from a transfer that is remembered.

mod marks;
mod memory;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use function_host::prometheus::IntCounter;

use crate::context::{SourceContext, View};
use marks::Marks;
use memory::{Match, Memory};

/// Bytes of memory for what is remembered, in builds under way and from those before: 300,000 files, of one context or of
/// many.
const LIMIT: usize = 6 << 20;

/// Keys that are remembered, however little there is to remember of each.
const KEYS: usize = 256;

/// Keys, and what was announced under them. Cloned, it is the same.
#[derive(Clone)]
pub struct SharedKeys {
    pool: Arc<Mutex<Pool>>,
    limit: usize,
    sent: IntCounter,
}

#[derive(Default)]
struct Pool {
    /// Keys that no build uses, the one that was used last at the end.
    idle: Vec<Slot>,
    /// Bytes that those in use may come to take.
    in_use: usize,
}

/// A key and its past.
struct Slot {
    /// Whose builds may use it.
    scope: String,
    key: String,
    memory: Memory,
    /// Bytes that were sent again because what is remembered was not clear enough.
    repeated: u64,
}

/// Memory that is taken for a key in use, until it is dropped.
struct Room {
    keys: SharedKeys,
    bytes: usize,
}

/// A key, for as long as one build uses it.
pub struct Lease {
    keys: SharedKeys,
    key: String,
    /// The files to be asked for in any case.
    marked: Marks,
    state: Mutex<State>,
}

struct State {
    /// Nothing for a key that is not to be used again.
    slot: Option<(Slot, Room)>,
    /// Transfers that have begun and not ended.
    open: usize,
    /// One of them has been broken off.
    broken: bool,
}

/// One transfer of files. Dropped before [`complete`](Self::complete), it was broken off.
pub(super) struct Transfer {
    lease: Arc<Lease>,
    is_complete: bool,
    files: u64,
    bytes: u64,
}

impl SharedKeys {
    /// None yet. `sent` counts the bytes of files that are sent to daemons.
    pub fn counting(sent: IntCounter) -> Self {
        Self {
            pool: Arc::default(),
            limit: LIMIT,
            sent,
        }
    }

    /// A key for one build of `context`, that only builds of the same `scope` have used before.
    ///
    /// Where there is no room to remember what will be announced under it, it is as [`cold`](Self::cold).
    pub fn lease(&self, scope: &str, context: &SourceContext) -> Lease {
        let known = self.take(scope).and_then(|(mut slot, room)| {
            let compared = compare(&mut slot, context)?;
            let room = room.with(Memory::bytes_of(compared.new))?;
            Some((slot, room, compared.marked))
        });
        if let Some((slot, room, marked)) = known {
            return Lease::new(self.clone(), Some((slot, room)), marked);
        }
        let slot = Slot::new(scope, context.index().len());
        let bytes = slot.memory.bytes() + Memory::bytes_of(context.index().len());
        let room = Room::none(self).with(bytes);
        Lease::new(self.clone(), room.map(|room| (slot, room)), Marks::default())
    }

    /// A key that has never been used, and will not be again. What is announced under it is not remembered.
    pub fn cold(&self) -> Lease {
        Lease::new(self.clone(), None, Marks::default())
    }

    /// The key of `scope` that was used last, and the room that it has.
    fn take(&self, scope: &str) -> Option<(Slot, Room)> {
        let mut pool = self.lock();
        let at = pool.idle.iter().rposition(|slot| slot.scope == scope)?;
        let slot = pool.idle.remove(at);
        let bytes = slot.memory.bytes();
        pool.in_use += bytes;
        let keys = self.clone();
        Some((slot, Room { keys, bytes }))
    }

    fn put_back(&self, slot: Slot, room: Room) {
        drop(room);
        let mut pool = self.lock();
        pool.idle.push(slot);
        let more_than_enough = pool.idle.len().saturating_sub(KEYS);
        pool.idle.drain(..more_than_enough);
        pool.make_room(0, self.limit);
    }

    fn lock(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// Drops the oldest of the keys that no build uses, as many as need be, so that so many bytes more are within `limit`.
    /// Says whether they are.
    fn make_room(&mut self, more: usize, limit: usize) -> bool {
        let taken = self.in_use.saturating_add(more);
        let mut idle: usize = self.idle.iter().map(|slot| slot.memory.bytes()).sum();
        let mut dropped = 0;
        for slot in &self.idle {
            if idle.saturating_add(taken) <= limit {
                break;
            }
            idle -= slot.memory.bytes();
            dropped += 1;
        }
        self.idle.drain(..dropped);
        taken <= limit
    }
}

impl Room {
    fn none(keys: &SharedKeys) -> Self {
        let keys = keys.clone();
        Self { keys, bytes: 0 }
    }

    /// So many bytes more. Nothing, not even what there was, where they are not to be had.
    fn with(mut self, more: usize) -> Option<Self> {
        {
            let mut pool = self.keys.lock();
            if !pool.make_room(more, self.keys.limit) {
                return None;
            }
            pool.in_use += more;
        }
        self.bytes += more;
        Some(self)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.keys.lock().in_use -= self.bytes;
    }
}

impl fmt::Debug for SharedKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedKeys")
            .field("idle", &self.lock().idle.len())
            .finish_non_exhaustive()
    }
}

/// How a context compares with what was announced under a key.
struct Compared {
    /// Which files have to be asked for in any case.
    marked: Marks,
    /// How many entries were never announced.
    new: usize,
}

/// Nothing, when the key is better not used: for folders that have changed, and when marked files have come to half of the
/// context. Once marked, a file is marked in all later builds under the key; a new key costs the other half once, and
/// nothing after that.
fn compare(slot: &mut Slot, context: &SourceContext) -> Option<Compared> {
    let mut compared = Compared {
        marked: Marks::default(),
        new: 0,
    };
    let index = context.index();
    let mut total = 0u64;
    let mut walk = index.walk();
    while let Some((at, path)) = walk.step() {
        let entry = index.entry(at);
        total += entry.size();
        match slot.memory.compare(path, &entry) {
            Match::Safe => {}
            Match::Unknown => compared.new += 1,
            Match::Different if entry.is_directory() => return None,
            Match::Different => {
                compared.marked.add(at, index.len());
                slot.repeated += entry.size();
            }
        }
    }
    (slot.repeated <= total / 2).then_some(compared)
}

impl Slot {
    fn new(scope: &str, entries: usize) -> Self {
        Self {
            scope: scope.to_owned(),
            key: random_key(),
            memory: Memory::expecting(entries),
            repeated: 0,
        }
    }
}

impl Lease {
    fn new(keys: SharedKeys, slot: Option<(Slot, Room)>, marked: Marks) -> Self {
        let key = slot.as_ref().map(|(slot, _)| slot.key.clone());
        Self {
            keys,
            key: key.unwrap_or_else(random_key),
            marked,
            state: Mutex::new(State {
                slot,
                open: 0,
                broken: false,
            }),
        }
    }

    /// The key for the next session of the build. It is another one when a transfer of an earlier session was broken off.
    pub(crate) fn key(&self) -> String {
        let state = self.lock();
        match state.broken || state.open > 0 || state.slot.is_none() {
            // Also for a key that is not to be kept: nothing is lost, it is random either way.
            true => random_key(),
            false => self.key.clone(),
        }
    }

    /// Whether the entry at this place has to be asked for, whatever the daemon has.
    pub(super) fn is_marked(&self, at: u32) -> bool {
        self.marked.contains(at)
    }

    /// Begins a transfer in which `shown` of `context` is announced.
    pub(super) fn begin(self: &Arc<Self>, context: &SourceContext, shown: &View) -> Transfer {
        let mut state = self.lock();
        state.open += 1;
        if let Some((slot, _)) = &mut state.slot {
            let index = context.index();
            slot.memory.note(|to| {
                let mut path = String::new();
                for at in shown.entries() {
                    index.read_path(*at, &mut path);
                    to(&path, &index.entry(*at));
                }
            });
        }
        Transfer {
            lease: self.clone(),
            is_complete: false,
            files: 0,
            bytes: 0,
        }
    }

    /// Makes the key free for the next build: only after a build that the daemon has ended, in one way or the other.
    /// A lease that is dropped without this takes its key along.
    pub(crate) fn release(&self) {
        let mut state = self.lock();
        let slot = state.slot.take().filter(|_| !state.broken && state.open == 0);
        if let Some((slot, room)) = slot {
            self.keys.put_back(slot, room);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("key", &self.key)
            .field("marked", &self.marked.len())
            .finish_non_exhaustive()
    }
}

impl Transfer {
    /// Content of files is sent.
    pub(super) fn sent(&mut self, files: u64, bytes: u64) {
        self.bytes += bytes;
        self.files += files;
        self.lease.keys.sent.inc_by(bytes);
    }

    /// The daemon has said that it has everything.
    pub(super) fn complete(&mut self) {
        if !std::mem::replace(&mut self.is_complete, true) {
            self.lease.lock().open -= 1;
        }
        tracing::debug!(files = self.files, bytes = self.bytes, "files sent");
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if !self.is_complete {
            let mut state = self.lease.lock();
            state.open -= 1;
            state.broken = true;
        }
    }
}

fn random_key() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

#[cfg(test)]
mod tests;
