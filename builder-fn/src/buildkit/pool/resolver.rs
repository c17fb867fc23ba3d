//! The daemons behind a host name, which is resolved again and again.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;

use crate::buildkit::Daemon;

/// The longest wait for the lookup of one group's daemons: shorter than that for all of a pool.
const GROUP_RESOLVE_TIMEOUT: Duration = Duration::from_secs(1);

/// A future that lists the daemons of a pool.
pub type ResolveFuture = Pin<Box<dyn Future<Output = io::Result<Vec<Daemon>>> + Send>>;

/// A source of the daemons of a pool, which may list others each time.
pub trait DaemonResolver: Send + Sync + 'static {
    /// Lists the daemons that there are now.
    fn resolve_daemons(&self) -> ResolveFuture;
}

/// A function that creates the handle of the daemon at an IP address.
pub(crate) type DaemonAtIp = Arc<dyn Fn(IpAddr) -> Daemon + Send + Sync>;

/// A resolver that looks a host name up in the DNS; each address of the same family as the first one is a daemon.
pub(crate) struct HostResolverForOneAddressFamily {
    /// The host name.
    pub(crate) host: String,
    /// The daemon by its name, which is the only one if the name has a single address.
    pub(crate) by_name: Daemon,
    /// Creates the handles of several daemons.
    pub(crate) at_ip: DaemonAtIp,
}

impl DaemonResolver for HostResolverForOneAddressFamily {
    fn resolve_daemons(&self) -> ResolveFuture {
        let (host, by_name, at_ip) = (self.host.clone(), self.by_name.clone(), self.at_ip.clone());
        Box::pin(async move {
            let found = tokio::net::lookup_host((host.as_str(), 0)).await?;
            let addresses = sorted_addresses_of_first_family(found.map(|address| address.ip()));
            Ok(match addresses.as_slice() {
                [] | [_] => vec![by_name],
                several => several.iter().map(|address| at_ip(*address)).collect(),
            })
        })
    }
}

/// Daemons of a pool that are bound to the same platforms.
pub(crate) enum DaemonGroup {
    /// Daemons with an address each.
    Fixed(Vec<Daemon>),
    /// The daemons behind a host name.
    Resolved(HostResolverForOneAddressFamily),
}

/// A resolver of the daemons of several groups, each of which keeps its last ones while its lookup fails.
pub(crate) struct JoinedResolver(Arc<[KnownGroup]>);

/// A group, with the daemons that it last had.
struct KnownGroup {
    group: DaemonGroup,
    last: Mutex<Vec<Daemon>>,
}

impl JoinedResolver {
    /// Creates a resolver of the daemons of these groups. A host name stands for its daemons until they were looked up.
    pub(crate) fn new(groups: Vec<DaemonGroup>) -> Self {
        let known = groups.into_iter().map(|group| {
            let first = match &group {
                DaemonGroup::Fixed(daemons) => daemons.clone(),
                DaemonGroup::Resolved(resolver) => vec![resolver.by_name.clone()],
            };
            KnownGroup {
                group,
                last: Mutex::new(first),
            }
        });
        Self(known.collect())
    }

    /// Returns whether a group has a host name that is looked up.
    pub(super) fn looks_anything_up(&self) -> bool {
        let mut groups = self.0.iter();
        groups.any(|known| matches!(known.group, DaemonGroup::Resolved(_)))
    }

    /// Returns the daemons that the groups last had, in the order of the groups.
    pub(super) fn last_daemons(&self) -> Vec<Daemon> {
        self.0.iter().flat_map(KnownGroup::last_daemons).collect()
    }
}

impl DaemonResolver for JoinedResolver {
    fn resolve_daemons(&self) -> ResolveFuture {
        let groups = self.0.clone();
        Box::pin(async move {
            let lookups = join_all(groups.iter().map(KnownGroup::look_up_unless_fixed)).await;
            let has_succeeded = lookups.iter().any(Result::is_ok);
            if let Some(error) = lookups.into_iter().find_map(Result::err) {
                if !has_succeeded {
                    return Err(error);
                }
                tracing::debug!(%error, "could not look up some of BuildKit's daemons");
            }
            Ok(groups.iter().flat_map(KnownGroup::last_daemons).collect())
        })
    }
}

impl KnownGroup {
    /// Looks the daemons of the group up, if they are behind a host name. A lookup that fails leaves them as they are.
    async fn look_up_unless_fixed(&self) -> io::Result<()> {
        let DaemonGroup::Resolved(resolver) = &self.group else {
            return Ok(());
        };
        let found = tokio::time::timeout(GROUP_RESOLVE_TIMEOUT, resolver.resolve_daemons()).await??;
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = found;
        Ok(())
    }

    fn last_daemons(&self) -> Vec<Daemon> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Returns the addresses that are of the same family as the first one, in order and each once. A daemon in a network
/// with both families has one address of each.
fn sorted_addresses_of_first_family(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut addresses: Vec<_> = addresses.collect();
    if let Some(first) = addresses.first().copied() {
        addresses.retain(|address| address.is_ipv4() == first.is_ipv4());
    }
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_first_ones_family_are_kept_sorted_and_each_once() {
        let of = |addresses: &[&str]| {
            let addresses = addresses.iter().map(|address| address.parse().expect("address"));
            let found = sorted_addresses_of_first_family(addresses);
            found.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(of(&["10.0.0.1", "fd00::1"]), ["10.0.0.1"]);
        assert_eq!(of(&["fd00::1", "10.0.0.1"]), ["fd00::1"]);
        assert_eq!(
            of(&["10.0.0.2", "10.0.0.1", "10.0.0.2"]),
            ["10.0.0.1", "10.0.0.2"]
        );
        assert!(of(&[]).is_empty());
    }
}
