//! What is counted of deployments, beside what the host counts of requests.

use function_host::prometheus::{
    Error, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry,
};

use crate::outcome::{Outcome, Status};

/// Limits of the buckets in seconds: from a look at a provider in memory to an image that is pulled for minutes.
const BUCKETS: [f64; 12] = [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// What is counted of deployments.
#[derive(Clone, Debug)]
pub struct Metrics {
    ended: IntCounterVec,
    steps: HistogramVec,
    under_way: IntGauge,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// Where the registry has others of the same names.
    pub fn new(registry: &Registry) -> Result<Self, Error> {
        let ended = IntCounterVec::new(
            Opts::new(
                "slipway_deployments_total",
                "Deployments that have ended, by how: ready, rolled_back, refused or failed.",
            ),
            &["status"],
        )?;
        let steps = HistogramVec::new(
            HistogramOpts::new(
                "slipway_deployment_step_seconds",
                "How long the steps of deployments took, in seconds: queue, check, apply, watch, restore.",
            )
            .buckets(BUCKETS.to_vec()),
            &["step"],
        )?;
        let under_way = IntGauge::new(
            "slipway_deployments_in_progress",
            "Deployments under way, with those that wait for another one of the same function.",
        )?;
        registry.register(Box::new(ended.clone()))?;
        registry.register(Box::new(steps.clone()))?;
        registry.register(Box::new(under_way.clone()))?;
        // A rate needs a beginning.
        for status in [Status::Ready, Status::RolledBack, Status::Refused, Status::Failed] {
            ended.with_label_values(&[status.name()]);
        }
        Ok(Self {
            ended,
            steps,
            under_way,
        })
    }

    /// A deployment has begun; it is under way until the value is dropped.
    #[must_use]
    pub fn begun(&self) -> UnderWay {
        self.under_way.inc();
        UnderWay(self.under_way.clone())
    }

    /// A deployment has ended so.
    pub fn ended(&self, outcome: &Outcome) {
        self.ended.with_label_values(&[outcome.status.name()]).inc();
        let durations = &outcome.durations;
        for (step, duration) in [
            ("queue", durations.queue),
            ("check", durations.check),
            ("apply", durations.apply),
            ("watch", durations.watch),
            ("restore", durations.restore),
        ] {
            // A step that was not taken took no time, which says nothing of how long it takes.
            if !duration.is_zero() {
                self.steps
                    .with_label_values(&[step])
                    .observe(duration.as_secs_f64());
            }
        }
    }
}

/// A deployment that is under way.
#[derive(Debug)]
pub struct UnderWay(IntGauge);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.dec();
    }
}
