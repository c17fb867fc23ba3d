//! The time at which the source of a build was submitted, which orders the builds of a function.

use std::fmt;
use std::time::{Duration, SystemTime};

use super::RequestError;
use super::head::RequestHead;
use super::time::{format_rfc3339, format_rfc3339_nanos};

/// The limit on how far a time of submission may be ahead of this builder's clock. A clock that runs further
/// ahead would win over every later build.
pub(crate) const AHEAD_OF_CLOCK_MAX: Duration = Duration::from_secs(5 * 60);

/// The smallest plausible time from a gateway, in nanoseconds: before 2000, the number had another unit.
const GATEWAY_TIME_MIN_NS: u64 = 946_684_800_000_000_000;

/// The number of bytes of an unusable header that a warning shows.
const HEADER_BYTES_SHOWN: usize = 40;

/// The time at which the source of a build was submitted, and where it comes from.
///
/// [`Config`](SubmissionTimeSource::Config) and [`Gateway`](SubmissionTimeSource::Gateway) are the same for every
/// delivery of a call and for every replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubmittedAt {
    /// The time of submission.
    pub at: SystemTime,
    /// The source of the time of submission.
    pub source: SubmissionTimeSource,
}

/// The source of a time of submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubmissionTimeSource {
    /// The time comes from the signed config's `submittedAt`.
    Config,
    /// The time comes from the gateway's `X-Start-Time`.
    Gateway,
    /// The time is that of the request's arrival at this builder.
    Arrival,
}

impl fmt::Display for SubmittedAt {
    /// Formats the time of submission as RFC 3339 in UTC, with nanoseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format_rfc3339_nanos(self.at))
    }
}

impl SubmittedAt {
    /// Returns the time of submission: the one in the config, else the gateway's, else that of the arrival. An
    /// unusable time of the gateway is ignored, with a warning.
    ///
    /// # Errors
    /// Fails if the time in the config is more than [`AHEAD_OF_CLOCK_MAX`] ahead of `now`.
    pub(super) fn determine_from_config_gateway_or_arrival(
        in_config: Option<SystemTime>,
        head: &RequestHead,
        now: SystemTime,
        warnings: &mut Vec<String>,
    ) -> Result<Self, RequestError> {
        let is_ahead = |at: SystemTime| {
            at.duration_since(now)
                .is_ok_and(|ahead| ahead > AHEAD_OF_CLOCK_MAX)
        };
        let found = |at, source| Ok(Self { at, source });
        match in_config {
            Some(at) if is_ahead(at) => {
                return Err(RequestError::SubmittedAhead {
                    submitted_at: format_rfc3339(at),
                    now: format_rfc3339(now),
                    bound: AHEAD_OF_CLOCK_MAX,
                });
            }
            Some(at) => return found(at, SubmissionTimeSource::Config),
            None => {}
        }
        if let Some(value) = &head.start_time {
            match parse_gateway_time_if_after_1999(value) {
                Some(at) if is_ahead(at) => warnings.push(format!(
                    "X-Start-Time {} is ignored: it is more than {} ahead of this builder's clock, {}; \
                     the build is ordered by its arrival",
                    format_rfc3339(at),
                    function_host::duration::format_duration(AHEAD_OF_CLOCK_MAX),
                    format_rfc3339(now),
                )),
                Some(at) => return found(at, SubmissionTimeSource::Gateway),
                None => warnings.push(format!(
                    "X-Start-Time \"{}\" is ignored: it should be the nanoseconds since 1970; \
                     the build is ordered by its arrival",
                    value[..value.len().min(HEADER_BYTES_SHOWN)].escape_ascii(),
                )),
            }
        }
        found(head.arrived, SubmissionTimeSource::Arrival)
    }
}

