//! Places for builds: how many run at a time, and how many wait for how long until one is free.
//!
//! A queue that tries again wants to be refused at once; that is the host's `max_inflight`. One that never does (the
//! Community queue-worker) would lose the build, so with `queue_wait` a call waits here instead: with its body received
//! and spooled, in the order of arrival.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The places of a builder. Clones are the same ones.
#[derive(Clone, Debug, Default)]
pub struct Places(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    limit: usize,
    wait: Duration,
    /// Calls that are served or wait at most, those that still send their body among them.
    most: usize,
    calls: AtomicUsize,
    free: Arc<Semaphore>,
}

/// A call that may send its body. It counts until it is dropped.
#[derive(Debug)]
pub struct Admitted(Option<Arc<Shared>>);

/// A place for one build, until it is dropped.
#[derive(Debug)]
pub struct Place(#[expect(dead_code, reason = "it is held, not used")] Option<OwnedSemaphorePermit>);

/// There is no place, and there was none for long enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// How many builds may run at a time.
    pub limit: usize,
}

impl Places {
    /// As many as anybody wants: the host limits the calls.
    pub fn unlimited() -> Self {
        Self(None)
    }

    /// `limit` places, for which up to `queue` more calls wait up to `wait`.
    pub fn new(limit: usize, wait: Duration, queue: usize) -> Self {
        Self(Some(Arc::new(Shared {
            limit,
            wait,
            most: limit.saturating_add(queue),
            calls: AtomicUsize::new(0),
            free: Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS))),
        })))
    }

    /// Lets a call in, before its body is read.
    ///
    /// # Errors
    /// When as many are in as there may be.
    pub fn admit(&self) -> Result<Admitted, Full> {
        let Some(shared) = &self.0 else {
            return Ok(Admitted(None));
        };
        let entered = shared
            .calls
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |calls| {
                (calls < shared.most).then_some(calls + 1)
            });
        match entered {
            Ok(_) => Ok(Admitted(Some(shared.clone()))),
            Err(_) => Err(Full { limit: shared.limit }),
        }
    }

    /// Waits for a place, behind those who wait already. Dropping the future gives the place in the queue up.
    ///
    /// # Errors
    /// When none became free in time.
    pub async fn take(&self) -> Result<Place, Full> {
        let Some(shared) = &self.0 else {
            return Ok(Place(None));
        };
        let taking = shared.free.clone().acquire_owned();
        match tokio::time::timeout(shared.wait, taking).await {
            Ok(Ok(permit)) => Ok(Place(Some(permit))),
            // The semaphore is never closed.
            Ok(Err(_)) | Err(_) => Err(Full { limit: shared.limit }),
        }
    }

    /// Whether another call would be refused at once.
    pub fn full(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|shared| shared.calls.load(Ordering::Relaxed) >= shared.most)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some(shared) = &self.0 {
            shared.calls.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    const WAIT: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_served_in_order_or_told_in_time() {
        let places = Places::new(1, WAIT, 2);
        let first = places.take().await.expect("free");
        let waiting: Vec<_> = (0..2)
            .map(|_| {
                let places = places.clone();
                tokio::spawn(async move { places.take().await.map(|place| (Instant::now(), place)) })
            })
            .collect();
        tokio::task::yield_now().await;
        let begun = Instant::now();

        tokio::time::advance(WAIT / 2).await;
        drop(first);
        let mut outcomes = Vec::new();
        for waiting in waiting {
            outcomes.push(waiting.await.expect("no panic"));
        }

        let (at, _place) = outcomes.remove(0).expect("a place");
        assert_eq!(at - begun, WAIT / 2);
        assert_eq!(outcomes.remove(0).expect_err("none is free"), Full { limit: 1 });
        assert_eq!(begun.elapsed(), WAIT);
    }

    #[tokio::test]
    async fn as_many_are_let_in_as_may_build_or_wait() {
        let places = Places::new(1, WAIT, 1);
        let first = places.admit().expect("room");
        assert!(!places.full());
        let _second = places.admit().expect("room");
        assert!(places.full());
        assert_eq!(places.admit().expect_err("no room"), Full { limit: 1 });
        drop(first);
        assert!(!places.full());
        places.admit().expect("room again");
    }

    #[tokio::test]
    async fn a_call_that_gives_up_leaves_no_gap() {
        let places = Places::new(1, WAIT, 2);
        let first = places.take().await.expect("free");
        let gone = tokio::spawn({
            let places = places.clone();
            async move { places.take().await }
        });
        tokio::task::yield_now().await;
        gone.abort();
        let _ = gone.await;
        drop(first);
        places.take().await.expect("it is free");
    }

    #[tokio::test]
    async fn without_a_limit_there_is_always_a_place() {
        let places = Places::unlimited();
        for _ in 0..100 {
            std::mem::forget((
                places.admit().expect("room"),
                places.take().await.expect("a place"),
            ));
        }
        assert!(!places.full());
    }
}
