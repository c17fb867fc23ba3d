//! Build slots: how many builds run at the same time, how many requests wait for a slot, and for how long.
//!
//! A queue that retries is best served by an immediate 429. A queue that does not retry (the Community Edition's
//! queue-worker) would lose the build. With `queue_wait`, requests therefore wait here, with their bodies received and
//! spooled.
//!
//! Only a request whose signature has been verified is admitted. Every tenant has a queue of its own, and a slot that
//! becomes free goes to the waiting tenant with the fewest running builds; among equals, to the one that was served
//! longest ago. So a tenant that submits many builds delays the next build of another by at most one build.

mod queue;

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use function_host::policy::Tenant;
use tokio::sync::oneshot;

use queue::{SlotGrant, TenantQueues};

/// The build slots of a builder. The default has no limit but those of tenants. Clones share the slots.
#[derive(Clone, Debug)]
pub struct BuildSlots(Arc<SharedSlots>);

/// The state that clones of [`BuildSlots`] share.
#[derive(Debug)]
struct SharedSlots {
    /// The number of slots: the limit on the builds that run at the same time.
    limit: usize,
    /// The longest time that an admitted request waits for a slot.
    max_wait: Duration,
    /// The limit on the requests of one tenant that wait.
    queue_length: usize,
    queues: Mutex<TenantQueues>,
}

/// The tenant that a build belongs to, as far as its slot is concerned. The default is the only tenant of a builder
/// without a policy.
#[derive(Clone, Debug, Default)]
pub(crate) struct SlotOwner {
    /// The name of the tenant; `None` without a policy.
    pub(crate) name: Option<Arc<str>>,
    /// The limit on the tenant's builds that run at the same time.
    pub(crate) max_builds: Option<usize>,
}

/// A guard for a request that was admitted: it may build, or wait for a slot. Dropping it makes room for another
/// request.
#[derive(Debug)]
pub(crate) struct QueueAdmission(SharedSlotsAndOwner);

#[derive(Debug)]
struct SharedSlotsAndOwner {
    shared: Arc<SharedSlots>,
    owner: SlotOwner,
}

/// A guard for a build slot that one build has taken. Dropping it frees the slot.
#[derive(Debug)]
pub(crate) struct BuildSlot(Option<SharedSlotsAndTenant>);

#[derive(Debug)]
struct SharedSlotsAndTenant {
    shared: Arc<SharedSlots>,
    tenant: Option<Arc<str>>,
}

/// The error for a request that gets no slot: its tenant or the builder uses all of them, and no place in the queue is
/// free or the request has waited too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotRefused {
    /// The limit on the builds that run at the same time: that of the tenant, if it is lower than the builder's.
    pub(crate) limit: usize,
}

impl SlotOwner {
    /// Returns the owner of the slots of `tenant`.
    pub(crate) fn of_tenant(tenant: &Tenant) -> Self {
        Self {
            name: Some(tenant.name().as_str().into()),
            max_builds: tenant.max_builds().map(NonZeroUsize::get),
        }
    }
}

impl BuildSlots {
    /// Creates slots without a limit but those of tenants, for which no request waits.
    pub fn unlimited_except_for_tenants() -> Self {
        Self::new(usize::MAX, Duration::ZERO, 0)
    }

    /// Creates `limit` build slots, for which up to `queue_length` more requests of each tenant wait for up to
    /// `max_wait`. With a `max_wait` of zero, no request waits.
    pub fn new(limit: usize, max_wait: Duration, queue_length: usize) -> Self {
        Self(Arc::new(SharedSlots {
            limit,
            max_wait,
            queue_length: if max_wait.is_zero() { 0 } else { queue_length },
            queues: Mutex::default(),
        }))
    }

    /// Checks, before the body of a request is read, that there is a place for it. Reserves nothing, because nobody
    /// knows yet who sends the request.
    ///
    /// # Errors
    /// Fails if a request of any tenant would be rejected now.
    pub(crate) fn fail_if_full_for_every_tenant(&self) -> Result<(), SlotRefused> {
        match self.is_full_for_every_tenant() {
            true => Err(SlotRefused { limit: self.0.limit }),
            false => Ok(()),
        }
    }

