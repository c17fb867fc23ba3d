//! Output of the command-line program: the only module that writes to standard output and standard error.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is the output module of a command-line program"
)]

use slipway_stack::{PartState, PartStateAndDuration};

/// Prints a line of a command's result to standard output; panics if that is closed.
pub(crate) fn print_line(text: &str) {
    println!("{text}");
}

/// Prints the error of a failed command to standard error.
pub(crate) fn print_error(text: &str) {
    eprintln!("slipway-stack: {text}");
}

/// Prints the state of a part of a stack or cluster.
pub(crate) fn print_part_state_and_duration<P: std::fmt::Display>(status: &PartStateAndDuration<P>) {
    let state = match &status.state {
        PartState::Stopped => "stopped".to_owned(),
        PartState::Starting => "starting".to_owned(),
        PartState::Running => "running".to_owned(),
        PartState::Ended { reason } => format!("ended by itself: {reason}"),
    };
    print_line(&format!(
        "{:<20}{state} for {} s",
        status.part.to_string(),
        status.seconds
    ));
}

/// Quotes a value so that a shell takes it as one literal word.
pub(crate) fn quote_for_shell(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_value_stays_one_word_in_a_shell() {
        assert_eq!(quote_for_shell("a'b $c"), r"'a'\''b $c'");
    }
}
