//! What this process remembers of earlier rollouts: for each function the last ready version, the last failure, what
//! is left to settle after a rollout that ended before the function worked, and the newest submission of the deployed
//! version.
//!
//! The first two only save requests: after a restart, the function's annotations or its probe give the same
//! information. The third is lost with the process if the provider has deleted the function, and its annotations with
//! it. The fourth is lost with the process, too: to write it down would restart a function that does not change. The
//! builder's own check for newer builds then remains.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::build_times::BuildTimes;
use crate::function::FunctionId;
use crate::gateway::FunctionStatus;
use crate::request::SPEC_ANNOTATION;
use crate::version::{FailureRecord, Version};

/// The history of the rollouts of all functions. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct RolloutHistory(Arc<Mutex<HashMap<FunctionId, Entry>>>);

/// The history of the rollouts of one function.
#[derive(Debug, Default)]
struct Entry {
    /// The digest of the specification that was ready last.
    ready: Option<String>,
    failure: Option<FailureRecord>,
    unsettled: Option<Unsettled>,
    resubmission: Option<Resubmission>,
}

/// A newer build whose version equals the deployed one, so that its rollout changed nothing.
#[derive(Clone, Debug)]
pub(super) struct Resubmission {
    /// The digest of the deployed version, which is also the newer build's.
    pub(super) spec_digest: String,
    /// The times of the newer build.
    pub(super) times: BuildTimes,
    /// The ID of the call that made the newer build.
    pub(super) call_id: Option<String>,
}

/// The unfinished work of a rollout that ended before the function worked: it yielded to a newer build, or ran
/// out of time.
#[derive(Clone, Debug)]
pub(super) struct Unsettled {
    /// The version to restore for the unfinished rollout; `None` if there was no function.
    pub(super) last_good: Option<Version>,
    /// The digest of the version that the unfinished rollout may have deployed, and that was not seen to work.
    pub(super) spec_digest: Option<String>,
}

impl Unsettled {
    /// Returns whether the function's state still is as the unfinished rollout left it.
    pub(super) fn still_applies_to(&self, status: Option<&FunctionStatus>) -> bool {
        match status {
            None => self.last_good.is_some(),
            Some(status) => {
                let digest = status.annotations().get(SPEC_ANNOTATION);
                digest.is_some() && digest == self.spec_digest.as_ref()
            }
        }
    }
}

impl RolloutHistory {
    /// Records that the version with this digest was the last one of the function that was ready.
    pub(super) fn record_ready(&self, function: &FunctionId, spec_digest: &str) {
        self.lock().entry(function.clone()).or_default().ready = Some(spec_digest.to_owned());
    }

    /// Returns whether the version with this digest was the last one that was ready.
    pub(super) fn was_ready(&self, function: &FunctionId, spec_digest: &str) -> bool {
        self.lock()
            .get(function)
            .is_some_and(|entry| entry.ready.as_deref() == Some(spec_digest))
    }

    /// Records how the function's last deployment failed; `None` if it succeeded.
    pub(super) fn record_failure(&self, function: &FunctionId, failure: Option<FailureRecord>) {
        self.lock().entry(function.clone()).or_default().failure = failure;
    }

    /// Returns how the function's last deployment failed.
    pub(super) fn failure(&self, function: &FunctionId) -> Option<FailureRecord> {
        self.lock().get(function)?.failure.clone()
    }

    /// Records what an unfinished rollout left to settle; `None` once the function works, or another rollout is
    /// responsible.
    pub(super) fn record_unsettled(&self, function: &FunctionId, unsettled: Option<Unsettled>) {
        self.lock().entry(function.clone()).or_default().unsettled = unsettled;
    }

    /// Returns what an unfinished rollout of the function left to settle.
    pub(super) fn unsettled(&self, function: &FunctionId) -> Option<Unsettled> {
        self.lock().get(function)?.unsettled.clone()
    }

    /// Records that a newer build gave exactly the deployed version.
    pub(super) fn record_resubmission(&self, function: &FunctionId, resubmission: Resubmission) {
        let mut functions = self.lock();
        let newest = &mut functions.entry(function.clone()).or_default().resubmission;
        let replaces = newest.as_ref().is_none_or(|known| {
            known.spec_digest != resubmission.spec_digest || known.times.is_older_than(&resubmission.times)
        });
        if replaces {
            *newest = Some(resubmission);
        }
    }

    /// Returns the newest build that gave exactly the version with this digest, if it is newer than its deployment.
    pub(super) fn resubmission(&self, function: &FunctionId, spec_digest: &str) -> Option<Resubmission> {
        let newest = self.lock().get(function)?.resubmission.clone()?;
        (newest.spec_digest == spec_digest).then_some(newest)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FunctionId, Entry>> {
        // Every operation leaves the map consistent, so that a panic elsewhere does not matter.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
