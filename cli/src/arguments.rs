//! The command line.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand};

use crate::builds::{
    BuildArguments, BuildsArguments, DiffArguments, LogArguments, OpenArguments, RollbackArguments,
};
use crate::dev::DevArguments;
use crate::exit_status::ExitStatus;
use crate::generated::{CompletionArguments, ManualArguments};
use crate::output::print_message_as_is;
use crate::policy::PolicyCommand;
use crate::up::UpArguments;

/// The command `slipway`.
#[derive(Parser)]
#[command(
    name = "slipway",
    version,
    about = "From the source of a function to the running function, with Slipway",
    after_help = "Exit status: 0 done; 1 the build failed; 2 wrong usage, key or request; 3 built but not deployed; 4 the platform \
                  failed; 5 replaced by a newer build, or cancelled; 130 Ctrl-C, and a queued build goes on."
)]
pub(crate) struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Build the functions of a stack file and deploy them, until they answer.
    ///
    /// The standard output is the URL of each function that runs, and nothing else. Progress, warnings and errors are
    /// on the standard error.
    Up(UpArguments),
    /// Bring every saved change of the functions of a stack file live, until Ctrl-C.
    ///
    /// A build that fails leaves the running version. A newer change replaces the build under way.
    Dev(DevArguments),
    /// List builds, the newest first.
    Builds(BuildsArguments),
    /// Show what is known of a build.
    Status(BuildArguments),
    /// Print the log of a build, or of a function's newest build.
    Logs(LogArguments),
    /// Print the address of a build's page for a browser.
    ///
    /// The address has a link that expires. Until then, anyone who has the address can read the build and its log.
    /// Without an ID, prints the address of the list of builds, with a link for all of them.
    Open(OpenArguments),
    /// Cancel a build that waits or runs.
    Cancel(BuildArguments),
    /// Show what changed between two builds of a function: which step first lost its cache, and why; times and sizes.
    Diff(DiffArguments),
    /// Deploy an earlier version of a function again, until it answers.
    ///
    /// The standard output is the URL of the function. A rollback counts as handed in now: builds that were handed in
    /// before it do not replace it. The function has the image, the environment and all else that it had then.
    Rollback(RollbackArguments),
    /// Work with the operator's policy.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Print the completions of a shell.
    Completions(CompletionArguments),
    /// Write the manual pages to a folder.
    Man(ManualArguments),
}

/// Prints what clap has to say instead of running a command: the help or the version that was asked for, or why the
/// command line cannot be parsed, and what to do next. Returns the exit status.
pub(crate) fn print_help_or_error_with_next_step(answer: &clap::Error) -> ExitCode {
    // Fails only if nobody reads it any more.
    let _ = answer.print();
    if !answer.use_stderr() {
        return ExitStatus::Success.into();
    }
    let command = named_command(std::env::args_os().skip(1));
    print_message_as_is(&match answer.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            format!("next: choose a command of {command}; {command} COMMAND --help describes it")
        }
        _ => format!("next: {command} --help"),
    });
    ExitStatus::Usage.into()
}

/// Returns the command that the first arguments name, such as `slipway policy check`.
fn named_command(arguments: impl Iterator<Item = OsString>) -> String {
    let mut command = Arguments::command();
    let mut words = vec![command.get_name().to_owned()];
    for argument in arguments {
        let Some(named) = command.find_subcommand(&argument).cloned() else {
            break;
        };
        words.push(named.get_name().to_owned());
        command = named;
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_command_ends_where_its_own_arguments_begin() {
        for (arguments, expected) in [
            (&["up", "--bogus", "dev"][..], "slipway up"),
            (&["policy", "check"], "slipway policy check"),
            (&["policy", "chekc"], "slipway policy"),
            (&["--bogus", "up"], "slipway"),
            (&["upp"], "slipway"),
            (&[], "slipway"),
        ] {
            let arguments = arguments.iter().copied().map(OsString::from);
            assert_eq!(named_command(arguments), expected);
        }
    }

    #[test]
    fn the_command_line_has_no_contradictions() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_build_argument_needs_a_name_and_an_equals_sign_and_its_value_may_have_more() {
        let parse = |argument: &str| Arguments::try_parse_from(["slipway", "up", "--build-arg", argument]);
        assert!(parse("A=b=c").is_ok());
        assert!(parse("A=").is_ok());
        assert!(parse("A").is_err());
        assert!(parse("=b").is_err());
    }
}
