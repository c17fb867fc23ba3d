//! The budget that unverified bodies share, and the choice of the sender that is displaced.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;

use super::{DisplacedForOthers, HeldResource, UnverifiedLimits, UnverifiedMetrics, UnverifiedSender};

/// A budget that all unverified bodies of a function share. Clones share it.
#[derive(Clone, Debug)]
pub struct UnverifiedBudget {
    limits: UnverifiedLimits,
    senders: Arc<Mutex<Senders>>,
}

/// The rates of younger senders are compared as if they were this old: a few bytes in the first millisecond are not a
/// high rate.
const MIN_AGE_IN_RATE_COMPARISON: Duration = Duration::from_secs(1);

/// The divisor of the disk space that is guaranteed: a quarter is divided evenly among as many senders as the limit. A
/// sender within its share is never displaced for others; the rest is for those that send the fastest.
const GUARANTEED_DISK_DIVISOR: u64 = 4;

impl UnverifiedBudget {
    /// Creates a budget with these limits.
    pub fn new(limits: UnverifiedLimits) -> Self {
        Self {
            limits,
            senders: Arc::default(),
        }
    }

    /// Returns the limits of the budget.
    pub fn limits(&self) -> &UnverifiedLimits {
        &self.limits
    }

    /// Shows the use of the budget in `metrics` from now on.
    pub fn show_use_in_metrics(&self, metrics: UnverifiedMetrics) {
        self.lock().metrics = Some(metrics);
    }

    /// Admits a sender, until the returned value is dropped.
    ///
    /// While there are too many, the slowest sender is displaced of those that wait for their bodies and after which at
    /// least half as many others as the limit have arrived. So each sender has that time, and after it is safe as long
    /// as it is not the slowest; the time for which it waits for others to be processed does not make it slow. A sender
    /// whose bytes are being processed is not displaced for others.
    pub fn admit(&self) -> UnverifiedSender {
        let key = self.lock().admit(&self.limits, Instant::now());
        UnverifiedSender::new(self.clone(), key)
    }

    /// Returns the number of senders, without those that were displaced.
    pub fn undisplaced_sender_count(&self) -> usize {
        self.lock().undisplaced
    }

    /// Returns how much of a resource all senders hold together, in bytes.
    pub fn held_bytes(&self, resource: HeldResource) -> u64 {
        *self.lock().held.amount_of(resource)
    }

    /// Records that nothing more can be done for a sender until it sends more bytes.
    pub(super) fn mark_displaceable_for_newcomers_until_bytes_arrive(&self, key: u64) {
        self.lock()
            .mark_displaceable_for_newcomers_until_bytes_arrive(key);
    }

    /// Records that a sender waits for something that others use, or does so no longer.
    pub(super) fn mark_waiting_for_others_and_displaceable_for_newcomers(&self, key: u64, waits: bool) {
        self.lock()
            .mark_waiting_for_others_and_displaceable_for_newcomers(key, waits, Instant::now());
    }

    /// Records that bytes of a sender have arrived.
    pub(super) fn record_received_and_protect_from_newcomers(&self, key: u64, bytes: usize) {
        self.lock().record_received_and_protect_from_newcomers(key, bytes);
    }

    /// Returns `Ready` once the sender is displaced.
    pub(super) fn poll_displaced(&self, key: u64, cx: &mut Context<'_>) -> Poll<DisplacedForOthers> {
        self.lock().poll_displaced(key, cx)
    }

    /// Returns `Ready` once `bytes` of a resource are reserved for a sender, or with an error once the sender is
    /// displaced. May displace others for it.
    pub(super) fn poll_reserve(
        &self,
        key: u64,
        resource: HeldResource,
        bytes: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), DisplacedForOthers>> {
        self.lock().poll_reserve(&self.limits, key, resource, bytes, cx)
    }

    /// Gives `bytes` of a resource that a sender holds back to the budget.
    pub(super) fn release_bytes(&self, key: u64, resource: HeldResource, bytes: u64) {
        self.lock().release_bytes(key, resource, bytes);
    }

