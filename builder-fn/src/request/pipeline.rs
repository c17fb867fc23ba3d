//! Hashes, indexes and spools a body on threads that may block, while its next pieces arrive.
//!
//! Each piece goes through two queues, because hashing it for the signature takes about as long as everything else
//! together: one worker hashes, the other indexes and spools. A queue occupies a thread only while it has work, so that a
//! slow caller holds memory but no thread; and it keeps the thread until it is empty, so that the batches of a fast caller
//! do not each wake a thread.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, spawn_blocking};

use super::RequestError;
use super::indexer::BodyIndexer;
use super::signature::{BodyVerifier, VerifiedSignature};

/// The size of a batch of pieces, in bytes, large enough to be worth a switch of threads. The host delivers a
/// large body in pieces of about this size.
const BATCH_FULL_BYTES: usize = 256 << 10;
/// The number of pieces that make a batch, however small the pieces are.
const BATCH_PIECES_MAX: usize = 512;

/// The bytes of one body in both queues: the memory that a build in flight takes while its body arrives.
const QUEUED_BYTES_MAX: usize = 1 << 20;

/// Processes the pieces of a body in order. It may block.
pub(super) trait PieceProcessor: Send + 'static {
    fn process_piece(&mut self, piece: &[u8]) -> Result<(), RequestError>;
}

impl PieceProcessor for BodyIndexer {
    fn process_piece(&mut self, piece: &[u8]) -> Result<(), RequestError> {
        self.add_piece(piece)
    }
}

impl PieceProcessor for BodyVerifier {
    fn process_piece(&mut self, piece: &[u8]) -> Result<(), RequestError> {
        self.hash_piece(piece);
        Ok(())
    }
}

/// Passes the pieces of a body to the verifier and the indexer, and stops reading while their queues are full.
pub(super) struct BodyPipeline {
    verifier: Option<WorkQueue<BodyVerifier>>,
    indexer: WorkQueue<BodyIndexer>,
    capacity: Arc<Semaphore>,
    pending: Vec<Bytes>,
    pending_bytes: usize,
}

/// A batch of pieces of a body. Dropping it, once it has left both queues, frees its capacity.
struct PieceBatch {
    pieces: Vec<Bytes>,
    _capacity: OwnedSemaphorePermit,
}

impl BodyPipeline {
    /// Returns an empty pipeline for a body. Without `verifier`, no signature is checked.
    pub(super) fn new(verifier: Option<BodyVerifier>, indexer: BodyIndexer) -> Self {
        Self {
            verifier: verifier.map(WorkQueue::new),
            indexer: WorkQueue::new(indexer),
            capacity: Arc::new(Semaphore::new(QUEUED_BYTES_MAX)),
            pending: Vec::new(),
            pending_bytes: 0,
        }
    }

    /// Queues the next piece of the body; waits while the queues are full.
    ///
    /// # Errors
    /// Fails if an earlier piece could not be spooled.
    pub(super) async fn push(&mut self, piece: Bytes) -> Result<(), RequestError> {
        self.pending_bytes += piece.len();
        self.pending.push(piece);
        if self.pending_bytes >= BATCH_FULL_BYTES || self.pending.len() >= BATCH_PIECES_MAX {
            self.queue_batch().await?;
        }
        Ok(())
    }

    async fn queue_batch(&mut self) -> Result<(), RequestError> {
        // A batch that is larger than the capacity takes all of it, and so gets through.
        let capacity = u32::try_from(self.pending_bytes.min(QUEUED_BYTES_MAX)).unwrap_or(u32::MAX);
        let capacity = self.capacity.clone().acquire_many_owned(capacity).await;
        let batch = Arc::new(PieceBatch {
            pieces: std::mem::take(&mut self.pending),
            _capacity: capacity.map_err(|_| RequestError::Interrupted)?,
        });
        self.pending_bytes = 0;
        if let Some(verifier) = &mut self.verifier {
            verifier.push(batch.clone()).await?;
        }
        self.indexer.push(batch).await
    }

    /// Waits until every piece of the body has been processed, and verifies the signature.
    ///
    /// # Errors
    /// Fails if a piece could not be spooled, or the signature does not match the body.
    pub(super) async fn finish(mut self) -> Result<(BodyIndexer, Option<VerifiedSignature>), RequestError> {
        if !self.pending.is_empty() {
            self.queue_batch().await?;
        }
        let indexer = self.indexer.finish().await?;
        let signature = match self.verifier {
            Some(verifier) => {
                let verifier = verifier.finish().await?;
                Some(
                    verifier
                        .into_verified_signature()
                        .map_err(|_| RequestError::WrongSignature)?,
                )
            }
            None => None,
        };
        Ok((indexer, signature))
    }
}

/// A queue of batches, and the worker that processes them one after the other.
struct WorkQueue<T> {
    state: Arc<Mutex<QueueState<T>>>,
    /// The task that last processed this queue.
    task: Option<JoinHandle<Result<(), RequestError>>>,
}

struct QueueState<T> {
    /// The worker of the queue; `None` while a thread uses it, and after an error.
    worker: Option<Box<T>>,
    waiting: VecDeque<Arc<PieceBatch>>,
    has_failed: bool,
}

impl<T: PieceProcessor> WorkQueue<T> {
    fn new(worker: T) -> Self {
        let state = QueueState {
            worker: Some(Box::new(worker)),
            waiting: VecDeque::new(),
            has_failed: false,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            task: None,
        }
    }

