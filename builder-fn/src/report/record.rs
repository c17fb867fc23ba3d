//! Formats the records of a streamed answer as bytes.

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use super::json::{escaped_json_bytes, to_json_with_escaped_line_ends};
use super::line_formatter::{MAX_CACHED_NAME_BYTES, name_of_ended_step};
use super::ring::FlaggedLine;
use super::{MAX_LINE_BYTES, Report, serialize_rounded_to_three_decimals};

/// The length of the longest record with its framing, in bytes. OpenFaaS's SDK reads line by line, and silently
/// stops at a line of 64 KiB.
pub(crate) const MAX_RECORD_BYTES: usize = (64 << 10) - 1;

/// The bytes of a record besides its lines: names of fields, the duration, the framing.
const RECORD_OVERHEAD_BYTES: usize = 256;

/// The most bytes of JSON for the error text, and as many for the deployment, in a terminal record.
const MAX_ERROR_OR_DEPLOYMENT_BYTES: usize = 16 << 10;

// JSON needs at most six bytes for a byte of a line, and a line has a timestamp before its text: every line fits.
const _: () =
    assert!(6 * (MAX_LINE_BYTES + 64) + MAX_CACHED_NAME_BYTES + RECORD_OVERHEAD_BYTES <= MAX_RECORD_BYTES);

/// The framing of records in a streamed answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamFormat {
    /// The stream format `application/x-ndjson`: one record per line.
    Ndjson,
    /// The stream format `text/event-stream`: one record per event. The Community Edition's gateway buffers
    /// every other media type.
    EventStream,
}

/// The record of a stream with the log lines since the record before it, while the build runs.
#[derive(Serialize)]
struct ProgressRecord<'a> {
    log: &'a [FlaggedLine],
    status: &'static str,
    #[serde(serialize_with = "serialize_rounded_to_three_decimals")]
    duration: f64,
    /// The names of the steps that end in `log` and whose results came from the cache.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cached: Vec<&'a str>,
}

impl StreamFormat {
    /// Returns the media type of the stream format.
    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::Ndjson => "application/x-ndjson",
            Self::EventStream => "text/event-stream",
        }
    }

    /// Returns the record with log lines of a running build. `elapsed` counts from the arrival of the request.
    pub(super) fn progress_record(self, log: &[FlaggedLine], elapsed: Duration) -> Bytes {
        self.frame_record(&ProgressRecord {
            log,
            status: "in_progress",
            duration: elapsed.as_secs_f64(),
            cached: log.iter().filter_map(name_of_cached_step).collect(),
        })
    }

    /// Returns the terminal record of a stream: `report` without its log, with its error cut to fit, and of a
    /// deployment that is too long, only the status and a note.
    pub(crate) fn terminal_record(self, mut report: Report) -> Bytes {
        report.log = None;
        if let Some(error) = &mut report.error {
            cut_to_escaped_len_then_add_note(error, MAX_ERROR_OR_DEPLOYMENT_BYTES);
        }
        if let Some(deployment) = &mut report.deployment
            && to_json_with_escaped_line_ends(deployment).len() > MAX_ERROR_OR_DEPLOYMENT_BYTES
        {
            // Slipway's deployer sends less. Of another answer, the status is what a client needs.
            let status = deployment["status"].take();
            let reason = "the deployer's answer is too long to be repeated here";
            *deployment = serde_json::json!({"status": status, "reasons": [reason]});
        }
        self.frame_record(&report)
    }

    /// Serializes a record as JSON, and frames it.
    fn frame_record(self, record: &impl Serialize) -> Bytes {
        let json = to_json_with_escaped_line_ends(record);
        match self {
            Self::Ndjson => [&json[..], b"\n"].concat().into(),
            Self::EventStream => [b"data: ", &json[..], b"\n\n"].concat().into(),
        }
    }
}

/// The space left for log lines in one record, in bytes.
pub(super) struct RecordSpace(usize);

impl RecordSpace {
    /// Returns the space in a record without lines.
    pub(super) fn new() -> Self {
        Self(MAX_RECORD_BYTES - RECORD_OVERHEAD_BYTES)
    }

    /// Takes space for `line` from the record, and for the name of the cached step that ends with it. Returns false,
    /// and takes nothing, if they do not fit.
    pub(super) fn reserve_for_line(&mut self, line: &FlaggedLine) -> bool {
        // Quotes and a comma.
        let bytes = |text: &str| escaped_json_bytes(text) + 3;
        let left = self
            .0
            .checked_sub(bytes(&line.text) + name_of_cached_step(line).map_or(0, bytes));
        self.0 = left.unwrap_or(self.0);
        left.is_some()
    }
}

/// Returns the name of the cached step that ends with `line`.
fn name_of_cached_step(line: &FlaggedLine) -> Option<&str> {
    name_of_ended_step(&line.text).filter(|_| line.ends_cached_step)
}

