//! Shell completions and manual pages, generated from the command line.

use std::path::PathBuf;

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::arguments::Arguments;
use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::output;

/// The arguments of `slipway completions`.
#[derive(Args)]
pub(crate) struct CompletionArguments {
    /// The shell.
    shell: Shell,
}

/// The arguments of `slipway man`.
#[derive(Args)]
pub(crate) struct ManualArguments {
    /// The folder, which is created if it does not exist.
    folder: PathBuf,
}

/// Prints the completions of a shell.
pub(crate) fn print_completions(arguments: &CompletionArguments) -> ExitStatus {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Arguments::command(), "slipway", &mut script);
    output::print_result_or_exit_if_unread(String::from_utf8_lossy(&script).trim_end());
    ExitStatus::Success
}

/// Writes the manual pages to a folder.
///
/// # Errors
/// Fails if the folder or a file cannot be written.
pub(crate) fn write_manual(arguments: &ManualArguments) -> Result<ExitStatus, Failure> {
    let folder = &arguments.folder;
    std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(Arguments::command(), folder))
        .map_err(|error| {
            Failure::usage(
                format!(
                    "could not write the manual pages to {}: {error}",
                    folder.display()
                ),
                "name a folder that you may write to",
            )
        })?;
    Ok(ExitStatus::Success)
}
