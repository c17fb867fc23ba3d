//! The memory for notifications that are being sent.
//!
//! Those of one tenant take at most as much as they leave free, so that a tenant whose receivers do not answer leaves
//! room for the results of others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The limit on the bodies of all notifications that are being sent, in bytes.
const NOTIFICATION_MEMORY_DEFAULT_LIMIT_BYTES: usize = 16 << 20;

/// A limit on the total size of the bodies of notifications that are being sent. Clones share it.
#[derive(Clone, Debug)]
pub struct NotificationMemory {
    limit: usize,
    used: Arc<Mutex<UsedNotificationBytes>>,
}

/// The bytes in use by all notifications, and by those of each tenant that has some.
#[derive(Debug, Default)]
struct UsedNotificationBytes {
    all: usize,
    by_tenant: HashMap<String, usize>,
}

/// A place for the body of one notification, which dropping releases.
#[derive(Debug)]
pub(super) struct ReservedNotificationMemory {
    room: NotificationMemory,
    tenant: Option<String>,
    bytes: usize,
}

impl Default for NotificationMemory {
    fn default() -> Self {
        Self::with_limit(NOTIFICATION_MEMORY_DEFAULT_LIMIT_BYTES)
    }
}

impl NotificationMemory {
    fn with_limit(limit: usize) -> Self {
        Self {
            limit,
            used: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, UsedNotificationBytes> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves a place for a body of `bytes`; `None` if the bodies would exceed the limit, or those of the tenant its
    /// share.
    pub(super) fn try_reserve(
        &self,
        tenant: Option<&str>,
        bytes: usize,
    ) -> Option<ReservedNotificationMemory> {
        let mut used = self.lock();
        let all = used.all.checked_add(bytes).filter(|all| *all <= self.limit)?;
        if let Some(tenant) = tenant {
            let own = used.by_tenant.get(tenant).copied().unwrap_or_default() + bytes;
            if own > self.limit - all {
                return None;
            }
            used.by_tenant.insert(tenant.to_owned(), own);
        }
        used.all = all;
        Some(ReservedNotificationMemory {
            room: self.clone(),
            tenant: tenant.map(str::to_owned),
            bytes,
        })
    }
}

impl Drop for ReservedNotificationMemory {
    fn drop(&mut self) {
        let mut used = self.room.lock();
        used.all = used.all.saturating_sub(self.bytes);
        let Some(tenant) = &self.tenant else {
            return;
        };
        if let Some(own) = used.by_tenant.get_mut(tenant) {
            *own = own.saturating_sub(self.bytes);
            if *own == 0 {
                used.by_tenant.remove(tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_whose_results_are_not_received_leaves_room_for_those_of_others() {
        let room = NotificationMemory::with_limit(100);
        let mut held: Vec<_> = std::iter::from_fn(|| room.try_reserve(Some("acme"), 10)).collect();
        assert_eq!(held.len(), 5, "as much as it leaves free");

        held.push(
            room.try_reserve(Some("umbrella"), 25)
                .expect("room for another tenant"),
        );
        assert!(room.try_reserve(Some("umbrella"), 25).is_none());
        assert!(room.try_reserve(Some("acme"), 1).is_none());

        held.clear();
        assert_eq!(room.lock().all, 0);
        assert!(room.lock().by_tenant.is_empty());
        assert!(room.try_reserve(Some("acme"), 50).is_some());
    }

    #[test]
    fn without_tenants_results_are_limited_together() {
        let room = NotificationMemory::with_limit(100);
        let held = room.try_reserve(None, 90).expect("room");
        assert!(room.try_reserve(None, 11).is_none());
        drop(held);
        assert!(room.try_reserve(None, 100).is_some());
        assert!(room.try_reserve(None, usize::MAX).is_none());
    }
}