    /// Admits a request of `owner`, whose signature has been verified.
    ///
    /// # Errors
    /// Fails if as many requests of the owner are admitted as may build and wait, or if none may wait and as many
    /// requests are admitted as there are slots.
    pub(crate) fn admit(&self, owner: SlotOwner) -> Result<QueueAdmission, SlotRefused> {
        let shared = &self.0;
        let limit = shared.build_limit_of(&owner);
        let mut queues = shared.lock();
        if shared.free_places(&queues, &owner) == 0 {
            return Err(SlotRefused { limit });
        }
        queues.add_admitted(&owner.name, limit);
        drop(queues);
        Ok(QueueAdmission(SharedSlotsAndOwner {
            shared: shared.clone(),
            owner: SlotOwner {
                max_builds: Some(limit),
                ..owner
            },
        }))
    }

    /// Returns the number of requests of `owner` that would be admitted now. Reserves nothing.
    pub(crate) fn free_places(&self, owner: &SlotOwner) -> usize {
        self.0.free_places(&self.0.lock(), owner)
    }

    /// Returns whether every request would be rejected now, whatever its tenant.
    ///
    /// Where requests wait, tenants have queues of their own, of which one that is full says nothing about the others.
    pub fn is_full_for_every_tenant(&self) -> bool {
        let shared = &self.0;
        let queues = shared.lock();
        match shared.queue_length {
            0 => queues.total_admitted() >= shared.limit,
            length => queues.admitted_of_tenant(&None) >= shared.limit.saturating_add(length),
        }
    }
}

impl Default for BuildSlots {
    fn default() -> Self {
        Self::unlimited_except_for_tenants()
    }
}

impl QueueAdmission {
    /// Waits for a slot, behind the requests of the same tenant that wait already. Dropping the future leaves the
    /// queue.
    ///
    /// # Errors
    /// Fails if no slot became free in time.
    pub(crate) async fn wait_for_slot(&self) -> Result<BuildSlot, SlotRefused> {
        let SharedSlotsAndOwner { shared, owner } = &self.0;
        let limit = owner.max_builds.unwrap_or(shared.limit);
        let (sender, granted) = oneshot::channel();
        let grants = {
            let mut queues = shared.lock();
            queues.add_waiter(&owner.name, sender);
            queues.grant_free_slots_fewest_running_builds_first(shared.limit)
        };
        shared.send_grants(grants);
        let mut granted = granted;
        // A slot that is free is taken even without any time to wait.
        if let Ok(slot) = granted.try_recv() {
            return Ok(slot);
        }
        match tokio::time::timeout(shared.max_wait, granted).await {
            Ok(Ok(slot)) => Ok(slot),
            Ok(Err(_)) | Err(_) => Err(SlotRefused { limit }),
        }
    }
}

impl Drop for QueueAdmission {
    fn drop(&mut self) {
        let SharedSlotsAndOwner { shared, owner } = &self.0;
        shared.lock().remove_admitted(&owner.name);
    }
}

impl Drop for BuildSlot {
    fn drop(&mut self) {
        if let Some(SharedSlotsAndTenant { shared, tenant }) = self.0.take() {
            let grants = {
                let mut queues = shared.lock();
                queues.free_slot(&tenant);
                queues.grant_free_slots_fewest_running_builds_first(shared.limit)
            };
            shared.send_grants(grants);
        }
    }
}

impl SharedSlots {
    /// Returns the limit on the builds of `owner` that run at the same time.
    fn build_limit_of(&self, owner: &SlotOwner) -> usize {
        owner.max_builds.unwrap_or(self.limit).min(self.limit)
    }

    /// Returns the number of further requests of `owner` that may build or wait.
    fn free_places(&self, queues: &TenantQueues, owner: &SlotOwner) -> usize {
        let of_all = match self.queue_length {
            0 => self.limit.saturating_sub(queues.total_admitted()),
            _ => usize::MAX,
        };
        let most = self.build_limit_of(owner).saturating_add(self.queue_length);
        of_all.min(most.saturating_sub(queues.admitted_of_tenant(&owner.name)))
    }

    fn lock(&self) -> MutexGuard<'_, TenantQueues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes slots to the requests that wait for them. The slot of a request that has stopped waiting is freed again,
    /// so the queues must not be locked here.
    fn send_grants(self: &Arc<Self>, grants: Vec<SlotGrant>) {
        for SlotGrant { tenant, waiter } in grants {
            let slot = BuildSlot(Some(SharedSlotsAndTenant {
                shared: self.clone(),
                tenant,
            }));
            drop(waiter.send(slot));
        }
    }
}

#[cfg(test)]
mod tests;
