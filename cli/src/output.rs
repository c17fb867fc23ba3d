//! The only place that writes to the standard output and the standard error, except for the live display.

use std::io::{ErrorKind, Write as _};

use crate::failure::Failure;

/// Prints a line of the command's result to the standard output. Ends the process if nobody reads it any more.
pub(crate) fn print_result_or_exit_if_unread(line: &str) {
    let mut stdout = std::io::stdout().lock();
    let written = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    if written.is_err_and(|error| error.kind() == ErrorKind::BrokenPipe) {
        std::process::exit(0);
    }
}

/// Prints a message to the standard error.
pub(crate) fn print_message_as_is(text: &str) {
    // Fails only if nobody reads the standard error any more.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Prints an error, and what to do next, to the standard error.
pub(crate) fn print_failure(failure: &Failure) {
    let message: Vec<_> = failure.message.lines().map(printable).collect();
    print_message_as_is(&format!("slipway: {}", message.join("\n")));
    print_message_as_is(&format!("next: {}", printable(&failure.next)));
}

/// Returns a text without control characters and terminal escape sequences, which a build's output may contain.
pub(crate) fn printable(text: &str) -> String {
    let text = console::strip_ansi_codes(text);
    text.chars()
        .map(|character| match character {
            '\t' => ' ',
            character if character.is_control() => '\u{fffd}',
            // They change the order in which a terminal shows the rest of the line.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
            character => character,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_output_cannot_control_the_terminal() {
        for (text, expected) in [
            ("\u{1b}[31mred\u{1b}[0m", "red"),
            ("a\tb", "a b"),
            ("\u{1b}]0;title\u{7}rest", "rest"),
            ("bell\u{7}", "bell\u{fffd}"),
            ("x\u{202e}y", "x\u{fffd}y"),
            ("ü – 日本", "ü – 日本"),
        ] {
            assert_eq!(printable(text), expected, "{text:?}");
        }
    }
}
