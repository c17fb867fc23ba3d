//! Network addresses of a stack.
//!
//! A stack has a network namespace of its own. One pair of interfaces joins it to the machine, with the
//! network 10.63.N.0/30 of four addresses; N distinguishes the stacks of one machine. Inside, functions are
//! on a bridge whose network is the same in every stack. BuildKit has a namespace of its own beside it, from which
//! it and the build steps reach only what the [firewall](crate::supervisor) of the stack lets through.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// The subnet of the functions' network; the same as faasd's.
pub(crate) const FUNCTIONS_SUBNET: &str = "10.62.0.0/16";
/// The stack's address on the functions' network; functions use it for the gateway.
pub(crate) const BRIDGE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 62, 0, 1);
/// The name of the bridge interface of the functions' network; the same as faasd's.
pub(crate) const BRIDGE_INTERFACE: &str = "openfaas0";
/// The hardware address of the functions' bridge. Without one, the kernel gives the bridge the lowest address of its
/// ports, which changes when functions come and go; a function that knows the old one then reaches nothing for up to 45
/// s.
pub(crate) const BRIDGE_HARDWARE_ADDRESS: &str = "02:73:6c:69:70:01";
/// The name of the stack's end of the pair of interfaces that connects the stack to the machine.
pub(crate) const STACKS_INTERFACE_TO_MACHINE: &str = "host0";
/// The name of the interface that slirp4netns creates for the stack's outgoing connections.
pub(crate) const EGRESS_INTERFACE: &str = "tap0";
/// The address of slirp4netns's resolver, which forwards queries to the machine's resolver.
pub(crate) const EGRESS_RESOLVER_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// The default port of the OpenFaaS gateway.
pub(crate) const GATEWAY_PORT: u16 = 8080;
/// The port of the stack's image registry.
pub(crate) const REGISTRY_PORT: u16 = 5000;
/// The port of the stack's OpenFaaS provider.
pub(crate) const PROVIDER_PORT: u16 = 8081;
/// The port of the stack's BuildKit daemon.
pub(crate) const BUILDKIT_PORT: u16 = 1234;
/// The address of the BuildKit daemon, in its own network.
pub(crate) const BUILDKIT_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 2);
/// The stack's address on the pair of interfaces that connects it to BuildKit's network.
pub(crate) const STACKS_ADDRESS_TOWARDS_BUILDKIT: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 1);
/// The subnet of the pair of interfaces that connects the stack to BuildKit's network.
pub(crate) const BUILDKIT_SUBNET: &str = "10.64.0.0/30";
/// The subnet of build steps, each of which has a network namespace and an address of its own.
pub(crate) const STEPS_SUBNET: &str = "10.65.0.0/16";
/// The subnet of build steps that have the general rules, a part of [`STEPS_SUBNET`].
pub(crate) const GENERAL_STEPS_SUBNET: &str = "10.65.0.0/17";
/// The number of tenants whose build steps may have rules of their own.
pub(crate) const MAX_TENANT_NETWORKS: usize = 128;
/// The subnet of the pairs of interfaces that connect the machine to its stacks.
pub(crate) const STACKS_SUBNET: &str = "10.63.0.0/16";
/// The name of the stack's end of the pair of interfaces to BuildKit's network.
pub(crate) const STACKS_INTERFACE_TO_BUILDKIT: &str = "buildkit0";
/// The name of BuildKit's end of the pair of interfaces to the stack.
pub(crate) const BUILDKITS_INTERFACE_TO_STACK: &str = "stack0";
/// The port of NATS Streaming.
pub(crate) const NATS_PORT: u16 = 4222;
/// The port of NATS Streaming's monitoring.
pub(crate) const NATS_MONITOR_PORT: u16 = 8222;
/// The port at which builder-fn is reached without the gateway.
pub(crate) const BUILDER_PORT: u16 = 8090;
/// The port of builder-fn as a plain process, before it is deployed as a function.
pub(crate) const PLAIN_BUILDER_PORT: u16 = 8091;
/// The metrics port of builder-fn as a plain process.
pub(crate) const PLAIN_BUILDER_METRICS_PORT: u16 = 8092;

