//! The quota on the bytes that all spools hold together.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use function_host::prometheus::IntGauge;

/// A quota: a counter that admits bytes to spools up to a limit. Clones share the counter; a metric mirrors it.
#[derive(Clone)]
pub struct SpoolQuota {
    limit: u64,
    used: Arc<AtomicU64>,
    metric: IntGauge,
}

impl SpoolQuota {
    /// Creates a quota of `limit` bytes; `metric` shows how many are in use.
    pub fn new(limit: u64, metric: IntGauge) -> Self {
        Self {
            limit,
            used: Arc::default(),
            metric,
        }
    }

    /// Adds `bytes` to those in use, or returns `false` if they would exceed the limit.
    pub(super) fn admit(&self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        let within_limit = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.limit);
        let is_admitted = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, within_limit)
            .is_ok();
        if is_admitted {
            self.metric.add(for_metric(bytes));
        }
        is_admitted
    }

    /// Releases bytes that were admitted to a spool.
    pub(super) fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        self.metric.sub(for_metric(bytes));
    }

    /// Returns the limit of the quota in bytes.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Returns the number of bytes that all spools hold.
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

/// Converts a number of bytes for the metric.
fn for_metric(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

impl fmt::Debug for SpoolQuota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes", self.used(), self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_admits_up_to_the_limit_and_the_metric_mirrors_it() {
        let metric = IntGauge::new("used", "used").unwrap();
        let quota = SpoolQuota::new(10, metric.clone());
        let clone = quota.clone();
        for (bytes, is_admitted, used) in [(6, true, 6), (5, false, 6), (4, true, 10), (1, false, 10)] {
            assert_eq!(
                clone.admit(bytes),
                is_admitted,
                "{bytes} more than {}",
                quota.used()
            );
            assert_eq!((quota.used(), metric.get()), (used, i64::try_from(used).unwrap()));
        }
        clone.release(10);
        assert_eq!((quota.used(), metric.get()), (0, 0));
        assert!(!quota.admit(usize::MAX));
    }

    #[test]
    fn a_change_of_the_metric_admits_nothing() {
        let metric = IntGauge::new("used", "used").unwrap();
        let quota = SpoolQuota::new(1, metric.clone());
        assert!(quota.admit(1));
        metric.set(0);
        assert!(!quota.admit(1));
    }

    #[test]
    fn admissions_at_the_same_time_fill_the_quota_exactly() {
        let quota = SpoolQuota::new(1000, IntGauge::new("used", "used").unwrap());
        let admitted = |quota: SpoolQuota| (0..1000).filter(|_| quota.admit(1)).count();
        let threads: Vec<_> = [(); 4]
            .map(|()| quota.clone())
            .map(|quota| std::thread::spawn(move || admitted(quota)))
            .into_iter()
            .collect();
        let sum: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert_eq!(sum, 1000);
    }
}
