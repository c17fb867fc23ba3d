//! The warnings of one build, each once.

use std::collections::HashSet;

use bollard_buildkit_proto::moby::buildkit::v1::VertexWarning;
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use super::BuildEvent;

/// The limit on the warnings that are remembered for one build. Further ones may repeat.
const REMEMBERED_WARNINGS_MAX: usize = 10_000;

/// The warnings of one build that were seen. BuildKit splits a batch of updates with much output into many responses, and
/// repeats the warnings of the batch in each of them.
#[derive(Debug, Default)]
pub(super) struct SeenWarnings(HashSet<[u8; 32]>);

impl SeenWarnings {
    /// Returns the event for a warning; `None` if the same warning, of the same place, was seen before.
    pub(super) fn take_new(&mut self, warning: VertexWarning) -> Option<BuildEvent> {
        // Without the text of the Dockerfile.
        let warning = VertexWarning {
            info: None,
            ..warning
        };
        let hash = Sha256::digest(warning.encode_to_vec()).into();
        let is_new = match self.0.len() < REMEMBERED_WARNINGS_MAX {
            true => self.0.insert(hash),
            false => !self.0.contains(&hash),
        };
        is_new.then(|| BuildEvent::Warning {
            text: String::from_utf8_lossy(&warning.short).into_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use bollard_buildkit_proto::pb::{Position, Range};

    use super::*;

    fn warning_at(line: i32) -> VertexWarning {
        let position = Position { line, character: 0 };
        VertexWarning {
            short: b"lower case".into(),
            ranges: vec![Range {
                start: Some(position),
                end: Some(position),
            }],
            ..VertexWarning::default()
        }
    }

    #[test]
    fn the_same_warning_of_two_lines_is_two_warnings() {
        let mut seen = SeenWarnings::default();
        let new = [1, 1, 2, 1, 2].map(|line| seen.take_new(warning_at(line)).is_some());
        assert_eq!(new, [true, false, true, false, false]);
    }

    #[test]
    fn warnings_beyond_the_limit_are_passed_on_and_not_remembered() {
        let mut seen = SeenWarnings::default();
        for line in 0..=10_000 {
            assert!(seen.take_new(warning_at(line)).is_some());
        }
        assert_eq!(seen.0.len(), REMEMBERED_WARNINGS_MAX);
        assert!(seen.take_new(warning_at(0)).is_none());
        assert!(seen.take_new(warning_at(10_000)).is_some());
    }
}
