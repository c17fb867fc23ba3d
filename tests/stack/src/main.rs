//! `slipway-stack`: the real stack on one machine, from the command line.

mod cli;
mod cluster_cli;
mod console;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    // BuildKit starts these three by name, without a subcommand.
    let done = if slipway_stack::was_started_as_step_runtime() {
        slipway_stack::limit_step_and_become_runc().map(|()| ExitCode::SUCCESS)
    } else if slipway_stack::was_started_as_address_plugin() {
        slipway_stack::run_address_plugin()
    } else if slipway_stack::was_started_as_link_plugin() {
        slipway_stack::release_address_or_become_ptp()
    } else {
        cli::Cli::parse().run_command_line()
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            console::print_error(&format!("{:#}", anyhow::Error::from(error)));
            ExitCode::FAILURE
        }
    }
}
