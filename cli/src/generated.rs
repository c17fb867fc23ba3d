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
    output::print_result_or_exit_if_unread(completion_script(arguments.shell).trim_end());
    ExitStatus::Success
}

/// Returns the script with the completions of a shell.
fn completion_script(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "slipway", &mut script);
    String::from_utf8_lossy(&script).into_owned()
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

#[cfg(test)]
mod tests {
    use clap::{Command, ValueEnum as _};

    use super::*;

    /// Calls `check` with each command and subcommand, and the name of its manual page without the section.
    fn for_each_command(command: &Command, page: &str, check: &mut impl FnMut(&Command, &str)) {
        check(command, page);
        for subcommand in command.get_subcommands() {
            for_each_command(subcommand, &format!("{page}-{}", subcommand.get_name()), check);
        }
    }

    #[test]
    fn every_command_and_subcommand_has_a_manual_page_with_its_description_and_options() {
        let folder = tempfile::tempdir().expect("a folder");
        let arguments = ManualArguments {
            folder: folder.path().join("man1"),
        };
        assert_eq!(write_manual(&arguments), Ok(ExitStatus::Success));
        let mut pages = 0;
        for_each_command(&Arguments::command(), "slipway", &mut |command, page| {
            let path = arguments.folder.join(format!("{page}.1"));
            let text =
                std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            // In the source of a manual page, quotation marks and hyphens are escaped.
            let text = text.replace("\\*(Aq", "'").replace('\\', "");
            assert!(text.contains(".SH NAME"), "{page}");
            let about = command.get_about().expect("a description").to_string();
            assert!(text.contains(&about), "{page}: {about}");
            for option in command.get_arguments().filter_map(|argument| argument.get_long()) {
                assert!(text.contains(&format!("--{option}")), "{page}: --{option}");
            }
            pages += 1;
        });
        let written = std::fs::read_dir(&arguments.folder).expect("the folder").count();
        // `clap_mangen` writes one for each `help` as well.
        assert!(pages >= 13 && written >= pages, "{written} of {pages}");
    }

    #[test]
    fn every_shell_completes_every_command_and_option() {
        for shell in Shell::value_variants() {
            let script = completion_script(*shell);
            for_each_command(&Arguments::command(), "slipway", &mut |command, page| {
                let name = command.get_name();
                assert!(script.contains(name), "{shell}: {name}");
                for option in command.get_arguments().filter_map(|argument| argument.get_long()) {
                    let written = match shell {
                        Shell::Fish => format!("-l {option}"),
                        _ => format!("--{option}"),
                    };
                    assert!(script.contains(&written), "{shell}: {page}: {written}");
                }
            });
        }
    }
}
