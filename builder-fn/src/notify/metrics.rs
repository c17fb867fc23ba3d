//! The metrics of notifications.

use function_host::prometheus::{self, IntCounterVec, Opts, Registry};

/// The values of the metric label `outcome`, all of which are exported from the start.
const OUTCOME_LABELS: [&str; 3] = [OUTCOME_SENT, OUTCOME_FAILED, OUTCOME_DROPPED];

const OUTCOME_SENT: &str = "sent";
const OUTCOME_FAILED: &str = "failed";
const OUTCOME_DROPPED: &str = "dropped";

/// The metrics of notifications. Clones share the values.
#[derive(Clone, Debug)]
pub struct NotificationMetrics(IntCounterVec);

impl NotificationMetrics {
    /// Registers the metrics, all zero.
    ///
    /// # Errors
    /// Fails if `registry` has metrics of the same names.
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let counter = IntCounterVec::new(
            Opts::new(
                "slipway_notifications_total",
                "Results of builds for a config's notify URL, and states for its commitStatus, by outcome: sent, failed after all attempts, \
                 or dropped because too many others were being sent.",
            ),
            &["outcome"],
        )?;
        for outcome in OUTCOME_LABELS {
            counter.with_label_values(&[outcome]);
        }
        registry.register(Box::new(counter.clone()))?;
        Ok(Self(counter))
    }

    /// Returns the number of notifications with this outcome: `sent`, `failed` or `dropped`.
    pub fn count(&self, outcome: &str) -> u64 {
        self.0.with_label_values(&[outcome]).get()
    }

    pub(super) fn count_sent(&self) {
        self.0.with_label_values(&[OUTCOME_SENT]).inc();
    }

    pub(super) fn count_failed(&self) {
        self.0.with_label_values(&[OUTCOME_FAILED]).inc();
    }

    pub(super) fn count_dropped(&self) {
        self.0.with_label_values(&[OUTCOME_DROPPED]).inc();
    }
}