    /// Removes a sender, and gives all resources that it holds back to the budget.
    pub(super) fn remove_sender(&self, key: u64) {
        self.lock().remove_sender(key);
    }

    fn lock(&self) -> MutexGuard<'_, Senders> {
        // Every operation leaves the senders consistent, so that a panic elsewhere does not matter.
        self.senders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An amount of each resource, in bytes.
#[derive(Clone, Copy, Debug, Default)]
struct HeldBytes {
    memory: u64,
    disk: u64,
}

impl HeldBytes {
    fn amount_of(&self, resource: HeldResource) -> &u64 {
        match resource {
            HeldResource::Memory => &self.memory,
            HeldResource::Disk => &self.disk,
        }
    }

    fn amount_of_mut(&mut self, resource: HeldResource) -> &mut u64 {
        match resource {
            HeldResource::Memory => &mut self.memory,
            HeldResource::Disk => &mut self.disk,
        }
    }
}

/// The senders of a budget, by a number that increases with each, and what they hold together.
#[derive(Debug, Default)]
struct Senders {
    entries: BTreeMap<u64, SenderState>,
    next: u64,
    held: HeldBytes,
    /// The number of senders that were not displaced.
    undisplaced: usize,
    /// What the senders that were not displaced hold together.
    held_by_undisplaced: HeldBytes,
    metrics: Option<UnverifiedMetrics>,
}

/// The state of one sender of an unverified body.
#[derive(Debug)]
struct SenderState {
    since: Instant,
    received: u64,
    held: HeldBytes,
    /// The reason why the sender should end; it holds its part of the budget until it does.
    displaced: Option<DisplacedForOthers>,
    waker: Option<Waker>,
    /// Whether the sender waits for a resource.
    waits: bool,
    /// Whether the sender may be displaced for others: none of its bytes are being processed.
    is_idle: bool,
    /// The time for which the sender has waited for others, before the present wait.
    waited: Duration,
    /// The start of the present wait for others.
    waits_since: Option<Instant>,
}

impl UnverifiedLimits {
    /// Returns the disk space that every sender may use without being displaced for others, in bytes.
    pub(super) fn guaranteed_quarter_of_disk_split_among_senders(&self) -> u64 {
        self.disk / GUARANTEED_DISK_DIVISOR / (self.senders.max(1) as u64)
    }
}

impl SenderState {
    /// Returns the sender's average rate so far, in bytes per second, without the time for which it waited for others.
    fn bytes_per_second_except_waits_for_others(&self, now: Instant) -> f64 {
        let waits = self.waits_since.map(|since| now.saturating_duration_since(since));
        let age = now
            .saturating_duration_since(self.since)
            .saturating_sub(self.waited + waits.unwrap_or_default());
        self.received as f64 / age.max(MIN_AGE_IN_RATE_COMPARISON).as_secs_f64()
    }

    fn poll_displaced(&mut self, cx: &mut Context<'_>) -> Poll<DisplacedForOthers> {
        if let Some(reason) = self.displaced {
            return Poll::Ready(reason);
        }
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Senders {
    /// Returns the senders that were not displaced, in the order of their arrival.
    fn undisplaced_senders(&self) -> impl Iterator<Item = (u64, &SenderState)> {
        let entries = self.entries.iter().map(|(key, entry)| (*key, entry));
        entries.filter(|(_, entry)| entry.displaced.is_none())
    }

    fn admit(&mut self, limits: &UnverifiedLimits, now: Instant) -> u64 {
        let limit = limits.senders.max(1);
        while self.undisplaced >= limit {
            // Not half of those that wait: while most of the others are processed, that would be the latest ones.
            let slowest = self
                .undisplaced_senders()
                .take(self.undisplaced - limit / 2)
                .filter(|(_, entry)| entry.is_idle)
                .min_by(|(_, one), (_, other)| {
                    one.bytes_per_second_except_waits_for_others(now)
                        .total_cmp(&other.bytes_per_second_except_waits_for_others(now))
                });
            let Some((key, _)) = slowest else { break };
            self.displace_sender(key, DisplacedForOthers::Senders { limit });
        }
        let key = self.next;
        self.next += 1;
        let entry = SenderState {
            since: now,
            received: 0,
            held: HeldBytes::default(),
            displaced: None,
            waker: None,
            waits: false,
            is_idle: false,
            waited: Duration::ZERO,
            waits_since: None,
        };
        self.entries.insert(key, entry);
        self.undisplaced += 1;
        self.update_bodies_gauge();
        key
    }

    /// Shows the number of senders, those that were displaced and have not ended yet included.
    fn update_bodies_gauge(&self) {
        if let Some(metrics) = &self.metrics {
            metrics.set_bodies(self.entries.len());
        }
    }

    fn mark_displaceable_for_newcomers_until_bytes_arrive(&mut self, key: u64) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.is_idle = true;
        }
    }

