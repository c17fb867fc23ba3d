//! The commands `slipway policy …`, which evaluate the operator's policy with the code of builder-fn and deployer-fn.

mod check;
mod source;

use clap::Subcommand;

use crate::exit_status::ExitStatus;
use crate::output;

/// The commands about policies.
#[derive(Subcommand)]
pub(crate) enum PolicyCommand {
    /// Check a policy, and evaluate it against a request without sending it.
    ///
    /// Exits with 0 if the request is allowed, with 1 if it is rejected (one violated rule on each line), and with 2 if
    /// the policy or the request cannot be used.
    Check(check::CheckArguments),
}

/// Runs a command about policies, and prints its result.
pub(crate) fn run(command: &PolicyCommand) -> ExitStatus {
    let PolicyCommand::Check(arguments) = command;
    match check::check_policy_and_request(arguments) {
        Ok(result) => {
            result.lines.iter().for_each(|line| output::print_result(line));
            match result.is_allowed {
                true => ExitStatus::Success,
                false => ExitStatus::Failed,
            }
        }
        Err(error) => {
            output::print_message(&format!("slipway: {error:#}"));
            ExitStatus::Usage
        }
    }
}
