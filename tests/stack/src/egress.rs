//! The addresses that BuildKit and build steps may reach: public ones, which are all except reserved ones, those of the
//! machine's own networks, and those of stacks. An operator can open more, close public ones, and give the steps of a
//! tenant rules of their own.
//!
//! The filter is by address: a name that resolves to another address, or a redirect, opens nothing.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::{
    address::MAX_TENANT_NETWORKS,
    error::{LauncherError, Result},
};

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
    fn of_single_address(address: Ipv4Addr) -> Self {
        Self { address, prefix: 32 }
    }

    /// Returns the network with this prefix length that contains the address; `None` for a prefix longer than 32.
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

/// The choice whether BuildKit and build steps reach public addresses: both, BuildKit alone, or neither.
///
/// Functions always do. Steps of tenants with a rule of their own have that one instead.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BuildkitAndStepsPublicAccess {
    /// BuildKit and build steps reach public addresses.
    #[default]
    All,
    /// BuildKit reaches public addresses, for images and sources; build steps do not.
    Daemon,
    /// Neither BuildKit nor build steps reach public addresses.
    None,
}

impl FromStr for BuildkitAndStepsPublicAccess {
    type Err = LauncherError;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "all" => Ok(Self::All),
            "daemon" => Ok(Self::Daemon),
            "none" => Ok(Self::None),
            _ => Err(LauncherError::Environment(format!(
                "{text:?} should be all, daemon or none"
            ))),
        }
    }
}

/// A rule for what the build steps of a tenant reach, in place of the rules for other steps; hosts may be names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantStepNetworkRule {
    /// The name of the tenant in builder-fn's policy.
    pub tenant: String,
    /// The addresses, networks and host names that the tenant's steps reach; names are resolved when the stack is
    /// started.
    pub allowed: Vec<String>,
    /// Whether the tenant's steps reach public addresses, too.
    pub is_public: bool,
}

impl FromStr for TenantStepNetworkRule {
    type Err = LauncherError;

    /// Parses `TENANT=ENTRY,…`, where an entry is an address, a network, a name, or `public`.
    fn from_str(text: &str) -> Result<Self> {
        let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let (tenant, entries) = text
            .split_once('=')
            .filter(|(tenant, _)| !tenant.is_empty() && tenant.bytes().all(is_word))
            .ok_or_else(|| {
                LauncherError::Environment(format!(
                    "{text:?} should be the name of a tenant and what its steps reach, such as acme=public,10.1.2.3"
                ))
            })?;
        let (public, allowed): (Vec<_>, Vec<_>) = entries
            .split(',')
            .map(str::trim)
            .filter(|entry| !entry.is_empty())
            .map(str::to_owned)
            .partition(|entry| entry == "public");
        Ok(Self {
            tenant: tenant.to_owned(),
            allowed,
            is_public: !public.is_empty(),
        })
    }
}

/// A rule for what the build steps of a tenant reach, with addresses in place of host names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ResolvedTenantStepRule {
    /// The name of the tenant.
    pub(crate) tenant: String,
    /// The networks that the tenant's steps reach.
    pub(crate) allowed: Vec<Ipv4Network>,
    /// Whether the tenant's steps reach public addresses, too.
    pub(crate) is_public: bool,
}

/// The networks that BuildKit and build steps may and may not reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BuildkitAndStepsEgressRules {
    /// The networks that the operator opened, which have precedence.
    pub(crate) allowed: Vec<Ipv4Network>,
    /// The networks that are closed unless the operator opened them.
    pub(crate) denied: Vec<Ipv4Network>,
    /// The choice of who reaches the networks that are neither opened nor closed, which are public.
    pub(crate) public: BuildkitAndStepsPublicAccess,
    /// The rules of tenants whose steps have their own.
    pub(crate) tenants: Vec<ResolvedTenantStepRule>,
}

impl BuildkitAndStepsEgressRules {
    /// Returns rules with these opened networks on a machine with these networks of its own, with public addresses for
    /// BuildKit and its steps, and without rules of tenants.
    pub(crate) fn new(allowed: Vec<Ipv4Network>, networks_of_machine: Vec<Ipv4Network>) -> Result<Self> {
        let reserved = RESERVED_NETWORKS
            .into_iter()
            .map(str::parse)
            .collect::<Result<Vec<Ipv4Network>>>()?;
        Ok(Self {
            allowed,
            denied: [reserved, networks_of_machine].concat(),
            public: BuildkitAndStepsPublicAccess::All,
            tenants: Vec::new(),
        })
    }
}

