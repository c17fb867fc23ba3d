//! The builder's Prometheus metrics. The host serves them on port 8081.

mod step_counter;

use std::time::{Duration, Instant};

use function_host::prometheus::{
    self, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry,
};
use function_host::unverified::UnverifiedMetrics;

use crate::buildkit::PoolMetrics;
use crate::notify::NotificationMetrics;
pub(crate) use step_counter::StepCounter;

/// Upper bounds of the buckets for build times, in seconds: a cached build takes one second, a compiler
/// minutes.
const BUILD_SECONDS_BUCKETS: [f64; 10] = [0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0];

/// Upper bounds of the buckets for waiting times, in seconds: no time at all, or as long as some builds.
const QUEUE_SECONDS_BUCKETS: [f64; 8] = [0.1, 1.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1800.0];

/// The values of the metric label `outcome`. All are exported from the start, so that the first failure is an
/// increase from 0.
const OUTCOME_LABELS: [&str; 9] = [
    "success",
    "failed",
    "refused",
    SUPERSEDED_OUTCOME,
    CANCELLED_OUTCOME,
    "platform",
    "busy",
    ABANDONED_OUTCOME,
    PANICKED_OUTCOME,
];

/// The values of the label `result` of records that were written: written, and failed.
const RECORD_WRITE_RESULTS: [&str; 2] = ["written", "failed"];

/// The result of the export of a build's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CacheExportResult {
    /// The registry has the cache.
    Exported,
    /// The export failed, or took too long.
    Failed,
    /// There was no export: a newer build, too many others, or the end of the process came first.
    Skipped,
}

impl CacheExportResult {
    const ALL: [Self; 3] = [Self::Exported, Self::Failed, Self::Skipped];

