//! A one-node Kubernetes cluster for tests, in namespaces of its own: its processes, mounts, network, firewall and
//! control groups end with it, and the machine's are never changed.
//!
//! The same holder and supervisor run it as run a stack. Nothing is kept of a cluster that was stopped, except the
//! programs and images in the cache, so each start begins with an empty one. `docs/cluster.md` describes it.

mod addons;
mod address;
mod images;
mod part;
mod pki;
mod plan;
mod spec;
mod supervisor;
mod up;

use std::{net::Ipv4Addr, path::PathBuf};

use self::plan::ClusterPlan;
pub use self::{
    part::ClusterPart,
    supervisor::{exec_as_cluster_holder, supervise_cluster},
    up::stop_cluster,
};
use crate::{
    control::{CommandAnswerEvent, ControlClient, PartStateAndDuration, SupervisorCommand},
    credentials::{GatewayAndRegistryLogins, Login},
    directories::{LauncherDirectories, StackDir},
    error::{LauncherError, Result},
    plan::RunningStackState,
    stack::current_log_file_tail_or_empty,
};

/// A running cluster.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// The cluster's name and the path of its directory.
    pub dir: StackDir,
    plan: ClusterPlan,
}

impl Cluster {
    /// Loads the running cluster with this name; returns `None` if it does not run.
    pub fn load_running(name: &str) -> Result<Option<Self>> {
        let dir = LauncherDirectories::from_env()?.cluster_directory(name)?;
        let (Some(plan), Some(running)) = (
            ClusterPlan::read_plan(&dir)?,
            RunningStackState::read_state_if_running_or_killed(&dir)?,
        ) else {
            return Ok(None);
        };
        Ok(running.holder_is_alive().then_some(Self { dir, plan }))
    }

    /// Returns the path of the kubeconfig of the cluster's administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        pki::kubeconfig_of(&self.dir, pki::ADMINISTRATOR)
    }

    /// Returns the address of the cluster's node, at which the machine reaches node ports.
    pub fn node_address(&self) -> Ipv4Addr {
        self.plan.node_address()
    }

    /// Returns the user name and password of the gateway's administrator.
    fn gateway_login(&self) -> Result<Login> {
        Ok(GatewayAndRegistryLogins::read_existing(&self.dir, false)?.gateway)
    }

    /// Returns the environment variables for using the cluster with kubectl, Helm and the tools of OpenFaaS. `PATH` is
    /// not among them: [`Cluster::programs_directory`] is to be added to it.
    pub fn environment_variables(&self) -> Result<Vec<(&'static str, String)>> {
        let login = self.gateway_login()?;
        let secret = |name: &str| self.dir.secrets_directory().join(name).display().to_string();
        let node = self.node_address();
        Ok(vec![
            (
                "OPENFAAS_URL",
                format!("http://{node}:{}", address::GATEWAY_NODE_PORT),
            ),
            ("OPENFAAS_USER", login.user),
            ("OPENFAAS_PASSWORD", login.password),
            ("PAYLOAD_SECRET", secret("payload-secret")),
            ("DEPLOY_SECRET", secret("deploy-secret")),
            ("REGISTRY", address::registry_host_and_port()),
            ("KUBECONFIG", self.kubeconfig().display().to_string()),
            ("SLIPWAY_CLUSTER_NODE", node.to_string()),
        ])
    }

    /// Returns the directory with `kubectl` and `helm`, to be put in front of `PATH`.
    pub fn programs_directory(&self) -> PathBuf {
        self.dir.programs_directory()
    }

    /// Asks the supervisor for the state of each part of the cluster.
    pub async fn statuses_of_parts_ever_started(&self) -> Result<Vec<PartStateAndDuration<ClusterPart>>> {
        let mut supervisor = ControlClient::connect_to_supervisor(&self.dir.control_socket()).await?;
        match supervisor
            .send_command_and_return_done_failed_or_status(SupervisorCommand::Status, |_| ())
            .await?
        {
            CommandAnswerEvent::Status { parts } => Ok(parts),
            other => Err(LauncherError::UnexpectedAnswer(format!("{other:?}"))),
        }
    }
}

/// Returns the last lines of the log of a part of the named cluster, whether it runs or not; empty if there is no log.
pub fn cluster_part_log_tail_or_empty(name: &str, part: ClusterPart, lines: usize) -> Result<String> {
    let dir = LauncherDirectories::from_env()?.cluster_directory(name)?;
    Ok(current_log_file_tail_or_empty(
        &dir.part_log_file(&part.to_string()),
        lines,
    ))
}
