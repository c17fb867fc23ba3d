//! The only place that writes to standard output and standard error.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line program speaks there"
)]

/// A line of the result.
pub(crate) fn line(text: &str) {
    println!("{text}");
}

/// Why a command failed.
pub(crate) fn error(text: &str) {
    eprintln!("slipway-stack: {text}");
}
