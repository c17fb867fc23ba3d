//! The quota on the bytes that all spools hold together.
//!
//! The bodies of one tenant take at most as many bytes as they leave free, so that a tenant with many or large bodies
//! leaves room for the others.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use function_host::prometheus::IntGauge;

/// A quota: a counter that admits bytes to spools up to a limit. Clones share the counter; a metric mirrors it.
#[derive(Clone)]
pub struct SpoolQuota {
    limit: u64,
    used: Arc<AtomicU64>,
    /// The number of bytes in use by the tenant whose share this quota is; `None` for the quota of all tenants.
    used_by_tenant: Option<Arc<AtomicU64>>,
    /// The number of bytes in use by each tenant that has a share, by the tenant's name.
    tenants: Arc<Mutex<HashMap<String, Weak<AtomicU64>>>>,
    metric: IntGauge,
}

impl SpoolQuota {
    /// Creates a quota of `limit` bytes; `metric` shows how many are in use.
    pub fn new(limit: u64, metric: IntGauge) -> Self {
        Self {
            limit,
            used: Arc::default(),
            used_by_tenant: None,
            tenants: Arc::default(),
            metric,
        }
    }

    /// Returns the share of the tenant `name` in this quota. It admits bytes as long as the tenant then uses no more
    /// than are left free. They count against this quota too.
    pub(crate) fn share_of_tenant(&self, name: &str) -> Self {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let used = tenants.get(name).and_then(Weak::upgrade).unwrap_or_else(|| {
            // Removes the tenants that have no bodies.
            tenants.retain(|_, used| used.strong_count() > 0);
            let used = Arc::default();
            tenants.insert(name.to_owned(), Arc::downgrade(&used));
            used
        });
        Self {
            used_by_tenant: Some(used),
            ..self.clone()
        }
    }

    /// Adds `bytes` to those in use, or returns `false` if they would exceed the limit or the tenant's share.
    pub(super) fn try_reserve_bytes(&self, bytes: u64) -> bool {
        let by_tenant = self.used_by_tenant.as_ref().map(|used| {
            let before = used.fetch_add(bytes, Ordering::Relaxed);
            before.saturating_add(bytes)
        });
        let within_limit = |used: u64| {
            let used = used.checked_add(bytes).filter(|used| *used <= self.limit)?;
            let free = self.limit - used;
            by_tenant
                .is_none_or(|by_tenant| by_tenant <= free)
                .then_some(used)
        };
        let is_admitted = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, within_limit)
            .is_ok();
        match (&self.used_by_tenant, is_admitted) {
            (_, true) => self.metric.add(to_metric_value(bytes)),
            (Some(used), false) => {
                used.fetch_sub(bytes, Ordering::Relaxed);
            }
            (None, false) => {}
        }
        is_admitted
    }

    /// Releases bytes that were admitted to a spool.
    pub(super) fn release_bytes(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(used) = &self.used_by_tenant {
            used.fetch_sub(bytes, Ordering::Relaxed);
        }
        self.metric.sub(to_metric_value(bytes));
    }

    /// Returns the limit of the quota in bytes.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Returns the number of bytes that all spools of the quota hold, of every tenant.
    pub(super) fn used_bytes_of_all_tenants(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

/// Converts a number of bytes for the metric.
fn to_metric_value(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

impl fmt::Debug for SpoolQuota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes", self.used_bytes_of_all_tenants(), self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spool_quota_admits_bytes_up_to_its_limit_and_the_metric_mirrors_them() {
        let metric = IntGauge::new("used", "used").unwrap();
        let quota = SpoolQuota::new(10, metric.clone());
        let clone = quota.clone();
        for (bytes, is_admitted, used) in [(6, true, 6), (5, false, 6), (4, true, 10), (1, false, 10)] {
            assert_eq!(
                clone.try_reserve_bytes(bytes),
                is_admitted,
                "{bytes} more than {}",
                quota.used_bytes_of_all_tenants()
            );
            assert_eq!(
                (quota.used_bytes_of_all_tenants(), metric.get()),
                (used, i64::try_from(used).unwrap())
            );
        }
        clone.release_bytes(10);
        assert_eq!((quota.used_bytes_of_all_tenants(), metric.get()), (0, 0));
        assert!(!quota.try_reserve_bytes(u64::MAX));
    }

    #[test]
    fn changing_the_metric_does_not_change_what_a_spool_quota_admits() {
        let metric = IntGauge::new("used", "used").unwrap();
        let quota = SpoolQuota::new(1, metric.clone());
        assert!(quota.try_reserve_bytes(1));
        metric.set(0);
        assert!(!quota.try_reserve_bytes(1));
    }

    #[test]
    fn concurrent_admissions_fill_a_spool_quota_exactly() {
        let quota = SpoolQuota::new(1000, IntGauge::new("used", "used").unwrap());
        let admitted = |quota: SpoolQuota| (0..1000).filter(|_| quota.try_reserve_bytes(1)).count();
        let threads: Vec<_> = [(); 4]
            .map(|()| quota.clone())
            .map(|quota| std::thread::spawn(move || admitted(quota)))
            .into_iter()
            .collect();
        let sum: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert_eq!(sum, 1000);
    }

    #[test]
    fn a_tenant_takes_at_most_as_many_bytes_as_it_leaves_free() {
        let metric = IntGauge::new("used", "used").unwrap();
        let quota = SpoolQuota::new(100, metric.clone());
        let (one, same) = (quota.share_of_tenant("one"), quota.share_of_tenant("one"));
        assert!(one.try_reserve_bytes(30) && same.try_reserve_bytes(20));
        assert!(!one.try_reserve_bytes(1) && !same.try_reserve_bytes(1));
        let other = quota.share_of_tenant("other");
        assert!(other.try_reserve_bytes(25));
        assert!(!other.try_reserve_bytes(1));
        assert_eq!((quota.used_bytes_of_all_tenants(), metric.get()), (75, 75));
        same.release_bytes(20);
        assert!(other.try_reserve_bytes(10));
        one.release_bytes(30);
        other.release_bytes(35);
        assert_eq!((quota.used_bytes_of_all_tenants(), metric.get()), (0, 0));
        drop((one, same, other));
        assert_eq!(quota.share_of_tenant("last").tenants.lock().unwrap().len(), 1);
    }
}