    async fn push(&mut self, batch: Arc<PieceBatch>) -> Result<(), RequestError> {
        let idle = {
            let mut state = lock_state(&self.state);
            if !state.has_failed {
                state.waiting.push_back(batch);
            }
            match (state.has_failed, state.worker.take()) {
                (true, _) => Err(()),
                (false, worker) => Ok(worker),
            }
        };
        match idle {
            Err(()) => self.wait_for_task().await,
            Ok(None) => Ok(()),
            Ok(Some(worker)) => {
                let state = self.state.clone();
                self.task = Some(spawn_blocking(move || process_waiting_batches(&state, worker)));
                Ok(())
            }
        }
    }

    /// Waits until the queue is empty, and returns its worker.
    async fn finish(mut self) -> Result<T, RequestError> {
        self.wait_for_task().await?;
        let worker = lock_state(&self.state).worker.take();
        worker.map(|worker| *worker).ok_or(RequestError::Interrupted)
    }

    /// Waits for the queue's task, if there is one, and returns its result.
    async fn wait_for_task(&mut self) -> Result<(), RequestError> {
        match self.task.take() {
            Some(task) => join_or_resume_panic(task).await?,
            None => Ok(()),
        }
    }
}

/// Processes the batches of a queue until none is waiting.
fn process_waiting_batches<T: PieceProcessor>(
    state: &Mutex<QueueState<T>>,
    mut worker: Box<T>,
) -> Result<(), RequestError> {
    let fail_on_drop = FailQueueOnDrop(state);
    loop {
        let batch = {
            let mut state = lock_state(state);
            let Some(batch) = state.waiting.pop_front() else {
                state.worker = Some(worker);
                std::mem::forget(fail_on_drop);
                return Ok(());
            };
            batch
        };
        batch
            .pieces
            .iter()
            .try_for_each(|piece| worker.process_piece(piece))?;
    }
}

/// A guard that empties the queue after an error or a panic. This frees the batches' capacity, so that a caller
/// that waits for capacity resumes and receives the error.
struct FailQueueOnDrop<'a, T>(&'a Mutex<QueueState<T>>);

impl<T> Drop for FailQueueOnDrop<'_, T> {
    fn drop(&mut self) {
        let mut state = lock_state(self.0);
        state.has_failed = true;
        state.waiting.clear();
    }
}

fn lock_state<T>(state: &Mutex<QueueState<T>>) -> MutexGuard<'_, QueueState<T>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `work` on a thread that may block.
///
/// # Errors
/// Fails if the runtime is shutting down.
pub(super) async fn spawn_on_blocking_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RequestError> {
    join_or_resume_panic(spawn_blocking(work)).await
}

/// Waits for a task and resumes its panic here; a runtime that is shutting down yields
/// [`Interrupted`](RequestError::Interrupted).
async fn join_or_resume_panic<T>(task: JoinHandle<T>) -> Result<T, RequestError> {
    task.await.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => RequestError::Interrupted,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// The time after which a push that should have ended is taken to hang.
    const HANG_TIMEOUT: Duration = Duration::from_secs(60);

    /// A worker that calls a closure of the test.
    struct ClosureWorker<F>(F);

    impl<F: FnMut(&[u8]) -> Result<(), RequestError> + Send + 'static> PieceProcessor for ClosureWorker<F> {
        fn process_piece(&mut self, piece: &[u8]) -> Result<(), RequestError> {
            (self.0)(piece)
        }
    }

    async fn batch_of_one_piece(capacity: &Arc<Semaphore>, piece: &'static [u8]) -> Arc<PieceBatch> {
        let capacity = capacity.clone().acquire_owned().await;
        Arc::new(PieceBatch {
            pieces: vec![Bytes::from_static(piece)],
            _capacity: capacity.expect("never closed"),
        })
    }

    #[tokio::test]
    async fn a_work_queue_processes_batches_in_order_and_frees_their_capacity() {
        let capacity = Arc::new(Semaphore::new(3));
        let (sender, processed) = mpsc::channel();
        let mut queue = WorkQueue::new(ClosureWorker(move |piece: &[u8]| {
            sender.send(piece[0]).map_err(|_| RequestError::Interrupted)
        }));
        for piece in [&b"1"[..], b"2", b"3", b"4", b"5", b"6", b"7"] {
            queue
                .push(batch_of_one_piece(&capacity, piece).await)
                .await
                .expect("no error");
        }

        drop(queue.finish().await.expect("the worker"));

        assert_eq!(processed.iter().collect::<Vec<_>>(), b"1234567");
        assert_eq!(capacity.available_permits(), 3);
    }

    #[tokio::test]
    async fn a_push_that_waits_for_queue_capacity_fails_with_the_workers_error() {
        let capacity = Arc::new(Semaphore::new(2));
        let mut queue = WorkQueue::new(ClosureWorker(|_: &[u8]| Err(RequestError::NotSigned)));
        let pushing = async {
            loop {
                if let Err(error) = queue.push(batch_of_one_piece(&capacity, b"1").await).await {
                    break error;
                }
            }
        };
        let error = tokio::time::timeout(HANG_TIMEOUT, pushing)
            .await
            .expect("a push hangs");
        assert!(matches!(error, RequestError::NotSigned), "{error:?}");
        assert_eq!(capacity.available_permits(), 2);
    }

    #[tokio::test]
    async fn a_push_that_waits_for_queue_capacity_panics_when_the_worker_panics() {
        let capacity = Arc::new(Semaphore::new(2));
        let mut queue = WorkQueue::new(ClosureWorker(|_: &[u8]| panic!("on purpose")));
        let pushing = tokio::spawn(async move {
            loop {
                let batch = batch_of_one_piece(&capacity, b"1").await;
                queue.push(batch).await.expect("not an error");
            }
        });
        let ended = tokio::time::timeout(HANG_TIMEOUT, pushing)
            .await
            .expect("a push hangs");
        assert!(ended.expect_err("a panic").is_panic());
    }
}
