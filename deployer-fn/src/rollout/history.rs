//! The history of rollouts that a process of deployer-fn keeps in memory, for each function: the last version that was
//! ready, the last failure, the unfinished work of a rollout that ended before the function worked, and the newest
//! submission of the deployed version.
//!
//! The first two only save requests: after a restart, the function's annotations or its probe give the same
//! information. The third is lost with the process if the provider has deleted the function, and its annotations with
//! it. The fourth is lost with the process, too, because storing it in an annotation would restart a function that does
//! not change. After that, only the builder checks for newer builds.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::build_times::TimesOfBuild;
use crate::function::FunctionId;
use crate::gateway::FunctionStatus;
use crate::request::SPEC_DIGEST_ANNOTATION;
use crate::version::{FunctionVersion, PermanentFailureRecord};

/// The history of the rollouts that this process ran, by function. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct RolloutHistory(Arc<Mutex<HashMap<FunctionId, FunctionHistory>>>);

/// The history of the rollouts of one function.
#[derive(Debug, Default)]
struct FunctionHistory {
    /// The digest of the specification that was ready last.
    ready: Option<String>,
    failure: Option<PermanentFailureRecord>,
    unsettled: Option<UnsettledRollout>,
    newer_build: Option<NewerBuildOfDeployedVersion>,
}

/// A newer build whose version equals the deployed one, so that its rollout changed nothing.
#[derive(Clone, Debug)]
pub(super) struct NewerBuildOfDeployedVersion {
    /// The digest of the deployed version, which is also the newer build's.
    pub(super) spec_digest: String,
    /// The times of the newer build.
    pub(super) times: TimesOfBuild,
    /// The ID of the call that made the newer build.
    pub(super) call_id: Option<String>,
}

/// The unfinished work of a rollout that ended before the function worked: it yielded to a newer build, or ran
/// out of time.
#[derive(Clone, Debug)]
pub(super) struct UnsettledRollout {
    /// The version to restore for the unfinished rollout; `None` if there was no function.
    pub(super) last_good: Option<FunctionVersion>,
    /// The digest of the version that the unfinished rollout may have deployed, and that was not seen to work.
    pub(super) spec_digest: Option<String>,
}

impl UnsettledRollout {
    /// Returns whether the function's state still is as the unfinished rollout left it.
    pub(super) fn still_applies_to(&self, status: Option<&FunctionStatus>) -> bool {
        match status {
            None => self.last_good.is_some(),
            Some(status) => {
                let digest = status.annotations().get(SPEC_DIGEST_ANNOTATION);
                digest.is_some() && digest == self.spec_digest.as_ref()
            }
        }
    }
}

impl RolloutHistory {
    /// Records that the version with this digest was the last one of the function that was ready.
    pub(super) fn record_ready(&self, function: &FunctionId, spec_digest: &str) {
        self.lock_histories().entry(function.clone()).or_default().ready = Some(spec_digest.to_owned());
    }

    /// Returns whether the version with this digest was the last one that was ready.
    pub(super) fn was_last_ready(&self, function: &FunctionId, spec_digest: &str) -> bool {
        self.lock_histories()
            .get(function)
            .is_some_and(|entry| entry.ready.as_deref() == Some(spec_digest))
    }

    /// Records the failure of the function's last deployment if the same hand-over would fail again; `None` otherwise.
    pub(super) fn set_or_clear_last_permanent_failure(
        &self,
        function: &FunctionId,
        failure: Option<PermanentFailureRecord>,
    ) {
        self.lock_histories().entry(function.clone()).or_default().failure = failure;
    }

    /// Returns the recorded failure of the function's last deployment; `None` if it did not fail by its caller's fault.
    pub(super) fn last_permanent_failure(&self, function: &FunctionId) -> Option<PermanentFailureRecord> {
        self.lock_histories().get(function)?.failure.clone()
    }

    /// Records what an unfinished rollout left to settle; `None` once the function works, or another rollout is
    /// responsible.
    pub(super) fn set_or_clear_unsettled_rollout(
        &self,
        function: &FunctionId,
        unsettled: Option<UnsettledRollout>,
    ) {
        self.lock_histories()
            .entry(function.clone())
            .or_default()
            .unsettled = unsettled;
    }

    /// Returns what an unfinished rollout of the function left to settle.
    pub(super) fn unsettled_rollout(&self, function: &FunctionId) -> Option<UnsettledRollout> {
        self.lock_histories().get(function)?.unsettled.clone()
    }

    /// Records that a newer build gave exactly the deployed version.
    pub(super) fn record_newer_build_of_deployed_version(
        &self,
        function: &FunctionId,
        newer_build: NewerBuildOfDeployedVersion,
    ) {
        let mut functions = self.lock_histories();
        let newest = &mut functions.entry(function.clone()).or_default().newer_build;
        let replaces = newest.as_ref().is_none_or(|known| {
            known.spec_digest != newer_build.spec_digest || known.times.is_older_than(&newer_build.times)
        });
        if replaces {
            *newest = Some(newer_build);
        }
    }

    /// Returns the newest build that gave exactly the version with this digest, if it is newer than its deployment.
    pub(super) fn newest_build_of_version(
        &self,
        function: &FunctionId,
        spec_digest: &str,
    ) -> Option<NewerBuildOfDeployedVersion> {
        let newest = self.lock_histories().get(function)?.newer_build.clone()?;
        (newest.spec_digest == spec_digest).then_some(newest)
    }

    fn lock_histories(&self) -> MutexGuard<'_, HashMap<FunctionId, FunctionHistory>> {
        // Every operation leaves the map consistent, so that a panic elsewhere does not matter.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
