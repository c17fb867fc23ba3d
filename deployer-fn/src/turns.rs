//! One deployment of a function at a time, and the newest build next.
//!
//! Of those that wait, the one that was built last goes first: once it runs, the older ones are refused without being
//! tried. Were it to fail, the next newest would be tried. This holds within one process; between two, build times on
//! the function itself keep the older from replacing the newer, and what one of them puts back is looked at first.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::oneshot;

/// Who may deploy which function now. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Turns(Arc<Mutex<HashMap<Function, Waiting>>>);

/// A function's namespace and name.
pub type Function = (Option<String>, String);

/// Those who wait while one deploys: by build time, then by arrival.
#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    queue: BTreeMap<(Option<Timestamp>, u64), oneshot::Sender<Turn>>,
}

/// While this lives, nobody else deploys the function. When it is dropped, it is the next one's turn.
#[derive(Debug)]
pub struct Turn {
    turns: Turns,
    function: Function,
}

impl Turns {
    /// Waits until nobody else deploys the function, and nobody waits who has a newer build. Dropped, it waits no more.
    pub async fn wait(&self, function: Function, built_at: Option<Timestamp>) -> Turn {
        loop {
            let called = {
                let mut all = self.lock();
                let Some(waiting) = all.get_mut(&function) else {
                    all.insert(function.clone(), Waiting::default());
                    return Turn {
                        turns: self.clone(),
                        function,
                    };
                };
                let (call, called) = oneshot::channel();
                waiting.next += 1;
                let place = (built_at, waiting.next);
                waiting.queue.insert(place, call);
                called
            };
            // A call is lost only with the turns themselves.
            if let Ok(turn) = called.await {
                return turn;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Function, Waiting>> {
        // The map is whole between its operations, whatever panicked elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose turn it is next; nobody's where nobody waits.
    fn next(&self, function: &Function) -> Option<oneshot::Sender<Turn>> {
        let mut all = self.lock();
        let waiting = all.get_mut(function)?;
        match waiting.queue.pop_last() {
            Some((_, call)) => Some(call),
            None => {
                all.remove(function);
                None
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // A turn that nobody takes any more is dropped here in its turn, outside of the lock.
        if let Some(call) = self.turns.next(&self.function) {
            let turn = Self {
                turns: self.turns.clone(),
                function: self.function.clone(),
            };
            drop(call.send(turn));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    fn at(seconds: i64) -> Option<Timestamp> {
        Some(Timestamp::from_second(seconds).unwrap())
    }

    fn function(name: &str) -> Function {
        (None, name.to_owned())
    }

    #[tokio::test]
    async fn the_newest_build_that_waits_goes_next() {
        let turns = Turns::default();
        let (done, mut order) = mpsc::unbounded_channel();
        let first = turns.wait(function("hello"), at(1)).await;
        for number in [3, 5, 2, 4] {
            let (turns, done) = (turns.clone(), done.clone());
            tokio::spawn(async move {
                let turn = turns.wait(function("hello"), at(number)).await;
                done.send(number).unwrap();
                drop(turn);
            });
            tokio::task::yield_now().await;
        }
        drop(first);
        for number in [5, 4, 3, 2] {
            assert_eq!(order.recv().await, Some(number));
        }
        tokio::task::yield_now().await;
        assert!(turns.lock().is_empty());
    }

    #[tokio::test]
    async fn functions_do_not_wait_for_each_other() {
        let turns = Turns::default();
        let _one = turns.wait(function("one"), None).await;
        let _other = turns.wait(function("other"), None).await;
        let _elsewhere = turns
            .wait((Some("team".to_owned()), "one".to_owned()), None)
            .await;
    }

    #[tokio::test]
    async fn who_goes_away_is_passed_over() {
        let turns = Turns::default();
        let first = turns.wait(function("hello"), None).await;
        let gone = tokio::spawn({
            let turns = turns.clone();
            async move { turns.wait(function("hello"), at(9)).await }
        });
        let stays = tokio::spawn({
            let turns = turns.clone();
            async move { turns.wait(function("hello"), at(1)).await }
        });
        tokio::task::yield_now().await;
        gone.abort();
        drop(gone.await);
        drop(first);
        drop(stays.await.unwrap());
        assert!(turns.lock().is_empty());
    }
}