    /// Returns the value of the label `result`.
    fn as_label(self) -> &'static str {
        match self {
            Self::Exported => "exported",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

/// The outcome of a build that was superseded by a newer build of the same function.
pub(crate) const SUPERSEDED_OUTCOME: &str = "superseded";

/// The outcome of a build that somebody cancelled.
pub(crate) const CANCELLED_OUTCOME: &str = "cancelled";

/// The outcome of a build whose caller disconnected.
const ABANDONED_OUTCOME: &str = "abandoned";

/// The outcome of a build that made the builder panic.
const PANICKED_OUTCOME: &str = "panicked";

/// The counter of records of builds that were written to the registry, or could not be. Clones share the values.
#[derive(Clone, Debug)]
pub struct RecordWriteCounter(IntCounterVec);

impl RecordWriteCounter {
    /// Counts a record that was written, or could not be.
    pub(crate) fn count(&self, is_written: bool) {
        let [written, failed] = RECORD_WRITE_RESULTS;
        let result = if is_written { written } else { failed };
        self.0.with_label_values(&[result]).inc();
    }
}

/// The builder's metrics. Clones share the values.
#[derive(Clone, Debug)]
pub struct Metrics {
    in_flight: IntGauge,
    builds: IntCounterVec,
    seconds: HistogramVec,
    context_bytes: prometheus::IntCounter,
    sent_bytes: prometheus::IntCounter,
    spool_bytes: IntGauge,
    queue_seconds: Histogram,
    steps: IntCounterVec,
    policy_valid: IntGauge,
    record_writes: RecordWriteCounter,
    cache_exports: IntCounterVec,
    unverified: UnverifiedMetrics,
    notifications: NotificationMetrics,
    pool: PoolMetrics,
}

impl Metrics {
    /// Registers the builder's metrics: all zero, except the gauge for a valid policy, which is 1.
    ///
    /// # Errors
    /// Fails if `registry` has metrics of the same names.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let unverified_bodies = IntGauge::new(
            "slipway_unverified_bodies",
            "Bodies that are being received, whose signatures are not verified yet.",
        )?;
        let displaced = IntCounterVec::new(
            Opts::new(
                "slipway_unverified_displaced_total",
                "Unverified bodies that gave way to others, by the limit that was reached: senders, memory or disk.",
            ),
            &["limit"],
        )?;
        registry.register(Box::new(unverified_bodies.clone()))?;
        registry.register(Box::new(displaced.clone()))?;
        let metrics = Self {
            unverified: UnverifiedMetrics::new(unverified_bodies, displaced),
            notifications: NotificationMetrics::register(registry)?,
            pool: PoolMetrics::register(registry)?,
            in_flight: IntGauge::new(
                "slipway_builds_in_flight",
                "Builds that are running or waiting for a slot.",
            )?,
            builds: IntCounterVec::new(
                Opts::new("slipway_builds_total", "Builds that ended, by outcome."),
                &["outcome"],
            )?,
            seconds: HistogramVec::new(
                HistogramOpts::new(
                    "slipway_build_duration_seconds",
                    "Time from the verified request to the end of the build.",
                )
                .buckets(BUILD_SECONDS_BUCKETS.to_vec()),
                &["outcome"],
            )?,
            context_bytes: prometheus::IntCounter::new(
                "slipway_context_bytes_total",
                "Bytes of the bodies of verified requests.",
            )?,
            sent_bytes: prometheus::IntCounter::new(
                "slipway_context_sent_bytes_total",
                "Bytes of the files sent to BuildKit: less than the contexts contain if it has some of them already.",
            )?,
            spool_bytes: IntGauge::new(
                "slipway_spool_bytes",
                "Bytes of spooled bodies whose signatures are verified, in memory and in files, and of copies of logs.",
            )?,
            queue_seconds: Histogram::with_opts(
                HistogramOpts::new(
                    "slipway_queue_duration_seconds",
                    "Time from the verified request until its build had a slot.",
                )
                .buckets(QUEUE_SECONDS_BUCKETS.to_vec()),
            )?,
            steps: IntCounterVec::new(
                Opts::new(
                    "slipway_build_steps_total",
                    "Steps that ended, by result: cached or executed.",
                ),
                &["result"],
            )?,
            policy_valid: IntGauge::new(
                "slipway_policy_valid",
                "Whether the policy's file can be used: 0 after a change that cannot, while the last good policy is in force.",
            )?,
            record_writes: RecordWriteCounter(IntCounterVec::new(
                Opts::new(
                    "slipway_build_records_total",
                    "Records of builds and versions for the registry, by result: written or failed.",
                ),
                &["result"],
            )?),
            cache_exports: IntCounterVec::new(
                Opts::new(
                    "slipway_cache_exports_total",
                    "Exports of caches to the registry after builds, by result: exported, failed or skipped.",
                ),
                &["result"],
            )?,
        };
        metrics.policy_valid.set(1);
        for result in RECORD_WRITE_RESULTS {
            metrics.record_writes.0.with_label_values(&[result]);
        }
        for result in CacheExportResult::ALL {
            metrics.cache_exports.with_label_values(&[result.as_label()]);
        }
        for outcome in OUTCOME_LABELS {
            metrics.builds.with_label_values(&[outcome]);
        }
        metrics.step_counter();
        registry.register(Box::new(metrics.in_flight.clone()))?;
        registry.register(Box::new(metrics.record_writes.0.clone()))?;
        registry.register(Box::new(metrics.cache_exports.clone()))?;
        registry.register(Box::new(metrics.builds.clone()))?;
        registry.register(Box::new(metrics.seconds.clone()))?;
        registry.register(Box::new(metrics.context_bytes.clone()))?;
        registry.register(Box::new(metrics.sent_bytes.clone()))?;
        registry.register(Box::new(metrics.spool_bytes.clone()))?;
        registry.register(Box::new(metrics.queue_seconds.clone()))?;
        registry.register(Box::new(metrics.steps.clone()))?;
        registry.register(Box::new(metrics.policy_valid.clone()))?;
        Ok(metrics)
    }

    /// Returns the counter of the bytes sent to BuildKit.
    pub fn sent_bytes_counter(&self) -> prometheus::IntCounter {
        self.sent_bytes.clone()
    }