    fn mark_waiting_for_others_and_displaceable_for_newcomers(
        &mut self,
        key: u64,
        waits: bool,
        now: Instant,
    ) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.is_idle = waits;
            let since = std::mem::replace(&mut entry.waits_since, waits.then_some(now));
            entry.waited += since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        }
    }

    /// Marks a sender as displaced for `reason`, wakes it and counts it. It holds its resources until it is removed.
    fn displace_sender(&mut self, key: u64, reason: DisplacedForOthers) {
        if let Some(entry) = self
            .entries
            .get_mut(&key)
            .filter(|entry| entry.displaced.is_none())
        {
            entry.displaced = Some(reason);
            entry.wake();
            self.undisplaced -= 1;
            self.held_by_undisplaced.memory -= entry.held.memory;
            self.held_by_undisplaced.disk -= entry.held.disk;
            if let Some(metrics) = &self.metrics {
                metrics.count_displaced(reason);
            }
        }
    }

    fn record_received_and_protect_from_newcomers(&mut self, key: u64, bytes: usize) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.received = entry.received.saturating_add(bytes as u64);
            entry.is_idle = false;
        }
    }

    fn poll_displaced(&mut self, key: u64, cx: &mut Context<'_>) -> Poll<DisplacedForOthers> {
        match self.entries.get_mut(&key) {
            Some(entry) => entry.poll_displaced(cx),
            None => Poll::Pending,
        }
    }

    fn poll_reserve(
        &mut self,
        limits: &UnverifiedLimits,
        key: u64,
        resource: HeldResource,
        bytes: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), DisplacedForOthers>> {
        let Some(entry) = self.entries.get_mut(&key) else {
            return Poll::Pending;
        };
        entry.waits = false;
        if let Some(reason) = entry.displaced {
            return Poll::Ready(Err(reason));
        }
        let wanted = entry.held.amount_of(resource).saturating_add(bytes);
        let (limit, reason) = match resource {
            HeldResource::Memory => (limits.memory, DisplacedForOthers::Memory { limit: limits.memory }),
            HeldResource::Disk => (limits.disk, DisplacedForOthers::Disk { limit: limits.disk }),
        };
        if self.held.amount_of(resource).saturating_add(bytes) <= limit {
            *self.held.amount_of_mut(resource) += bytes;
            *self.held_by_undisplaced.amount_of_mut(resource) += bytes;
            *entry.held.amount_of_mut(resource) += bytes;
            return Poll::Ready(Ok(()));
        }
        let (victims, is_enough) = match resource {
            HeldResource::Memory => self.larger_memory_holders_and_whether_enough(key, wanted, bytes, limit),
            HeldResource::Disk => {
                self.slower_large_disk_holders_and_whether_enough(key, wanted, bytes, limits, Instant::now())
            }
        };
        if !is_enough {
            // Held until the sender is dropped, as what other displaced senders hold.
            self.displace_sender(key, reason);
            return Poll::Ready(Err(reason));
        }
        for victim in victims {
            self.displace_sender(victim, reason);
        }
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.waits = true;
            entry.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Returns the senders that hold more memory than `wanted`, the largest first, until there is room for `bytes` more,
    /// and whether there is.
    fn larger_memory_holders_and_whether_enough(
        &self,
        key: u64,
        wanted: u64,
        bytes: u64,
        limit: u64,
    ) -> (Vec<u64>, bool) {
        let mut larger: Vec<_> = self
            .undisplaced_senders()
            .filter(|(other, entry)| *other != key && entry.held.memory > wanted)
            .map(|(other, entry)| (other, entry.held.memory))
            .collect();
        larger.sort_unstable_by_key(|(_, held)| Reverse(*held));
        self.take_until_room_and_whether_enough(HeldResource::Memory, larger, bytes, limit)
    }

    /// Returns the senders that hold more disk space than is guaranteed to each and are slower than the sender `key`, the
    /// slowest first, until there is room for `bytes` more, and whether there is. The speed of the sender itself does not
    /// matter while what it wants is guaranteed.
    ///
    /// A large body that was sent fast therefore stays, unless others send as much at least as fast.
    fn slower_large_disk_holders_and_whether_enough(
        &self,
        key: u64,
        wanted: u64,
        bytes: u64,
        limits: &UnverifiedLimits,
        now: Instant,
    ) -> (Vec<u64>, bool) {
        let guaranteed = limits.guaranteed_quarter_of_disk_split_among_senders();
        let own_rate = match self.entries.get(&key) {
            Some(entry) if wanted > guaranteed => entry.bytes_per_second_except_waits_for_others(now),
            _ => f64::INFINITY,
        };
        let mut slower: Vec<_> = self
            .undisplaced_senders()
            .filter(|(other, entry)| *other != key && entry.held.disk > guaranteed)
            .map(|(other, entry)| {
                (
                    other,
                    entry.held.disk,
                    entry.bytes_per_second_except_waits_for_others(now),
                )
            })
            .filter(|(_, _, rate)| *rate < own_rate)
            .collect();
        slower.sort_unstable_by(|(_, held, rate), (_, other_held, other)| {
            rate.total_cmp(other).then_with(|| other_held.cmp(held))
        });
        let slower = slower.into_iter().map(|(other, held, _)| (other, held));
        self.take_until_room_and_whether_enough(HeldResource::Disk, slower, bytes, limits.disk)
    }

    /// Returns the first of `holders`, with what they hold, until there is room for `bytes` more without them, and
    /// whether there is.
    fn take_until_room_and_whether_enough(
        &self,
        resource: HeldResource,
        holders: impl IntoIterator<Item = (u64, u64)>,
        bytes: u64,
        limit: u64,
    ) -> (Vec<u64>, bool) {
        let mut used = *self.held_by_undisplaced.amount_of(resource);
        let mut taken = Vec::new();
        for (key, held) in holders {
            if used.saturating_add(bytes) <= limit {
                break;
            }
            used -= held;
            taken.push(key);
        }
        (taken, used.saturating_add(bytes) <= limit)
    }

    fn release_bytes(&mut self, key: u64, resource: HeldResource, bytes: u64) {
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        let held = entry.held.amount_of_mut(resource);
        let released = bytes.min(*held);
        *held -= released;
        if entry.displaced.is_none() {
            *self.held_by_undisplaced.amount_of_mut(resource) -= released;
        }
        *self.held.amount_of_mut(resource) -= released;
        self.wake_waiting_senders();
    }

    fn remove_sender(&mut self, key: u64) {
        let Some(entry) = self.entries.remove(&key) else {
            return;
        };
        self.held.memory -= entry.held.memory;
        self.held.disk -= entry.held.disk;
        if entry.displaced.is_none() {
            self.undisplaced -= 1;
            self.held_by_undisplaced.memory -= entry.held.memory;
            self.held_by_undisplaced.disk -= entry.held.disk;
        }
        self.update_bodies_gauge();
        self.wake_waiting_senders();
    }

    /// Wakes the senders that wait for a resource.
    fn wake_waiting_senders(&mut self) {
        for entry in self.entries.values_mut().filter(|entry| entry.waits) {
            entry.wake();
        }
    }
}
