//! Turns at hashing and storing unverified bodies: how many bodies are processed at a time, and which one is next.
//!
//! Turns go alternately to the body of which the least has been processed, and to the one that has waited the longest.
//! So a small body, which is complete after its first turn, waits for the small ones before it and for as many large
//! ones at most, however many large ones there are; and a large one gets its part of every second turn, however many
//! small ones arrive.
//!
//! While many bodies wait, each turn is followed by a pause that is longer than it was, so that senders without a key
//! cannot take the processors from the builds of those who have one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// The number of waiting bodies from which on turns are followed by pauses.
const MIN_WAITING_BODIES_FOR_PAUSES: usize = 16;

/// The length of the pause after a turn while many bodies wait, in lengths of the work during the turn. Work also takes
/// long if the processors have other things to do.
const PAUSE_PER_WORK_FACTOR: u32 = 3;

/// The longest pause after a turn. A turn that waited for the disk is not the sender's fault.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// The turns at hashing and storing unverified bodies. Clones share them, so that all bodies get them from one queue.
#[derive(Clone, Debug)]
pub(super) struct HashingTurns(Arc<Mutex<TurnQueue>>);

/// A guard for a turn. Dropping it gives the turn to the next body, after a pause if many wait and work was done.
#[derive(Debug)]
pub(super) struct HashingTurn {
    turns: HashingTurns,
    /// The time at which the work of the turn began; `None` before.
    begun: Option<Instant>,
}

/// The free turns, and the bodies that wait for one.
#[derive(Debug)]
struct TurnQueue {
    /// The number of turns that are not taken.
    free: usize,
    /// Whether the next turn goes to the body that has waited the longest.
    is_oldest_next: bool,
    /// The bodies that wait, in the order in which they began to.
    waiting: BTreeMap<u64, WaitingBody>,
    /// The same bodies, by the number of bytes that were hashed for each so far.
    by_hashed: BTreeSet<(u64, u64)>,
    next: u64,
}

/// A body that waits for a turn.
#[derive(Debug)]
struct WaitingBody {
    /// The number of bytes of the body that were hashed so far.
    hashed: u64,
    granted: oneshot::Sender<HashingTurn>,
}

/// A guard for a place in the queue. Dropping it leaves the queue.
struct QueuePlace<'a> {
    turns: &'a HashingTurns,
    number: u64,
}

impl HashingTurns {
    /// Creates turns for `count` bodies at a time.
    pub(super) fn new(count: usize) -> Self {
        Self(Arc::new(Mutex::new(TurnQueue {
            free: count,
            is_oldest_next: false,
            waiting: BTreeMap::new(),
            by_hashed: BTreeSet::new(),
            next: 0,
        })))
    }

    /// Waits for a turn of a body of which `hashed_bytes` were hashed so far. Dropping the future leaves the queue.
    pub(super) async fn wait_for_turn(&self, hashed_bytes: u64) -> HashingTurn {
        let (granted, receiver) = oneshot::channel();
        let number = {
            let mut queue = self.lock();
            if queue.free > 0 {
                queue.free -= 1;
                return self.make_turn();
            }
            queue.add_waiting(hashed_bytes, granted)
        };
        let _place = QueuePlace { turns: self, number };
        match receiver.await {
            Ok(turn) => turn,
            // Only a queue that is dropped grants no turn, and this one is borrowed.
            Err(_) => std::future::pending().await,
        }
    }

    /// Returns whether no body waits for a turn.
    pub(super) fn is_nobody_waiting(&self) -> bool {
        self.lock().waiting.is_empty()
    }

    /// Returns whether so many bodies wait that turns are followed by pauses.
    pub(super) fn is_crowded(&self) -> bool {
        self.lock().waiting.len() >= MIN_WAITING_BODIES_FOR_PAUSES
    }

    fn make_turn(&self) -> HashingTurn {
        HashingTurn {
            turns: self.clone(),
            begun: None,
        }
    }

