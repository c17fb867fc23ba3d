//! The readers of logs at the same time: how many there may be, and the shares of tenants and of links in them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The limit on all readers. For each log there is a connection to BuildKit, and up to 8 MiB of events.
pub(super) const READERS_MAX: usize = 32;

/// The limit on the readers of one tenant, where there are tenants.
const TENANT_READERS_MAX: usize = 16;

/// The limit on the readers with one link. Everyone who has seen the link can open it.
const LINK_READERS_MAX: usize = 8;

/// The readers of logs at this moment. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct LogReaders(Arc<Mutex<ReaderCounts>>);

/// The numbers of readers. Who has none is not in the maps.
#[derive(Debug, Default)]
struct ReaderCounts {
    all: usize,
    by_tenant: HashMap<String, usize>,
    by_link: HashMap<String, usize>,
}

/// The place of an admitted reader of a log. Dropping it frees the place.
#[derive(Debug)]
pub(super) struct LogReaderPlace {
    readers: LogReaders,
    tenant: Option<String>,
    link: Option<String>,
}

impl LogReaders {
    /// Admits a reader of this tenant, with this link if it has one, and returns its place; `None` if there are as many
    /// readers as there may be.
    pub(super) fn admit(&self, tenant: Option<&str>, link: Option<&str>) -> Option<LogReaderPlace> {
        let mut counts = self.lock();
        let count = |of: &HashMap<String, usize>, name: Option<&str>| {
            name.and_then(|name| of.get(name)).copied().unwrap_or_default()
        };
        let is_full = counts.all >= READERS_MAX
            || count(&counts.by_tenant, tenant) >= TENANT_READERS_MAX
            || count(&counts.by_link, link) >= LINK_READERS_MAX;
        if is_full {
            return None;
        }
        counts.all += 1;
        if let Some(tenant) = tenant {
            *counts.by_tenant.entry(tenant.to_owned()).or_default() += 1;
        }
        if let Some(link) = link {
            *counts.by_link.entry(link.to_owned()).or_default() += 1;
        }
        Some(LogReaderPlace {
            readers: self.clone(),
            tenant: tenant.map(str::to_owned),
            link: link.map(str::to_owned),
        })
    }

    fn lock(&self) -> MutexGuard<'_, ReaderCounts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LogReaderPlace {
    fn drop(&mut self) {
        let mut counts = self.readers.lock();
        counts.all = counts.all.saturating_sub(1);
        decrement_or_remove(&mut counts.by_tenant, self.tenant.as_deref());
        decrement_or_remove(&mut counts.by_link, self.link.as_deref());
    }
}

/// Counts one reader less under `name`.
fn decrement_or_remove(counts: &mut HashMap<String, usize>, name: Option<&str>) {
    let Some(name) = name else { return };
    if let Some(count) = counts.get_mut(name) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Admits as many readers as there may be.
    fn admit_until_full(
        readers: &LogReaders,
        tenant: Option<&str>,
        link: Option<&str>,
    ) -> Vec<LogReaderPlace> {
        std::iter::from_fn(|| readers.admit(tenant, link)).collect()
    }

    #[test]
    fn neither_a_link_nor_a_tenant_takes_the_readers_of_others() {
        let readers = LogReaders::default();
        let of_link = admit_until_full(&readers, Some("acme"), Some("link"));
        assert_eq!(of_link.len(), LINK_READERS_MAX);
        let of_tenant = admit_until_full(&readers, Some("acme"), None);
        assert_eq!(of_link.len() + of_tenant.len(), TENANT_READERS_MAX);
        assert!(readers.admit(Some("acme"), Some("another")).is_none());
        let others = admit_until_full(&readers, Some("globex"), None);
        assert_eq!(others.len(), TENANT_READERS_MAX);
        assert!(readers.admit(Some("third"), None).is_none(), "all of them");
    }

    #[test]
    fn without_tenants_only_links_have_a_smaller_share() {
        let readers = LogReaders::default();
        let of_link = admit_until_full(&readers, None, Some("link"));
        let signed = admit_until_full(&readers, None, None);
        assert_eq!(
            (of_link.len(), signed.len()),
            (LINK_READERS_MAX, READERS_MAX - LINK_READERS_MAX)
        );
    }

    #[test]
    fn a_reader_that_leaves_makes_place_and_leaves_nothing_behind() {
        let readers = LogReaders::default();
        for _ in 0..3 {
            let admitted = admit_until_full(&readers, Some("acme"), Some("link"));
            assert_eq!(admitted.len(), LINK_READERS_MAX);
        }
        let counts = readers.lock();
        assert_eq!(
            (counts.all, counts.by_tenant.len(), counts.by_link.len()),
            (0, 0, 0)
        );
    }
}
