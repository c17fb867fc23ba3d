//! The plan of a cluster: the programs and the number with which its supervisor runs it.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    address::StackNumber,
    directories::{LauncherDirectories, StackDir},
    error::Result,
    plan::{ProgramFileStamp, read_json_file, write_json_file},
    progress::ProgressSink,
    tools::build_go_module,
};

/// The name of the cluster's node.
pub(crate) const NODE_NAME: &str = "slipway";

/// The directories of the programs that a cluster runs or gives to its user, one for each Go module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClusterProgramDirectories {
    pub(crate) kubernetes: PathBuf,
    pub(crate) etcd: PathBuf,
    pub(crate) coredns: PathBuf,
    pub(crate) kube_router: PathBuf,
    pub(crate) containerd: PathBuf,
    pub(crate) runc: PathBuf,
    pub(crate) helm: PathBuf,
    pub(crate) openfaas: PathBuf,
    pub(crate) buildkit: PathBuf,
}

/// The OpenFaaS provider of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ClusterProvider {
    /// The development provider of this repository, with its backend for Kubernetes.
    Embedded(ProgramFileStamp),
    /// faas-netes.
    FaasNetes(ProgramFileStamp),
}

impl ClusterProvider {
    /// Returns the path of the provider's program.
    pub(crate) fn program(&self) -> &Path {
        let (Self::Embedded(stamp) | Self::FaasNetes(stamp)) = self;
        &stamp.program
    }

    /// Returns the arguments of the provider as a list of YAML. Its other settings are environment variables, which
    /// both providers have in common.
    pub(crate) fn arguments(&self) -> &'static str {
        match self {
            Self::Embedded(_) => "[serve-kubernetes, --operator=false]",
            Self::FaasNetes(_) => "[--operator=false]",
        }
    }
}

impl ClusterProgramDirectories {
    /// Builds the Go modules that are not in the cache, one after the other, because `go build` uses every core by
    /// itself.
    pub(crate) async fn build_missing(
        directories: &LauncherDirectories,
        progress: &ProgressSink,
    ) -> Result<Self> {
        let build = async |module| build_go_module(directories, module, progress).await;
        Ok(Self {
            containerd: build("containerd").await?,
            runc: build("runc").await?,
            etcd: build("etcd").await?,
            kubernetes: build("kubernetes").await?,
            coredns: build("coredns").await?,
            kube_router: build("kube-router").await?,
            helm: build("helm").await?,
            openfaas: build("openfaas").await?,
            buildkit: build("buildkit").await?,
        })
    }

    /// Returns the path of kubectl.
    pub(crate) fn kubectl(&self) -> PathBuf {
        self.kubernetes.join("kubectl")
    }

    /// Returns the path of `ctr`, containerd's own client.
    pub(crate) fn ctr(&self) -> PathBuf {
        self.containerd.join("ctr")
    }
}

/// The plan of a cluster, which is the supervisor's input; it contains no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClusterPlan {
    /// The number in the cluster's address and interface name; no stack has it.
    pub(crate) number: StackNumber,
    /// The launcher that starts the supervisor. A supervisor of another build may not understand its commands.
    pub(crate) launcher: ProgramFileStamp,
    pub(crate) programs: ClusterProgramDirectories,
    pub(crate) provider: ClusterProvider,
    /// The archive with the images of the pods that every cluster has.
    pub(crate) images: PathBuf,
}

impl ClusterPlan {
    /// Reads the stored plan of a cluster; returns `None` if the cluster was never started or is removed.
    pub(crate) fn read_plan(dir: &StackDir) -> Result<Option<Self>> {
        read_json_file(dir.plan_file())
    }

    /// Writes the plan to the cluster's directory.
    pub(crate) fn write_plan(&self, dir: &StackDir) -> Result<()> {
        write_json_file(dir.plan_file(), self)
    }

    /// Returns the address of the cluster's node, at which the machine reaches the API server and node ports.
    pub(crate) fn node_address(&self) -> Ipv4Addr {
        self.number.stacks_end_address()
    }
}
