//! Receives a body whose signature is not verified yet: hashes it and stores it as it was sent, and verifies the
//! signature at its end.
//!
//! Anybody can send such a body. So nothing in it is interpreted, and all of them together have a budget of their own
//! ([`UnverifiedBudget`]), in which a body that needs more than the others gives way. Only a body that is verified is
//! counted against the spool's quota.

use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use function_host::BoxError;
use function_host::unverified::{HeldResource, ReceiveError, UnverifiedBudget, UnverifiedSender};
use tokio::runtime::Handle;
use tokio::task::{JoinHandle, spawn_blocking};

use super::RequestError;
use super::hashing_turns::{HashingTurn, HashingTurns};
use super::signature::{BodyVerifier, VerifiedSignature};
use super::verified_body::VerifiedBody;
use crate::context::{Spool, SpoolSettings};

/// The number of received bytes from which they are hashed and stored: enough to be worth a switch of threads.
const BATCH_BYTES: usize = 256 << 10;

/// The number of received bytes of a body in a file from which they are hashed and stored while no other body waits.
/// Larger writes take less time, and so do fewer switches of threads.
const BATCH_BYTES_OF_ONLY_BODY_IN_FILE: usize = 1 << 20;

/// The number of received bytes from which they are hashed and stored while memory is short.
const BATCH_BYTES_WHILE_MEMORY_IS_SHORT: usize = 48 << 10;

/// The length below which a piece is copied, in bytes. A piece keeps the whole buffer of its connection in memory.
const MIN_UNCOPIED_PIECE_BYTES: usize = 16 << 10;

/// The length, in bytes, up to which a body stays in memory while memory is short. A larger one is written to a file.
const MAX_IN_MEMORY_BODY_BYTES_WHILE_MEMORY_IS_SHORT: usize = 16 << 10;

/// The most bytes that are hashed on the thread that received them, counted once for each key: that takes less time
/// than a switch of threads is worth.
const MAX_INLINE_HASH_BYTES: u64 = 64 << 10;

/// The fewest bytes of a stored body that are hashed with many keys in one turn: a turn costs as much as hashing some
/// thousand bytes.
const SMALLEST_HASHED_PIECE_BYTES: usize = 4 << 10;

/// The smallest number of threads on which unverified bodies are hashed and stored: one of them may wait for the disk.
const MIN_HASHING_THREADS: usize = 2;

/// The number of keys up to which a body is hashed while it arrives. With more keys, anybody could have many times as
/// much hashed as they send, so a body is hashed only once it is whole.
const MAX_KEYS_FOR_HASHING_WHILE_RECEIVING: usize = 8;

/// The most bytes that are hashed for one body, counted once for each key, if there are more keys than
/// [`MAX_KEYS_FOR_HASHING_WHILE_RECEIVING`].
const MAX_HASHED_BYTES_WITH_MANY_KEYS: u64 = 256 << 20;

/// The budget of all unverified bodies, and the turns at hashing and storing them. Clones share both.
#[derive(Clone, Debug)]
pub struct UnverifiedBodyResources {
    budget: UnverifiedBudget,
    /// Bounds the threads, so that many senders take neither the memory of many threads nor the processors.
    turns: HashingTurns,
}

impl UnverifiedBodyResources {
    /// Creates the resources for bodies within `budget`.
    pub fn new(budget: UnverifiedBudget) -> Self {
        // On more than two processors, half of them stay free for everything else.
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self {
            budget,
            turns: HashingTurns::new((processors / 2).max(MIN_HASHING_THREADS)),
        }
    }

    /// Returns the budget of the bodies.
    pub fn budget(&self) -> &UnverifiedBudget {
        &self.budget
    }

    /// Returns whether the bodies hold more than half of the budget's memory, so that each should hold little of it.
    fn is_memory_short(&self) -> bool {
        self.budget.held_bytes(HeldResource::Memory) > self.budget.limits().memory / 2
    }
}

