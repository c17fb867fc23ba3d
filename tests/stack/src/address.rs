//! The addresses of a stack.
//!
//! A stack has a network namespace of its own, joined to the machine by one pair of interfaces with a network of four
//! addresses, 10.63.N.0/30; N is what tells the stacks of a machine apart. Inside, functions live on a bridge with the
//! same network in every stack.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// The network of the functions, as faasd has it.
pub(crate) const FUNCTIONS: &str = "10.62.0.0/16";
/// The stack on that network: what functions reach the gateway and BuildKit by.
pub(crate) const BRIDGE: Ipv4Addr = Ipv4Addr::new(10, 62, 0, 1);
/// The bridge, named as faasd names it.
pub(crate) const BRIDGE_INTERFACE: &str = "openfaas0";
/// The inner end of the pair.
pub(crate) const INNER_INTERFACE: &str = "host0";
/// slirp4netns's interface.
pub(crate) const EGRESS_INTERFACE: &str = "tap0";
/// slirp4netns's resolver, which asks whom the machine asks.
pub(crate) const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// The gateway, as the gateway has it.
pub(crate) const GATEWAY_PORT: u16 = 8080;
/// The registry.
pub(crate) const REGISTRY_PORT: u16 = 5000;
/// The provider.
pub(crate) const PROVIDER_PORT: u16 = 8081;
/// BuildKit.
pub(crate) const BUILDKIT_PORT: u16 = 1234;
/// NATS Streaming.
pub(crate) const NATS_PORT: u16 = 4222;
/// NATS Streaming's own monitoring.
pub(crate) const NATS_MONITOR_PORT: u16 = 8222;
/// builder-fn without the gateway.
pub(crate) const BUILDER_PORT: u16 = 8090;
/// builder-fn as a plain process, while there is no function of it.
pub(crate) const PLAIN_BUILDER_PORT: u16 = 8091;
/// Its metrics.
pub(crate) const PLAIN_BUILDER_METRICS_PORT: u16 = 8092;

/// What tells one stack's addresses from another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Number(u8);

impl Number {
    /// The one that a machine's only stack has.
    pub(crate) const FIRST: Self = Self(1);

    /// The lowest number that nobody has.
    pub(crate) fn free(taken: impl Fn(Number) -> bool) -> Option<Self> {
        (1..=254).map(Self).find(|number| !taken(*number))
    }

    /// The machine's end of the pair.
    pub(crate) fn outer(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 63, self.0, 1)
    }

    /// The stack's end of the pair: one name that is the same from the machine, BuildKit, provider and functions.
    pub(crate) fn inner(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 63, self.0, 2)
    }

    /// The machine's interface.
    pub(crate) fn interface(self) -> String {
        format!("slipway{}", self.0)
    }

    /// The registry, as it stands in image references.
    pub(crate) fn registry(self) -> SocketAddr {
        (self.inner(), REGISTRY_PORT).into()
    }

    /// The registry for faasd, which speaks plain HTTP with loopback addresses only: one of these, that is the same
    /// inside and on the machine.
    pub(crate) fn loopback_registry(self) -> SocketAddr {
        (Ipv4Addr::new(127, 63, self.0, 2), REGISTRY_PORT).into()
    }

    /// The gateway, from the machine.
    pub(crate) fn gateway_url(self) -> String {
        format!("http://{}:{GATEWAY_PORT}", self.inner())
    }

    /// builder-fn without the gateway, from the machine.
    pub(crate) fn builder_url(self) -> String {
        format!("http://{}:{BUILDER_PORT}", self.inner())
    }

    /// The plain builder-fn, from the machine.
    pub(crate) fn plain_builder_url(self) -> String {
        format!("http://{}:{PLAIN_BUILDER_PORT}", self.inner())
    }
}

/// The gateway, from functions.
pub(crate) fn gateway_for_functions() -> String {
    format!("http://{BRIDGE}:{GATEWAY_PORT}")
}

/// BuildKit, from functions.
pub(crate) fn buildkit_for_functions() -> String {
    format!("tcp://{BRIDGE}:{BUILDKIT_PORT}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_get_different_addresses() {
        let first = Number::free(|_| false).unwrap();
        let second = Number::free(|number| number == first).unwrap();
        assert_eq!(first.registry().to_string(), "10.63.1.2:5000");
        assert!(second.loopback_registry().ip().is_loopback());
        assert_eq!(second.gateway_url(), "http://10.63.2.2:8080");
        assert_eq!(Number::free(|_| true), None);
    }
}
