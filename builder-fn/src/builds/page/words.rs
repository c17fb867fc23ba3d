//! Times, durations and sizes as words on a page.

use std::time::{Duration, SystemTime};

use crate::request::time::format_rfc3339;

/// Returns a duration for people: `0.25 s`, `12.3 s`, `2 min 5 s` or `1 h 2 min`.
pub(super) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    let whole = duration.as_secs();
    match whole {
        0..10 => format!("{seconds:.2} s"),
        10..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole / 60 % 60),
    }
}

/// Returns a number of bytes for people, in decimal units: `512 bytes`, `1.2 kB` or `50 MB`.
pub(super) fn bytes(bytes: u64) -> String {
    let mut units = ["kB", "MB", "GB", "TB"].into_iter();
    let (mut value, mut unit) = (bytes as f64, None);
    while value >= 999.5 {
        let Some(next) = units.next() else { break };
        (value, unit) = (value / 1000.0, Some(next));
    }
    match unit {
        None => format!("{bytes} bytes"),
        Some(unit) if value < 9.95 => format!("{value:.1} {unit}"),
        Some(unit) => format!("{value:.0} {unit}"),
    }
}

/// Returns a time in UTC for people: `2026-12-01 10:00:00`.
pub(super) fn time(time: SystemTime) -> String {
    let text = format_rfc3339(time);
    text.replacen('T', " ", 1).trim_end_matches('Z').to_owned()
}

/// Returns a text of at most `max_chars` characters, and of at most twice as many bytes as HTML, with `…` in place of
/// the rest.
pub(super) fn cut_to_chars_and_html_bytes(text: &str, max_chars: usize) -> String {
    let mut html_bytes = 0;
    let end = text
        .char_indices()
        .enumerate()
        .find_map(|(count, (start, character))| {
            html_bytes += escaped_len(character);
            (count >= max_chars || html_bytes > 2 * max_chars).then_some(start)
        });
    match end {
        None => text.to_owned(),
        Some(end) => format!("{}…", &text[..end]),
    }
}

/// Returns the number of bytes of a character in HTML.
fn escaped_len(character: char) -> usize {
    match character {
        '&' => "&amp;".len(),
        '<' | '>' => "&lt;".len(),
        '"' => "&quot;".len(),
        other => other.len_utf8(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_rounded_and_have_units_for_people() {
        for (milliseconds, text) in [
            (0, "0.00 s"),
            (9_990, "9.99 s"),
            (12_340, "12.3 s"),
            (125_000, "2 min 5 s"),
            (3_720_000, "1 h 2 min"),
        ] {
            assert_eq!(duration(Duration::from_millis(milliseconds)), text);
        }
        for (number, text) in [
            (0, "0 bytes"),
            (999, "999 bytes"),
            (1_000, "1.0 kB"),
            (49_900_000, "50 MB"),
            (999_600_000, "1.0 GB"),
        ] {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(cut_to_chars_and_html_bytes("ééé", 2), "éé…");
        assert_eq!(cut_to_chars_and_html_bytes("ééé", 3), "ééé");
    }

    #[test]
    fn a_text_takes_at_most_twice_its_limit_as_html() {
        for character in ["a", "é", "&", "<", ">", "\"", "'", "語", "🦀"] {
            let cut = cut_to_chars_and_html_bytes(&character.repeat(200), 100);
            let html = maud::html! { (cut) }.into_string();
            assert!(html.len() <= 200 + '…'.len_utf8(), "{character}: {}", html.len());
            assert!(cut.chars().count() >= 34, "{character}: {cut}");
        }
    }
}
