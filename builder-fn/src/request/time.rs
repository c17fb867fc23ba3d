//! Times as clients write them: RFC 3339, with any offset.

use std::time::{Duration, SystemTime};

/// Reads `2030-01-31T12:00:00Z` and `2030-01-31T13:00:00.5+01:00`.
pub(super) fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    if !text.is_ascii() {
        return None;
    }
    if text.ends_with('Z') {
        return humantime::parse_rfc3339(text).ok();
    }
    let (local, offset) = text.split_at_checked(text.len().checked_sub(6)?)?;
    let local = humantime::parse_rfc3339(&format!("{local}Z")).ok()?;
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let (hours, minutes) = (digits(hours)?, digits(minutes)?);
    if hours > 23 || minutes > 59 {
        return None;
    }
    let offset_by = Duration::from_secs((hours * 60 + minutes) * 60);
    match offset.as_bytes().first()? {
        b'+' => local.checked_sub(offset_by),
        b'-' => local.checked_add(offset_by),
        _ => None,
    }
}

fn digits(text: &str) -> Option<u64> {
    (text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_counted_in() {
        let noon = parse_rfc3339("2030-01-31T12:00:00Z").unwrap();
        for same in [
            "2030-01-31T13:00:00+01:00",
            "2030-01-31T06:30:00-05:30",
            "2030-01-31T12:00:00.000-00:00",
        ] {
            assert_eq!(parse_rfc3339(same), Some(noon), "{same}");
        }
        assert_eq!(
            parse_rfc3339("2030-01-31T12:00:00.25Z"),
            Some(noon + Duration::from_millis(250))
        );
    }

    #[test]
    fn other_texts_are_no_times() {
        for text in [
            "",
            "Z",
            "tomorrow",
            "2030-01-31",
            "2030-01-31 12:00:00Z",
            "2030-01-31T12:00:00",
            "2030-13-31T12:00:00Z",
            "2030-01-31T12:00:00+1:00",
            "2030-01-31T12:00:00+24:00",
            "2030-01-31T12:00:00+0100",
            "2030-01-31T12:00:00é01:00",
            "1893456000",
        ] {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
    }
}
