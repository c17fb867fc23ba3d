//! The command line of `slipway-stack`.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand};
use slipway_stack::{Directories, Error, Options, Part, Progress, Result, Stack, State};

use crate::console;

/// Runs the real stack on one machine: BuildKit, registry, containerd, OpenFaaS.
#[derive(Debug, Parser)]
#[command(name = "slipway-stack", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the stack, deploy Slipway on it, and build, deploy and call a sample function.
    ///
    /// Parts that already run are not restarted; programs and images in the cache are reused.
    Up(Up),
    /// Stop the stack. Its data (build cache, images, credentials) is kept, so the next start is faster.
    Down {
        #[command(flatten)]
        stack: Name,
        /// Also remove the stack's data.
        #[arg(long)]
        purge: bool,
    },
    /// Print the environment for using the stack from a shell: eval "$(slipway-stack env)".
    Env(Name),
    /// Print the state of each part of the stack.
    Status(Name),
    /// Print the last lines of a part's log.
    Logs {
        #[command(flatten)]
        stack: Name,
        part: Part,
        /// Number of log lines to print.
        #[arg(short = 'n', long, default_value_t = 50)]
        lines: usize,
    },
    /// Stop one part of the stack.
    Stop {
        #[command(flatten)]
        stack: Name,
        part: Part,
    },
    /// Start one part of the stack.
    Start {
        #[command(flatten)]
        stack: Name,
        part: Part,
    },
    /// Install the Debian packages that building and running need.
    Packages {
        /// Also install the packages that the clients in the end-to-end tests need.
        #[arg(long)]
        tests: bool,
    },
    /// Build a pinned Go module of tests/stack/tools and print the directory of its programs.
    Tool { module: String },
    /// Become the holder of the stack.
    #[command(hide = true)]
    Hold(Name),
    /// Supervise the stack, as the first process of its namespaces.
    #[command(hide = true)]
    Supervise(Name),
}

#[derive(Debug, Args)]
struct Name {
    /// Name of the stack.
    #[arg(long, default_value = "default", env = "SLIPWAY_STACK")]
    name: String,
}

#[derive(Debug, Args)]
struct Up {
    #[command(flatten)]
    stack: Name,
    /// Start the parts only, without deploying Slipway.
    #[arg(long)]
    bare: bool,
    /// A faasd binary to use as the provider.
    #[arg(long, env = "SLIPWAY_FAASD")]
    faasd: Option<PathBuf>,
    /// A gateway binary to use in place of the pinned one.
    #[arg(long, env = "SLIPWAY_GATEWAY")]
    gateway: Option<PathBuf>,
    /// A faas-cli binary to use in place of the pinned one.
    #[arg(long, env = "SLIPWAY_FAAS_CLI")]
    faas_cli: Option<PathBuf>,
    /// Seconds after which the queue redelivers a call that was not acknowledged.
    #[arg(long)]
    ack_wait: Option<u64>,
}

impl Cli {
    /// Runs the command that the command line names.
    pub(crate) fn run(self) -> Result<ExitCode> {
        match self.command {
            // These two enter namespaces, which requires a process without threads.
            Command::Hold(stack) => slipway_stack::hold(&Directories::from_env()?.stack(&stack.name)?)?,
            Command::Supervise(stack) => {
                slipway_stack::supervise(Directories::from_env()?.stack(&stack.name)?)?
            }
            command => {
                let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
                let runtime = runtime.map_err(|error| {
                    Error::Environment(format!("cannot start the async runtime: {error}"))
                })?;
                return runtime.block_on(async {
                    tokio::select! {
                        done = command.run() => done.map(|()| ExitCode::SUCCESS),
                        _ = tokio::signal::ctrl_c() => Ok(ExitCode::from(130)),
                    }
                });
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Command {
    async fn run(self) -> Result<()> {
        let progress = Progress::stderr();
        match self {
            Command::Up(up) => {
                let mut options = Options::named(up.stack.name);
                options.deploy = !up.bare;
                (options.faasd, options.gateway, options.faas_cli) = (up.faasd, up.gateway, up.faas_cli);
                if let Some(seconds) = up.ack_wait {
                    options.ack_wait = Duration::from_secs(seconds);
                }
                let stack = Stack::up(&options, &progress).await?;
                progress.step(
                    "stack",
                    format_args!(
                        "{} is running; its gateway is {}",
                        stack.name(),
                        stack.gateway.url
                    ),
                );
            }
            Command::Down { stack, purge } => slipway_stack::down(&stack.name, purge, &progress).await?,
            Command::Env(name) => print_environment(&running(&name)?),
            Command::Status(name) => {
                for status in running(&name)?.status().await? {
                    let state = match status.state {
                        State::Stopped => "stopped".to_owned(),
                        State::Starting => "starting".to_owned(),
                        State::Running => "running".to_owned(),
                        State::Ended { reason } => format!("ended by itself: {reason}"),
                    };
                    console::print_line(&format!(
                        "{:<14}{state} for {} s",
                        status.part.name(),
                        status.seconds
                    ));
                }
            }
            Command::Logs { stack, part, lines } => {
                console::print_line(&slipway_stack::log_tail(&stack.name, part, lines)?)
            }
            Command::Stop { stack, part } => running(&stack)?.stop(part).await?,
            Command::Start { stack, part } => running(&stack)?.start(part).await?,
            Command::Packages { tests: false } => slipway_stack::install_missing(&progress).await?,
            Command::Packages { tests: true } => slipway_stack::install_missing_for_tests(&progress).await?,
            Command::Tool { module } => {
                let dir = slipway_stack::build_tool(&Directories::from_env()?, &module, &progress).await?;
                console::print_line(&dir.display().to_string());
            }
            Command::Hold(_) | Command::Supervise(_) => {}
        }
        Ok(())
    }
}

fn running(name: &Name) -> Result<Stack> {
    let name = &name.name;
    Stack::load(name)?.ok_or_else(|| {
        Error::Environment(format!(
            "stack {name:?} is not running; `make up` starts the default stack"
        ))
    })
}

fn print_environment(stack: &Stack) {
    for (name, value) in stack.environment() {
        console::print_line(&format!("export {name}={}", quoted(&value)));
    }
    console::print_line(&format!(
        "export PATH={}:\"$PATH\"",
        quoted(&stack.bin().display().to_string())
    ));
}

/// Quotes a value so that a shell takes it as one literal word.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_value_stays_one_word_in_a_shell() {
        assert_eq!(quoted("a'b $c"), r"'a'\''b $c'");
    }
}
