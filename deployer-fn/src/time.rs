//! Points in time, written in UTC as RFC 3339.

use jiff::Timestamp;

/// The length of the shortest time in text, without a fraction of a second.
const SHORTEST_TIME_CHARS: usize = "2026-01-01T00:00:00Z".len();

/// Parses a time such as `2026-03-01T12:00:00.5Z`. Returns `None` for other forms, other offsets than `Z` among them.
pub(crate) fn parse_utc_time(text: &str) -> Option<Timestamp> {
    let bytes = text.as_bytes();
    if bytes.len() < SHORTEST_TIME_CHARS || bytes.get(10) != Some(&b'T') || bytes.last() != Some(&b'Z') {
        return None;
    }
    text.parse().ok()
}

/// Formats a time with nanoseconds. There always are nine digits, because digests are made of the text.
pub(crate) fn format_with_nanos(at: Timestamp) -> String {
    format!("{at:.9}")
}

/// Formats a time with milliseconds, for people.
pub(crate) fn format_with_millis(at: Timestamp) -> String {
    format!("{at:.3}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_utc_time_with_all_its_parts_is_parsed() {
        for right in [
            "2026-03-01T12:00:00Z",
            "2026-03-01T12:00:00.5Z",
            "1999-12-31T23:59:59.123456789Z",
        ] {
            assert!(parse_utc_time(right).is_some(), "{right}");
        }
        for wrong in [
            "",
            "yesterday",
            "2026-03-01",
            "2026-03-01 12:00:00Z",
            "2026-03-01T12:00:00",
            "2026-03-01T12:00:00+01:00",
            "2026-13-01T12:00:00Z",
        ] {
            assert_eq!(parse_utc_time(wrong), None, "{wrong}");
        }
    }

    /// Earlier releases wrote this form into annotations and into the digests of deliveries.
    #[test]
    fn a_time_to_store_has_nine_digits_after_the_second() {
        let at = parse_utc_time("2026-03-01T12:00:00.5Z").unwrap();
        assert_eq!(format_with_nanos(at), "2026-03-01T12:00:00.500000000Z");
        assert_eq!(format_with_millis(at), "2026-03-01T12:00:00.500Z");
        assert_eq!(parse_utc_time(&format_with_nanos(at)), Some(at));
    }
}
