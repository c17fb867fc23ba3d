//! The command line of `slipway-stack`.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand};
use slipway_stack::{
    BuildkitAndStepsPublicAccess, LauncherDirectories, LauncherError, ProgressSink, Result, Stack,
    StackOptions, StackPart, StepResourceLimits, TenantStepNetworkRule, parse_size,
};

use crate::{
    cluster_cli::ClusterCommand,
    console::{self, print_part_state_and_duration, quote_for_shell},
};

/// Runs the real stack on one machine: BuildKit, registry, containerd, OpenFaaS.
#[derive(Debug, Parser)]
#[command(name = "slipway-stack", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: LauncherCommand,
}

#[derive(Debug, Subcommand)]
enum LauncherCommand {
    /// Start the stack, deploy Slipway on it, and build, deploy and call a sample function.
    ///
    /// A running stack is restarted only if its programs, certificates or settings have changed; otherwise only its
    /// missing parts are started. Programs and images in the cache are reused.
    Up(UpArguments),
    /// Stop the stack. Its data (build cache, images, credentials) is kept, so the next start is faster.
    Down {
        #[command(flatten)]
        stack: StackNameArgument,
        /// Also remove the stack's data.
        #[arg(long)]
        purge: bool,
    },
    /// Print the environment for using the stack from a shell: eval "$(slipway-stack env)".
    Env(StackNameArgument),
    /// Print the state of each part of the stack.
    Status(StackNameArgument),
    /// Print the last lines of a part's log.
    Logs {
        #[command(flatten)]
        stack: StackNameArgument,
        part: StackPart,
        /// Number of log lines to print.
        #[arg(short = 'n', long, default_value_t = 50)]
        lines: usize,
    },
    /// Stop one part of the stack.
    Stop {
        #[command(flatten)]
        stack: StackNameArgument,
        part: StackPart,
    },
    /// Start one part of the stack.
    Start {
        #[command(flatten)]
        stack: StackNameArgument,
        part: StackPart,
    },
    /// Install those Debian packages that building and running the stack need and that are missing.
    Packages {
        /// Also install the packages that the clients in the end-to-end tests need.
        #[arg(long)]
        tests: bool,
    },
    /// Build a pinned Go module of tests/stack/tools, unless it is cached, and print the directory of its programs.
    Tool { module: String },
    /// Unpack promtool, which checks metrics and alerts, unless it is there, and print its path.
    Promtool,
    /// Run a one-node Kubernetes cluster for tests.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Become the holder of the stack: the process whose end ends the stack.
    #[command(hide = true)]
    Hold(StackNameArgument),
    /// Supervise the stack, as the first process of its namespaces.
    #[command(hide = true)]
    Supervise(StackNameArgument),
}

#[derive(Debug, Args)]
struct StackNameArgument {
    /// Name of the stack.
    #[arg(long, default_value = "default", env = "SLIPWAY_STACK")]
    name: String,
}

