//! The metrics of a pool of daemons.

use function_host::prometheus::{self, IntCounterVec, IntGaugeVec, Opts, Registry};

use super::KnownAndAnsweringDaemonCounts;

/// The values of the label `reason` of builds that went to another daemon than the preferred one.
const DIVERSION_REASONS: [&str; 2] = ["busy", "unreachable"];

/// The reason why a build went to another daemon than its image's preferred one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Diversion {
    /// The preferred daemon is busy: it runs half more builds than its share or still more, and at least 4.
    Busy,
    /// The preferred daemon does not answer.
    Unreachable,
}

/// The metrics of a pool of daemons. Clones share the values.
#[derive(Clone, Debug)]
pub struct PoolMetrics {
    daemons: IntGaugeVec,
    builds: IntCounterVec,
    diverted: IntCounterVec,
}

impl PoolMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// Fails if `registry` has metrics of the same names.
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            daemons: IntGaugeVec::new(
                Opts::new(
                    "slipway_buildkit_daemons",
                    "BuildKit daemons of the builder, by state: known, answering, or outdated.",
                ),
                &["state"],
            )?,
            builds: IntCounterVec::new(
                Opts::new(
                    "slipway_buildkit_builds_total",
                    "Attempts of builds that went to a daemon, by daemon.",
                ),
                &["daemon"],
            )?,
            diverted: IntCounterVec::new(
                Opts::new(
                    "slipway_buildkit_diverted_total",
                    "Attempts of builds that went to another daemon than the preferred one, by reason: busy or unreachable.",
                ),
                &["reason"],
            )?,
        };
        metrics.show_size(KnownAndAnsweringDaemonCounts::default());
        for reason in DIVERSION_REASONS {
            metrics.diverted.with_label_values(&[reason]);
        }
        registry.register(Box::new(metrics.daemons.clone()))?;
        registry.register(Box::new(metrics.builds.clone()))?;
        registry.register(Box::new(metrics.diverted.clone()))?;
        Ok(metrics)
    }

    /// Shows how many daemons there are, how many answer, and how many of these tenants may not share.
    pub(super) fn show_size(&self, size: KnownAndAnsweringDaemonCounts) {
        for (state, count) in [
            ("known", size.known),
            ("answering", size.answering),
            ("outdated", size.outdated),
        ] {
            let gauge = self.daemons.with_label_values(&[state]);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Counts an attempt of a build on a daemon, and the reason if that is not the preferred one.
    pub(super) fn count_attempt_on_daemon(&self, daemon: &str, diversion: Option<Diversion>) {
        self.builds.with_label_values(&[daemon]).inc();
        let [busy, unreachable] = DIVERSION_REASONS;
        let reason = match diversion {
            None => return,
            Some(Diversion::Busy) => busy,
            Some(Diversion::Unreachable) => unreachable,
        };
        self.diverted.with_label_values(&[reason]).inc();
    }

    /// Forgets the number of builds on a daemon that is no longer in the pool.
    pub(super) fn forget_daemon(&self, daemon: &str) {
        // It has no number if it never had a build.
        let _ = self.builds.remove_label_values(&[daemon]);
    }
}