    /// Returns the counter of records that are written to the registry.
    pub fn record_writes(&self) -> RecordWriteCounter {
        self.record_writes.clone()
    }

    /// Counts an export of a build's cache that has ended, or that there was not.
    pub(crate) fn count_cache_export(&self, result: CacheExportResult) {
        self.cache_exports.with_label_values(&[result.as_label()]).inc();
    }

    /// Returns the number of exports of caches with this result.
    pub fn cache_exports(&self, result: &str) -> u64 {
        self.cache_exports.with_label_values(&[result]).get()
    }

    /// Returns the gauge of the bytes of spooled bodies whose signatures are verified, of fetched contexts, and of
    /// copies of logs.
    pub fn spool_bytes_gauge(&self) -> IntGauge {
        self.spool_bytes.clone()
    }

    /// Returns the gauge that shows whether the policy's file can be used.
    pub fn policy_valid_gauge(&self) -> IntGauge {
        self.policy_valid.clone()
    }

    /// Returns the metrics of bodies whose signatures are not verified yet.
    pub fn unverified(&self) -> UnverifiedMetrics {
        self.unverified.clone()
    }

    /// Returns the metrics of notifications.
    pub fn notifications(&self) -> NotificationMetrics {
        self.notifications.clone()
    }

    /// Returns the metrics of the builder's pool of BuildKit daemons.
    pub fn pool(&self) -> PoolMetrics {
        self.pool.clone()
    }

    /// Creates a counter for the steps of one build.
    pub(crate) fn step_counter(&self) -> StepCounter {
        let counter = |result| self.steps.with_label_values(&[result]);
        StepCounter::new(counter("cached"), counter("executed"))
    }

    /// Records how long a build waited for its slot.
    pub(crate) fn observe_slot_wait(&self, time: Duration) {
        self.queue_seconds.observe(time.as_secs_f64());
    }

    /// Counts a build as in flight, with the `request_bytes` that it received.
    pub(crate) fn start_build(&self, request_bytes: u64) -> InFlightBuildGuard {
        self.in_flight.inc();
        self.context_bytes.inc_by(request_bytes);
        InFlightBuildGuard {
            metrics: self.clone(),
            started: Instant::now(),
            outcome: ABANDONED_OUTCOME,
        }
    }
}

/// A guard for a build in flight. Dropping it without [`end_with_outcome`](Self::end_with_outcome) counts the build as
/// panicked if the thread panics, and otherwise as abandoned: its caller disconnected.
#[derive(Debug)]
pub(crate) struct InFlightBuildGuard {
    metrics: Metrics,
    started: Instant,
    outcome: &'static str,
}

impl InFlightBuildGuard {
    /// Counts the build as ended with `outcome`.
    pub(crate) fn end_with_outcome(mut self, outcome: &'static str) {
        self.outcome = outcome;
    }
}

impl Drop for InFlightBuildGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.outcome = PANICKED_OUTCOME;
        }
        if self.outcome == ABANDONED_OUTCOME {
            tracing::info!(
                outcome = self.outcome,
                "the caller disconnected; its build is cancelled"
            );
        }
        self.metrics.in_flight.dec();
        self.metrics.builds.with_label_values(&[self.outcome]).inc();
        self.metrics
            .seconds
            .with_label_values(&[self.outcome])
            .observe(self.started.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_in_flight_until_it_ends_or_is_dropped() {
        let metrics = Metrics::register(&Registry::new()).expect("metrics");
        let first = metrics.start_build(1);
        let second = metrics.start_build(2);
        assert_eq!(metrics.in_flight.get(), 2);

        first.end_with_outcome("success");
        drop(second);

        assert_eq!(metrics.in_flight.get(), 0);
        assert_eq!(metrics.context_bytes.get(), 3);
        assert_eq!(metrics.builds.with_label_values(&["success"]).get(), 1);
        assert_eq!(metrics.builds.with_label_values(&["abandoned"]).get(), 1);
    }
}
