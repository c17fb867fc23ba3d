//! Texts of Kubernetes and the logs of functions, made fit for a reason: one line, without control characters, of
//! bounded length.

/// The most characters of a text that a reason has.
const TEXT_MAX_CHARS: usize = 500;

/// The number of lines at the end of a function's log that a reason quotes.
pub(crate) const QUOTED_LOG_LINES_MAX: usize = 8;

/// Returns the text as one line. Of a line with more than 500 characters, an ellipsis takes the place of the rest.
pub(crate) fn as_bounded_line(text: &str) -> String {
    let line = join_words_without_control_characters(text);
    match line.char_indices().nth(TEXT_MAX_CHARS) {
        Some((end, _)) => format!("{}…", line.get(..end).unwrap_or_default()),
        None => line,
    }
}

/// Returns a reason followed by a detail, if there is one.
pub(crate) fn append_detail_after_semicolon(reason: String, detail: Option<&str>) -> String {
    match detail {
        Some(detail) => format!("{reason}; {detail}"),
        None => reason,
    }
}

fn join_words_without_control_characters(text: &str) -> String {
    let words = text.split(|char: char| char.is_whitespace() || char.is_control());
    words
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The words between a reason and the lines of a log that it quotes.
const LOG_QUOTE_INTRODUCTION: &str = "its log ends with: ";

/// Returns the part of a reason before the lines of a log that it quotes: what a function writes is for whoever
/// deployed it, and not for the deployer's log nor for annotations.
pub(crate) fn without_log_quote(reason: &str) -> &str {
    let end = reason.find(LOG_QUOTE_INTRODUCTION).unwrap_or(reason.len());
    let before = reason.get(..end).unwrap_or_default();
    before.trim_end_matches("; ")
}

/// Returns the last lines of a function's log as part of a reason, at most the last 500 characters, after an
/// ellipsis if there are more: its end says most. `None` if the log is empty.
pub(crate) fn quote_log_end(log: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(log);
    let lines: Vec<_> = text
        .lines()
        .map(join_words_without_control_characters)
        .filter(|line| !line.is_empty())
        .collect();
    let start = lines.len().saturating_sub(QUOTED_LOG_LINES_MAX);
    let last = lines.get(start..).filter(|lines| !lines.is_empty())?;
    let joined = last.join(" | ");
    let skipped = joined.chars().count().saturating_sub(TEXT_MAX_CHARS);
    let end: String = joined.chars().skip(skipped).collect();
    let gap = if skipped > 0 { "…" } else { "" };
    Some(format!("{LOG_QUOTE_INTRODUCTION}{gap}{end}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_becomes_one_line_of_500_characters_and_an_ellipsis_without_control_characters() {
        assert_eq!(as_bounded_line("a\n\u{1b}[31mb\r\n\tc "), "a [31mb c");
        let long = as_bounded_line(&"ü".repeat(600));
        assert_eq!((long.chars().count(), long.ends_with('…')), (501, true));
    }

    #[test]
    fn a_log_is_quoted_by_its_last_lines() {
        let log: String = (0..20).map(|line| format!("line {line}\n\n")).collect();
        let quoted = quote_log_end(log.as_bytes()).unwrap();
        assert!(
            quoted.starts_with("its log ends with: line 12 | line 13"),
            "{quoted}"
        );
        assert!(quoted.ends_with("line 19"), "{quoted}");
        assert_eq!(quote_log_end(b"\n \n"), None);
        let long = quote_log_end(format!("{} the cause", "x".repeat(900)).as_bytes());
        assert!(long.unwrap().ends_with(" the cause"));
    }

    #[test]
    fn a_reason_without_the_quoted_log_has_nothing_that_the_function_wrote() {
        let reason = "the container ended with exit code 3; its log ends with: password=a";
        assert_eq!(without_log_quote(reason), "the container ended with exit code 3");
        assert_eq!(without_log_quote("no log"), "no log");
    }
}
