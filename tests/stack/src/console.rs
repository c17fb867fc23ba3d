//! Output of the command-line program: the only module that writes to standard output and standard error.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is the output module of a command-line program"
)]

/// Prints a line of a command's result to standard output.
pub(crate) fn print_line(text: &str) {
    println!("{text}");
}

/// Prints the error of a failed command to standard error.
pub(crate) fn print_error(text: &str) {
    eprintln!("slipway-stack: {text}");
}
