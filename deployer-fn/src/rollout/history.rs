//! What this process remembers of earlier rollouts: for each function the last ready version, the last failure, and a
//! version that could not be restored yet.
//!
//! The first two only save requests: after a restart, the function's annotations or its probe give the same
//! information. The third is lost with the process if the provider has deleted the function, and its annotations with
//! it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::function::FunctionId;
use crate::version::{FailureRecord, Version};

/// The history of all functions. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct RolloutHistory(Arc<Mutex<HashMap<FunctionId, Entry>>>);

#[derive(Debug, Default)]
struct Entry {
    /// The digest of the specification that was ready last.
    ready: Option<String>,
    failure: Option<FailureRecord>,
    unrestored: Option<Version>,
}

impl RolloutHistory {
    /// Records that the version with this digest was ready.
    pub(super) fn record_ready(&self, function: &FunctionId, spec_digest: &str) {
        self.lock().entry(function.clone()).or_default().ready = Some(spec_digest.to_owned());
    }

    /// Returns whether the version with this digest was the last one that was ready.
    pub(super) fn was_ready(&self, function: &FunctionId, spec_digest: &str) -> bool {
        self.lock()
            .get(function)
            .is_some_and(|entry| entry.ready.as_deref() == Some(spec_digest))
    }

    /// Records how the last deployment failed; `None` if it succeeded.
    pub(super) fn record_failure(&self, function: &FunctionId, failure: Option<FailureRecord>) {
        self.lock().entry(function.clone()).or_default().failure = failure;
    }

    /// Returns how the last deployment failed.
    pub(super) fn failure(&self, function: &FunctionId) -> Option<FailureRecord> {
        self.lock().get(function)?.failure.clone()
    }

    /// Records a version that should run and could not be restored; `None` once that is settled.
    pub(super) fn record_unrestored(&self, function: &FunctionId, version: Option<Version>) {
        self.lock().entry(function.clone()).or_default().unrestored = version;
    }

    /// Returns the version that should run and could not be restored.
    pub(super) fn unrestored(&self, function: &FunctionId) -> Option<Version> {
        self.lock().get(function)?.unrestored.clone()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FunctionId, Entry>> {
        // Every operation leaves the map consistent, so that a panic elsewhere does not matter.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