/// Receives `body`, hashes it with `verifier`, stores it as `settings` say, and verifies its signature at its end.
///
/// # Errors
/// Fails if the body has more than `limit` bytes, breaks off, exceeds the budget or cannot be stored, or if the
/// signature does not match it.
pub(super) async fn receive_body<B>(
    mut body: Pin<&mut B>,
    verifier: Option<BodyVerifier>,
    bodies: &UnverifiedBodyResources,
    settings: &SpoolSettings,
    limit: u64,
) -> Result<VerifiedBody, RequestError>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let limit_of_keys = verifier.as_ref().map_or(u64::MAX, body_limit_with_many_keys);
    let check_length = |length: u64| match length {
        _ if length > limit => Err(RequestError::TooLarge { limit }),
        _ if length > limit_of_keys => Err(RequestError::TooLargeWithoutTenant { limit: limit_of_keys }),
        _ => Ok(()),
    };
    check_length(body.size_hint().lower())?;
    let mut incoming = IncomingBody::new(verifier, bodies, settings);
    let mut received = 0u64;
    let receiving = async {
        loop {
            let piece = incoming.sender.next_piece(body.as_mut()).await;
            let Some(piece) = piece.map_err(to_request_error)? else {
                return Ok(());
            };
            received = received.saturating_add(piece.len() as u64);
            check_length(received)?;
            incoming.add_piece(piece).await?;
        }
    };
    match receiving.await {
        Ok(()) => incoming.process_rest_and_verify().await,
        Err(error) => {
            incoming.discard().await;
            Err(error)
        }
    }
}

/// Returns the limit on the length of a body, in bytes, that comes from the number of its keys; `u64::MAX` for few
/// keys.
fn body_limit_with_many_keys(verifier: &BodyVerifier) -> u64 {
    match verifier.key_count() {
        0..=MAX_KEYS_FOR_HASHING_WHILE_RECEIVING => u64::MAX,
        keys => MAX_HASHED_BYTES_WITH_MANY_KEYS / keys as u64,
    }
}

fn to_request_error<E: Into<BoxError>>(error: ReceiveError<E>) -> RequestError {
    match error {
        ReceiveError::Displaced(displaced) => RequestError::Displaced(displaced),
        ReceiveError::TooSlow { rate, grace } => RequestError::TooSlow { rate, grace },
        ReceiveError::Body(error) => RequestError::from_stalled_or_broken_body(error.into()),
    }
}

/// A body that arrives: one batch of it is processed on another thread, while the next one is collected.
struct IncomingBody<'a> {
    /// The worker that hashes and stores the body, and whether it is busy.
    processing: WorkerState,
    pending: PieceBatch,
    /// The number of bytes that were passed on to be stored.
    stored: u64,
    /// The number of keys that the body is hashed with.
    keys: u64,
    is_on_disk: bool,
    bodies: &'a UnverifiedBodyResources,
    settings: &'a SpoolSettings,
    /// The sender's part of the budget. It is dropped after everything that it accounts for.
    sender: UnverifiedSender,
}

/// Pieces of a body that are processed together.
#[derive(Default)]
struct PieceBatch {
    pieces: Vec<Bytes>,
    /// Small pieces that followed, in one buffer.
    small: BytesMut,
    bytes: usize,
}

impl PieceBatch {
    fn add_piece(&mut self, piece: Bytes) {
        self.bytes += piece.len();
        if piece.len() < MIN_UNCOPIED_PIECE_BYTES {
            self.small.extend_from_slice(&piece);
        } else {
            self.join_small_pieces();
            self.pieces.push(piece);
        }
    }

    fn join_small_pieces(&mut self) {
        if !self.small.is_empty() {
            self.pieces.push(self.small.split().freeze());
        }
    }

    fn into_pieces(mut self) -> Vec<Bytes> {
        self.join_small_pieces();
        self.pieces
    }
}

/// The state of the worker of one body.
enum WorkerState {
    Idle(Box<BodyWorker>),
    /// The worker processes a batch.
    Running(RunningBatch),
    /// The worker failed, or is being passed on.
    Ended,
}

/// A batch that is processed.
struct RunningBatch {
    /// The task that stores the batch, and hashes it unless another task does.
    storing: JoinHandle<Result<Box<BodyWorker>, RequestError>>,
    /// The task that hashes the batch on a second thread.
    hashing: Option<JoinHandle<BodyVerifier>>,
    /// The bytes of memory that are free again once the batch is processed.
    released: u64,
}

/// Hashes and stores the batches of one body. It may block.
struct BodyWorker {
    /// The verifier of the signature; `None` if signatures are disabled, or while another task hashes with it.
    verifier: Option<BodyVerifier>,
    /// Whether the body is accepted only with a signature that is verified.
    is_signature_required: bool,
    /// Whether the body is hashed only once it is whole.
    is_hashed_last: bool,
    spool: Spool,
}

