//! Parses RFC 3339 times with any offset, as clients write them, and formats times in UTC.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::civil::{self, DateTime};

/// The first year of a time that is accepted.
const YEAR_MIN: i16 = 1970;

/// Parses an RFC 3339 time such as `2030-01-31T12:00:00Z` or `2030-01-31T13:00:00.5+01:00`.
///
/// `jiff` accepts more forms than RFC 3339 has, so the form is checked first. `T` and `Z` have to be upper-case. Digits
/// after the ninth of a fraction are dropped, and a leap second counts as the second before it.
pub(crate) fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    const FORM_TO_SECONDS: &str = "0000-00-00T00:00:00";
    let (seconds, rest) = text.split_at_checked(FORM_TO_SECONDS.len())?;
    if !matches_digit_form(seconds, FORM_TO_SECONDS) {
        return None;
    }
    let (fraction, offset) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?),
        None => ("0", rest),
    };
    if fraction.is_empty() {
        return None;
    }
    let fraction = &fraction[..fraction.len().min(9)];
    let local: DateTime = format!("{seconds}.{fraction}").parse().ok()?;
    if local.year() < YEAR_MIN {
        return None;
    }
    // The difference of civil times: a `Timestamp` ends before 9999-12-31, a time that clients send for "never".
    let since_epoch = local.duration_since(civil::date(YEAR_MIN, 1, 1).to_datetime(civil::time(0, 0, 0, 0)));
    let local = SystemTime::UNIX_EPOCH.checked_add(since_epoch.try_into().ok()?)?;
    match (offset.split_at_checked(1)?, parse_offset_without_sign(offset)) {
        (("Z", ""), _) => Some(local),
        (("+", _), Some(offset)) => local.checked_sub(offset),
        (("-", _), Some(offset)) => local.checked_add(offset),
        _ => None,
    }
}

/// Formats a time as RFC 3339 in UTC, without a fraction.
pub(crate) fn format_rfc3339(time: SystemTime) -> String {
    let seconds = match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
        Err(before) => {
            let before = before.duration();
            let whole = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            -whole.saturating_add(i64::from(before.subsec_nanos() > 0))
        }
    };
    let end = if seconds < 0 {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    };
    Timestamp::from_second(seconds).unwrap_or(end).to_string()
}

/// Formats a time as RFC 3339 in UTC, with nine digits of a fraction.
pub(crate) fn format_rfc3339_nanos(time: SystemTime) -> String {
    match Timestamp::try_from(time) {
        Ok(time) => format!("{time:.9}"),
        Err(_) => format_rfc3339(time),
    }
}

/// Returns the duration of an offset such as `+01:30`, without its sign.
fn parse_offset_without_sign(offset: &str) -> Option<Duration> {
    let offset = offset.get(1..).filter(|rest| matches_digit_form(rest, "00:00"))?;
    let (hours, minutes) = offset.split_once(':')?;
    let (hours, minutes): (u64, u64) = (hours.parse().ok()?, minutes.parse().ok()?);
    (hours <= 23 && minutes <= 59).then(|| Duration::from_secs((hours * 60 + minutes) * 60))
}

