//! Takes a body in on threads that may block, while its next pieces arrive.
//!
//! Each piece goes through two lanes, because hashing it for the signature takes about as long as all else that is done with
//! it: one hashes, the other indexes and keeps. A lane has a thread only while there is something in it, so that a sender
//! that trickles holds memory, and no thread; and it keeps that thread until it is empty, so that a fast sender's batches do
//! not wake one up each.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, spawn_blocking};

use super::RequestError;
use super::intake::Intake;
use super::signature::BodyVerifier;

/// Bytes that are worth a turn on a thread that may block. The host's pieces of a large body are about as large.
const BATCH_BYTES: usize = 256 << 10;
/// As many pieces are a batch too, however small they are.
const BATCH_PIECES: usize = 512;

/// Bytes of one body in both lanes: what a build in flight takes of the memory while its body arrives.
const ROOM: usize = 1 << 20;

/// What is done with every piece of a body. It may block.
pub(super) trait Take: Send + 'static {
    fn take(&mut self, piece: &[u8]) -> Result<(), RequestError>;
}

impl Take for Intake {
    fn take(&mut self, piece: &[u8]) -> Result<(), RequestError> {
        self.take(piece)
    }
}

impl Take for BodyVerifier {
    fn take(&mut self, piece: &[u8]) -> Result<(), RequestError> {
        self.update(piece);
        Ok(())
    }
}

/// Hands pieces over to its lanes, and holds the sender back while they are full.
pub(super) struct Pump {
    verifier: Option<Lane<BodyVerifier>>,
    intake: Lane<Intake>,
    room: Arc<Semaphore>,
    collected: Vec<Bytes>,
    bytes: usize,
}

/// Pieces that are handed over together. It has left both lanes when it is dropped.
struct Batch {
    pieces: Vec<Bytes>,
    _room: OwnedSemaphorePermit,
}

impl Pump {
    /// Checks a signature with `verifier`, where there is one to be checked.
    pub(super) fn new(verifier: Option<BodyVerifier>, intake: Intake) -> Self {
        Self {
            verifier: verifier.map(Lane::new),
            intake: Lane::new(intake),
            room: Arc::new(Semaphore::new(ROOM)),
            collected: Vec::new(),
            bytes: 0,
        }
    }

    /// Takes the next piece; waits while there is no room for it.
    ///
    /// # Errors
    /// When an earlier piece could not be kept.
    pub(super) async fn push(&mut self, piece: Bytes) -> Result<(), RequestError> {
        self.bytes += piece.len();
        self.collected.push(piece);
        if self.bytes >= BATCH_BYTES || self.collected.len() >= BATCH_PIECES {
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), RequestError> {
        // At most all of it, so that this fits.
        let room = u32::try_from(self.bytes.min(ROOM)).unwrap_or(u32::MAX);
        let room = self.room.clone().acquire_many_owned(room).await;
        let batch = Arc::new(Batch {
            pieces: std::mem::take(&mut self.collected),
            _room: room.map_err(|_| RequestError::Interrupted)?,
        });
        self.bytes = 0;
        if let Some(verifier) = &mut self.verifier {
            verifier.push(batch.clone()).await?;
        }
        self.intake.push(batch).await
    }

    /// Waits until everything is taken in.
    ///
    /// # Errors
    /// When a piece could not be kept, and when the body is not signed as it should be.
    pub(super) async fn finish(mut self) -> Result<Intake, RequestError> {
        if !self.collected.is_empty() {
            self.flush().await?;
        }
        let intake = self.intake.end().await?;
        if let Some(verifier) = self.verifier {
            let verifier = verifier.end().await?;
            verifier.finish().map_err(|_| RequestError::WrongSignature)?;
        }
        Ok(intake)
    }
}

/// Batches on their way through one worker.
struct Lane<T> {
    state: Arc<Mutex<State<T>>>,
    /// The thread that was last busy here.
    run: Option<JoinHandle<Result<(), RequestError>>>,
}

struct State<T> {
    /// Nothing while a thread works with it, and after an error.
    worker: Option<Box<T>>,
    waiting: VecDeque<Arc<Batch>>,
    has_failed: bool,
}

impl<T: Take> Lane<T> {
    fn new(worker: T) -> Self {
        let state = State {
            worker: Some(Box::new(worker)),
            waiting: VecDeque::new(),
            has_failed: false,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            run: None,
        }
    }

