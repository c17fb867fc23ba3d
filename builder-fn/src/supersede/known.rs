//! The newest successful build of each function that a daemon's history has shown: what supersedes a build that arrives
//! later.
//!
//! Builds that run are not kept: BuildKit may report the start of a build after its end, or no end at all.

use std::collections::HashMap;
use std::time::SystemTime;

use super::Submission;
use crate::buildkit::{BuildState, KnownBuild};
use crate::function_id::FunctionId;
use crate::request::AHEAD_OF_CLOCK_MAX;

/// The largest number of functions whose builds are kept in memory. Beyond it, those of the older half are forgotten,
/// and read from BuildKit's history again when they are needed.
const REMEMBERED_FUNCTIONS_MAX: usize = 10_000;

/// The newest successful build of each function, as a daemon's history has shown them.
#[derive(Debug)]
pub(super) struct NewestSuccesses {
    newest: HashMap<FunctionId, Submission>,
    /// The time of submission from which on a build is superseded by no successful build that is not known here.
    complete_from: SystemTime,
}

impl NewestSuccesses {
    /// Creates an empty set of known builds, complete for builds submitted at `complete_from` or later, once what the
    /// history has of newer ones is added.
    pub(super) fn empty_complete_from(complete_from: SystemTime) -> Self {
        Self {
            newest: HashMap::new(),
            complete_from,
        }
    }

    /// Returns whether every successful build is known that supersedes one submitted at `submitted_at`.
    pub(super) fn are_complete_for(&self, submitted_at: SystemTime) -> bool {
        submitted_at >= self.complete_from
    }

    /// Extends the known builds to those that supersede one submitted at `submitted_at`, which are to be added now.
    pub(super) fn claim_complete_from(&mut self, submitted_at: SystemTime) {
        self.complete_from = submitted_at;
    }

    /// Adds a build that has succeeded. Any other one changes nothing.
    pub(super) fn add_if_succeeded(&mut self, build: &KnownBuild) {
        let (Some(submission), BuildState::Succeeded) =
            (Submission::of_superseding_known_build(build), build.state)
        else {
            return;
        };
        let newest = self.newest.get(&submission.function);
        if newest.is_none_or(|newest| submission.submitted_at > newest.submitted_at) {
            self.newest.insert(submission.function.clone(), submission);
        }
        if self.newest.len() > REMEMBERED_FUNCTIONS_MAX {
            self.forget_older_half();
        }
    }

    /// Returns the known build that supersedes `submission`; `now` is the current time.
    pub(super) fn find_newer(&self, submission: &Submission, now: SystemTime) -> Option<&Submission> {
        let newest = self.newest.get(&submission.function)?;
        let supersedes = newest.submitted_at <= now + AHEAD_OF_CLOCK_MAX
            && newest.is_another_call_submitted_after(submission);
        supersedes.then_some(newest)
    }

    /// Forgets the builds of half of all functions, those that were submitted the longest ago.
    fn forget_older_half(&mut self) {
        let mut times: Vec<_> = self.newest.values().map(|newest| newest.submitted_at).collect();
        times.sort_unstable();
        if let Some(limit) = times.get(times.len() / 2).copied() {
            self.newest.retain(|_, newest| newest.submitted_at > limit);
            self.complete_from = self.complete_from.max(limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::supersede::tests::{known_build, submission};

    const NOW_AT_EPOCH: SystemTime = SystemTime::UNIX_EPOCH;

    fn superseding_call_of_arrival(known: &NewestSuccesses, function: &str, seconds: u64) -> Option<String> {
        let arriving = submission(function, "arriving", seconds);
        let newer = known.find_newer(&arriving, NOW_AT_EPOCH + Duration::from_secs(100));
        newer.map(|newer| newer.call_id.clone())
    }

    #[test]
    fn a_build_that_arrives_late_is_superseded_by_the_newest_one_that_succeeded_and_by_no_other() {
        let mut known = NewestSuccesses::empty_complete_from(NOW_AT_EPOCH);
        for (call_id, seconds, state) in [
            ("first", 10, BuildState::Succeeded),
            ("older", 5, BuildState::Succeeded),
            ("failed", 20, BuildState::Failed),
            // Its end may never be reported.
            ("running", 30, BuildState::Running),
        ] {
            known.add_if_succeeded(&known_build(&submission("hello", call_id, seconds), state));
        }
        assert_eq!(
            superseding_call_of_arrival(&known, "hello", 7).as_deref(),
            Some("first")
        );
        assert_eq!(
            superseding_call_of_arrival(&known, "hello", 10),
            None,
            "it was submitted at the same time"
        );
        assert_eq!(superseding_call_of_arrival(&known, "other", 7), None);
        known.add_if_succeeded(&known_build(
            &submission("hello", "running", 30),
            BuildState::Succeeded,
        ));
        assert_eq!(
            superseding_call_of_arrival(&known, "hello", 15).as_deref(),
            Some("running")
        );
    }

    #[test]
    fn a_build_more_than_five_minutes_in_the_future_supersedes_nothing() {
        let mut known = NewestSuccesses::empty_complete_from(NOW_AT_EPOCH);
        known.add_if_succeeded(&known_build(
            &submission("hello", "ahead", 401),
            BuildState::Succeeded,
        ));
        let arriving = submission("hello", "arriving", 1);
        for (now, supersedes) in [(100, false), (101, true)] {
            let newer = known.find_newer(&arriving, NOW_AT_EPOCH + Duration::from_secs(now));
            assert_eq!(newer.is_some(), supersedes, "at {now}");
        }
    }

    #[test]
    fn builds_that_are_forgotten_to_make_room_are_no_longer_claimed_to_be_known() {
        let mut known = NewestSuccesses::empty_complete_from(NOW_AT_EPOCH);
        let mut seconds = 0;
        while known.are_complete_for(NOW_AT_EPOCH) {
            seconds += 1;
            let build = submission(&format!("function-{seconds}"), "call", seconds);
            known.add_if_succeeded(&known_build(&build, BuildState::Succeeded));
        }
        let count = known.newest.len();
        assert!(
            (REMEMBERED_FUNCTIONS_MAX / 3..REMEMBERED_FUNCTIONS_MAX).contains(&count),
            "{count}"
        );
        for build in 1..=seconds {
            let function = FunctionId::new(format!("function-{build}"), "openfaas-fn");
            // A build that was submitted just before it is superseded by it.
            let is_claimed = known.are_complete_for(NOW_AT_EPOCH + Duration::from_secs(build - 1));
            assert!(!is_claimed || known.newest.contains_key(&function), "{build}");
        }
        known.claim_complete_from(NOW_AT_EPOCH);
        assert!(known.are_complete_for(NOW_AT_EPOCH));
    }
}
