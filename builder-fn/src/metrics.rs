//! What can be seen of builds on 8081.

mod steps;

use std::time::{Duration, Instant};

use function_host::prometheus::{
    self, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry,
};

pub use steps::Steps;

/// Upper bounds in seconds: a cached build takes one, a compiler minutes.
const BUCKETS: [f64; 10] = [0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0];

/// The same for the time before: none at all, or some builds long.
const QUEUE_BUCKETS: [f64; 8] = [0.1, 1.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1800.0];

/// How builds end. All are shown from the beginning, so that the first failure is a step up from 0.
const OUTCOMES: [&str; 7] = [
    "success", "failed", "refused", "platform", "busy", ABANDONED, PANICKED,
];

/// How a build ends that nobody waits for any more.
const ABANDONED: &str = "abandoned";

/// How one ends that made this program fail.
const PANICKED: &str = "panicked";

/// Numbers about builds.
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
}

impl Metrics {
    /// All at zero, shown by `registry`.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            in_flight: IntGauge::new(
                "slipway_builds_in_flight",
                "Builds that are running, or wait for a place.",
            )?,
            builds: IntCounterVec::new(
                Opts::new("slipway_builds_total", "Builds that ended, by how they ended."),
                &["outcome"],
            )?,
            seconds: HistogramVec::new(
                HistogramOpts::new(
                    "slipway_build_duration_seconds",
                    "From the verified request to the end.",
                )
                .buckets(BUCKETS.to_vec()),
                &["outcome"],
            )?,
            context_bytes: prometheus::IntCounter::new(
                "slipway_context_bytes_total",
                "Bytes of verified requests.",
            )?,
            sent_bytes: prometheus::IntCounter::new(
                "slipway_context_sent_bytes_total",
                "Bytes of files that BuildKit asked for: less than the contexts have, where it had some already.",
            )?,
            spool_bytes: IntGauge::new(
                "slipway_spool_bytes",
                "Bytes of bodies that wait, in memory and in files.",
            )?,
            queue_seconds: Histogram::with_opts(
                HistogramOpts::new(
                    "slipway_queue_duration_seconds",
                    "From the verified request until there was a place for its build.",
                )
                .buckets(QUEUE_BUCKETS.to_vec()),
            )?,
            steps: IntCounterVec::new(
                Opts::new(
                    "slipway_build_steps_total",
                    "Steps of builds that ended, by whether their result was there already (cached) or not (executed).",
                ),
                &["result"],
            )?,
        };
        for outcome in OUTCOMES {
            metrics.builds.with_label_values(&[outcome]);
        }
        metrics.steps();
        registry.register(Box::new(metrics.in_flight.clone()))?;
        registry.register(Box::new(metrics.builds.clone()))?;
        registry.register(Box::new(metrics.seconds.clone()))?;
        registry.register(Box::new(metrics.context_bytes.clone()))?;
        registry.register(Box::new(metrics.sent_bytes.clone()))?;
        registry.register(Box::new(metrics.spool_bytes.clone()))?;
        registry.register(Box::new(metrics.queue_seconds.clone()))?;
        registry.register(Box::new(metrics.steps.clone()))?;
        Ok(metrics)
    }

    /// Counts the bytes of files that are sent to BuildKit.
    pub fn sent_bytes(&self) -> prometheus::IntCounter {
        self.sent_bytes.clone()
    }

    /// Shows how many bytes of bodies are kept.
    pub fn spool_bytes(&self) -> IntGauge {
        self.spool_bytes.clone()
    }

    /// Counts the steps of one build.
    pub fn steps(&self) -> Steps {
        let counter = |result| self.steps.with_label_values(&[result]);
        Steps::new(counter("cached"), counter("executed"))
    }

    /// A build has its place, after so long.
    pub fn waited(&self, time: Duration) {
        self.queue_seconds.observe(time.as_secs_f64());
    }

    /// A build begins, of a request of `bytes` bytes.
    pub fn begin(&self, bytes: u64) -> Running {
        self.in_flight.inc();
        self.context_bytes.inc_by(bytes);
        Running {
            metrics: self.clone(),
            begun: Instant::now(),
            outcome: ABANDONED,
        }
    }
}

/// A build that is running. It counts as abandoned when it is dropped before [`end`](Self::end): the caller went away.
#[derive(Debug)]
pub struct Running {
    metrics: Metrics,
    begun: Instant,
    outcome: &'static str,
}

impl Running {
    /// It ended, with `outcome`.
    pub fn end(mut self, outcome: &'static str) {
        self.outcome = outcome;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.outcome = PANICKED;
        }
        if self.outcome == ABANDONED {
            tracing::info!(outcome = self.outcome, "the caller went away, its build is ended");
        }
        self.metrics.in_flight.dec();
        self.metrics.builds.with_label_values(&[self.outcome]).inc();
        self.metrics
            .seconds
            .with_label_values(&[self.outcome])
            .observe(self.begun.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_in_flight_until_it_ends_or_is_abandoned() {
        let metrics = Metrics::register(&Registry::new()).expect("metrics");
        let first = metrics.begin(1);
        let second = metrics.begin(2);
        assert_eq!(metrics.in_flight.get(), 2);

        first.end("success");
        drop(second);

        assert_eq!(metrics.in_flight.get(), 0);
        assert_eq!(metrics.context_bytes.get(), 3);
        assert_eq!(metrics.builds.with_label_values(&["success"]).get(), 1);
        assert_eq!(metrics.builds.with_label_values(&["abandoned"]).get(), 1);
    }
}
