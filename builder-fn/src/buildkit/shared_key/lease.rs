//! The lease of a shared key to one build.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::JoinHandle;

use super::announcements::{
    AnnouncedEntries, DIFFERENT_CONTENTS_MARK, KnownHashes, NewSameOrMayDiffer, hash_unnoticed_parts,
};
use super::entry_set::EntrySet;
use super::pool::{KeyAndAnnouncements, MemoryReservation, SharedKeyPool};
use super::sent_contents::{SentContents, SentPiece};
use crate::context::{ContentHash, ContextView, FileDigestTree, SourceContext};

/// A shared key, leased to one build. Dropping the lease discards the key, unless it was returned to the pool.
pub struct KeyLease {
    keys: SharedKeyPool,
    pub(super) key: String,
    /// The numbers of the files that the daemon is made to request, whatever copies it has.
    forced: EntrySet,
    /// The hashes of the context's large files by the blocks of its spool.
    by_blocks: HashesByBlocks,
    state: Mutex<LeaseTransfersState>,
    /// Whether somebody wants the files of the transfers listed.
    is_listed: AtomicBool,
    /// The listing of the files of the last complete transfer of the context.
    listing: Mutex<Option<JoinHandle<FileDigestTree>>>,
}

/// Hashes of large files by the blocks of their spool, by the numbers of their entries.
type HashesByBlocks = HashMap<u32, ContentHash>;

/// The state of a lease, which its transfers change.
struct LeaseTransfersState {
    /// The record of the key, for the pool; `None` for a key that must not be used again.
    record: Option<(KeyAndAnnouncements, MemoryReservation)>,
    /// The number of transfers that have begun and not ended.
    open_transfers: usize,
    /// Whether a transfer under the key was broken off.
    is_broken: bool,
}

/// A guard of one file transfer. Dropping it before [`complete_transfer`](Self::complete_transfer) marks the transfer
/// as broken off.
pub(in crate::buildkit) struct TransferGuard {
    lease: Arc<KeyLease>,
    is_complete: bool,
    files: u64,
    bytes: u64,
    /// The hashes of the sent contents; `None` if they are not remembered.
    sent: Option<SentContents>,
}

impl SharedKeyPool {
    /// Leases a shared key for a build of `context`: one that only builds of the same `image` have used before, or a
    /// new one.
    ///
    /// If there is no memory for what will be announced under it, the key is for [single use](Self::lease_single_use).
    /// Blocks while the files are read that look like remembered ones.
    pub fn lease_for_image_blocking(&self, image: &str, context: &SourceContext) -> KeyLease {
        let by_blocks = hash_large_files_by_blocks(context);
        // Once in the lease, and once among the announced entries.
        let bytes_by_blocks = AnnouncedEntries::bytes_for_hashes_by_blocks(2 * by_blocks.len());
        let known = self
            .take_key_of_image(image)
            .and_then(|(mut record, reservation)| {
                let reuse = add_forced_bytes_and_plan_reuse_unless_new_key_is_better(
                    &mut record,
                    context,
                    &by_blocks,
                )?;
                let more = AnnouncedEntries::bytes_for_entries(reuse.new_entries) + bytes_by_blocks;
                let reservation = reservation.grow_or_release(more)?;
                Some((record, reservation, reuse.forced))
            });
        if let Some((record, reservation, forced)) = known {
            return KeyLease::new(self.clone(), Some((record, reservation)), forced, by_blocks);
        }
        let record = KeyAndAnnouncements::new(image, context.index().len());
        let bytes = record.announcements.memory_bytes()
            + AnnouncedEntries::bytes_for_entries(context.index().len())
            + bytes_by_blocks;
        let record = MemoryReservation::new(self, bytes).map(|reservation| (record, reservation));
        let by_blocks = match record {
            Some(_) => by_blocks,
            None => HashesByBlocks::default(),
        };
        KeyLease::new(self.clone(), record, EntrySet::default(), by_blocks)
    }

    /// Leases a new shared key for one build only. What is announced under it is not remembered.
    pub fn lease_single_use(&self) -> KeyLease {
        KeyLease::new(self.clone(), None, EntrySet::default(), HashesByBlocks::default())
    }
}

/// Returns the hashes of the context's large files by the blocks of its spool, as far as there are any. Reads the ends
/// of these files.
fn hash_large_files_by_blocks(context: &SourceContext) -> HashesByBlocks {
    let index = context.index();
    let mut hashes = HashesByBlocks::default();
    let mut walk = index.walk();
    while let Some((at, _)) = walk.next_entry_or_none_then_restart() {
        if let Some(hash) = context.hash_content_by_blocks(index.entry_by_number(at)) {
            hashes.insert(at, hash);
        }
    }
    hashes
}