/// Parses the gateway's time from the first value in a header.
fn parse_gateway_time_if_after_1999(values: &[u8]) -> Option<SystemTime> {
    let first = values.split(|byte| *byte == b',').next()?;
    let nanoseconds: u64 = std::str::from_utf8(first.trim_ascii()).ok()?.parse().ok()?;
    let since_epoch = Some(nanoseconds).filter(|nanoseconds| *nanoseconds >= GATEWAY_TIME_MIN_NS)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_nanos(since_epoch))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test's current time, 2026-11-29T10:40:00Z.
    const NOW_NS: u64 = 1_795_948_800_000_000_000;

    fn time_at_ns(nanoseconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_nanos(nanoseconds)
    }

    fn determine_submission_time(
        in_config: Option<SystemTime>,
        start_time_header: Option<&str>,
    ) -> (Result<SubmittedAt, RequestError>, Vec<String>) {
        let head = RequestHead {
            signature: None,
            tenant: None,
            start_time: start_time_header.map(|value| value.as_bytes().to_vec()),
            is_asynchronous: false,
            is_resumed: false,
            is_json: false,
            arrived: time_at_ns(NOW_NS - 7),
        };
        let mut warnings = Vec::new();
        let submitted = SubmittedAt::determine_from_config_gateway_or_arrival(
            in_config,
            &head,
            time_at_ns(NOW_NS),
            &mut warnings,
        );
        (submitted, warnings)
    }

    #[test]
    fn the_submission_time_is_the_configs_or_else_the_gateways_or_else_the_arrivals() {
        let first = (NOW_NS - 3).to_string();
        let both = format!("{first}, {}", NOW_NS - 2);
        let spaced = format!(" {first} ,x");
        for (in_config, header, at, source) in [
            (Some(5), Some(&first), 5, SubmissionTimeSource::Config),
            (
                Some(NOW_NS + 300_000_000_000),
                None,
                NOW_NS + 300_000_000_000,
                SubmissionTimeSource::Config,
            ),
            (None, Some(&first), NOW_NS - 3, SubmissionTimeSource::Gateway),
            (None, Some(&both), NOW_NS - 3, SubmissionTimeSource::Gateway),
            (None, Some(&spaced), NOW_NS - 3, SubmissionTimeSource::Gateway),
            (None, None, NOW_NS - 7, SubmissionTimeSource::Arrival),
        ] {
            let (submitted, warnings) =
                determine_submission_time(in_config.map(time_at_ns), header.map(String::as_str));
            let expected = SubmittedAt {
                at: time_at_ns(at),
                source,
            };
            assert_eq!(
                (submitted.unwrap(), warnings.len()),
                (expected, 0),
                "{in_config:?} {header:?}"
            );
        }
    }

    #[test]
    fn an_unusable_start_time_header_is_ignored_with_a_warning() {
        let ahead = (NOW_NS + 300_000_000_001).to_string();
        for (header, reason) in [
            ("", "nanoseconds since 1970"),
            ("t=1795948800.5", "nanoseconds since 1970"),
            ("1795948800", "nanoseconds since 1970"),
            ("1795948800000", "nanoseconds since 1970"),
            ("-1795948800000000000", "nanoseconds since 1970"),
            ("99999999999999999999", "nanoseconds since 1970"),
            (", 1795948800000000000", "nanoseconds since 1970"),
            ("x\ny", "\"x\\ny\""),
            (&ahead, "more than 5m0s ahead"),
        ] {
            let (submitted, warnings) = determine_submission_time(None, Some(header));
            let expected = SubmittedAt {
                at: time_at_ns(NOW_NS - 7),
                source: SubmissionTimeSource::Arrival,
            };
            assert_eq!(submitted.unwrap(), expected, "{header}");
            assert!(
                warnings.len() == 1 && warnings[0].contains(reason),
                "{header}: {warnings:?}"
            );
        }
    }

    #[test]
    fn a_submission_time_far_ahead_of_the_clock_is_rejected_with_both_times_and_the_limit() {
        let (submitted, _) = determine_submission_time(Some(time_at_ns(NOW_NS + 300_000_000_001)), None);
        let error = submitted.unwrap_err().to_string();
        for part in [
            "submittedAt",
            "2026-11-29T10:45:00Z",
            "2026-11-29T10:40:00Z",
            "5m",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_submission_time_is_formatted_with_nanoseconds() {
        let submitted = SubmittedAt {
            at: time_at_ns(NOW_NS + 7),
            source: SubmissionTimeSource::Gateway,
        };
        assert_eq!(submitted.to_string(), "2026-11-29T10:40:00.000000007Z");
    }
}