    async fn push(&mut self, batch: Arc<Batch>) -> Result<(), RequestError> {
        let idle = {
            let mut state = lock(&self.state);
            if !state.has_failed {
                state.waiting.push_back(batch);
            }
            match (state.has_failed, state.worker.take()) {
                (true, _) => Err(()),
                (false, worker) => Ok(worker),
            }
        };
        match idle {
            Err(()) => self.stopped().await,
            Ok(None) => Ok(()),
            Ok(Some(worker)) => {
                let state = self.state.clone();
                self.run = Some(spawn_blocking(move || run(&state, worker)));
                Ok(())
            }
        }
    }

    /// The worker, once it has done everything.
    async fn end(mut self) -> Result<T, RequestError> {
        self.stopped().await?;
        let worker = lock(&self.state).worker.take();
        worker.map(|worker| *worker).ok_or(RequestError::Interrupted)
    }

    /// Waits for the thread, if there is one, and tells how it went.
    async fn stopped(&mut self) -> Result<(), RequestError> {
        match self.run.take() {
            Some(run) => joined(run).await?,
            None => Ok(()),
        }
    }
}

/// Works until nothing is waiting.
fn run<T: Take>(state: &Mutex<State<T>>, mut worker: Box<T>) -> Result<(), RequestError> {
    let stop = StopOnDrop(state);
    loop {
        let batch = {
            let mut state = lock(state);
            let Some(batch) = state.waiting.pop_front() else {
                state.worker = Some(worker);
                std::mem::forget(stop);
                return Ok(());
            };
            batch
        };
        batch.pieces.iter().try_for_each(|piece| worker.take(piece))?;
    }
}

/// After an error or a panic nothing waits here any more: who waits for room is to hear of it.
struct StopOnDrop<'a, T>(&'a Mutex<State<T>>);

impl<T> Drop for StopOnDrop<'_, T> {
    fn drop(&mut self) {
        let mut state = lock(self.0);
        state.has_failed = true;
        state.waiting.clear();
    }
}

fn lock<T>(state: &Mutex<State<T>>) -> MutexGuard<'_, State<T>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does `work` on a thread that may block.
///
/// # Errors
/// When the runtime is being shut down.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RequestError> {
    joined(spawn_blocking(work)).await
}

/// Passes a panic on to whoever serves the request; a runtime that shuts down is an interruption.
async fn joined<T>(work: JoinHandle<T>) -> Result<T, RequestError> {
    work.await.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => RequestError::Interrupted,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Does with the pieces whatever the test says.
    struct With<F>(F);

    impl<F: FnMut(&[u8]) -> Result<(), RequestError> + Send + 'static> Take for With<F> {
        fn take(&mut self, piece: &[u8]) -> Result<(), RequestError> {
            (self.0)(piece)
        }
    }

    async fn batch(room: &Arc<Semaphore>, piece: &'static [u8]) -> Arc<Batch> {
        let room = room.clone().acquire_owned().await;
        Arc::new(Batch {
            pieces: vec![Bytes::from_static(piece)],
            _room: room.expect("never closed"),
        })
    }

    #[tokio::test]
    async fn a_lane_takes_everything_in_its_order_and_gives_the_room_back() {
        let room = Arc::new(Semaphore::new(3));
        let (taken, took) = mpsc::channel();
        let mut lane = Lane::new(With(move |piece: &[u8]| {
            taken.send(piece[0]).map_err(|_| RequestError::Interrupted)
        }));
        for piece in [&b"1"[..], b"2", b"3", b"4", b"5", b"6", b"7"] {
            lane.push(batch(&room, piece).await).await.expect("no error");
        }

        drop(lane.end().await.expect("the worker"));

        assert_eq!(took.iter().collect::<Vec<_>>(), b"1234567");
        assert_eq!(room.available_permits(), 3);
    }

    #[tokio::test]
    async fn who_waits_for_room_hears_of_an_error() {
        let room = Arc::new(Semaphore::new(2));
        let mut lane = Lane::new(With(|_: &[u8]| Err(RequestError::NotSigned)));
        let told = loop {
            if let Err(error) = lane.push(batch(&room, b"1").await).await {
                break error;
            }
        };
        assert!(matches!(told, RequestError::NotSigned), "{told:?}");
        assert_eq!(room.available_permits(), 2);
    }

    #[tokio::test]
    async fn a_panic_is_passed_on_and_holds_nobody_up() {
        let room = Arc::new(Semaphore::new(2));
        let mut lane = Lane::new(With(|_: &[u8]| panic!("on purpose")));
        let told = tokio::spawn(async move {
            loop {
                let batch = batch(&room, b"1").await;
                lane.push(batch).await.expect("not an error");
            }
        })
        .await;
        assert!(told.expect_err("a panic").is_panic());
    }
}
