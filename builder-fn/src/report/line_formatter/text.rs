//! Converts untrusted text to log lines that clients can read.

use std::time::SystemTime;

use jiff::Timestamp;

use super::MAX_LINE_BYTES;
use crate::redact::SecretMask;

/// Returns the masked output of a step as log lines. An empty text and a single line end give no line.
pub(super) fn output_lines(mask: &SecretMask, at: SystemTime, text: &[u8]) -> Vec<String> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    if text.is_empty() {
        return Vec::new();
    }
    let at = format_rfc3339_in_whole_seconds(at);
    // Masking before splitting is safe: no masked string contains a line end.
    let text = mask.mask_bytes(text);
    let text = String::from_utf8_lossy(&text);
    text.split('\n')
        .flat_map(|line| split_into_pieces(line.trim_end_matches('\r')))
        .map(|piece| format!("l: {at} {piece}"))
        .collect()
}

/// Returns the last position up to `end` that is not within a UTF-8 character; `end` itself if `text` is not
/// UTF-8.
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

/// Splits `line` between characters into pieces of at most [`MAX_LINE_BYTES`] bytes. An empty line is one empty piece.
fn split_into_pieces(line: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(line);
    std::iter::from_fn(move || {
        let line = rest?;
        let end = line.floor_char_boundary(MAX_LINE_BYTES);
        rest = (end < line.len()).then(|| &line[end..]);
        Some(&line[..end])
    })
}

/// Returns `text` as one line of at most [`MAX_LINE_BYTES`] bytes. The name of a `RUN` step with a here-document
/// contains the whole document.
pub(super) fn to_one_cut_line(text: &str) -> String {
    let end = text.floor_char_boundary(MAX_LINE_BYTES);
    text[..end].replace(['\n', '\r'], " ")
}

/// Formats a time as RFC 3339, in UTC and whole seconds. Times that RFC 3339 cannot express become 1970.
pub(super) fn format_rfc3339_in_whole_seconds(time: SystemTime) -> String {
    let time = Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH);
    format!("{time:.0}")
}
