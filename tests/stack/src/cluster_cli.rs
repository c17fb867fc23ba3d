//! The commands of `slipway-stack cluster`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use slipway_stack::{Cluster, ClusterPart, LauncherError, ProgressSink, Result};

use crate::console::{self, print_part_state_and_duration, quote_for_shell};

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Start a cluster, and print its environment.
    ///
    /// A running cluster is replaced by an empty one only if its programs or images have changed; otherwise only its
    /// missing parts are started.
    Up {
        #[command(flatten)]
        cluster: ClusterNameArgument,
        /// A faas-netes binary to use as the provider, in place of the embedded one.
        #[arg(long, env = "SLIPWAY_FAAS_NETES")]
        faas_netes: Option<PathBuf>,
    },
    /// Stop the cluster and remove its data.
    Down(ClusterNameArgument),
    /// Print the environment for using the cluster from a shell: eval "$(slipway-stack cluster env)".
    Env(ClusterNameArgument),
    /// Print the state of each part of the cluster.
    Status(ClusterNameArgument),
    /// Print the last lines of a part's log.
    Logs {
        #[command(flatten)]
        cluster: ClusterNameArgument,
        part: ClusterPart,
        /// Number of log lines to print.
        #[arg(short = 'n', long, default_value_t = 50)]
        lines: usize,
    },
    /// Become the holder of the cluster: the process whose end ends the cluster.
    #[command(hide = true)]
    Hold(ClusterNameArgument),
    /// Supervise the cluster, as the first process of its namespaces.
    #[command(hide = true)]
    Supervise(ClusterNameArgument),
}

#[derive(Debug, Args)]
pub(crate) struct ClusterNameArgument {
    /// Name of the cluster.
    #[arg(long, default_value = "default", env = "SLIPWAY_CLUSTER")]
    pub(crate) name: String,
}

impl ClusterCommand {
    /// Runs any command but `hold` and `supervise`, which must run before the async runtime has threads.
    pub(crate) async fn run_command_except_hold_and_supervise(self, progress: &ProgressSink) -> Result<()> {
        match self {
            ClusterCommand::Up { cluster, faas_netes } => print_shell_exports(
                &Cluster::start_complete_or_replace_changed_cluster(
                    &cluster.name,
                    faas_netes.as_deref(),
                    progress,
                )
                .await?,
            )?,
            ClusterCommand::Down(name) => slipway_stack::stop_cluster(&name.name, progress).await?,
            ClusterCommand::Env(name) => print_shell_exports(&running_cluster(&name)?)?,
            ClusterCommand::Status(name) => {
                for status in running_cluster(&name)?.statuses_of_parts_ever_started().await? {
                    print_part_state_and_duration(&status);
                }
            }
            ClusterCommand::Logs { cluster, part, lines } => console::print_line(
                &slipway_stack::cluster_part_log_tail_or_empty(&cluster.name, part, lines)?,
            ),
            ClusterCommand::Hold(_) | ClusterCommand::Supervise(_) => {}
        }
        Ok(())
    }
}

/// Returns the running cluster with this name; fails if it does not run.
fn running_cluster(name: &ClusterNameArgument) -> Result<Cluster> {
    let name = &name.name;
    Cluster::load_running(name)?.ok_or_else(|| {
        LauncherError::Environment(format!(
            "cluster {name:?} is not running; `make cluster` starts the default one"
        ))
    })
}

/// Prints shell commands that export the cluster's environment variables and put its programs in front of `PATH`.
fn print_shell_exports(cluster: &Cluster) -> Result<()> {
    for (name, value) in cluster.environment_variables()? {
        console::print_line(&format!("export {name}={}", quote_for_shell(&value)));
    }
    console::print_line(&format!(
        "export PATH={}:\"$PATH\"",
        quote_for_shell(&cluster.programs_directory().display().to_string())
    ));
    Ok(())
}