    /// Gives a turn that has ended to the next body.
    fn pass_turn_on(&self) {
        let next = self.lock().take_next_or_free_turn();
        if let Some(next) = next {
            // If the body has stopped waiting since, dropping its turn here gives the turn to the one after it.
            drop(next.granted.send(self.make_turn()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, TurnQueue> {
        // Every operation leaves the queue consistent, so that a panic elsewhere does not matter.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TurnQueue {
    /// Adds a body to the queue, and returns its number.
    fn add_waiting(&mut self, hashed: u64, granted: oneshot::Sender<HashingTurn>) -> u64 {
        let number = self.next;
        self.next += 1;
        self.waiting.insert(number, WaitingBody { hashed, granted });
        self.by_hashed.insert((hashed, number));
        number
    }

    fn remove_waiting(&mut self, number: u64) -> Option<WaitingBody> {
        let body = self.waiting.remove(&number)?;
        self.by_hashed.remove(&(body.hashed, number));
        Some(body)
    }

    /// Removes the body that gets the next turn, or frees the turn if none waits.
    fn take_next_or_free_turn(&mut self) -> Option<WaitingBody> {
        let next = match self.is_oldest_next {
            true => self.waiting.keys().next().copied(),
            false => self.by_hashed.first().map(|(_, number)| *number),
        };
        let next = next.and_then(|number| self.remove_waiting(number));
        match next {
            Some(_) => self.is_oldest_next = !self.is_oldest_next,
            None => self.free += 1,
        }
        next
    }
}

impl Drop for QueuePlace<'_> {
    fn drop(&mut self) {
        self.turns.lock().remove_waiting(self.number);
    }
}

impl HashingTurn {
    /// Records that the work of the turn begins, on the thread that does it. What passed since the turn was granted is
    /// not work.
    pub(super) fn begin_work(&mut self) {
        self.begun = Some(Instant::now());
    }
}

impl Drop for HashingTurn {
    fn drop(&mut self) {
        let turns = self.turns.clone();
        let is_crowded = turns.is_crowded();
        let worked = self.begun.map(|begun| begun.elapsed()).unwrap_or_default();
        let pause = (worked * PAUSE_PER_WORK_FACTOR).min(PAUSE_MAX);
        match Handle::try_current() {
            Ok(runtime) if is_crowded => drop(runtime.spawn(async move {
                tokio::time::sleep(pause).await;
                turns.pass_turn_on();
            })),
            _ => turns.pass_turn_on(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use proptest::prelude::*;

    use super::*;

    type WaitingForTurn = Pin<Box<dyn Future<Output = HashingTurn>>>;

    fn poll_turn(waiting: &mut WaitingForTurn) -> Poll<HashingTurn> {
        waiting.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    /// Begins to wait for a turn, after `hashed` bytes.
    fn begin_to_wait(turns: &HashingTurns, hashed: u64) -> WaitingForTurn {
        let turns = turns.clone();
        let mut waiting: WaitingForTurn = Box::pin(async move { turns.wait_for_turn(hashed).await });
        assert!(poll_turn(&mut waiting).is_pending());
        waiting
    }

    fn take_turn(turns: &HashingTurns) -> HashingTurn {
        let turns = turns.clone();
        match poll_turn(&mut (Box::pin(async move { turns.wait_for_turn(0).await }) as WaitingForTurn)) {
            Poll::Ready(turn) => turn,
            Poll::Pending => panic!("no turn is free"),
        }
    }

    #[test]
    fn newcomers_precede_large_bodies_but_every_second_turn_goes_to_the_oldest_body() {
        let turns = HashingTurns::new(1);
        let turn = take_turn(&turns);
        let mut large: Vec<_> = (1..100).map(|body| begin_to_wait(&turns, body << 20)).collect();
        let mut newcomers = [begin_to_wait(&turns, 0), begin_to_wait(&turns, 0)];
        drop(turn);
        let first = poll_turn(&mut newcomers[0]);
        assert!(first.is_ready());
        drop(first);
        let between = poll_turn(&mut large[0]);
        assert!(between.is_ready(), "the oldest body has every second turn");
        drop(between);
        assert!(poll_turn(&mut newcomers[1]).is_ready());
    }

    #[test]
    fn a_turn_of_a_body_that_has_stopped_waiting_goes_to_the_next_one() {
        let turns = HashingTurns::new(1);
        let turn = take_turn(&turns);
        let (gone, mut waiting) = (begin_to_wait(&turns, 0), begin_to_wait(&turns, 1));
        drop(gone);
        drop(turn);
        assert!(poll_turn(&mut waiting).is_ready());
        // The turn was dropped with the answer.
        drop(take_turn(&turns));
    }

    #[tokio::test(start_paused = true)]
    async fn many_bodies_together_are_processed_for_a_quarter_of_the_time_and_few_for_all_of_it() {
        const WORK_PER_TURN: Duration = Duration::from_millis(10);
        for (bodies, expected) in [
            (200_u64, 4 * WORK_PER_TURN),
            (MIN_WAITING_BODIES_FOR_PAUSES as u64 - 1, WORK_PER_TURN),
        ] {
            let turns = HashingTurns::new(1);
            let mut turn = Some(take_turn(&turns));
            let mut waiting: VecDeque<_> = (0..bodies).map(|body| begin_to_wait(&turns, body)).collect();
            let (begun, count) = (Instant::now(), bodies.min(50));
            for _ in 0..count {
                turn.as_mut().expect("a turn").begin_work();
                tokio::time::sleep(WORK_PER_TURN).await;
                drop(turn.take());
                // The body of which the least was processed is in front, and the oldest one too.
                turn = Some(waiting.pop_front().expect("a body waits").await);
            }
            let mean = begun.elapsed() / count as u32;
            assert!(
                mean >= expected && mean <= expected + Duration::from_millis(2),
                "{mean:?} for {bodies}"
            );
        }
    }

    proptest! {
        #[test]
        fn the_oldest_body_is_passed_over_once_at_most_and_no_turn_is_lost(
            newcomers in prop::collection::vec(0..3_usize, 1..50),
            count in 1..3_usize,
        ) {
            let turns = HashingTurns::new(count);
            let mut taken: Vec<_> = (0..count).map(|_| take_turn(&turns)).collect();
            let mut oldest = Some(begin_to_wait(&turns, 1 << 30));
            let mut waiting = Vec::new();
            for (freed, arriving) in newcomers.into_iter().enumerate() {
                // While a turn is free, nobody waits.
                let arriving = if taken.len() == count { arriving } else { 0 };
                waiting.extend((0..arriving).map(|_| begin_to_wait(&turns, 0)));
                taken.pop();
                if let Some(body) = &mut oldest
                    && let Poll::Ready(turn) = poll_turn(body)
                {
                    taken.push(turn);
                    oldest = None;
                }
                prop_assert!(oldest.is_none() || freed == 0, "the oldest body was passed over twice");
                waiting.retain_mut(|body| match poll_turn(body) {
                    Poll::Ready(turn) => {
                        taken.push(turn);
                        false
                    }
                    Poll::Pending => true,
                });
                prop_assert!(taken.len() <= count);
            }
            drop((taken, oldest, waiting));
            let all: Vec<_> = (0..count).map(|_| take_turn(&turns)).collect();
            prop_assert_eq!(all.len(), count, "a turn was lost");
        }
    }
}