/// Parses the output of `ip -json -4 address show`: the networks of the machine's interfaces.
///
/// A service of the machine that listens on every address is reached at any of them.
pub(crate) fn parse_machine_networks(ip_json_output: &[u8]) -> Result<Vec<Ipv4Network>> {
    #[derive(Deserialize)]
    struct IpJsonInterface {
        addr_info: Vec<IpJsonAddress>,
    }
    #[derive(Deserialize)]
    struct IpJsonAddress {
        local: Ipv4Addr,
        prefixlen: u8,
    }
    let interfaces: Vec<IpJsonInterface> =
        serde_json::from_slice(ip_json_output).map_err(|source| LauncherError::InvalidFile {
            path: "the output of ip -json address".into(),
            source,
        })?;
    let addresses = interfaces.into_iter().flat_map(|interface| interface.addr_info);
    Ok(addresses
        .filter_map(|address| Ipv4Network::network_containing(address.local, address.prefixlen))
        .collect())
}

/// Returns the rules of tenants, with addresses in place of names; fails if a tenant has two, or if there are more than
/// [`MAX_TENANT_NETWORKS`].
pub(crate) async fn resolve_tenant_rules(
    tenants: &[TenantStepNetworkRule],
) -> Result<Vec<ResolvedTenantStepRule>> {
    let mut resolved: Vec<ResolvedTenantStepRule> = Vec::new();
    if tenants.len() > MAX_TENANT_NETWORKS {
        return Err(LauncherError::Environment(format!(
            "{} tenants have rules for their steps, and at most {MAX_TENANT_NETWORKS} are right",
            tenants.len()
        )));
    }
    for network in tenants {
        if resolved.iter().any(|other| other.tenant == network.tenant) {
            return Err(LauncherError::Environment(format!(
                "tenant {:?} has two rules for its steps, and one is right",
                network.tenant
            )));
        }
        resolved.push(ResolvedTenantStepRule {
            tenant: network.tenant.clone(),
            allowed: resolve_allowed_entries_to_ipv4_networks(&network.allowed).await?,
            is_public: network.is_public,
        });
    }
    Ok(resolved)
}

/// Returns the networks that an operator opened: each entry is an address, a network, or a host name, which is
/// resolved now to its IPv4 addresses.
pub(crate) async fn resolve_allowed_entries_to_ipv4_networks(entries: &[String]) -> Result<Vec<Ipv4Network>> {
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
            SocketAddr::V4(address) => Some(Ipv4Network::of_single_address(*address.ip())),
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
        let egress = BuildkitAndStepsEgressRules::new(Vec::new(), Vec::new()).unwrap();
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
        let networks = parse_machine_networks(output).unwrap();
        assert_eq!(
            networks.iter().map(Ipv4Network::to_string).collect::<Vec<_>>(),
            ["127.0.0.0/8", "198.51.100.0/24"]
        );
    }

    #[tokio::test]
    async fn addresses_networks_and_host_names_that_an_operator_opens_are_resolved_to_networks() {
        let entries = ["10.1.2.3", " 10.2.9.9/16", "localhost", ""].map(str::to_owned);
        let networks = resolve_allowed_entries_to_ipv4_networks(&entries).await.unwrap();
        assert_eq!(
            networks.iter().map(Ipv4Network::to_string).collect::<Vec<_>>(),
            ["10.1.2.3/32", "10.2.0.0/16", "127.0.0.1/32"]
        );
        let error = resolve_allowed_entries_to_ipv4_networks(&["10.0.0.0/33".to_owned()])
            .await
            .unwrap_err();
        assert!(error.to_string().contains("10.0.0.0/33"), "{error}");
    }

    #[tokio::test]
    async fn a_tenant_has_one_rule_with_addresses_and_maybe_public_ones() {
        let acme: TenantStepNetworkRule = "acme=10.1.2.3, public".parse().unwrap();
        let closed: TenantStepNetworkRule = "closed=".parse().unwrap();
        let rules = resolve_tenant_rules(&[acme.clone(), closed]).await.unwrap();
        assert_eq!(rules[0].allowed, ["10.1.2.3".parse().unwrap()]);
        assert!(rules[0].is_public);
        assert_eq!(
            (rules[1].allowed.as_slice(), rules[1].is_public),
            ([].as_slice(), false)
        );
        resolve_tenant_rules(&[acme.clone(), acme]).await.unwrap_err();
        for wrong in ["acme", "=10.1.2.3", "Acme=public", "a b=public"] {
            wrong.parse::<TenantStepNetworkRule>().unwrap_err();
        }
    }
}
