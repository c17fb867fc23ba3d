//! The records of a streamed answer and of a log.

use serde_json::Value;

/// A record of a stream.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Record {
    /// Lines of the log, while the build runs.
    Progress {
        /// The number of the last line, in a log.
        seq: Option<u64>,
        /// The lines; none in a record that only keeps the connection alive.
        lines: Vec<String>,
    },
    /// The outcome of the build.
    Terminal(Value),
}

impl Record {
    /// Parses a line of the builder's answer as a record; `None` if it is not one.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        match value["status"].as_str()? {
            "in_progress" => Some(Self::Progress {
                seq: value["seq"].as_u64(),
                lines: value["log"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|line| line.as_str().map(str::to_owned))
                    .collect(),
            }),
            "success" | "failed" => Some(Self::Terminal(value)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_progress_or_the_outcome_and_anything_else_is_none() {
        let progress = Record::Progress {
            seq: Some(3),
            lines: vec!["l: T a".into()],
        };
        assert_eq!(
            Record::parse(r#"{"seq":3,"log":["l: T a"],"status":"in_progress"}"#),
            Some(progress)
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