#[derive(Debug, Args)]
struct UpArguments {
    #[command(flatten)]
    stack: StackNameArgument,
    /// Start the parts only, without deploying Slipway.
    #[arg(long)]
    bare: bool,
    /// A faasd binary to use as the provider, in place of the embedded one.
    #[arg(long, env = "SLIPWAY_FAASD")]
    faasd: Option<PathBuf>,
    /// A gateway binary to use in place of the pinned one.
    #[arg(long, env = "SLIPWAY_GATEWAY")]
    gateway: Option<PathBuf>,
    /// A faas-cli binary to use in place of the pinned one.
    #[arg(long, env = "SLIPWAY_FAAS_CLI")]
    faas_cli: Option<PathBuf>,
    /// What builds may reach besides public addresses: addresses, networks such as 10.1.0.0/16, or names, which are
    /// resolved now.
    #[arg(long, env = "SLIPWAY_ALLOW", value_delimiter = ',')]
    allow: Vec<String>,
    /// Who reaches public addresses: `all`, which is BuildKit and build steps, `daemon`, which is BuildKit, or `none`.
    #[arg(long, env = "SLIPWAY_PUBLIC", default_value = "all")]
    public: BuildkitAndStepsPublicAccess,
    /// What the build steps of a tenant reach instead, such as `acme=10.1.2.3,mirror.example.com`; `public` stands for
    /// public addresses. Separate tenants in the variable by semicolons.
    #[arg(
        long = "tenant-network",
        env = "SLIPWAY_TENANT_NETWORKS",
        value_delimiter = ';',
        value_name = "TENANT=ENTRY,…"
    )]
    tenant_networks: Vec<TenantStepNetworkRule>,
    /// The memory of one build step, such as 2G; all steps together get half as much again. Default: half of the
    /// machine's memory.
    #[arg(long, env = "SLIPWAY_STEP_MEMORY", value_parser = parse_size)]
    step_memory: Option<u64>,
    /// The CPUs of one build step, such as 1.5. Default: all.
    #[arg(long, env = "SLIPWAY_STEP_CPUS", value_parser = parse_cpus_from_hundredth_to_4096)]
    step_cpus: Option<f64>,
    /// The processes and threads of one build step; all steps together get four times as many. Default: 4096.
    #[arg(long, env = "SLIPWAY_STEP_PROCESSES", value_parser = clap::value_parser!(u64).range(1..))]
    step_processes: Option<u64>,
    /// The size of the file system with BuildKit's data, such as 50G, when it is made. Default: 30G.
    #[arg(long, env = "SLIPWAY_BUILDKIT_DISK", value_parser = parse_size)]
    buildkit_disk: Option<u64>,
    /// Seconds after which the queue redelivers a call that was not acknowledged.
    #[arg(long)]
    ack_wait: Option<u64>,
}

impl UpArguments {
    /// Returns the limits of build steps: those of this machine, except those that the command line names.
    fn machines_limits_with_overrides(&self) -> Result<StepResourceLimits> {
        let mut limits = StepResourceLimits::for_this_machine()?;
        if let Some(memory) = self.step_memory {
            (limits.memory, limits.total_memory) = (memory, memory.saturating_add(memory / 2));
        }
        limits.cpus = self.step_cpus.unwrap_or(limits.cpus);
        limits.processes = self.step_processes.unwrap_or(limits.processes);
        limits.disk = self.buildkit_disk.unwrap_or(limits.disk);
        Ok(limits)
    }
}

