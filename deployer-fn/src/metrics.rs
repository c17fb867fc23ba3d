//! Metrics of deployments, beside the host's metrics of requests.

use function_host::prometheus::{
    Error, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry,
};
use function_host::unverified::UnverifiedMetrics;

use crate::outcome::{DeploymentOutcome, DeploymentStatus};

/// Upper bounds, in seconds, of the buckets of the duration histograms: from a read that takes milliseconds to
/// an image that is pulled for minutes.
const DURATION_BUCKETS_SECONDS: [f64; 12] =
    [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// The deployer's metrics of deployments.
#[derive(Clone, Debug)]
pub struct DeploymentMetrics {
    ended: IntCounterVec,
    steps: HistogramVec,
    in_progress: IntGauge,
    policy_valid: IntGauge,
    unverified: UnverifiedMetrics,
}

impl DeploymentMetrics {
    /// Creates the metrics of deployments and registers them.
    ///
    /// # Errors
    /// If the registry has metrics of the same names.
    pub fn new(registry: &Registry) -> Result<Self, Error> {
        let ended = IntCounterVec::new(
            Opts::new(
                "slipway_deployments_total",
                "Ended deployments by status: ready, unverified, rolled_back, refused or failed.",
            ),
            &["status"],
        )?;
        let steps = HistogramVec::new(
            HistogramOpts::new(
                "slipway_deployment_step_seconds",
                "Duration of each step of a deployment in seconds: queue, check, apply, watch, restore.",
            )
            .buckets(DURATION_BUCKETS_SECONDS.to_vec()),
            &["step"],
        )?;
        let in_progress = IntGauge::new(
            "slipway_deployments_in_progress",
            "Deployments in progress, including those that wait for another one of the same function.",
        )?;
        registry.register(Box::new(ended.clone()))?;
        registry.register(Box::new(steps.clone()))?;
        registry.register(Box::new(in_progress.clone()))?;
        let policy_valid = IntGauge::new(
            "slipway_policy_valid",
            "Whether the policy's file can be used: 0 after a change that cannot, while the last good policy is in force.",
        )?;
        policy_valid.set(1);
        registry.register(Box::new(policy_valid.clone()))?;
        let bodies = IntGauge::new(
            "slipway_unverified_bodies",
            "Hand-overs that are being received, whose signatures are not verified yet.",
        )?;
        let displaced = IntCounterVec::new(
            Opts::new(
                "slipway_unverified_displaced_total",
                "Unverified hand-overs that gave way to others, by the limit that was reached: senders or memory.",
            ),
            &["limit"],
        )?;
        registry.register(Box::new(bodies.clone()))?;
        registry.register(Box::new(displaced.clone()))?;
        // Every series begins with 0, so that the first deployment shows in a rate.
        for status in [
            DeploymentStatus::Ready,
            DeploymentStatus::Unverified,
            DeploymentStatus::RolledBack,
            DeploymentStatus::Refused,
            DeploymentStatus::Failed,
        ] {
            ended.with_label_values(&[status.as_str()]);
        }
        Ok(Self {
            ended,
            steps,
            in_progress,
            policy_valid,
            unverified: UnverifiedMetrics::new(bodies, displaced),
        })
    }

    /// Returns the metrics of hand-overs whose signatures are not verified yet.
    pub(crate) fn unverified_metrics(&self) -> UnverifiedMetrics {
        self.unverified.clone()
    }

    /// Counts a deployment as in progress until the returned value is dropped.
    pub(crate) fn count_in_progress_until_dropped(&self) -> InProgressGuard {
        self.in_progress.inc();
        InProgressGuard(self.in_progress.clone())
    }

    /// Returns the gauge that shows whether the policy's file can be used.
    pub(crate) fn policy_valid_gauge(&self) -> IntGauge {
        self.policy_valid.clone()
    }

    /// Counts a deployment that was refused before its rollout.
    pub(crate) fn record_refused_before_rollout(&self) {
        let status = DeploymentStatus::Refused.as_str();
        self.ended.with_label_values(&[status]).inc();
    }

    /// Counts an ended deployment by its status, and records the duration of each step that it took.
    pub(crate) fn record_outcome(&self, outcome: &DeploymentOutcome) {
        self.ended.with_label_values(&[outcome.status.as_str()]).inc();
        let durations = &outcome.durations;
        for (step, duration) in [
            ("queue", durations.queue),
            ("check", durations.check),
            ("apply", durations.apply),
            ("watch", durations.watch),
            ("restore", durations.restore),
        ] {
            // A step that was not taken must not count as a fast one.
            if !duration.is_zero() {
                self.steps
                    .with_label_values(&[step])
                    .observe(duration.as_secs_f64());
            }
        }
    }
}

/// A guard that counts one deployment as in progress until it is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct InProgressGuard(IntGauge);

impl Drop for InProgressGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
