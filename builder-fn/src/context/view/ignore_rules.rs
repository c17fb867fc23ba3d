//! The rules of an ignore file, for a client that leaves out of a context what BuildKit would not read of it.

use super::effort::MatchingEffort;
use super::ignore_file::line_numbers_and_pattern_texts;
use super::patterns::MatchedOfTriedPatterns;
use super::{PatternOrCancellationError, PatternSelection};

/// The rules of an ignore file such as `.dockerignore`, applied path by path from the root of a context down.
pub struct IgnoreRules {
    patterns: PatternSelection,
}

/// The patterns that match a folder, which the paths directly in it inherit. The default is that of the context's root.
#[derive(Clone, Debug, Default)]
pub struct PatternsMatchingFolder(MatchedOfTriedPatterns);

/// The decision of [`IgnoreRules`] about one path.
#[derive(Clone, Debug)]
pub struct IgnoreDecision {
    /// Whether the path itself is excluded.
    pub is_excluded: bool,
    /// Whether an exception (`!`) may include paths below, if the path is an excluded folder.
    pub may_include_below: bool,
    /// The patterns that match the path, for the paths in it.
    pub matched: PatternsMatchingFolder,
}

impl IgnoreRules {
    /// Parses the content of an ignore file.
    ///
    /// # Errors
    /// Fails if a pattern is malformed, or there are too many or too long ones.
    pub fn parse(content: &[u8]) -> Result<Self, PatternOrCancellationError> {
        let texts: Vec<_> = line_numbers_and_pattern_texts(content)
            .map(|(_, text)| text)
            .collect();
        Ok(Self {
            patterns: PatternSelection::by_excludes(&texts)?,
        })
    }

    /// Decides about `path`, relative to the context and without a trailing slash. `parent` is the decision's
    /// [`matched`](IgnoreDecision::matched) about the folder that it is in.
    ///
    /// # Errors
    /// Fails if a malformed pattern has to be tried.
    pub fn decide(
        &self,
        path: &str,
        parent: &PatternsMatchingFolder,
    ) -> Result<IgnoreDecision, PatternOrCancellationError> {
        let mut effort = MatchingEffort::new(usize::MAX, "the patterns are too complex", &|| true);
        let (is_excluded, matched) = self.patterns.patterns.matches(path, &parent.0, &mut effort)?;
        Ok(IgnoreDecision {
            is_excluded,
            may_include_below: self.patterns.patterns.has_exceptions() && !self.patterns.rules_out(path),
            matched: PatternsMatchingFolder(matched),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns whether a path is excluded, after a decision about every folder above it.
    fn is_excluded(rules: &IgnoreRules, path: &str) -> bool {
        let mut folder = PatternsMatchingFolder::default();
        let mut end = 0;
        loop {
            end = path[end..].find('/').map_or(path.len(), |at| end + at);
            let decision = rules.decide(&path[..end], &folder).expect("valid patterns");
            if end == path.len() || decision.is_excluded && !decision.may_include_below {
                return decision.is_excluded;
            }
            folder = decision.matched;
            end += 1;
        }
    }

    #[test]
    fn a_path_is_excluded_by_a_pattern_for_a_folder_above_it_unless_an_exception_follows() {
        let rules =
            IgnoreRules::parse(b"# a comment\ntarget\n**/*.log\nnotes/*\n!notes/keep.md\n").expect("valid");
        for (path, expected) in [
            ("target", true),
            ("target/debug/a", true),
            ("function/target/a", false),
            ("a/b/c.log", true),
            ("notes/other.md", true),
            ("notes/keep.md", false),
            ("notes", false),
            ("src/main.rs", false),
        ] {
            assert_eq!(is_excluded(&rules, path), expected, "{path}");
        }
    }

    #[test]
    fn a_malformed_pattern_is_an_error_that_names_it() {
        let error = IgnoreRules::parse(b"ok\na[\n")
            .err()
            .expect("a malformed pattern");
        assert_eq!(error.pattern, "a[");
    }
}
