//! The queues of tenants for build slots, and the choice of the tenant that gets the next one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::BuildSlot;

/// The name of a tenant; `None` for the only one of a builder without a policy.
type OwnerName = Option<Arc<str>>;

/// The queues of all tenants that have admitted requests.
#[derive(Debug, Default)]
pub(super) struct TenantQueues {
    tenants: BTreeMap<OwnerName, TenantQueue>,
    /// The number of taken slots.
    running: usize,
    /// The number of slots that were granted so far.
    granted: u64,
}

/// The requests of one tenant.
#[derive(Debug, Default)]
struct TenantQueue {
    /// The number of requests that build, wait, or are about to.
    admitted: usize,
    running: usize,
    max_builds: usize,
    /// The number of the grant with which the tenant was last served.
    last_grant: u64,
    waiting: VecDeque<oneshot::Sender<BuildSlot>>,
}

/// A grant of a slot to a waiting request. Dropping it does not free the slot, which is counted as taken.
pub(super) struct SlotGrant {
    pub(super) tenant: OwnerName,
    pub(super) waiter: oneshot::Sender<BuildSlot>,
}

impl TenantQueues {
    /// Returns the number of admitted requests of all tenants.
    pub(super) fn total_admitted(&self) -> usize {
        self.tenants.values().map(|tenant| tenant.admitted).sum()
    }

    /// Returns the number of admitted requests of a tenant.
    pub(super) fn admitted_of_tenant(&self, tenant: &OwnerName) -> usize {
        self.tenants.get(tenant).map_or(0, |tenant| tenant.admitted)
    }

    /// Counts a request of a tenant as admitted. At most `max_builds` of the tenant's builds run at the same time.
    pub(super) fn add_admitted(&mut self, tenant: &OwnerName, max_builds: usize) {
        let tenant = self.tenants.entry(tenant.clone()).or_default();
        tenant.admitted += 1;
        tenant.max_builds = max_builds;
    }

    /// Counts one admitted request of a tenant less.
    pub(super) fn remove_admitted(&mut self, name: &OwnerName) {
        if let Some(tenant) = self.tenants.get_mut(name) {
            tenant.admitted = tenant.admitted.saturating_sub(1);
            self.forget_if_idle(name);
        }
    }

    /// Adds an admitted request to the queue of its tenant.
    pub(super) fn add_waiter(&mut self, tenant: &OwnerName, waiter: oneshot::Sender<BuildSlot>) {
        if let Some(tenant) = self.tenants.get_mut(tenant) {
            // Those that have stopped waiting, so that the queue is not longer than the number of admitted requests.
            tenant.waiting.retain(|waiter| !waiter.is_closed());
            tenant.waiting.push_back(waiter);
        }
    }

    /// Counts one slot that a tenant's build had taken as free.
    pub(super) fn free_slot(&mut self, name: &OwnerName) {
        self.running = self.running.saturating_sub(1);
        if let Some(tenant) = self.tenants.get_mut(name) {
            tenant.running = tenant.running.saturating_sub(1);
            self.forget_if_idle(name);
        }
    }

    /// Grants the free ones of `limit` slots to waiting requests, first to the tenant with the fewest running builds.
    pub(super) fn grant_free_slots_fewest_running_builds_first(&mut self, limit: usize) -> Vec<SlotGrant> {
        let mut grants = Vec::new();
        while self.running < limit {
            for tenant in self.tenants.values_mut() {
                tenant.waiting.retain(|waiter| !waiter.is_closed());
            }
            let next = self
                .tenants
                .iter_mut()
                .filter(|(_, tenant)| !tenant.waiting.is_empty() && tenant.running < tenant.max_builds)
                .min_by_key(|(_, tenant)| (tenant.running, tenant.last_grant));
            let Some((name, tenant)) = next else { break };
            let Some(waiter) = tenant.waiting.pop_front() else {
                break;
            };
            self.granted += 1;
            self.running += 1;
            tenant.running += 1;
            tenant.last_grant = self.granted;
            grants.push(SlotGrant {
                tenant: name.clone(),
                waiter,
            });
        }
        grants
    }

    /// Removes the queue of a tenant that has neither admitted requests nor running builds.
    fn forget_if_idle(&mut self, name: &OwnerName) {
        let is_idle = |tenant: &TenantQueue| tenant.admitted == 0 && tenant.running == 0;
        if self.tenants.get(name).is_some_and(is_idle) {
            self.tenants.remove(name);
        }
    }
}
