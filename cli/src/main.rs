//! The command `slipway`: from a folder with a function's source to the running function, and questions about builds.

mod arguments;
mod builder;
mod builds;
mod context;
mod dev;
mod exit_status;
mod faas_cli_login;
mod failure;
mod function;
mod generated;
mod interrupt;
mod output;
mod policy;
mod progress;
mod settings;
mod stack_file;
mod suggestion;
mod template;
mod up;

use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Command};
use exit_status::ExitStatus;
use failure::Failure;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(answer) => return arguments::print_help_or_error_with_next_step(&answer),
    };
    match run(arguments) {
        Ok(status) => status.into(),
        Err(failure) => {
            output::print_failure(&failure);
            failure.status.into()
        }
    }
}

/// Runs the command.
///
/// # Errors
/// Fails with the error to print, which has the exit status.
fn run(arguments: Arguments) -> Result<ExitStatus, Failure> {
    match arguments.command {
        Command::Policy(command) => return policy::run(&command),
        Command::Completions(arguments) => return Ok(generated::print_completions(&arguments)),
        Command::Man(arguments) => return generated::write_manual(&arguments),
        _ => {}
    }
    let runtime = tokio::runtime::Runtime::new().map_err(|error| {
        Failure::platform(
            format!("could not start the runtime: {error}"),
            "free memory or processes on this machine, and run the command again",
        )
    })?;
    runtime.block_on(async {
        match arguments.command {
            Command::Up(arguments) => up::run(&arguments).await,
            Command::Dev(arguments) => dev::run(&arguments).await,
            Command::Builds(arguments) => builds::list_builds(&arguments).await,
            Command::Status(arguments) => builds::print_build_status(&arguments).await,
            Command::Logs(arguments) => builds::print_log_or_follow_build(&arguments).await,
            Command::Open(arguments) => builds::print_page_address(&arguments).await,
            Command::Cancel(arguments) => builds::cancel_and_wait_up_to_a_minute(&arguments).await,
            Command::Diff(arguments) => builds::diff(&arguments).await,
            Command::Rollback(arguments) => builds::rollback(&arguments).await,
            Command::Policy(_) | Command::Completions(_) | Command::Man(_) => Ok(ExitStatus::Success),
        }
    })
}
