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
use function_host::unverified::{ReceiveError, Resource, UnverifiedBudget, UnverifiedSender};
use tokio::sync::{AcquireError, Semaphore};
use tokio::task::{JoinHandle, spawn_blocking};

use super::RequestError;
use super::signature::{BodyVerifier, VerifiedSignature};
use super::verified_body::VerifiedBody;
use crate::context::{Spool, SpoolSettings};

/// The bytes that are hashed and stored at once: enough to be worth a switch of threads.
const BATCH_BYTES: usize = 256 << 10;

/// The bytes that are hashed and stored at once while memory is short.
const SMALL_BATCH_BYTES: usize = 16 << 10;

/// The length below which a piece is copied, in bytes. A piece keeps the whole buffer of its connection in memory.
const COPIED_PIECE_BYTES: usize = 16 << 10;

/// The bytes of a body that stay in memory while memory is short. A larger part is written to a file.
const SMALL_BODY_BYTES: usize = 16 << 10;

/// The bytes that are hashed on the thread that received them, which takes less time than a switch of threads is worth.
const MAX_INLINE_HASH_BYTES: usize = 64 << 10;

/// The smallest number of threads on which unverified bodies are hashed and stored.
const MIN_THREADS: usize = 2;

/// The resources that all unverified bodies share. Clones share them.
#[derive(Clone, Debug)]
pub struct UnverifiedBodies {
    budget: UnverifiedBudget,
    /// Bounds the threads, so that many senders take neither the memory of many threads nor the processors.
    threads: Arc<Semaphore>,
}

impl UnverifiedBodies {
    /// Creates the resources for bodies within `budget`.
    pub fn new(budget: UnverifiedBudget) -> Self {
        // Half of the processors stay free for everything else, whoever sends.
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self {
            budget,
            threads: Arc::new(Semaphore::new((processors / 2).max(MIN_THREADS))),
        }
    }

    /// Returns the budget of the bodies.
    pub fn budget(&self) -> &UnverifiedBudget {
        &self.budget
    }

    /// Returns whether so much memory is in use that each body should hold little of it.
    fn is_memory_short(&self) -> bool {
        self.budget.held_bytes(Resource::Memory) > self.budget.limits().memory / 2
    }
}

/// Receives `body`, hashes it with `verifier` and stores it as `settings` say.
///
/// # Errors
/// Fails if the body has more than `limit` bytes, breaks off, exceeds the budget or cannot be stored, or if the signature
/// does not match it.
pub(super) async fn receive_body<B>(
    mut body: Pin<&mut B>,
    verifier: Option<BodyVerifier>,
    bodies: &UnverifiedBodies,
    settings: &SpoolSettings,
    limit: u64,
) -> Result<VerifiedBody, RequestError>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let mut incoming = IncomingBody::new(verifier, bodies, settings);
    let mut received = 0u64;
    loop {
        let piece = incoming.sender.next_piece(body.as_mut()).await;
        let Some(piece) = piece.map_err(to_request_error)? else {
            return incoming.process_rest_and_verify().await;
        };
        received = received.saturating_add(piece.len() as u64);
        if received > limit {
            return Err(RequestError::TooLarge { limit });
        }
        incoming.add_piece(piece).await?;
    }
}

fn to_request_error<E: Into<BoxError>>(error: ReceiveError<E>) -> RequestError {
    match error {
        ReceiveError::Displaced(displaced) => RequestError::Displaced(displaced),
        ReceiveError::TooSlow { rate, grace } => RequestError::TooSlow { rate, grace },
        ReceiveError::Body(error) => RequestError::from_body_error(error.into()),
    }
}

/// A body that arrives: one batch of it is processed on another thread, while the next one is collected.
struct IncomingBody<'a> {
    /// The worker that hashes and stores the body, and whether it is busy.
    processing: WorkerState,
    pending: PieceBatch,
    /// The number of bytes that were passed on to be stored.
    stored: u64,
    is_on_disk: bool,
    bodies: &'a UnverifiedBodies,
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
        if piece.len() < COPIED_PIECE_BYTES {
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
    /// The worker processes a batch, after which this number of bytes of memory is free again.
    Running(JoinHandle<Result<Box<BodyWorker>, RequestError>>, u64),
    /// The worker failed, or is being passed on.
    Ended,
}

/// Hashes and stores the batches of one body. It may block.
struct BodyWorker {
    verifier: Option<BodyVerifier>,
    spool: Spool,
}

impl BodyWorker {
    fn process_batch(&mut self, batch: PieceBatch, is_on_disk: bool) -> Result<(), RequestError> {
        if is_on_disk {
            self.spool.move_to_disk()?;
        }
        for piece in batch.into_pieces() {
            if let Some(verifier) = &mut self.verifier {
                verifier.hash_piece(&piece);
            }
            self.spool.append(&piece)?;
        }
        Ok(())
    }

