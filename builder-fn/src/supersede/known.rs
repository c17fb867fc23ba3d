//! The builds that a daemon's history has shown: what supersedes a build that arrives after them.

use std::collections::HashMap;
use std::time::SystemTime;

use super::Submission;
use crate::buildkit::{BuildState, KnownBuild};
use crate::function_id::FunctionId;
use crate::request::AHEAD_OF_CLOCK_MAX;

/// The largest number of functions whose builds are kept. Beyond it, those of the older half are forgotten.
const FUNCTIONS_MAX: usize = 10_000;

/// The builds of each function that run, and the newest one that succeeded, as a daemon's history has shown them.
#[derive(Debug)]
pub(super) struct KnownBuilds {
    functions: HashMap<FunctionId, FunctionBuilds>,
    /// The time of submission from which on a build is superseded by no build that is not known here.
    complete_from: SystemTime,
}

/// The known builds of one function.
#[derive(Debug, Default)]
struct FunctionBuilds {
    running: Vec<Submission>,
    newest_success: Option<Submission>,
}

impl KnownBuilds {
    /// Creates known builds that are complete for builds submitted at `complete_from` or later, once what the history has
    /// of newer ones is added.
    pub(super) fn complete_from(complete_from: SystemTime) -> Self {
        Self {
            functions: HashMap::new(),
            complete_from,
        }
    }

    /// Returns whether every build is known that supersedes one submitted at `submitted_at`.
    pub(super) fn cover(&self, submitted_at: SystemTime) -> bool {
        submitted_at >= self.complete_from
    }

    /// Extends the known builds to those that supersede one submitted at `submitted_at`, which are to be added now.
    pub(super) fn extend_to(&mut self, submitted_at: SystemTime) {
        self.complete_from = submitted_at;
    }

    /// Adds what the history shows of a build: that it runs, has succeeded, or has failed and counts no longer.
    pub(super) fn add(&mut self, build: &KnownBuild) {
        let Some(submission) = Submission::of_known_build(build) else {
            return;
        };
        let function = submission.function.clone();
        let known = self.functions.entry(function.clone()).or_default();
        known
            .running
            .retain(|running| running.call_id != submission.call_id);
        match build.state {
            BuildState::Running => known.running.push(submission),
            BuildState::Failed => {}
            BuildState::Succeeded => {
                let newest = known.newest_success.as_ref();
                if newest.is_none_or(|newest| submission.submitted_at > newest.submitted_at) {
                    known.newest_success = Some(submission);
                }
            }
        }
        if known.running.is_empty() && known.newest_success.is_none() {
            self.functions.remove(&function);
        }
        if self.functions.len() > FUNCTIONS_MAX {
            self.forget_older_half();
        }
    }

    /// Returns the newest known build that supersedes `submission`; `now` is the current time.
    pub(super) fn find_newer(&self, submission: &Submission, now: SystemTime) -> Option<&Submission> {
        let known = self.functions.get(&submission.function)?;
        let newer = known.running.iter().chain(&known.newest_success);
        newer
            .filter(|newer| newer.submitted_at <= now + AHEAD_OF_CLOCK_MAX && newer.is_newer_than(submission))
            .max_by_key(|newer| newer.submitted_at)
    }

    /// Forgets the builds of the functions that were submitted the longest ago, half of all functions. Those of which a build
    /// runs stay.
    fn forget_older_half(&mut self) {
        let time = |known: &FunctionBuilds| {
            let success = known.newest_success.as_ref().filter(|_| known.running.is_empty());
            success.map(|success| success.submitted_at)
        };
        let mut times: Vec<_> = self.functions.values().filter_map(time).collect();
        times.sort_unstable();
        if let Some(limit) = times.get(times.len() / 2).copied() {
            self.functions
                .retain(|_, known| time(known).is_none_or(|time| time > limit));
            self.complete_from = self.complete_from.max(limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::supersede::tests::{known_build, submission};

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn newer_call(known: &KnownBuilds, function: &str, seconds: u64) -> Option<String> {
        let arriving = submission(function, "arriving", seconds);
        let newer = known.find_newer(&arriving, NOW + Duration::from_secs(100));
        newer.map(|newer| newer.call_id.clone())
    }

    #[test]
    fn a_build_that_arrives_late_is_superseded_by_the_newest_one_that_runs_or_succeeded() {
        let mut known = KnownBuilds::complete_from(NOW);
        known.add(&known_build(
            &submission("hello", "first", 10),
            BuildState::Succeeded,
        ));
        known.add(&known_build(
            &submission("hello", "older", 5),
            BuildState::Succeeded,
        ));
        assert_eq!(newer_call(&known, "hello", 7).as_deref(), Some("first"));
        assert_eq!(
            newer_call(&known, "hello", 10),
            None,
            "it was submitted at the same time"
        );
        assert_eq!(newer_call(&known, "other", 7), None);

        known.add(&known_build(
            &submission("hello", "second", 20),
            BuildState::Running,
        ));
        assert_eq!(newer_call(&known, "hello", 7).as_deref(), Some("second"));
        known.add(&known_build(
            &submission("hello", "second", 20),
            BuildState::Failed,
        ));
        assert_eq!(
            newer_call(&known, "hello", 7).as_deref(),
            Some("first"),
            "the newer one failed"
        );
        known.add(&known_build(
            &submission("hello", "second", 20),
            BuildState::Running,
        ));
        known.add(&known_build(
            &submission("hello", "second", 20),
            BuildState::Succeeded,
        ));
        assert_eq!(newer_call(&known, "hello", 15).as_deref(), Some("second"));
    }

    #[test]
    fn a_build_from_the_future_supersedes_nothing_until_its_time_comes() {
        let mut known = KnownBuilds::complete_from(NOW);
        known.add(&known_build(
            &submission("hello", "ahead", 401),
            BuildState::Succeeded,
        ));
        let arriving = submission("hello", "arriving", 1);
        for (now, supersedes) in [(100, false), (101, true)] {
            let newer = known.find_newer(&arriving, NOW + Duration::from_secs(now));
            assert_eq!(newer.is_some(), supersedes, "at {now}");
        }
    }

    #[test]
    fn builds_that_are_forgotten_to_make_room_are_no_longer_claimed_to_be_known_and_no_running_one_is_forgotten()
     {
        let mut known = KnownBuilds::complete_from(NOW);
        known.add(&known_build(
            &submission("running", "running", 0),
            BuildState::Running,
        ));
        let mut seconds = 0;
        while known.cover(NOW) {
            seconds += 1;
            let build = submission(&format!("function-{seconds}"), "call", seconds);
            known.add(&known_build(&build, BuildState::Succeeded));
        }
        let count = known.functions.len();
        assert!((FUNCTIONS_MAX / 3..FUNCTIONS_MAX).contains(&count), "{count}");
        let is_known = |name: &str| {
            known
                .functions
                .contains_key(&FunctionId::new(name, "openfaas-fn"))
        };
        assert!(is_known("running"));
        for build in 1..=seconds {
            // A build that was submitted just before it is superseded by it.
            let is_claimed = known.cover(NOW + Duration::from_secs(build - 1));
            assert!(!is_claimed || is_known(&format!("function-{build}")), "{build}");
        }
        known.extend_to(NOW);
        assert!(known.cover(NOW));
    }
}
