//! Network addresses of a cluster. All but the node's are the same in every cluster, because each has a network
//! namespace of its own.

use std::net::Ipv4Addr;

/// The subnet of all pods.
pub(crate) const PODS_SUBNET: &str = "10.244.0.0/16";
/// The subnet of the pods on the cluster's node, a part of [`PODS_SUBNET`].
pub(crate) const NODE_PODS_SUBNET: &str = "10.244.0.0/24";
/// The subnet of Services.
pub(crate) const SERVICES_SUBNET: &str = "10.96.0.0/16";
/// The address of the Service `kubernetes`, which the API server gives itself: the first one of [`SERVICES_SUBNET`].
pub(crate) const API_SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// The address of the Service of CoreDNS.
pub(crate) const DNS_SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// The address of the registry's Service. It is fixed, because the node pulls by address: it does not resolve names of
/// the cluster.
pub(crate) const REGISTRY_SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 50, 50);
/// The port of the registry.
pub(crate) const REGISTRY_PORT: u16 = 5000;
/// The port of the API server, at the node's address.
pub(crate) const API_PORT: u16 = 6443;
/// The port of etcd for clients, at the loopback address.
pub(crate) const ETCD_PORT: u16 = 2379;
/// The port of etcd for its peers, of which there are none.
pub(crate) const ETCD_PEER_PORT: u16 = 2380;
/// The port of kube-proxy's health endpoint, at the loopback address.
pub(crate) const PROXY_HEALTH_PORT: u16 = 10256;
/// The port of kube-router's health endpoint.
pub(crate) const FIREWALL_HEALTH_PORT: u16 = 20244;

/// The port of the OpenFaaS gateway, at the node's address.
pub(crate) const GATEWAY_NODE_PORT: u16 = 31112;

/// Returns the registry's host and port in image references.
pub(crate) fn registry_host_and_port() -> String {
    format!("{REGISTRY_SERVICE_ADDRESS}:{REGISTRY_PORT}")
}
