//! The registry of this process's builds that may be superseded, and the rule of supersession.

use std::collections::HashMap;
use std::time::SystemTime;

use tokio::sync::watch;

use super::Submission;
use crate::buildkit::{BuildState, KnownBuild};
use crate::function_id::FunctionId;
use crate::request::AHEAD_OF_CLOCK_MAX;

/// The registry of builds that may be superseded, by function.
#[derive(Debug, Default)]
pub(super) struct RegisteredBuildsByFunction {
    builds: HashMap<FunctionId, Vec<RegisteredBuild>>,
    next_id: u64,
}

/// A registered build, and the channel that reports a newer one to it.
#[derive(Debug)]
struct RegisteredBuild {
    id: u64,
    submission: Submission,
    /// The sender of the newer build that supersedes this one.
    newer: watch::Sender<Option<Submission>>,
}

impl RegisteredBuildsByFunction {
    /// Adds a build, which supersedes the older builds of its function, or is superseded by the newest: a registered
    /// one, or `known_newer_build`. Returns the build's number, and a receiver of the build that supersedes it.
    pub(super) fn insert_and_supersede(
        &mut self,
        submission: Submission,
        known_newer_build: Option<&Submission>,
    ) -> (u64, watch::Receiver<Option<Submission>>) {
        let id = self.next_id;
        self.next_id += 1;
        self.supersede_older_than(&submission);
        let builds = self.builds.entry(submission.function.clone()).or_default();
        let newest = builds
            .iter()
            .map(|entry| &entry.submission)
            .chain(known_newer_build);
        let newest = newest
            .filter(|other| other.is_another_call_submitted_after(&submission))
            .max_by_key(|other| other.submitted_at)
            .cloned();
        let (newer, receiver) = watch::channel(newest);
        builds.push(RegisteredBuild {
            id,
            submission,
            newer,
        });
        (id, receiver)
    }

    /// Removes the build with the number `id`.
    pub(super) fn remove(&mut self, id: u64) {
        self.builds.retain(|_, builds| {
            builds.retain(|entry| entry.id != id);
            !builds.is_empty()
        });
    }

    /// Returns whether no build is registered.
    pub(super) fn is_empty(&self) -> bool {
        self.builds.is_empty()
    }

    /// Returns the time of the earliest submission of a registered build.
    pub(super) fn earliest_submission(&self) -> Option<SystemTime> {
        let entries = self.builds.values().flatten();
        entries.map(|entry| entry.submission.submitted_at).min()
    }

    /// Lets a build in the daemon's history supersede older registered builds of its function; `now` is the current
    /// time. A failed build supersedes none.
    pub(super) fn supersede_by_known_build(&mut self, build: &KnownBuild, now: SystemTime) {
        let Some(submission) = Submission::of_superseding_known_build(build) else {
            return;
        };
        if build.state == BuildState::Failed {
            return;
        }
        if submission.submitted_at > now + AHEAD_OF_CLOCK_MAX {
            tracing::warn!(
                build = %submission,
                "a build in BuildKit's history was submitted in the future and supersedes none"
            );
            return;
        }
        self.supersede_older_than(&submission);
    }