/// Starts to hash a batch on one thread, and to store it in a file on another. The turn ends with the last of both.
fn start_hashing_and_storing(
    mut worker: Box<BodyWorker>,
    verifier: BodyVerifier,
    batch: PieceBatch,
    turn: HashingTurn,
    released: u64,
) -> RunningBatch {
    let (pieces, turn) = (Arc::new(batch.into_pieces()), Arc::new(turn));
    let hashing = {
        let (pieces, turn) = (pieces.clone(), turn.clone());
        spawn_blocking(move || {
            let verifier = hash_pieces(verifier, &pieces);
            drop(turn);
            verifier
        })
    };
    let storing = spawn_blocking(move || {
        worker.spool.move_to_disk_unless_memory_only()?;
        worker.store_pieces(&pieces)?;
        drop(turn);
        Ok(worker)
    });
    RunningBatch {
        storing,
        hashing: Some(hashing),
        released,
    }
}

fn hash_pieces(mut verifier: BodyVerifier, pieces: &[Bytes]) -> BodyVerifier {
    pieces.iter().for_each(|piece| verifier.hash_piece(piece));
    verifier
}

impl Drop for BodyWorker {
    fn drop(&mut self) {
        let spool = std::mem::replace(&mut self.spool, Spool::in_memory(Vec::new()));
        // Freeing a file may wait for the disk, during which this thread would serve no connection.
        if spool.is_on_disk()
            && let Ok(runtime) = Handle::try_current()
        {
            drop(runtime.spawn_blocking(move || drop(spool)));
        }
    }
}

impl BodyWorker {
    /// Hashes a batch, unless the body is hashed only once it is whole, and stores it. Blocks.
    fn store_batch_and_hash_unless_hashed_last(
        &mut self,
        batch: PieceBatch,
        is_on_disk: bool,
    ) -> Result<(), RequestError> {
        if is_on_disk {
            self.spool.move_to_disk_unless_memory_only()?;
        }
        let pieces = batch.into_pieces();
        if let Some(verifier) = self.take_verifier_unless_hashed_last() {
            self.verifier = Some(hash_pieces(verifier, &pieces));
        }
        self.store_pieces(&pieces)
    }

    fn take_verifier_unless_hashed_last(&mut self) -> Option<BodyVerifier> {
        self.verifier.take_if(|_| !self.is_hashed_last)
    }

    fn store_pieces(&mut self, pieces: &[Bytes]) -> Result<(), RequestError> {
        for piece in pieces {
            self.spool.append(piece)?;
        }
        Ok(())
    }

    /// Hashes up to `bytes` of the stored body from `offset` on, and returns how many those were.
    fn hash_stored_piece(&mut self, offset: u64, bytes: usize) -> Result<u64, RequestError> {
        let mut piece = vec![0; bytes];
        let count = self
            .spool
            .read_at(&mut piece, offset)
            .map_err(RequestError::ReadSpool)?;
        if let Some(verifier) = &mut self.verifier {
            verifier.hash_piece(piece.get(..count).unwrap_or_default());
        }
        Ok(count as u64)
    }

    /// Verifies the signature of the whole body. A body with the right signature is counted against the quota of
    /// verified ones; its sender's part of the budget is released in any case.
    fn verify_then_release_budget(
        self,
        settings: &SpoolSettings,
        sender: UnverifiedSender,
    ) -> Result<VerifiedBody, RequestError> {
        let verified = self.verify_and_count_against_quota(settings);
        // Counted against one of the two at any time.
        drop(sender);
        verified
    }

    /// Verifies the signature of the whole body, and counts the body against the quota of its tenant.
    fn verify_and_count_against_quota(
        mut self,
        settings: &SpoolSettings,
    ) -> Result<VerifiedBody, RequestError> {
        let spool = std::mem::replace(&mut self.spool, Spool::in_memory(Vec::new()));
        let verifier = self.verifier.take();
        if verifier.is_none() && self.is_signature_required {
            return Err(RequestError::Interrupted);
        }
        let signature = verifier.map(BodyVerifier::into_verified_signature).transpose();
        let signature = signature.map_err(|_| RequestError::WrongSignature)?;
        let tenant = signature.as_ref().and_then(VerifiedSignature::tenant);
        let quota = match tenant {
            Some(tenant) => settings.quota.share_of_tenant(tenant.name().as_str()),
            None => settings.quota.clone(),
        };
        Ok(VerifiedBody {
            spool: spool.count_against(&quota)?,
            quota,
            signature,
        })
    }
}

