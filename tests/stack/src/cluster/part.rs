//! The parts of a cluster, which are its processes, and the order in which they start.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::part::SupervisedPart;

/// A part of a cluster: one of its processes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
#[value(rename_all = "kebab-case")]
pub enum ClusterPart {
    /// slirp4netns, through which connections to other machines leave the cluster.
    Egress,
    /// etcd, the store of the API server.
    Etcd,
    /// containerd, which runs the pods' containers.
    Containerd,
    /// kube-apiserver.
    ApiServer,
    /// kube-controller-manager.
    ControllerManager,
    /// kube-scheduler.
    Scheduler,
    /// kubelet, which makes the machine a node.
    Kubelet,
    /// kube-proxy, which makes the addresses of Services work.
    Proxy,
    /// kube-router, which enforces NetworkPolicies and does nothing else here.
    Firewall,
}

impl SupervisedPart for ClusterPart {
    const START_GROUPS: &[&[Self]] = &[
        &[ClusterPart::Egress, ClusterPart::Etcd, ClusterPart::Containerd],
        &[ClusterPart::ApiServer],
        &[
            ClusterPart::ControllerManager,
            ClusterPart::Scheduler,
            ClusterPart::Kubelet,
        ],
        &[ClusterPart::Proxy, ClusterPart::Firewall],
    ];

    const READY_TIMEOUT: Duration = Duration::from_secs(180);

    const WHOLE: &str = "cluster";
}

impl ClusterPart {
    /// Returns the part's name, which the command line and the log files use.
    fn name(self) -> &'static str {
        match self {
            ClusterPart::Egress => "egress",
            ClusterPart::Etcd => "etcd",
            ClusterPart::Containerd => "containerd",
            ClusterPart::ApiServer => "api-server",
            ClusterPart::ControllerManager => "controller-manager",
            ClusterPart::Scheduler => "scheduler",
            ClusterPart::Kubelet => "kubelet",
            ClusterPart::Proxy => "proxy",
            ClusterPart::Firewall => "firewall",
        }
    }
}

impl fmt::Display for ClusterPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_part_starts_once_and_has_the_same_name_in_commands_and_log_files() {
        let started = ClusterPart::START_GROUPS.concat();
        assert_eq!(started.len(), ClusterPart::value_variants().len());
        for part in ClusterPart::value_variants() {
            assert!(started.contains(part), "{part}");
            assert_eq!(serde_json::to_string(part).unwrap(), format!("\"{part}\""));
            assert_eq!(part.to_possible_value().unwrap().get_name(), part.to_string());
        }
    }
}
