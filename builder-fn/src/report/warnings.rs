//! The warnings of a build as data: what a client may want to fail on, besides the lines in the log.

use serde::{Serialize, Serializer};

use super::json::escaped_json_bytes;
use super::record::cut_to_escaped_len_then_add_note;

/// The limit on the size of a build's warnings, in bytes of JSON, besides those of an incomplete log. A terminal record
/// has room for them.
const MAX_BYTES_OF_ALL_WARNINGS: usize = 12 << 10;

/// The size, in bytes of JSON, after which the text of a warning is cut.
const MAX_BYTES_OF_ONE_WARNING: usize = 4 << 10;

/// A list of warnings with a limit on its size. Serialized, it ends with the number of those that had no room, if any.
#[derive(Clone, Debug, Default)]
pub(crate) struct Warnings {
    texts: Vec<String>,
    /// Bytes of the texts, in JSON.
    held: usize,
    /// The number of warnings that had no room.
    more: usize,
}

impl Warnings {
    /// Returns whether there was no warning.
    pub(crate) fn is_empty(&self) -> bool {
        self.texts.is_empty() && self.more == 0
    }

    /// Appends a warning, or counts it if there is no room for it or for an earlier one.
    pub(crate) fn push(&mut self, mut text: String) {
        cut_to_escaped_len_then_add_note(&mut text, MAX_BYTES_OF_ONE_WARNING);
        let held = self.held + escaped_json_bytes(&text);
        if self.more > 0 || held > MAX_BYTES_OF_ALL_WARNINGS {
            self.more += 1;
        } else {
            self.held = held;
            self.texts.push(text);
        }
    }

    /// Appends the warnings of another list, each text once.
    pub(crate) fn append(&mut self, other: Self) {
        for text in other.texts {
            if !self.texts.contains(&text) {
                self.push(text);
            }
        }
        self.more += other.more;
    }

    /// Appends a short warning that lines of the build's log are missing, and why; it is kept even if the list is full.
    pub(crate) fn push_incomplete_log(&mut self, reason: &str) {
        self.texts.push(format!("the log is incomplete: {reason}"));
    }
}

impl Serialize for Warnings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let more =
            (self.more > 0).then(|| format!("… and {} more warnings, which are in the log", self.more));
        serializer.collect_seq(self.texts.iter().chain(&more))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::report::to_json_with_escaped_line_ends;

    #[test]
    fn a_long_list_is_shortened_and_says_how_many_more_there_were() {
        for filling in ["x", "ü", "\u{1}", "\u{2028}"] {
            let mut warnings = Warnings::default();
            for _ in 0..1000 {
                warnings.push(filling.repeat(100));
            }
            warnings.push_incomplete_log("7 lines were left out");

            let list = serde_json::to_value(&warnings).expect("JSON");
            let list = list.as_array().expect("a list");
            let kept = list.len() - 2;
            assert_eq!(
                list[list.len() - 2],
                "the log is incomplete: 7 lines were left out"
            );
            assert_eq!(
                list[list.len() - 1],
                format!("… and {} more warnings, which are in the log", 1000 - kept)
            );
            assert!(
                to_json_with_escaped_line_ends(&warnings).len() < MAX_BYTES_OF_ALL_WARNINGS + 4096,
                "{filling:?}"
            );
        }
    }

    #[test]
    fn a_long_warning_is_cut_and_the_next_one_is_kept() {
        let mut warnings = Warnings::default();
        warnings.push("\u{1}".repeat(100_000));
        warnings.push("b".into());

        let list = serde_json::to_value(&warnings).expect("JSON");
        assert!(list[0].as_str().is_some_and(|text| text.ends_with("bytes more")));
        assert_eq!(list[1], "b");
        assert_eq!(list[2], Value::Null);
    }

    #[test]
    fn no_warnings_are_serialized_as_an_empty_list() {
        assert!(Warnings::default().is_empty());
        assert_eq!(
            serde_json::to_value(Warnings::default()).expect("JSON"),
            json!([])
        );
    }
}