/// A plan for the reuse of a shared key by a context.
struct ForcedAndNewEntries {
    /// The numbers of the files that the daemon must be made to request, whatever copies it has.
    forced: EntrySet,
    /// The number of the context's entries that were never announced under the key.
    new_entries: usize,
}

/// Plans the reuse of the key of `record` by `context`, and adds the size of the forced files to the record. Returns
/// `None` if a new key is better.
///
/// That is so if a folder has changed, and if the forced files of all builds so far amount to more than half of the
/// context. A file that was forced once is forced in all later builds under the key; a new key costs the other half
/// once, and nothing after that.
fn add_forced_bytes_and_plan_reuse_unless_new_key_is_better(
    record: &mut KeyAndAnnouncements,
    context: &SourceContext,
    by_blocks: &HashesByBlocks,
) -> Option<ForcedAndNewEntries> {
    let mut reuse = ForcedAndNewEntries {
        forced: EntrySet::default(),
        new_entries: 0,
    };
    let index = context.index();
    let mut total = 0u64;
    let mut walk = index.walk();
    while let Some((at, path)) = walk.next_entry_or_none_then_restart() {
        let entry = index.entry_by_number(at);
        total += entry.size();
        let by_blocks = by_blocks.get(&at).copied();
        let announced = &record.announcements;
        match announced.compare_with_announced(path, &entry, by_blocks, || context.hash_content(entry).ok()) {
            NewSameOrMayDiffer::Same => {}
            NewSameOrMayDiffer::New => reuse.new_entries += 1,
            NewSameOrMayDiffer::MayDiffer if entry.is_folder() => return None,
            NewSameOrMayDiffer::MayDiffer => {
                reuse.forced.insert(at, index.len());
                record.forced_bytes += entry.size();
            }
        }
    }
    (record.forced_bytes <= total / 2).then_some(reuse)
}

impl KeyAndAnnouncements {
    /// Creates the record of a new random key, under which about `entries` entries will be announced.
    fn new(image: &str, entries: usize) -> Self {
        Self {
            image: image.to_owned(),
            key: random_shared_key(),
            announcements: AnnouncedEntries::with_lists_for_expected_entries(entries),
            forced_bytes: 0,
        }
    }
}

impl KeyLease {
    /// Creates a lease of the key in `record`, or without a record of a new key for single use.
    fn new(
        keys: SharedKeyPool,
        record: Option<(KeyAndAnnouncements, MemoryReservation)>,
        forced: EntrySet,
        by_blocks: HashesByBlocks,
    ) -> Self {
        let key = record.as_ref().map(|(record, _)| record.key.clone());
        Self {
            keys,
            key: key.unwrap_or_else(random_shared_key),
            forced,
            by_blocks,
            state: Mutex::new(LeaseTransfersState {
                record,
                open_transfers: 0,
                is_broken: false,
            }),
            is_listed: AtomicBool::new(false),
            listing: Mutex::default(),
        }
    }

    /// Returns the shared key for the build's next session: a new random key if the lease is for single use, or a
    /// transfer of an earlier session was broken off or has not ended.
    pub(in crate::buildkit) fn leased_or_new_key_for_session(&self) -> String {
        let state = self.lock_state();
        match state.is_broken || state.open_transfers > 0 || state.record.is_none() {
            // A single-use key may change too: it is random in any case.
            true => random_shared_key(),
            false => self.key.clone(),
        }
    }

    /// Returns whether the daemon is made to request the entry with this number, whatever copy it has.
    pub(in crate::buildkit) fn is_forced(&self, entry: u32) -> bool {
        self.forced.contains(entry)
    }

    /// Begins a file transfer, which counts as broken off unless the returned guard completes it.
    pub(in crate::buildkit) fn begin_transfer(self: &Arc<Self>) -> TransferGuard {
        let mut state = self.lock_state();
        state.open_transfers += 1;
        TransferGuard {
            lease: self.clone(),
            is_complete: false,
            files: 0,
            bytes: 0,
            sent: state.record.is_some().then(SentContents::default),
        }
    }

    /// Returns the shared key to the pool for the next build, or discards it if a transfer under it was broken off or
    /// has not ended. To be called only after a build that the daemon has ended itself, with success or failure: a
    /// lease that is dropped without this call discards its key.
    pub(in crate::buildkit) fn return_to_pool_if_all_transfers_completed(&self) {
        let mut state = self.lock_state();
        let record = state
            .record
            .take()
            .filter(|_| !state.is_broken && state.open_transfers == 0);
        if let Some((record, reservation)) = record {
            self.keys.put_back_key_of_complete_transfers(record, reservation);
        }
    }