/// The number in a stack's addresses and interface names; unique among the stacks of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct StackNumber(u8);

impl StackNumber {
    /// The number of the first stack on a machine.
    pub(crate) const FIRST_STACK_NUMBER: Self = Self(1);

    /// Returns the lowest stack number that is not taken.
    pub(crate) fn lowest_free_number(taken: impl Fn(StackNumber) -> bool) -> Option<Self> {
        (1..=254).map(Self).find(|number| !taken(*number))
    }

    /// Returns the address of the machine's end of the pair of interfaces that connects it to the stack.
    pub(crate) fn machines_end_address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 63, self.0, 1)
    }

    /// Returns the IP address of the stack's own end of the interface pair that connects it to the machine. The
    /// machine, BuildKit, the provider and functions all reach the stack's servers at this address.
    pub(crate) fn stacks_end_address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 63, self.0, 2)
    }

    /// Returns the name of the machine's end of the pair of interfaces that connects it to the stack.
    pub(crate) fn machines_end_interface(self) -> String {
        format!("slipway{}", self.0)
    }

    /// Returns the address of the stack's registry for image references.
    pub(crate) fn registry_address(self) -> SocketAddr {
        (self.stacks_end_address(), REGISTRY_PORT).into()
    }

    /// Returns the registry's address for faasd, which uses plain HTTP only with loopback addresses. The
    /// address is the same inside the stack and on the machine.
    pub(crate) fn loopback_registry_address_for_faasd(self) -> SocketAddr {
        (Ipv4Addr::new(127, 63, self.0, 2), REGISTRY_PORT).into()
    }

    /// Returns the URL of the stack's gateway for clients on the machine.
    pub(crate) fn gateway_url(self) -> String {
        format!("http://{}:{GATEWAY_PORT}", self.stacks_end_address())
    }

    /// Returns the URL of builder-fn without the gateway, for clients on the machine.
    pub(crate) fn direct_builder_url(self) -> String {
        format!("http://{}:{BUILDER_PORT}", self.stacks_end_address())
    }

    /// Returns the URL of the builder-fn that runs as a plain process, for clients on the machine.
    pub(crate) fn builder_process_url(self) -> String {
        format!("http://{}:{PLAIN_BUILDER_PORT}", self.stacks_end_address())
    }
}

/// Returns the subnet of the build steps of the tenant with this index, a part of [`STEPS_SUBNET`]; `None` from the
/// index [`MAX_TENANT_NETWORKS`] on.
pub(crate) fn tenant_steps_subnet(index: usize) -> Option<String> {
    let third = u8::try_from(index.checked_add(MAX_TENANT_NETWORKS)?).ok()?;
    Some(format!("10.65.{third}.0/24"))
}

/// Returns the URL of the stack's gateway for functions.
pub(crate) fn gateway_url_for_functions() -> String {
    format!("http://{BRIDGE_ADDRESS}:{GATEWAY_PORT}")
}

/// Returns the URL of the stack's BuildKit daemon for functions.
pub(crate) fn buildkit_url_for_functions() -> String {
    format!("tcp://{BUILDKIT_ADDRESS}:{BUILDKIT_PORT}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_stack_number_gives_a_stack_its_own_addresses() {
        let first = StackNumber::lowest_free_number(|_| false).unwrap();
        let second = StackNumber::lowest_free_number(|number| number == first).unwrap();
        assert_eq!(first.registry_address().to_string(), "10.63.1.2:5000");
        assert!(second.loopback_registry_address_for_faasd().ip().is_loopback());
        assert_eq!(second.gateway_url(), "http://10.63.2.2:8080");
        assert_eq!(StackNumber::lowest_free_number(|_| true), None);
    }

    #[test]
    fn every_tenant_gets_a_subnet_of_its_own_within_that_of_steps() {
        assert_eq!(tenant_steps_subnet(0).as_deref(), Some("10.65.128.0/24"));
        assert_eq!(
            tenant_steps_subnet(MAX_TENANT_NETWORKS - 1).as_deref(),
            Some("10.65.255.0/24")
        );
        assert_eq!(tenant_steps_subnet(MAX_TENANT_NETWORKS), None);
    }
}