impl<'a> IncomingBody<'a> {
    fn new(
        verifier: Option<BodyVerifier>,
        bodies: &'a UnverifiedBodyResources,
        settings: &'a SpoolSettings,
    ) -> Self {
        let keys = verifier.as_ref().map_or(0, BodyVerifier::key_count);
        let worker = BodyWorker {
            is_signature_required: verifier.is_some(),
            verifier,
            is_hashed_last: keys > MAX_KEYS_FOR_HASHING_WHILE_RECEIVING,
            spool: Spool::uncounted(settings).with_block_hashes(),
        };
        Self {
            processing: WorkerState::Idle(Box::new(worker)),
            keys: keys as u64,
            pending: PieceBatch::default(),
            stored: 0,
            is_on_disk: false,
            bodies,
            settings,
            sender: bodies.budget.admit(),
        }
    }

    /// Adds the next piece of the body; waits while an earlier batch is processed.
    async fn add_piece(&mut self, piece: Bytes) -> Result<(), RequestError> {
        self.sender
            .reserve_bytes(HeldResource::Memory, piece.len() as u64)
            .await?;
        self.pending.add_piece(piece);
        let wanted = match self.bodies.is_memory_short() {
            true => BATCH_BYTES_WHILE_MEMORY_IS_SHORT,
            false if self.is_on_disk && self.bodies.turns.is_nobody_waiting() => {
                BATCH_BYTES_OF_ONLY_BODY_IN_FILE
            }
            false => BATCH_BYTES,
        };
        match self.pending.bytes >= wanted {
            true => self.start_processing_pending_pieces().await,
            false => Ok(()),
        }
    }

    /// Passes the pending pieces on to the worker, after it has processed those before.
    async fn start_processing_pending_pieces(&mut self) -> Result<(), RequestError> {
        let mut worker = self.wait_for_idle_worker().await?;
        let batch = std::mem::take(&mut self.pending);
        let (is_on_disk, released) = self
            .reserve_storage_returning_on_disk_and_freed(batch.bytes)
            .await?;
        let mut turn = self.wait_for_turn_unless_displaced(self.stored).await?;
        if self.bodies.turns.is_crowded() {
            worker.spool.drop_block_hashes();
        }
        // A second thread may only help while nobody else waits for one.
        let hashed_beside = match is_on_disk && self.bodies.turns.is_nobody_waiting() {
            true => worker.take_verifier_unless_hashed_last(),
            false => None,
        };
        self.processing = WorkerState::Running(match hashed_beside {
            Some(verifier) => {
                turn.begin_work();
                start_hashing_and_storing(worker, verifier, batch, turn, released)
            }
            None => {
                let storing = spawn_blocking(move || {
                    turn.begin_work();
                    let processed = worker
                        .store_batch_and_hash_unless_hashed_last(batch, is_on_disk)
                        .map(|()| worker);
                    drop(turn);
                    processed
                });
                RunningBatch {
                    storing,
                    hashing: None,
                    released,
                }
            }
        });
        Ok(())
    }

    /// Waits for a turn of the body, of which `hashed` bytes were hashed so far.
    async fn wait_for_turn_unless_displaced(&mut self, hashed: u64) -> Result<HashingTurn, RequestError> {
        let turn = self
            .sender
            .wait_for(self.bodies.turns.wait_for_turn(hashed))
            .await;
        turn.map_err(RequestError::Displaced)
    }

    /// Decides whether the next `bytes` of the body are stored in memory or in a file, and reserves disk space for a
    /// file. Returns whether it is a file, and how many bytes of memory are free again once they are written.
    async fn reserve_storage_returning_on_disk_and_freed(
        &mut self,
        bytes: usize,
    ) -> Result<(bool, u64), RequestError> {
        let bytes = bytes as u64;
        let in_memory = match self.bodies.is_memory_short() {
            true => MAX_IN_MEMORY_BODY_BYTES_WHILE_MEMORY_IS_SHORT.min(self.settings.memory),
            false => self.settings.memory,
        };
        let moved = match self.is_on_disk {
            true => bytes,
            false if self.stored + bytes <= in_memory as u64 => 0,
            // With what was in memory so far.
            false => self.stored + bytes,
        };
        if moved > 0 {
            self.sender.reserve_bytes(HeldResource::Disk, moved).await?;
            self.is_on_disk = true;
        }
        self.stored += bytes;
        Ok((self.is_on_disk, moved))
    }

