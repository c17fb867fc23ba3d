//! A daemon of a pool: whether it is left out, and how many builds of this process run on it.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::PlacementHash;
use crate::buildkit::Daemon;

/// How long a daemon that did not answer gets no builds, unless a probe finds that it answers again.
const LEAVE_OUT_TIME: Duration = Duration::from_secs(10);

/// A daemon of a pool.
pub(super) struct PoolMember {
    pub(super) daemon: Daemon,
    /// The hash of the daemon's name.
    pub(super) hash: PlacementHash,
    /// The number of builds of this process on the daemon.
    running: AtomicUsize,
    left_out_until: Mutex<Option<Instant>>,
}

/// A guard that counts a build of this process on its daemon until it is dropped.
#[derive(Debug)]
pub(super) struct CountedBuildGuard(Arc<PoolMember>);

impl PoolMember {
    /// Creates a member that gets builds, and runs none.
    pub(super) fn new(daemon: Daemon) -> Self {
        Self {
            hash: PlacementHash::of(&[daemon.address_for_messages()]),
            daemon,
            running: AtomicUsize::new(0),
            left_out_until: Mutex::default(),
        }
    }

    /// Returns the name that the daemon has in its pool and in messages.
    pub(super) fn name(&self) -> &str {
        self.daemon.address_for_messages()
    }

    /// Leaves the daemon out: it did not answer, and gets no builds for 10 s.
    pub(super) fn leave_out(&self) {
        *self.lock_left_out_until() = Some(Instant::now() + LEAVE_OUT_TIME);
    }

    /// Gives builds to the daemon again: it answers.
    pub(super) fn readmit(&self) {
        *self.lock_left_out_until() = None;
    }

    /// Returns whether the daemon is left out now.
    pub(super) fn is_left_out(&self) -> bool {
        self.lock_left_out_until()
            .is_some_and(|until| Instant::now() < until)
    }

    /// Counts a build on the daemon until the returned guard is dropped.
    pub(super) fn count_build(self: &Arc<Self>) -> CountedBuildGuard {
        self.running.fetch_add(1, Ordering::Relaxed);
        CountedBuildGuard(self.clone())
    }

    /// Returns the number of builds of this process on the daemon.
    pub(super) fn builds_of_this_process(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    fn lock_left_out_until(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.left_out_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for CountedBuildGuard {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for PoolMember {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PoolMember").field(&self.name()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member() -> Arc<PoolMember> {
        let daemon = Daemon::at("unix:///run/buildkitd.sock".parse().expect("address"));
        Arc::new(PoolMember::new(daemon))
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_is_left_out_for_ten_seconds_or_until_it_answers() {
        let member = member();
        assert!(!member.is_left_out());
        member.leave_out();
        assert!(member.is_left_out());
        tokio::time::advance(LEAVE_OUT_TIME).await;
        assert!(!member.is_left_out());
        member.leave_out();
        member.readmit();
        assert!(!member.is_left_out());
    }

    #[test]
    fn a_build_counts_until_its_guard_is_dropped() {
        let member = member();
        let (first, second) = (member.count_build(), member.count_build());
        assert_eq!(member.builds_of_this_process(), 2);
        drop(first);
        assert_eq!(member.builds_of_this_process(), 1);
        drop(second);
        assert_eq!(member.builds_of_this_process(), 0);
    }
}
