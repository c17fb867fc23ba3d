//! Output of the command-line program: the only module that writes to standard output and standard error.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is the output module of a command-line program"
)]

/// Prints a line of the result.
pub(crate) fn line(text: &str) {
    println!("{text}");
}

/// Prints the error of a failed command.
pub(crate) fn error(text: &str) {
    eprintln!("slipway-stack: {text}");
}