    /// Waits until the worker is idle, and returns it.
    async fn wait_for_idle_worker(&mut self) -> Result<Box<BodyWorker>, RequestError> {
        match std::mem::replace(&mut self.processing, WorkerState::Ended) {
            WorkerState::Idle(worker) => Ok(worker),
            WorkerState::Running(batch) => {
                let mut worker = join_task_and_resume_panic(batch.storing).await??;
                if let Some(hashing) = batch.hashing {
                    worker.verifier = Some(join_task_and_resume_panic(hashing).await?);
                }
                self.sender.release_bytes(HeldResource::Memory, batch.released);
                Ok(worker)
            }
            WorkerState::Ended => Err(RequestError::Interrupted),
        }
    }

    /// Frees what was stored of a body that is rejected, before its sender gets the answer.
    async fn discard(mut self) {
        if let Ok(mut worker) = self.wait_for_idle_worker().await
            && worker.spool.is_on_disk()
        {
            let spool = std::mem::replace(&mut worker.spool, Spool::in_memory(Vec::new()));
            // Fails only if the runtime is shutting down.
            drop(run_blocking_and_resume_panics(move || drop(spool)).await);
        }
    }

    /// Processes the rest of the body, and verifies its signature.
    async fn process_rest_and_verify(mut self) -> Result<VerifiedBody, RequestError> {
        let mut worker = self.wait_for_idle_worker().await?;
        let batch = std::mem::take(&mut self.pending);
        let (is_on_disk, _) = self
            .reserve_storage_returning_on_disk_and_freed(batch.bytes)
            .await?;
        let is_quick = !is_on_disk && batch.bytes as u64 * self.keys <= MAX_INLINE_HASH_BYTES;
        // A small request waits for no thread, however many bodies are hashed and written.
        let turn = match is_quick {
            true => None,
            false => Some(self.wait_for_turn_unless_displaced(self.stored).await?),
        };
        if worker.is_hashed_last {
            let store = move || {
                worker
                    .store_batch_and_hash_unless_hashed_last(batch, is_on_disk)
                    .map(|()| worker)
            };
            worker = run_blocking_with_turn_or_inline_without(turn, store).await?;
            worker = self.hash_stored_body(worker).await?;
            return worker.verify_then_release_budget(self.settings, self.sender);
        }
        let (settings, sender) = (self.settings.clone(), self.sender);
        let work = move || {
            worker.store_batch_and_hash_unless_hashed_last(batch, is_on_disk)?;
            worker.verify_then_release_budget(&settings, sender)
        };
        run_blocking_with_turn_or_inline_without(turn, work).await
    }

    /// Hashes a body that is stored whole with each of its keys. It takes as many turns as a body that was sent as
    /// often as there are keys.
    async fn hash_stored_body(
        &mut self,
        mut worker: Box<BodyWorker>,
    ) -> Result<Box<BodyWorker>, RequestError> {
        let keys = usize::try_from(self.keys).unwrap_or(usize::MAX);
        let piece = (BATCH_BYTES / keys.max(1)).max(SMALLEST_HASHED_PIECE_BYTES);
        let mut hashed = 0;
        while hashed < self.stored {
            let turn = self
                .wait_for_turn_unless_displaced(hashed.saturating_mul(self.keys))
                .await?;
            let hash = move || {
                let count = worker.hash_stored_piece(hashed, piece)?;
                Ok((worker, count))
            };
            let count;
            (worker, count) = run_blocking_with_turn_or_inline_without(Some(turn), hash).await?;
            if count == 0 {
                return Err(RequestError::ReadSpool(std::io::ErrorKind::UnexpectedEof.into()));
            }
            hashed += count;
        }
        Ok(worker)
    }
}

/// Runs `work` on another thread, whose turn it is; without a turn, on this one.
async fn run_blocking_with_turn_or_inline_without<T: Send + 'static>(
    turn: Option<HashingTurn>,
    work: impl FnOnce() -> Result<T, RequestError> + Send + 'static,
) -> Result<T, RequestError> {
    let Some(mut turn) = turn else { return work() };
    run_blocking_and_resume_panics(move || {
        turn.begin_work();
        let done = work();
        drop(turn);
        done
    })
    .await?
}

/// Runs `work` on a thread that may block.
///
/// # Errors
/// Fails if the runtime is shutting down.
pub(super) async fn run_blocking_and_resume_panics<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RequestError> {
    join_task_and_resume_panic(spawn_blocking(work)).await
}

/// Waits for a task and resumes its panic here; a runtime that is shutting down yields
/// [`Interrupted`](RequestError::Interrupted).
async fn join_task_and_resume_panic<T>(task: JoinHandle<T>) -> Result<T, RequestError> {
    task.await.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => RequestError::Interrupted,
    })
}

#[cfg(test)]
mod tests;