/// Returns whether `text` has a digit where `form` has `0`, and is equal to it elsewhere.
fn matches_digit_form(text: &str, form: &str) -> bool {
    let fits = |(byte, form): (u8, u8)| match form {
        b'0' => byte.is_ascii_digit(),
        _ => byte == form,
    };
    text.len() == form.len() && text.bytes().zip(form.bytes()).all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns seconds and nanoseconds since the epoch, of which the seconds may be negative.
    fn unix_seconds_and_nanos(time: SystemTime) -> (i128, u32) {
        match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => (i128::from(after.as_secs()), after.subsec_nanos()),
            Err(before) => (
                -i128::from(before.duration().as_secs()),
                before.duration().subsec_nanos(),
            ),
        }
    }

    #[test]
    fn every_rfc_3339_time_from_1970_on_is_parsed_with_its_offset() {
        const NOON_UNIX_SECONDS: i128 = 1_896_091_200;
        for (text, seconds, nanoseconds) in [
            ("2030-01-31T12:00:00Z", NOON_UNIX_SECONDS, 0),
            ("2030-01-31T12:00:00+00:00", NOON_UNIX_SECONDS, 0),
            ("2030-01-31T12:00:00-00:00", NOON_UNIX_SECONDS, 0),
            ("2030-01-31T13:00:00+01:00", NOON_UNIX_SECONDS, 0),
            ("2030-01-31T06:30:00-05:30", NOON_UNIX_SECONDS, 0),
            ("2030-01-30T12:01:00-23:59", NOON_UNIX_SECONDS, 0),
            ("2030-01-31T12:00:00.000-00:00", NOON_UNIX_SECONDS, 0),
            ("2030-01-31T12:00:00.25Z", NOON_UNIX_SECONDS, 250_000_000),
            ("2030-01-31T12:00:00.25+00:00", NOON_UNIX_SECONDS, 250_000_000),
            (
                "2030-01-31T13:00:00.123456789+01:00",
                NOON_UNIX_SECONDS,
                123_456_789,
            ),
            (
                "2030-01-31T12:00:00.1234567899999Z",
                NOON_UNIX_SECONDS,
                123_456_789,
            ),
            ("2030-01-31T11:59:60Z", NOON_UNIX_SECONDS - 1, 0),
            ("1970-01-01T00:00:00Z", 0, 0),
            ("1970-01-01T00:00:00+01:00", -3600, 0),
            ("2000-02-29T00:00:00Z", 951_782_400, 0),
            ("9999-12-31T23:59:59Z", 253_402_300_799, 0),
            ("9999-12-31T23:59:59-12:00", 253_402_343_999, 0),
        ] {
            let time = parse_rfc3339(text).map(unix_seconds_and_nanos);
            assert_eq!(time, Some((seconds, nanoseconds)), "{text}");
        }
    }

    #[test]
    fn text_in_any_other_form_than_rfc_3339_is_no_time() {
        for text in [
            "",
            "Z",
            "tomorrow",
            "2030-01-31",
            "2030-01-31 12:00:00Z",
            "2030-01-31t12:00:00Z",
            "2030-01-31T12:00:00z",
            "2030-01-31T12:00:00",
            "2030-01-31T12:00Z",
            "20300131T120000Z",
            "2030-01-31T12:00:00,5Z",
            "2030-01-31T12:00:00.Z",
            "2030-01-31T12:00:00.5",
            "2030-01-31T12:00:00ZZ",
            "2030-01-31T12:00:00Z+01:00",
            "2030-01-31T12:00:00Z0:00Z",
            "2030-01-31T12:00:00Z[UTC]",
            "2030-01-31T12:00:00[Europe/Berlin]",
            "2030-13-31T12:00:00Z",
            "2030-00-31T12:00:00Z",
            "2030-02-29T12:00:00Z",
            "2030-01-31T24:00:00Z",
            "2030-01-31T12:60:00Z",
            "2030-01-31T12:00:61Z",
            "1969-12-31T23:59:59Z",
            "+002030-01-31T12:00:00Z",
            "2030-01-31T12:00:00+1:00",
            "2030-01-31T12:00:00+24:00",
            "2030-01-31T12:00:00+01:60",
            "2030-01-31T12:00:00+0100",
            "2030-01-31T12:00:00+01",
            "2030-01-31T12:00:00+01:00:00",
            "2030-01-31T12:00:00é01:00",
            "2030-01-31T12:00:00+é1:00",
            "1893456000",
        ] {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
    }

    #[test]
    fn a_time_formatted_with_nanoseconds_is_parsed_unchanged() {
        for text in ["2001-09-09T01:46:40.000000000Z", "1970-01-01T00:00:00.000000001Z"] {
            let time = parse_rfc3339(text).unwrap();
            assert_eq!(format_rfc3339_nanos(time), text);
        }
        let end = parse_rfc3339("9999-12-31T23:59:59.5Z").unwrap();
        assert!(parse_rfc3339(&format_rfc3339_nanos(end)).is_some());
    }

    #[test]
    fn times_are_formatted_as_rfc_3339_in_utc_without_a_fraction() {
        for (text, formatted) in [
            ("2001-09-09T01:46:40Z", "2001-09-09T01:46:40Z"),
            ("2001-09-09T03:46:40.999+02:00", "2001-09-09T01:46:40Z"),
            ("1970-01-01T00:00:00+01:00", "1969-12-31T23:00:00Z"),
        ] {
            assert_eq!(
                parse_rfc3339(text).map(format_rfc3339).as_deref(),
                Some(formatted)
            );
        }
    }
}
