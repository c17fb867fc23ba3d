//! `slipway-stack`: the real stack on one machine, from the command line.

mod cli;
mod console;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match cli::Cli::parse().run_command_line() {
        Ok(code) => code,
        Err(error) => {
            console::print_error(&format!("{:#}", anyhow::Error::from(error)));
            ExitCode::FAILURE
        }
    }
}
