//! The records of a streamed answer, as bytes.

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use super::{MAX_LINE, Report, milliseconds};

/// Bytes of a record with all that frames it. OpenFaaS's SDK reads by lines, and stops for good, without a word, at one
/// of 64 KiB.
pub const MAX_RECORD: usize = (64 << 10) - 1;

/// What a record needs besides its lines: names, a number, the frame.
const FIELDS: usize = 256;

/// As many bytes can the texts of a terminal record have, each.
const MAX_TEXT: usize = 16 << 10;

// A byte of a line is six in JSON at the most, and a line has a time before its text: every one fits into a record.
const _: () = assert!(6 * (MAX_LINE + 64) + FIELDS <= MAX_RECORD);

/// How records follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `application/x-ndjson`: one to a line.
    Lines,
    /// `text/event-stream`: each is the data of an event. The Community gateway passes on nothing else as it comes.
    Events,
}

#[derive(Serialize)]
struct Progress<'a> {
    log: &'a [String],
    status: &'static str,
    #[serde(serialize_with = "milliseconds")]
    duration: f64,
}

impl Format {
    /// The media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Lines => "application/x-ndjson",
            Self::Events => "text/event-stream",
        }
    }

    /// A record of a build that runs.
    pub(super) fn progress(self, log: &[String], since: Duration) -> Bytes {
        self.frame(&Progress {
            log,
            status: "in_progress",
            duration: since.as_secs_f64(),
        })
    }

    /// The last record.
    pub fn terminal(self, mut report: Report) -> Bytes {
        report.log = None;
        if let Some(error) = &mut report.error {
            shorten(error);
        }
        if let Some(deployment) = &mut report.deployment
            && deployment.to_string().len() > MAX_TEXT
        {
            // A deployer of ours never says as much. What matters is how it ended.
            let status = deployment["status"].take();
            let reason = "the deployer's answer is too long to be repeated here";
            *deployment = serde_json::json!({"status": status, "reasons": [reason]});
        }
        self.frame(&report)
    }

    fn frame(self, record: &impl Serialize) -> Bytes {
        // Texts and numbers: this cannot fail.
        let json = serde_json::to_vec(record).unwrap_or_default();
        match self {
            Self::Lines => [&json[..], b"\n"].concat().into(),
            Self::Events => [b"data: ", &json[..], b"\n\n"].concat().into(),
        }
    }
}

/// Room for the lines of one record.
pub(super) struct Room(usize);

impl Room {
    pub(super) fn new() -> Self {
        Self(MAX_RECORD - FIELDS)
    }

    /// Whether `line` fits in as well; then it has its place.
    pub(super) fn fits(&mut self, line: &str) -> bool {
        // Quotes and a comma.
        let left = self.0.checked_sub(escaped_len(line) + 3);
        self.0 = left.unwrap_or(self.0);
        left.is_some()
    }
}

/// Bytes of `text` in a JSON string.
fn escaped_len(text: &str) -> usize {
    let escaped = |byte| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..0x20 => 6,
        _ => 1,
    };
    text.bytes().map(escaped).sum()
}

/// Cuts `text` to what a record has room for.
fn shorten(text: &mut String) {
    if escaped_len(text) <= MAX_TEXT {
        return;
    }
    let mut length = 0;
    let end = text.char_indices().find(|(at, character)| {
        length += escaped_len(&text[*at..*at + character.len_utf8()]);
        length > MAX_TEXT
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
    use crate::report::Ending;

    fn failed(error: &str) -> Report {
        Report {
            log: Some(vec!["l: not here".into()]),
            image: Some("registry/hello:1".into()),
            digest: None,
            status: Ending::Failed,
            error: Some(error.into()),
            deployment: None,
            duration: 1.5,
        }
    }

    #[test]
    fn records_are_what_clients_read() {
        let log = ["l: a".to_owned()];
        let since = Duration::from_millis(201);
        assert_eq!(
            Format::Lines.progress(&log, since),
            "{\"log\":[\"l: a\"],\"status\":\"in_progress\",\"duration\":0.201}\n"
        );
        assert_eq!(
            Format::Events.progress(&[], since),
            "data: {\"log\":[],\"status\":\"in_progress\",\"duration\":0.201}\n\n"
        );
        assert_eq!(
            Format::Lines.terminal(failed("exit code: 3")),
            "{\"image\":\"registry/hello:1\",\"status\":\"failed\",\"error\":\"exit code: 3\",\"duration\":1.5}\n"
        );
    }

    #[test]
    fn a_terminal_record_is_short_enough_whatever_is_in_it() {
        for filling in ["x", "ü", "\u{1}", "\"", "\n"] {
            let mut report = failed(&filling.repeat(100_000));
            report.deployment = Some(json!({"status": "failed", "reasons": [filling.repeat(100_000)]}));
            let record = Format::Events.terminal(report);

            assert!(record.len() <= MAX_RECORD, "{filling:?}: {}", record.len());
            let json: Value = serde_json::from_slice(&record["data: ".len()..]).expect("JSON");
            assert_eq!(json["deployment"]["status"], "failed");
            let error = json["error"].as_str().expect("text");
            assert!(
                error.starts_with(filling) && error.ends_with("bytes more"),
                "{error}"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn lines_that_fit_make_a_record_that_is_read_whole(lines in prop::collection::vec(".{0,2000}|\u{1}{0,8000}", 0..60)) {
            let mut room = Room::new();
            let fitting: Vec<_> = lines.into_iter().take_while(|line| room.fits(line)).collect();
            for format in [Format::Lines, Format::Events] {
                let record = format.progress(&fitting, Duration::MAX);
                prop_assert!(record.len() <= MAX_RECORD);
                prop_assert_eq!(record.iter().filter(|byte| **byte == b'\n').count(), if format == Format::Lines { 1 } else { 2 });
            }
            for line in &fitting {
                prop_assert_eq!(escaped_len(line) + 2, serde_json::to_string(line).expect("JSON").len());
            }
        }
    }
}
