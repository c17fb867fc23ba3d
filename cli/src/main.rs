//! The command `slipway`.
//!
//! `slipway policy check FILE` checks a policy, and evaluates it against a request without sending it, with the code that
//! builder-fn and deployer-fn use.

mod check;
mod source;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Exit code of a request that the policy rejects.
const EXIT_CODE_REJECTED: u8 = 1;
/// Exit code of a wrong command line, an invalid policy, or a file that cannot be used.
const EXIT_CODE_UNUSABLE: u8 = 2;

/// Slipway's command line.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Work with the operator's policy.
    #[command(subcommand)]
    Policy(PolicyCommand),
}

#[derive(Subcommand)]
enum PolicyCommand {
    /// Check a policy, and evaluate it against a request without sending it.
    ///
    /// Exits with 0 if the request is allowed, with 1 if it is rejected (one violated rule on each line), and with 2 if the
    /// policy or the request cannot be used.
    Check(check::CheckArguments),
}

fn main() -> ExitCode {
    let Command::Policy(PolicyCommand::Check(arguments)) = Cli::parse().command;
    match check::check_policy_and_request(&arguments) {
        Ok(report) => {
            print_lines(&report.lines);
            ExitCode::from(if report.is_allowed { 0 } else { EXIT_CODE_REJECTED })
        }
        Err(error) => {
            print_error(&error);
            ExitCode::from(EXIT_CODE_UNUSABLE)
        }
    }
}

#[expect(clippy::print_stdout, reason = "the output of a command-line program")]
fn print_lines(lines: &[String]) {
    for line in lines {
        println!("{line}");
    }
}

#[expect(clippy::print_stderr, reason = "the errors of a command-line program")]
fn print_error(error: &anyhow::Error) {
    eprintln!("slipway: {error:#}");
}
