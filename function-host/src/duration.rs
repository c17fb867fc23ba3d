//! Durations in Go's format (`time.ParseDuration`, `Duration.String`), and whole seconds without a unit, as of-watchdog
//! accepts them.

use std::fmt;
use std::time::Duration;

/// An error of parsing a duration. Its text follows the name of a setting and says which format is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// The duration's text is neither a Go duration nor a whole number of seconds.
    #[error("should be a duration such as 30s, 1m30s or 500ms")]
    Malformed,
    /// The duration is negative, which no setting allows.
    #[error("should be a duration of zero or more")]
    Negative,
    /// The duration exceeds Go's limit of about 292 years.
    #[error("should be a duration below 292 years")]
    TooLong,
}

/// The longest `time.Duration` of Go, in nanoseconds.
const MAX_GO_DURATION_NANOS: u128 = i64::MAX as u128;

/// The units of Go's `time.ParseDuration`, with their lengths in nanoseconds.
const GO_UNITS_IN_NANOS: [(&str, u128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000), // U+00B5, micro sign
    ("μs", 1_000), // U+03BC, Greek letter mu
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60 * 1_000_000_000),
    ("h", 3_600 * 1_000_000_000),
];

/// Parses a duration such as `1h2m3.5s`, `500ms`, `.5s` or `+30s`, or a number of whole seconds.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let (negative, unsigned) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let nanos = if !unsigned.is_empty() && unsigned.bytes().all(|byte| byte.is_ascii_digit()) {
        parse_digits_empty_as_zero(unsigned)?
            .checked_mul(1_000_000_000)
            .ok_or(DurationError::TooLong)?
    } else {
        parse_go_nanos(unsigned)?
    };
    if nanos > MAX_GO_DURATION_NANOS {
        return Err(DurationError::TooLong);
    }
    if negative && nanos > 0 {
        return Err(DurationError::Negative);
    }
    u64::try_from(nanos)
        .map(Duration::from_nanos)
        .map_err(|_| DurationError::TooLong)
}

/// Parses a Go duration, which is a list of numbers with units, to nanoseconds.
fn parse_go_nanos(text: &str) -> Result<u128, DurationError> {
    if text.is_empty() {
        return Err(DurationError::Malformed);
    }
    let mut rest = text;
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let (whole, after) = split_after_leading_digits(rest);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => split_after_leading_digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(DurationError::Malformed);
        }
        let (unit, after) = split_leading_unit_to_nanos(after)?;
        let nanos = parse_digits_empty_as_zero(whole)?
            .checked_mul(unit)
            .ok_or(DurationError::TooLong)?;
        total = total
            .checked_add(nanos)
            .and_then(|total| total.checked_add(nanos_of_fraction(fraction, unit)))
            .filter(|total| *total <= MAX_GO_DURATION_NANOS)
            .ok_or(DurationError::TooLong)?;
        rest = after;
    }
    Ok(total)
}

/// Splits a text after its leading decimal digits.
fn split_after_leading_digits(text: &str) -> (&str, &str) {
    let end = text
        .bytes()
        .position(|byte| !byte.is_ascii_digit())
        .unwrap_or(text.len());
    text.split_at(end)
}

/// Splits off the leading unit of a Go duration, and returns its length in nanoseconds and the rest of the
/// text.
///
/// As in Go, the unit extends up to the next digit or dot.
fn split_leading_unit_to_nanos(text: &str) -> Result<(u128, &str), DurationError> {
    let end = text
        .bytes()
        .position(|byte| byte.is_ascii_digit() || byte == b'.')
        .unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let unit = GO_UNITS_IN_NANOS
        .iter()
        .find(|(unit, _)| *unit == name)
        .ok_or(DurationError::Malformed)?;
    Ok((unit.1, rest))
}

/// Parses decimal digits to a number; an empty text is 0.
fn parse_digits_empty_as_zero(text: &str) -> Result<u128, DurationError> {
    if text.is_empty() {
        return Ok(0);
    }
    text.parse().map_err(|_| DurationError::TooLong)
}

/// Returns the nanoseconds of a decimal fraction of a unit, rounded down.
///
/// Digits after the 15th are ignored: even of an hour, they are less than a nanosecond.
fn nanos_of_fraction(fraction_digits: &str, unit_nanos: u128) -> u128 {
    let mut nanos = 0;
    let mut scale: u128 = 1;
    for digit in fraction_digits.bytes().take(15) {
        nanos = nanos * 10 + u128::from(digit - b'0');
        scale *= 10;
    }
    nanos * unit_nanos / scale
}

