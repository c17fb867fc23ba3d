//! Collects what a build is made from while it runs.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::{BuildInputs, EndedStepRecord};
use crate::buildkit::{BuildEvent, KeyLease};
use crate::redact::{SecretMask, TraceMask};

/// The limit on the steps of a record.
const RECORDED_STEPS_MAX: usize = 400;

/// The longest wait for the listing of a context's files, once the build has ended.
const LISTING_TIMEOUT: Duration = Duration::from_secs(60);

/// Collects what one build is made from.
#[derive(Debug)]
pub(crate) struct InputsRecorder {
    /// The mask of secrets and build arguments: BuildKit puts values of arguments into the names of steps.
    mask: TraceMask,
    recorded: Mutex<RecordedInputs>,
}

#[derive(Debug, Default)]
struct RecordedInputs {
    /// The steps by BuildKit's digests of them.
    steps: HashMap<String, (SystemTime, EndedStepRecord)>,
    left_out: usize,
    /// The lease of the last attempt with files, which has their digests.
    lease: Option<Arc<KeyLease>>,
}

impl InputsRecorder {
    /// Creates the recorder of a build with these secrets and build arguments.
    pub(crate) fn new(secrets: SecretMask, arguments: &BTreeMap<String, String>) -> Self {
        Self {
            mask: TraceMask::new(secrets, arguments),
            recorded: Mutex::default(),
        }
    }

    /// Forgets the steps of an attempt that failed, before the next one.
    pub(crate) fn forget_steps_for_next_attempt(&self) {
        let mut recorded = self.lock();
        recorded.steps.clear();
        recorded.left_out = 0;
    }

    /// Has `lease` list the files of later transfers. [`into_inputs`](Self::into_inputs) takes their digests from it.
    pub(crate) fn request_file_listing_from_lease(&self, lease: Arc<KeyLease>) {
        lease.request_listing_of_later_transfers();
        self.lock().lease = Some(lease);
    }

    /// Records the step that `event` ends. Secrets and values of build arguments in its name are masked.
    pub(crate) fn record_ended_step(&self, event: &BuildEvent) {
        let BuildEvent::StepEnded {
            digest,
            name,
            started,
            ended,
            cached,
            error,
            ..
        } = event
        else {
            return;
        };
        let mut recorded = self.lock();
        if recorded.steps.len() >= RECORDED_STEPS_MAX && !recorded.steps.contains_key(digest) {
            recorded.left_out += 1;
            return;
        }
        let began = started.unwrap_or(*ended);
        let took = ended.duration_since(began).unwrap_or_default();
        let step = EndedStepRecord {
            name: self.mask.mask_and_cut_step_name(name),
            cached: *cached,
            seconds: (took.as_secs_f64() * 1000.0).round() / 1000.0,
            failed: !error.is_empty(),
        };
        recorded.steps.insert(digest.clone(), (began, step));
    }

    /// Adds what was recorded of a build to `inputs_of_config`. Waits for the listing of its files; after
    /// [`LISTING_TIMEOUT`], the files are left out.
    pub(crate) async fn into_inputs(self, inputs_of_config: BuildInputs) -> BuildInputs {
        let recorded = self.recorded.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut steps: Vec<_> = recorded.steps.into_values().collect();
        steps.sort_by(|(one, a), (other, b)| one.cmp(other).then_with(|| a.name.cmp(&b.name)));
        let files = match recorded.lease {
            Some(lease) => tokio::time::timeout(LISTING_TIMEOUT, lease.take_listed_files())
                .await
                .unwrap_or_default(),
            None => None,
        };
        BuildInputs {
            steps: steps.into_iter().map(|(_, step)| step).collect(),
            steps_left_out: recorded.left_out,
            files,
            ..inputs_of_config
        }
    }

    /// Returns whether a step ended.
    pub(crate) fn has_ended_steps(&self) -> bool {
        !self.lock().steps.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, RecordedInputs> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
