//! What this process has seen of functions: which version of each was good last, which delivery failed last, and what
//! could not be put back yet.
//!
//! The first two only save asking again: after a restart the annotations on the function say the same, or the function
//! itself is asked. The last is the one thing that is lost with the process, where the provider has removed the function
//! and its annotations with it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::turns::Function;
use crate::version::{Failure, Version};

/// What was seen of functions. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<HashMap<Function, Seen>>>);

#[derive(Debug, Default)]
struct Seen {
    good: Option<String>,
    failure: Option<Failure>,
    owed: Option<Version>,
}

impl Memory {
    /// The version with this mark was seen to answer.
    pub(super) fn answered(&self, function: &Function, mark: &str) {
        let mut all = self.lock();
        all.entry(function.clone()).or_default().good = Some(mark.to_owned());
    }

    /// Whether the version with this mark is the one that was seen to answer last.
    pub(super) fn has_answered(&self, function: &Function, mark: &str) -> bool {
        self.lock()
            .get(function)
            .is_some_and(|seen| seen.good.as_deref() == Some(mark))
    }

    /// How the last deployment of the function failed; `None` where it did not.
    pub(super) fn ended(&self, function: &Function, failure: Option<Failure>) {
        self.lock().entry(function.clone()).or_default().failure = failure;
    }

    /// How the last deployment of the function failed.
    pub(super) fn failure(&self, function: &Function) -> Option<Failure> {
        self.lock().get(function)?.failure.clone()
    }

    /// What should be there and could not be put back; `None` where nothing is missing.
    pub(super) fn owes(&self, function: &Function, version: Option<Version>) {
        self.lock().entry(function.clone()).or_default().owed = version;
    }

    /// What should be there and could not be put back.
    pub(super) fn owed(&self, function: &Function) -> Option<Version> {
        self.lock().get(function)?.owed.clone()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Function, Seen>> {
        // The map is whole between its operations, whatever panicked elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
