//! Text from outside, as lines that clients can read.

use std::time::SystemTime;

use super::MAX_LINE;
use crate::report::Mask;

/// What a step has written, as lines of the log.
pub(super) fn output_lines(mask: &Mask, at: SystemTime, text: &[u8]) -> Vec<String> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    if text.is_empty() {
        return Vec::new();
    }
    let at = time(at);
    // No text that is hidden has an end of line in it.
    let text = mask.bytes(text);
    let text = String::from_utf8_lossy(&text);
    text.split('\n')
        .flat_map(|line| pieces(line.trim_end_matches('\r')))
        .map(|piece| format!("l: {at} {piece}"))
        .collect()
}

/// The last place up to `end` that is not within a character. In what is no text every place is.
pub(super) fn floor_char_boundary(text: &[u8], end: usize) -> usize {
    let begins = |back: &usize| (text[end - back] & 0b1100_0000) != 0b1000_0000;
    match (1..=3.min(end)).find(begins) {
        Some(back) => {
            let length = match text[end - back] {
                0xc2..=0xdf => 2,
                0xe0..=0xef => 3,
                0xf0..=0xf4 => 4,
                _ => 1,
            };
            if length > back { end - back } else { end }
        }
        None => end,
    }
}

/// `line` in pieces of at most [`MAX_LINE`] bytes, between characters. An empty line is one empty piece.
fn pieces(line: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(line);
    std::iter::from_fn(move || {
        let line = rest?;
        let end = line.floor_char_boundary(MAX_LINE);
        rest = (end < line.len()).then(|| &line[end..]);
        Some(&line[..end])
    })
}

/// Names are one line each, and no longer than others: a `RUN` with a here-document has its whole text as its name.
pub(super) fn one_line(text: &str) -> String {
    let end = text.floor_char_boundary(MAX_LINE);
    text[..end].replace(['\n', '\r'], " ")
}

pub(super) fn time(time: SystemTime) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_seconds(time)
}
