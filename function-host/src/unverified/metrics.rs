//! The metrics of a budget of unverified bodies.

use prometheus::{IntCounterVec, IntGauge};

use super::DisplacedForOthers;

/// The metrics of an [`UnverifiedBudget`](super::UnverifiedBudget), which the function registers.
#[derive(Clone, Debug)]
pub struct UnverifiedMetrics {
    bodies: IntGauge,
    displaced: IntCounterVec,
}

/// The values of the metric label `limit`.
const LIMIT_LABELS: [&str; 3] = ["senders", "memory", "disk"];

impl UnverifiedMetrics {
    /// Creates the metrics from a gauge of the bodies that are being received, and a counter of those that were
    /// displaced, which has the label `limit`.
    pub fn new(bodies: IntGauge, displaced: IntCounterVec) -> Self {
        // All series begin with 0, so that the first displaced body is an increase.
        for label in LIMIT_LABELS {
            displaced.with_label_values(&[label]);
        }
        Self { bodies, displaced }
    }

    pub(super) fn set_bodies(&self, count: usize) {
        self.bodies.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(super) fn count_displaced(&self, reason: DisplacedForOthers) {
        let label = match reason {
            DisplacedForOthers::Senders { .. } => LIMIT_LABELS[0],
            DisplacedForOthers::Memory { .. } => LIMIT_LABELS[1],
            DisplacedForOthers::Disk { .. } => LIMIT_LABELS[2],
        };
        self.displaced.with_label_values(&[label]).inc();
    }
}