/// Cuts `text` so that it takes at most `limit` bytes in JSON, where it is escaped; then appends ` … and N bytes more`,
/// which does not count. A text within the limit stays as it is.
pub(super) fn cut_to_escaped_len_then_add_note(text: &mut String, limit: usize) {
    if escaped_json_bytes(text) <= limit {
        return;
    }
    let mut length = 0;
    let end = text.char_indices().find(|(at, character)| {
        length += escaped_json_bytes(&text[*at..*at + character.len_utf8()]);
        length > limit
    });
    if let Some((end, _)) = end {
        let more = text.len() - end;
        text.truncate(end);
        text.push_str(&format!(" … and {more} bytes more"));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::hint;
    use crate::report::{SuccessOrFailedStatus, Warnings};

    fn failed_report(error: &str) -> Report {
        Report {
            log: Some(vec!["l: not here".into()]),
            image: Some("registry/hello:1".into()),
            digest: None,
            commit: None,
            status: SuccessOrFailedStatus::Failed,
            error: Some(error.into()),
            code: None,
            hint: None,
            superseded_by: None,
            deployment: None,
            page: None,
            warnings: Warnings::default(),
            duration: 1.5,
        }
    }

    #[test]
    fn records_have_the_bytes_that_clients_read() {
        let log = ["l: a".to_owned().into()];
        let elapsed = Duration::from_millis(201);
        assert_eq!(
            StreamFormat::Ndjson.progress_record(&log, elapsed),
            "{\"log\":[\"l: a\"],\"status\":\"in_progress\",\"duration\":0.201}\n"
        );
        assert_eq!(
            StreamFormat::EventStream.progress_record(&[], elapsed),
            "data: {\"log\":[],\"status\":\"in_progress\",\"duration\":0.201}\n\n"
        );
        let ended = |name: &str, ends_cached_step| FlaggedLine {
            text: format!("v: T {name} 0.00s"),
            ends_cached_step,
        };
        assert_eq!(
            StreamFormat::Ndjson.progress_record(
                &[ended("[1/2] FROM a", false), ended("[2/2] RUN b", true)],
                elapsed
            ),
            "{\"log\":[\"v: T [1/2] FROM a 0.00s\",\"v: T [2/2] RUN b 0.00s\"],\"status\":\"in_progress\",\"duration\":0.201,\
             \"cached\":[\"[2/2] RUN b\"]}\n"
        );
        assert_eq!(
            StreamFormat::Ndjson.terminal_record(failed_report("exit code: 3")),
            "{\"image\":\"registry/hello:1\",\"status\":\"failed\",\"error\":\"exit code: 3\",\"duration\":1.5}\n"
        );
    }

    #[test]
    fn a_terminal_record_is_below_64_kib_whatever_it_contains() {
        for filling in ["x", "ü", "\u{1}", "\"", "\n", "\u{2028}"] {
            let mut report = failed_report(&filling.repeat(100_000));
            report.deployment = Some(json!({"status": "failed", "reasons": [filling.repeat(100_000)]}));
            let reason = format!(
                "the container ended with {0}; its log ends with: {1}",
                filling.repeat(1000),
                vec![filling.repeat(300); 20].join(" | "),
            );
            report.hint = hint::explain_deployment(&json!({"reasons": [reason]})).map(Box::new);
            assert!(report.hint.is_some());
            for _ in 0..100 {
                report.warnings.push(filling.repeat(100_000));
            }
            let record = StreamFormat::EventStream.terminal_record(report);

            assert!(record.len() <= MAX_RECORD_BYTES, "{filling:?}: {}", record.len());
            let json: Value = serde_json::from_slice(&record["data: ".len()..]).expect("JSON");
            assert_eq!(json["deployment"]["status"], "failed");
            let last = json["warnings"].as_array().and_then(|warnings| warnings.last());
            assert!(
                last.is_some_and(|last| last.to_string().contains("more warnings")),
                "{last:?}"
            );
            let error = json["error"].as_str().expect("text");
            assert!(
                error.starts_with(filling) && error.ends_with("bytes more"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_record_is_one_line_for_readers_that_split_lines_by_the_rules_of_unicode() {
        let log = ["l: a\u{2028}b\u{2029}c\u{85}d".to_owned().into()];
        for format in [StreamFormat::Ndjson, StreamFormat::EventStream] {
            for record in [
                format.progress_record(&log, Duration::ZERO),
                format.terminal_record(failed_report(&log[0].text)),
            ] {
                let record = std::str::from_utf8(&record).expect("UTF-8");
                assert!(record.contains(r"l: a\u2028b\u2029c\u0085d"), "{record}");
                assert!(
                    !record
                        .trim_end()
                        .contains(|end: char| end.is_control() || "\u{2028}\u{2029}".contains(end))
                );
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn a_record_of_lines_that_fit_is_one_line_below_64_kib(lines in prop::collection::vec((".{0,2000}|(\u{1}|\u{2028}){0,8000}", any::<bool>()), 0..60)) {
            let mut space = RecordSpace::new();
            let lines = lines.into_iter().map(|(text, ends_cached_step)| FlaggedLine {
                text: if ends_cached_step { format!("v: T {text} 0.00s") } else { text },
                ends_cached_step,
            });
            let fitting: Vec<_> = lines.take_while(|line| space.reserve_for_line(line)).collect();
            for format in [StreamFormat::Ndjson, StreamFormat::EventStream] {
                let record = format.progress_record(&fitting, Duration::MAX);
                prop_assert!(record.len() <= MAX_RECORD_BYTES);
                prop_assert_eq!(record.iter().filter(|byte| **byte == b'\n').count(), if format == StreamFormat::Ndjson { 1 } else { 2 });
            }
        }
    }
}
