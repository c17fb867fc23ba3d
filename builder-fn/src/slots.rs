//! Build slots: how many builds run at the same time, how many requests wait for a slot, and for how long.
//!
//! A queue that retries is best served by an immediate 429, which the host's `max_inflight` gives. A queue that does not
//! retry (the Community Edition's queue-worker) would lose the build. With `queue_wait`, requests therefore wait here, with
//! their bodies received and spooled, and get slots in the order of their arrival.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The build slots of a builder. The default is unlimited. Clones share the slots.
#[derive(Clone, Debug, Default)]
pub struct BuildSlots(Option<Arc<SharedSlots>>);

#[derive(Debug)]
struct SharedSlots {
    limit: usize,
    max_wait: Duration,
    /// Limit on the requests that build, wait, or still send their bodies.
    max_admitted: usize,
    admitted: AtomicUsize,
    free: Arc<Semaphore>,
}

/// A guard for an admitted request, which may send its body and wait for a slot. Dropping it admits another
/// request.
#[derive(Debug)]
pub(crate) struct QueueAdmission(Option<Arc<SharedSlots>>);

/// A guard for a build slot that one build has taken. Dropping it frees the slot.
#[derive(Debug)]
pub(crate) struct BuildSlot(
    #[expect(dead_code, reason = "it is held, not used")] Option<OwnedSemaphorePermit>,
);

/// The error for a request that gets no slot: all slots and all places in the queue are taken, or the request
/// has waited too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoFreeSlot {
    /// The limit on the builds that run at the same time.
    pub(crate) limit: usize,
}

impl BuildSlots {
    /// Creates slots without a limit: the host limits the requests.
    pub fn unlimited() -> Self {
        Self::default()
    }

    /// Creates `limit` build slots, for which up to `queue_length` more requests wait for up to `max_wait`.
    pub fn new(limit: usize, max_wait: Duration, queue_length: usize) -> Self {
        Self(Some(Arc::new(SharedSlots {
            limit,
            max_wait,
            max_admitted: limit.saturating_add(queue_length),
            admitted: AtomicUsize::new(0),
            free: Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS))),
        })))
    }

    /// Admits a request to the queue for slots, before its body is read.
    ///
    /// # Errors
    /// Fails if as many requests are admitted as may build and wait.
    pub(crate) fn admit_to_queue(&self) -> Result<QueueAdmission, NoFreeSlot> {
        let Some(shared) = &self.0 else {
            return Ok(QueueAdmission(None));
        };
        let admitted = shared
            .admitted
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |admitted| {
                (admitted < shared.max_admitted).then_some(admitted + 1)
            });
        match admitted {
            Ok(_) => Ok(QueueAdmission(Some(shared.clone()))),
            Err(_) => Err(NoFreeSlot { limit: shared.limit }),
        }
    }

    /// Waits for a slot, behind the requests that wait already. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// Fails if no slot became free in time.
    pub(crate) async fn wait_for_slot(&self) -> Result<BuildSlot, NoFreeSlot> {
        let Some(shared) = &self.0 else {
            return Ok(BuildSlot(None));
        };
        let permit = shared.free.clone().acquire_owned();
        match tokio::time::timeout(shared.max_wait, permit).await {
            Ok(Ok(permit)) => Ok(BuildSlot(Some(permit))),
            // The semaphore is never closed.
            Ok(Err(_)) | Err(_) => Err(NoFreeSlot { limit: shared.limit }),
        }
    }

    /// Returns whether [`admit_to_queue`](Self::admit_to_queue) would reject a request now.
    pub fn is_full(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|shared| shared.admitted.load(Ordering::Relaxed) >= shared.max_admitted)
    }
}

impl Drop for QueueAdmission {
    fn drop(&mut self) {
        if let Some(shared) = &self.0 {
            shared.admitted.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    const MAX_WAIT: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_freed_slot_goes_to_the_longest_waiting_request_and_others_fail_after_the_maximum_wait() {
        let slots = BuildSlots::new(1, MAX_WAIT, 2);
        let first = slots.wait_for_slot().await.expect("a free slot");
        let waiting: Vec<_> = (0..2)
            .map(|_| {
                let slots = slots.clone();
                tokio::spawn(async move { slots.wait_for_slot().await.map(|slot| (Instant::now(), slot)) })
            })
            .collect();
        tokio::task::yield_now().await;
        let start = Instant::now();

        tokio::time::advance(MAX_WAIT / 2).await;
        drop(first);
        let mut outcomes = Vec::new();
        for waiting in waiting {
            outcomes.push(waiting.await.expect("no panic"));
        }

        let (at, _slot) = outcomes.remove(0).expect("a slot");
        assert_eq!(at - start, MAX_WAIT / 2);
        assert_eq!(
            outcomes.remove(0).expect_err("no slot is free"),
            NoFreeSlot { limit: 1 }
        );
        assert_eq!(start.elapsed(), MAX_WAIT);
    }

    #[test]
    fn requests_beyond_the_slots_and_the_queue_length_are_not_admitted() {
        let slots = BuildSlots::new(1, MAX_WAIT, 1);
        let first = slots.admit_to_queue().expect("admitted");
        assert!(!slots.is_full());
        let _second = slots.admit_to_queue().expect("admitted");
        assert!(slots.is_full());
        assert_eq!(
            slots.admit_to_queue().expect_err("rejected"),
            NoFreeSlot { limit: 1 }
        );
        drop(first);
        assert!(!slots.is_full());
        slots.admit_to_queue().expect("admitted again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_stops_waiting_leaves_the_queue_for_a_slot() {
        let slots = BuildSlots::new(1, MAX_WAIT, 2);
        let first = slots.wait_for_slot().await.expect("a free slot");
        let waiting = tokio::spawn({
            let slots = slots.clone();
            async move { slots.wait_for_slot().await }
        });
        tokio::task::yield_now().await;
        waiting.abort();
        let _ = waiting.await;
        drop(first);
        slots.wait_for_slot().await.expect("a free slot");
    }

    #[tokio::test]
    async fn unlimited_build_slots_are_never_full() {
        let slots = BuildSlots::unlimited();
        let mut taken = Vec::new();
        for _ in 0..100 {
            taken.push((
                slots.admit_to_queue().expect("admitted"),
                slots.wait_for_slot().await.expect("a free slot"),
            ));
        }
        assert!(!slots.is_full());
    }
}
