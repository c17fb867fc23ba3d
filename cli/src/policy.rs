//! The commands `slipway policy …`, which evaluate the operator's policy with the code of builder-fn and deployer-fn.

mod check;
mod source;

use clap::Subcommand;

use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::output;

/// The commands about policies.
#[derive(Subcommand)]
pub(crate) enum PolicyCommand {
    /// Check a policy, and evaluate it against a request without sending it.
    ///
    /// Exits with 0 if the request is allowed, with 1 if it is rejected (one violated rule on each line of the standard
    /// output), and with 2 if the policy or the request cannot be used.
    Check(check::CheckArguments),
}

/// Runs a command about policies, and prints its result.
///
/// # Errors
/// Fails if the policy is not valid, or the request cannot be read.
pub(crate) fn run(command: &PolicyCommand) -> Result<ExitStatus, Failure> {
    let PolicyCommand::Check(arguments) = command;
    let result = check::check_policy_and_request(arguments)?;
    result
        .lines
        .iter()
        .for_each(|line| output::print_result_or_exit_if_unread(line));
    Ok(match result.next_if_rejected {
        None => ExitStatus::Success,
        Some(next) => {
            output::print_message_as_is(&format!("next: {}", output::printable(&next)));
            ExitStatus::Failed
        }
    })
}