impl Cli {
    /// Runs the command that the command line names.
    pub(crate) fn run_command_line(self) -> Result<ExitCode> {
        match self.command {
            // These four enter namespaces, which requires a process without threads.
            LauncherCommand::Hold(stack) => {
                match slipway_stack::exec_as_holder(
                    &LauncherDirectories::from_env()?.stack_directory(&stack.name)?,
                )? {}
            }
            LauncherCommand::Cluster(ClusterCommand::Hold(cluster)) => {
                match slipway_stack::exec_as_cluster_holder(&cluster.name)? {}
            }
            LauncherCommand::Cluster(ClusterCommand::Supervise(cluster)) => {
                slipway_stack::supervise_cluster(&cluster.name)?
            }
            LauncherCommand::Supervise(stack) => {
                slipway_stack::supervise(LauncherDirectories::from_env()?.stack_directory(&stack.name)?)?
            }
            command => {
                let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
                let runtime = runtime.map_err(|error| {
                    LauncherError::Environment(format!("cannot start the async runtime: {error}"))
                })?;
                return runtime.block_on(async {
                    tokio::select! {
                        done = command.run_command_except_hold_and_supervise() => done.map(|()| ExitCode::SUCCESS),
                        _ = tokio::signal::ctrl_c() => Ok(ExitCode::from(130)),
                    }
                });
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl LauncherCommand {
    /// Runs any command but `hold` and `supervise`, which must run before the async runtime has threads.
    async fn run_command_except_hold_and_supervise(self) -> Result<()> {
        let progress = ProgressSink::to_stderr();
        match self {
            LauncherCommand::Up(up) => {
                let limits = up.machines_limits_with_overrides()?;
                let mut options = StackOptions::with_stack_name(up.stack.name);
                (options.deploy, options.limits) = (!up.bare, Some(limits));
                (options.faasd, options.gateway, options.faas_cli) = (up.faasd, up.gateway, up.faas_cli);
                (options.allowed, options.public) = (up.allow, up.public);
                options.tenant_networks = up.tenant_networks;
                if let Some(seconds) = up.ack_wait {
                    options.ack_wait = Duration::from_secs(seconds);
                }
                let stack = Stack::start_stack(&options, &progress).await?;
                progress.emit_progress_line(
                    "stack",
                    format_args!(
                        "{} is running; its gateway is {}",
                        stack.name(),
                        stack.gateway.url
                    ),
                );
            }
            LauncherCommand::Down { stack, purge } => {
                slipway_stack::stop_named_stack(&stack.name, purge, &progress).await?
            }
            LauncherCommand::Env(name) => print_shell_exports(&running_stack(&name)?),
            LauncherCommand::Status(name) => {
                for status in running_stack(&name)?.statuses_of_parts_ever_started().await? {
                    print_part_state_and_duration(&status);
                }
            }
            LauncherCommand::Logs { stack, part, lines } => console::print_line(
                &slipway_stack::part_log_tail_with_rotated_or_empty(&stack.name, part, lines)?,
            ),
            LauncherCommand::Stop { stack, part } => running_stack(&stack)?.stop_part(part).await?,
            LauncherCommand::Start { stack, part } => running_stack(&stack)?.start_part(part).await?,
            LauncherCommand::Packages { tests: false } => {
                slipway_stack::install_missing_packages(&progress).await?
            }
            LauncherCommand::Packages { tests: true } => {
                slipway_stack::install_missing_packages_for_stack_and_tests(&progress).await?
            }
            LauncherCommand::Tool { module } => {
                let dir =
                    slipway_stack::build_go_module(&LauncherDirectories::from_env()?, &module, &progress)
                        .await?;
                console::print_line(&dir.display().to_string());
            }
            LauncherCommand::Promtool => {
                let promtool =
                    slipway_stack::unpack_promtool_if_missing(&LauncherDirectories::from_env()?, &progress)
                        .await?;
                console::print_line(&promtool.display().to_string());
            }
            LauncherCommand::Cluster(command) => {
                command.run_command_except_hold_and_supervise(&progress).await?
            }
            LauncherCommand::Hold(_) | LauncherCommand::Supervise(_) => {}
        }
        Ok(())
    }
}

/// Returns the running stack with this name; fails if it does not run.
fn running_stack(name: &StackNameArgument) -> Result<Stack> {
    let name = &name.name;
    Stack::load_running(name)?.ok_or_else(|| {
        LauncherError::Environment(format!(
            "stack {name:?} is not running; `make up` starts the default stack"
        ))
    })
}

/// Prints shell commands that export the stack's environment variables and put its programs in front of `PATH`.
fn print_shell_exports(stack: &Stack) {
    for (name, value) in stack.environment_variables() {
        console::print_line(&format!("export {name}={}", quote_for_shell(&value)));
    }
    console::print_line(&format!(
        "export PATH={}:\"$PATH\"",
        quote_for_shell(&stack.programs_directory().display().to_string())
    ));
}

/// Parses a number of CPUs from 0.01, which is the kernel's shortest quota, to 4096.
fn parse_cpus_from_hundredth_to_4096(text: &str) -> Result<f64, String> {
    let cpus = text
        .parse::<f64>()
        .ok()
        .filter(|cpus| (0.01..=4096.0).contains(cpus));
    cpus.ok_or_else(|| "not a number of CPUs, such as 1.5".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn clap_accepts_the_definition_of_the_command_line() {
        Cli::command().debug_assert();
    }
}
