//! The records of a streamed answer and of a log.

use serde_json::{Value, json};

/// A record of a stream.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Record {
    /// Lines of the log, while the build runs.
    Progress {
        /// The number of the last line, in a log.
        seq: Option<u64>,
        /// The lines; none in a record that only keeps the connection alive.
        lines: Vec<String>,
        /// The names of cached steps: of those that end in `lines`, and of others that have no lines.
        cached: Vec<String>,
    },
    /// A warning about the log: it begins again, and so do the numbers of its lines.
    NumbersRestart {
        /// The number before that of the next line.
        seq: u64,
        /// The warning.
        warning: String,
    },
    /// The outcome of the build.
    Terminal(Value),
}

impl Record {
    /// Parses a line of the builder's answer as a record; `None` if it is not one.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let texts = |key: &str| {
            let texts = value[key].as_array().into_iter().flatten();
            texts
                .filter_map(|text| text.as_str().map(str::to_owned))
                .collect()
        };
        match value["status"].as_str()? {
            "in_progress" if value["warning"].is_string() => Some(Self::NumbersRestart {
                seq: value["seq"].as_u64()?,
                warning: value["warning"].as_str()?.to_owned(),
            }),
            "in_progress" => Some(Self::Progress {
                seq: value["seq"].as_u64(),
                lines: texts("log"),
                cached: texts("cached"),
            }),
            "success" | "failed" => Some(Self::Terminal(value)),
            _ => None,
        }
    }
}

/// Returns a record of progress with a line or a cached step as the command prints it; `None` for one that only keeps
/// the connection alive.
pub(crate) fn printed_progress_record(
    seq: Option<u64>,
    lines: &[String],
    cached: &[String],
) -> Option<Value> {
    let mut record = json!({"seq": seq, "log": lines, "status": "in_progress"});
    if !cached.is_empty() {
        record["cached"] = json!(cached);
    }
    (!lines.is_empty() || !cached.is_empty()).then_some(record)
}

/// Returns the record that says that the numbers of the lines begin again, as the command prints it.
pub(crate) fn printed_restart_record(seq: u64, warning: &str) -> Value {
    json!({"seq": seq, "log": [], "status": "in_progress", "warning": warning})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_progress_or_the_outcome_and_anything_else_is_none() {
        let progress = Record::Progress {
            seq: Some(3),
            lines: vec!["l: T a".into()],
            cached: Vec::new(),
        };
        assert_eq!(
            Record::parse(r#"{"seq":3,"log":["l: T a"],"status":"in_progress"}"#),
            Some(progress)
        );
        let cached = Record::Progress {
            seq: Some(3),
            lines: Vec::new(),
            cached: vec!["[1/2] RUN a".into()],
        };
        assert_eq!(
            Record::parse(r#"{"seq":3,"log":[],"status":"in_progress","cached":["[1/2] RUN a"]}"#),
            Some(cached)
        );
        let restart = Record::NumbersRestart {
            seq: 0,
            warning: "again".into(),
        };
        assert_eq!(
            Record::parse(&printed_restart_record(0, "again").to_string()),
            Some(restart)
        );
        assert!(matches!(
            Record::parse(r#"{"status":"failed","error":"x"}"#),
            Some(Record::Terminal(_))
        ));
        for text in ["", "{}", "[]", "x", r#"{"status":"ok"}"#] {
            assert_eq!(Record::parse(text), None, "{text}");
        }
    }
}