    /// Verifies the signature of the whole body, counts the body against the quota of verified ones, and returns it.
    fn verify_and_count(self, settings: &SpoolSettings) -> Result<VerifiedBody, RequestError> {
        let Self { verifier, spool } = self;
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
        bodies: &'a UnverifiedBodies,
        settings: &'a SpoolSettings,
    ) -> Self {
        let spool = Spool::uncounted(settings);
        Self {
            processing: WorkerState::Idle(Box::new(BodyWorker { verifier, spool })),
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
        self.sender.reserve(Resource::Memory, piece.len() as u64).await?;
        self.pending.add_piece(piece);
        let wanted = match self.bodies.is_memory_short() {
            true => SMALL_BATCH_BYTES,
            false => BATCH_BYTES,
        };
        match self.pending.bytes >= wanted {
            true => self.process_pending_pieces().await,
            false => Ok(()),
        }
    }

    /// Passes the pending pieces on to the worker, after it has processed those before.
    async fn process_pending_pieces(&mut self) -> Result<(), RequestError> {
        let mut worker = self.wait_for_idle_worker().await?;
        let batch = std::mem::take(&mut self.pending);
        let (is_on_disk, released) = self.choose_and_reserve_storage(batch.bytes).await?;
        let permit = self.bodies.threads.clone().acquire_owned().await?;
        let task = spawn_blocking(move || {
            let _permit = permit;
            worker.process_batch(batch, is_on_disk).map(|()| worker)
        });
        self.processing = WorkerState::Running(task, released);
        Ok(())
    }

    /// Decides whether the next `bytes` of the body are stored in memory or in a file, and reserves disk space for a
    /// file. Returns whether it is a file, and how many bytes of memory are free again once they are written.
    async fn choose_and_reserve_storage(&mut self, bytes: usize) -> Result<(bool, u64), RequestError> {
        let bytes = bytes as u64;
        let in_memory = match self.bodies.is_memory_short() {
            true => SMALL_BODY_BYTES.min(self.settings.memory),
            false => self.settings.memory,
        };
        let moved = match self.is_on_disk {
            true => bytes,
            false if self.stored + bytes <= in_memory as u64 => 0,
            // With what was in memory so far.
            false => self.stored + bytes,
        };
        if moved > 0 {
            self.sender.reserve(Resource::Disk, moved).await?;
            self.is_on_disk = true;
        }
        self.stored += bytes;
        Ok((self.is_on_disk, moved))
    }

    /// Waits until the worker is idle, and returns it.
    async fn wait_for_idle_worker(&mut self) -> Result<Box<BodyWorker>, RequestError> {
        match std::mem::replace(&mut self.processing, WorkerState::Ended) {
            WorkerState::Idle(worker) => Ok(worker),
            WorkerState::Running(task, released) => {
                let worker = join_task(task).await??;
                self.sender.release(Resource::Memory, released);
                Ok(worker)
            }
            WorkerState::Ended => Err(RequestError::Interrupted),
        }
    }

    /// Processes the rest of the body, and verifies its signature.
    async fn process_rest_and_verify(mut self) -> Result<VerifiedBody, RequestError> {
        let mut worker = self.wait_for_idle_worker().await?;
        let batch = std::mem::take(&mut self.pending);
        let (is_on_disk, _) = self.choose_and_reserve_storage(batch.bytes).await?;
        let (settings, sender) = (self.settings.clone(), self.sender);
        let is_quick = !is_on_disk && batch.bytes <= MAX_INLINE_HASH_BYTES;
        let work = move || {
            worker.process_batch(batch, is_on_disk)?;
            let verified = worker.verify_and_count(&settings);
            // Counted against one of the two at any time.
            drop(sender);
            verified
        };
        if is_quick {
            // A small request waits for no thread, however many bodies are hashed and written.
            return work();
        }
        let permit = self.bodies.threads.clone().acquire_owned().await?;
        run_blocking(move || {
            let _permit = permit;
            work()
        })
        .await?
    }
}

impl From<AcquireError> for RequestError {
    fn from(_: AcquireError) -> Self {
        Self::Interrupted
    }
}

/// Runs `work` on a thread that may block.
///
/// # Errors
/// Fails if the runtime is shutting down.
pub(super) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RequestError> {
    join_task(spawn_blocking(work)).await
}

/// Waits for a task and resumes its panic here; a runtime that is shutting down yields
/// [`Interrupted`](RequestError::Interrupted).
async fn join_task<T>(task: JoinHandle<T>) -> Result<T, RequestError> {
    task.await.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => RequestError::Interrupted,
    })
}
