//! The daemons behind a host name, which is resolved again and again.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use crate::buildkit::Daemon;

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

/// Returns the addresses that are of the same family as the first one, in order and each once. A daemon in a network with
/// both families has one address of each.
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