    /// Lets `newer` supersede the registered older builds of its function.
    fn supersede_older_than(&mut self, newer: &Submission) {
        let builds = self.builds.get(&newer.function).into_iter().flatten();
        for entry in builds.filter(|entry| newer.is_another_call_submitted_after(&entry.submission)) {
            entry.newer.send_if_modified(|known| {
                let is_first = known.is_none();
                if is_first {
                    *known = Some(newer.clone());
                }
                is_first
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::supersede::tests::{known_build, submission};

    const NOW_AT_EPOCH: SystemTime = SystemTime::UNIX_EPOCH;

    fn superseding_call(newer: &watch::Receiver<Option<Submission>>) -> Option<String> {
        newer.borrow().as_ref().map(|newer| newer.call_id.clone())
    }

    #[test]
    fn a_newer_build_supersedes_older_ones_of_its_function_only_and_whichever_came_first() {
        let mut registry = RegisteredBuildsByFunction::default();
        let (_, old) = registry.insert_and_supersede(submission("hello", "old", 1), None);
        let (_, other) = registry.insert_and_supersede(submission("other", "other", 1), None);
        let (_, new) = registry.insert_and_supersede(submission("hello", "new", 3), None);
        let (_, late) = registry.insert_and_supersede(submission("hello", "late", 2), None);
        let (_, same) = registry.insert_and_supersede(submission("hello", "same", 3), None);
        let (_, redelivery) = registry.insert_and_supersede(submission("hello", "new", 4), None);

        assert_eq!(superseding_call(&old).as_deref(), Some("new"));
        assert_eq!(superseding_call(&late).as_deref(), Some("new"));
        assert_eq!(
            superseding_call(&same).as_deref(),
            Some("new"),
            "the redelivery has a later time"
        );
        for newer in [other, new, redelivery] {
            assert_eq!(superseding_call(&newer), None);
        }
    }

    #[test]
    fn a_removed_build_supersedes_no_more() {
        let mut registry = RegisteredBuildsByFunction::default();
        let (new, _) = registry.insert_and_supersede(submission("hello", "new", 2), None);
        registry.remove(new);
        assert!(registry.is_empty());
        let (_, old) = registry.insert_and_supersede(submission("hello", "old", 1), None);
        assert_eq!(superseding_call(&old), None);
        assert_eq!(
            registry.earliest_submission(),
            Some(NOW_AT_EPOCH + Duration::from_secs(1))
        );
    }

    #[test]
    fn a_build_of_another_builder_supersedes_while_it_runs_and_after_its_success() {
        let newer = submission("hello", "newer", 2);
        let opted_out = |mut build: KnownBuild| {
            build.attributes.supersede = false;
            build
        };
        let undeployed = |mut build: KnownBuild| {
            build.attributes.function = None;
            build
        };
        for (build, supersedes) in [
            (known_build(&newer, BuildState::Running), true),
            (known_build(&newer, BuildState::Succeeded), true),
            (known_build(&newer, BuildState::Failed), false),
            (opted_out(known_build(&newer, BuildState::Running)), false),
            (undeployed(known_build(&newer, BuildState::Running)), false),
            (
                known_build(&submission("hello", "same", 1), BuildState::Running),
                false,
            ),
            (
                known_build(&submission("other", "newer", 2), BuildState::Running),
                false,
            ),
            (
                known_build(&submission("hello", "ahead", 301), BuildState::Running),
                false,
            ),
            (
                known_build(&submission("hello", "newer", 300), BuildState::Running),
                true,
            ),
        ] {
            let mut registry = RegisteredBuildsByFunction::default();
            let (_, old) = registry.insert_and_supersede(submission("hello", "old", 1), None);
            registry.supersede_by_known_build(&build, NOW_AT_EPOCH);
            assert_eq!(
                superseding_call(&old).as_deref(),
                supersedes.then_some("newer"),
                "{build:?}"
            );
        }
    }

    proptest! {
        /// Generates builds in any order of arrival, on this builder and on others that report their own.
        #[test]
        fn among_several_builders_only_the_newest_build_of_a_function_is_left(
            builds in prop::collection::vec((0..3_usize, 0..20_u64), 1..12),
        ) {
            let mut builders = [RegisteredBuildsByFunction::default(), RegisteredBuildsByFunction::default(), RegisteredBuildsByFunction::default()];
            let mut receivers = Vec::new();
            for (at, (builder, seconds)) in builds.iter().enumerate() {
                let arriving = submission("hello", &at.to_string(), *seconds);
                let (_, newer) = builders[*builder].insert_and_supersede(arriving.clone(), None);
                receivers.push(newer);
                for (before, (_, seconds)) in builds[..at].iter().enumerate() {
                    let running = submission("hello", &before.to_string(), *seconds);
                    builders[*builder].supersede_by_known_build(&known_build(&running, BuildState::Running), NOW_AT_EPOCH);
                }
                for registry in &mut builders {
                    registry.supersede_by_known_build(&known_build(&arriving, BuildState::Running), NOW_AT_EPOCH);
                }
            }
            let newest = builds.iter().map(|(_, seconds)| *seconds).max();
            for ((_, seconds), newer) in builds.iter().zip(&receivers) {
                prop_assert_eq!(newer.borrow().is_none(), Some(*seconds) == newest);
            }
        }
    }
}