    /// Records the entries of `view`, with the contents that were sent. A forced file is recorded as one with different
    /// contents, so that it is forced from then on. Returns the hash of each entry's content,
    /// [`DIFFERENT_CONTENTS_MARK`] if it is not known.
    fn record_announced_entries(
        &self,
        record: &mut KeyAndAnnouncements,
        context: &SourceContext,
        view: &ContextView,
        sent: &SentContents,
    ) -> Vec<ContentHash> {
        let index = context.index();
        let mut contents = Vec::with_capacity(view.len());
        record.announcements.add_announcement(
            |visit| {
                let mut path = String::new();
                for visible in view.iter() {
                    index.write_path(visible.entry, &mut path);
                    // The daemon makes a hard link of the file that it has, without a request.
                    let sent = match self.is_forced(visible.entry) {
                        true => Some(ContentHash::default()),
                        false => sent.hash_of_whole_file(visible.link.unwrap_or(visible.entry)),
                    };
                    let by_blocks = self.by_blocks.get(&visible.entry).copied();
                    let known = KnownHashes { sent, by_blocks };
                    visit(&path, &index.entry_by_number(visible.entry), known);
                }
            },
            |content| contents.push(content),
        );
        if self.forced.len() > 0 {
            for (content, visible) in contents.iter_mut().zip(view.iter()) {
                if self.is_forced(visible.entry) {
                    let entry = index.entry_by_number(visible.entry);
                    let hash = sent.hash_of_whole_file(visible.link.unwrap_or(visible.entry));
                    let hash = hash.map(|hash| hash_unnoticed_parts(hash, &entry));
                    *content = hash.unwrap_or(DIFFERENT_CONTENTS_MARK);
                }
            }
        }
        contents
    }

    /// Has the files listed of each transfer that completes from now on, for
    /// [`take_listed_files`](Self::take_listed_files), which returns those of the last one.
    pub(crate) fn request_listing_of_later_transfers(&self) {
        self.is_listed.store(true, Ordering::Relaxed);
    }

    /// Starts to list the files of a transfer on another thread, if that was requested, for
    /// [`take_listed_files`](Self::take_listed_files). `content_hashes` has the hash of
    /// each entry's content.
    pub(in crate::buildkit) fn start_listing_if_requested(
        &self,
        context: Arc<SourceContext>,
        view: Arc<ContextView>,
        content_hashes: Vec<ContentHash>,
    ) {
        if !self.is_listed.load(Ordering::Relaxed) {
            return;
        }
        let listing = tokio::task::spawn_blocking(move || {
            FileDigestTree::of_view(context.index(), &view, &content_hashes, DIFFERENT_CONTENTS_MARK)
        });
        *self.listing.lock().unwrap_or_else(PoisonError::into_inner) = Some(listing);
    }

    /// Returns the digests of the files that the last complete transfer of the context announced, once; `None` if there
    /// was none, or their contents are not remembered.
    pub(crate) async fn take_listed_files(&self) -> Option<FileDigestTree> {
        let listing = self.listing.lock().unwrap_or_else(PoisonError::into_inner).take();
        listing?.await.ok()
    }

    fn lock_state(&self) -> MutexGuard<'_, LeaseTransfersState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for KeyLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyLease")
            .field("key", &self.key)
            .field("forced", &self.forced.len())
            .finish_non_exhaustive()
    }
}

impl TransferGuard {
    /// Counts files and bytes that were sent in the transfer, and the bytes in the metric too.
    pub(in crate::buildkit) fn count_sent(&mut self, files: u64, bytes: u64) {
        self.bytes += bytes;
        self.files += files;
        self.lease.keys.sent_bytes.inc_by(bytes);
    }

    /// Hashes a piece of the file `entry`, one of the `entries_in_context`, as it is sent.
    pub(in crate::buildkit) fn hash_sent_piece(
        &mut self,
        entry: u32,
        entries_in_context: usize,
        piece: SentPiece<'_>,
    ) {
        if let Some(sent) = &mut self.sent {
            sent.add_piece(entry, entries_in_context, piece);
        }
    }

    /// Marks the transfer, which announced `view` of `context`, as complete: the daemon has everything that it
    /// requested. Records the announced entries, and returns the hash of each one's content; `None` if they are not
    /// remembered.
    pub(in crate::buildkit) fn complete_transfer(
        &mut self,
        context: &SourceContext,
        view: &ContextView,
    ) -> Option<Vec<ContentHash>> {
        let mut contents = None;
        if !std::mem::replace(&mut self.is_complete, true) {
            let lease = self.lease.clone();
            let mut state = lease.lock_state();
            state.open_transfers -= 1;
            if let (Some((record, _)), Some(sent)) = (&mut state.record, self.sent.take()) {
                contents = Some(lease.record_announced_entries(record, context, view, &sent));
            }
        }
        tracing::debug!(files = self.files, bytes = self.bytes, "files sent");
        contents
    }
}

impl Drop for TransferGuard {
    fn drop(&mut self) {
        if !self.is_complete {
            let mut state = self.lease.lock_state();
            state.open_transfers -= 1;
            state.is_broken = true;
        }
    }
}

fn random_shared_key() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}