/// Formats a duration as Go does: `1h2m3.5s`, `1.5ms`, `0s`.
pub fn format_duration(duration: Duration) -> String {
    GoDuration(duration).to_string()
}

/// A duration that is displayed as Go does.
struct GoDuration(Duration);

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        if nanos == 0 {
            return f.write_str("0s");
        }
        if nanos < 1_000_000_000 {
            let (unit, name) = match nanos {
                0..1_000 => (1, "ns"),
                1_000..1_000_000 => (1_000, "µs"),
                _ => (1_000_000, "ms"),
            };
            return write_decimal_with_unit(f, nanos, unit, name);
        }
        let seconds = self.0.as_secs();
        let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if hours > 0 || minutes > 0 {
            write!(f, "{minutes}m")?;
        }
        write_decimal_with_unit(f, nanos % 60_000_000_000, 1_000_000_000, "s")
    }
}

/// Writes `nanos` as a decimal number of units of `unit_nanos` nanoseconds each, without trailing zeros, then the name
/// of the unit.
fn write_decimal_with_unit(
    f: &mut fmt::Formatter<'_>,
    nanos: u128,
    unit_nanos: u128,
    unit_name: &str,
) -> fmt::Result {
    write!(f, "{}", nanos / unit_nanos)?;
    let fraction = nanos % unit_nanos;
    if fraction > 0 {
        let width = unit_nanos.ilog10() as usize;
        let padded = format!("{fraction:0width$}");
        write!(f, ".{}", padded.trim_end_matches('0'))?;
    }
    f.write_str(unit_name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn go_durations_and_whole_seconds_are_parsed_as_durations() {
        let cases = [
            ("0", 0),
            ("0s", 0),
            ("-0s", 0),
            ("1", 1_000_000_000),
            ("30", 30_000_000_000),
            ("+5s", 5_000_000_000),
            ("1h2m3.5s", 3_723_500_000_000),
            ("500ms", 500_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("1us", 1_000),
            ("1µs", 1_000),
            ("1μs", 1_000),
            ("3ns", 3),
            ("0.0000000000000000001h", 0),
            ("2562047h47m16.854775807s", i64::MAX as u64),
        ];
        for (text, nanos) in cases {
            assert_eq!(parse_duration(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
    }

    #[test]
    fn texts_that_go_rejects_and_negative_durations_are_rejected() {
        for text in [
            "", " 1s", "s", ".", ".s", "1.", "1d", "1s ", "1h-2m", "--1s", "1,5s", "+", "１s",
        ] {
            assert_eq!(parse_duration(text), Err(DurationError::Malformed), "{text}");
        }
        assert_eq!(parse_duration("-1s"), Err(DurationError::Negative));
        for text in [
            "2562047h47m16.854775808s",
            "99999999999999999999",
            "340282366920938463463374607431768211456s",
        ] {
            assert_eq!(parse_duration(text), Err(DurationError::TooLong), "{text}");
        }
    }

    #[test]
    fn durations_are_formatted_as_in_go() {
        let cases = [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1µs"),
            (2_200_000, "2.2ms"),
            (3_300_000_000, "3.3s"),
            (245_000_000_000, "4m5s"),
            (18_367_000_000_000, "5h6m7s"),
            (3_600_000_000_001, "1h0m0.000000001s"),
        ];
        for (nanos, text) in cases {
            assert_eq!(format_duration(Duration::from_nanos(nanos)), text);
        }
    }

    proptest! {
        #[test]
        fn a_formatted_duration_parses_to_itself(nanos in 0..=i64::MAX as u64) {
            let duration = Duration::from_nanos(nanos);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn the_duration_parser_never_panics_on_any_text(text in any::<String>()) {
            let _ = parse_duration(&text);
        }

        #[test]
        fn the_duration_parser_never_panics_on_texts_that_resemble_durations(text in "[-+]?([0-9.]{0,30}(ns|us|µs|ms|s|m|h)?){0,6}") {
            let _ = parse_duration(&text);
        }

        #[test]
        fn the_units_of_a_duration_may_come_in_any_order(hours in 0u32..1000, minutes in 0u32..1000, millis in 0u32..100_000) {
            let forward = parse_duration(&format!("{hours}h{minutes}m{millis}ms"));
            prop_assert_eq!(forward, parse_duration(&format!("{millis}ms{minutes}m{hours}h")));
            prop_assert!(forward.is_ok());
        }
    }
}
