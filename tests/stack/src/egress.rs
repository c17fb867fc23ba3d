//! The addresses that BuildKit and build steps may reach: every address except reserved ones, those of the
//! machine's own networks, and those of stacks. An operator can open more.
//!
//! The filter is by address: a name that resolves to another address, or a redirect, opens nothing.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::error::{LauncherError, Result};

/// The networks that are never on the Internet, or that have metadata services of clouds.
const RESERVED_NETWORKS: [&str; 12] = [
    // This network, and private networks (RFC 1918).
    "0.0.0.0/8",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    // Shared by carriers (RFC 6598), with 100.100.100.200 of a cloud.
    "100.64.0.0/10",
    "127.0.0.0/8",
    // Link-local addresses, with 169.254.169.254, 169.254.170.2 and 169.254.170.23 of clouds.
    "169.254.0.0/16",
    // The host of a virtual machine in a cloud, at an address that looks public.
    "168.63.129.16/32",
    // Assigned to protocols (RFC 6890), with 192.0.0.192 of a cloud.
    "192.0.0.0/24",
    // Benchmarks (RFC 2544), multicast and reserved addresses.
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

/// An IPv4 network, such as `10.1.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Ipv4Network {
    address: Ipv4Addr,
    prefix: u8,
}

impl Ipv4Network {
    /// Returns the network with a single address.
    fn of_host(address: Ipv4Addr) -> Self {
        Self { address, prefix: 32 }
    }

    /// Returns the network with this prefix length that contains the address.
    fn network_containing(address: Ipv4Addr, prefix: u8) -> Option<Self> {
        let mask = match prefix {
            0 => 0,
            1..=32 => u32::MAX << (32 - u32::from(prefix)),
            _ => return None,
        };
        Some(Self {
            address: Ipv4Addr::from_bits(address.to_bits() & mask),
            prefix,
        })
    }
}

impl FromStr for Ipv4Network {
    type Err = LauncherError;

    fn from_str(text: &str) -> Result<Self> {
        let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
        let network = address
            .parse()
            .ok()
            .zip(prefix.parse().ok())
            .and_then(|(address, prefix)| Self::network_containing(address, prefix));
        network.ok_or_else(|| {
            LauncherError::Environment(format!(
                "{text:?} is not an IPv4 address or network, such as 10.1.2.3 or 10.1.0.0/16"
            ))
        })
    }
}

impl TryFrom<String> for Ipv4Network {
    type Error = LauncherError;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Ipv4Network> for String {
    fn from(network: Ipv4Network) -> Self {
        network.to_string()
    }
}

impl fmt::Display for Ipv4Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// The networks that BuildKit and build steps may and may not reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Egress {
    /// The networks that the operator opened, which have precedence.
    pub(crate) allowed: Vec<Ipv4Network>,
    /// The networks that are closed unless the operator opened them.
    pub(crate) denied: Vec<Ipv4Network>,
}

impl Egress {
    /// Returns the networks that may and may not be reached from a machine with these networks of its own.
    pub(crate) fn new(allowed: Vec<Ipv4Network>, machine: Vec<Ipv4Network>) -> Result<Self> {
        let reserved = RESERVED_NETWORKS
            .into_iter()
            .map(str::parse)
            .collect::<Result<Vec<Ipv4Network>>>()?;
        Ok(Self {
            allowed,
            denied: [reserved, machine].concat(),
        })
    }
}

/// Parses the output of `ip -json -4 address show`: the networks of the machine's interfaces.
///
/// A service of the machine that listens on every address is reached at any of them.
pub(crate) fn machine_networks(addresses: &[u8]) -> Result<Vec<Ipv4Network>> {
    #[derive(Deserialize)]
    struct Interface {
        addr_info: Vec<Address>,
    }
    #[derive(Deserialize)]
    struct Address {
        local: Ipv4Addr,
        prefixlen: u8,
    }
    let interfaces: Vec<Interface> =
        serde_json::from_slice(addresses).map_err(|source| LauncherError::InvalidFile {
            path: "the output of ip -json address".into(),
            source,
        })?;
    let addresses = interfaces.into_iter().flat_map(|interface| interface.addr_info);
    Ok(addresses
        .filter_map(|address| Ipv4Network::network_containing(address.local, address.prefixlen))
        .collect())
}

/// Returns the networks that an operator opened: each entry is an address, a network, or a host name, which is
/// resolved now.
pub(crate) async fn resolve_entries(entries: &[String]) -> Result<Vec<Ipv4Network>> {
    let mut networks = Vec::new();
    for entry in entries
        .iter()
        .map(|entry| entry.trim())
        .filter(|entry| !entry.is_empty())
    {
        if let Ok(network) = entry.parse() {
            networks.push(network);
            continue;
        }
        let found = tokio::net::lookup_host((entry, 0)).await.map_err(|error| {
            LauncherError::Environment(format!(
                "{entry:?}, which builds may reach, is not an address, a network or a name that resolves: {error}"
            ))
        })?;
        networks.extend(found.filter_map(|address| match address {
            SocketAddr::V4(address) => Some(Ipv4Network::of_host(*address.ip())),
            SocketAddr::V6(_) => None,
        }));
    }
    networks.sort_by_key(|network| (network.address, network.prefix));
    networks.dedup();
    Ok(networks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metadata_address_and_private_network_is_denied() {
        let egress = Egress::new(Vec::new(), Vec::new()).unwrap();
        let is_denied = |address: &str| {
            let address: Ipv4Addr = address.parse().unwrap();
            egress
                .denied
                .iter()
                .any(|network| Ipv4Network::network_containing(address, network.prefix) == Some(*network))
        };
        for address in [
            "169.254.169.254",
            "169.254.170.2",
            "169.254.170.23",
            "168.63.129.16",
            "100.100.100.200",
            "192.0.0.192",
            "127.0.0.1",
            "0.0.0.0",
            "10.62.0.1",
            "172.31.0.1",
            "192.168.1.1",
            "255.255.255.255",
        ] {
            assert!(is_denied(address), "{address}");
        }
        for address in ["1.1.1.1", "172.32.0.1", "168.63.129.17", "203.0.113.80"] {
            assert!(!is_denied(address), "{address}");
        }
    }

    #[test]
    fn the_machines_own_networks_are_found_whatever_their_addresses() {
        let output = br#"[{"ifname":"lo","addr_info":[{"local":"127.0.0.1","prefixlen":8}]},
            {"ifname":"eth0","addr_info":[{"local":"198.51.100.7","prefixlen":24}]}, {"addr_info":[]}]"#;
        let networks = machine_networks(output).unwrap();
        assert_eq!(
            networks.iter().map(Ipv4Network::to_string).collect::<Vec<_>>(),
            ["127.0.0.0/8", "198.51.100.0/24"]
        );
    }

    #[tokio::test]
    async fn an_operator_opens_addresses_networks_and_names() {
        let entries = ["10.1.2.3", " 10.2.9.9/16", "localhost", ""].map(str::to_owned);
        let networks = resolve_entries(&entries).await.unwrap();
        assert_eq!(
            networks.iter().map(Ipv4Network::to_string).collect::<Vec<_>>(),
            ["10.1.2.3/32", "10.2.0.0/16", "127.0.0.1/32"]
        );
        let error = resolve_entries(&["10.0.0.0/33".to_owned()]).await.unwrap_err();
        assert!(error.to_string().contains("10.0.0.0/33"), "{error}");
    }
}
