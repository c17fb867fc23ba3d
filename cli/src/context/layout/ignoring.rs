//! The ignore file of a context, found before the context is laid out, so that what it excludes is never looked at.

use std::fs;
use std::path::PathBuf;

use builder_fn::context::{IgnoreRules, PatternOrCancellationError, PatternsMatchingFolder};

use super::{drop_dot_and_dot_dot_components, unreadable};
use crate::failure::Failure;
use crate::function::Function;

/// The ignore files at the root of a context, of which BuildKit reads the first that exists.
const IGNORE_FILES: [&str; 2] = ["Dockerfile.dockerignore", ".dockerignore"];

/// Files at the root of a context that BuildKit reads even if the ignore file excludes them.
const ALWAYS_KEPT_FILES: [&str; 4] = [
    "Dockerfile",
    "dockerfile",
    "Dockerfile.dockerignore",
    ".dockerignore",
];

/// The rules of a context's ignore file, and the file; without one, nothing is excluded.
pub(super) struct ContextIgnoreRules(Option<(IgnoreRules, PathBuf)>);

/// What is to be done with one path of a context.
pub(super) struct PathDecision {
    /// Whether the path is part of the context.
    pub(super) is_kept: bool,
    /// Whether something below the path may be part of the context, if it is a folder.
    pub(super) is_entered: bool,
    /// The patterns that match the path, for the paths in it.
    pub(super) matched: PatternsMatchingFolder,
}

impl ContextIgnoreRules {
    /// Finds and parses the ignore file of a function's context: among the copied paths, the handler and the template,
    /// in this order, as far as they are laid out at the context's root.
    ///
    /// # Errors
    /// Fails if the file cannot be read or is malformed.
    pub(super) fn of_function(function: &Function) -> Result<Self, Failure> {
        let template = function.template.as_ref();
        let is_handler_at_root = template
            .is_none_or(|template| drop_dot_and_dot_dot_components(&template.handler_folder).is_empty());
        let found = IGNORE_FILES.iter().find_map(|name| {
            let copied = function
                .copied_paths
                .iter()
                .map(|path| drop_dot_and_dot_dot_components(path));
            let copied = copied.filter(|path| path == name).map(PathBuf::from);
            let handler = copied.chain([function.handler.join(name)]);
            let at_root = handler.filter(|_| is_handler_at_root);
            let in_template = template.map(|template| template.folder.join(name));
            at_root.chain(in_template).find(|path| path.is_file())
        });
        let Some(file) = found else {
            return Ok(Self(None));
        };
        let content = fs::read(&file).map_err(|error| unreadable(&file, &error))?;
        match IgnoreRules::parse(&content) {
            Ok(rules) => Ok(Self(Some((rules, file)))),
            Err(error) => Err(malformed(&file, &error)),
        }
    }

    /// Decides about a path. `parent` has the patterns that match its folder: `matched` of the decision about that.
    ///
    /// # Errors
    /// Fails if a malformed pattern has to be tried.
    pub(super) fn decide(
        &self,
        path: &str,
        parent: &PatternsMatchingFolder,
    ) -> Result<PathDecision, Failure> {
        let Some((rules, file)) = &self.0 else {
            return Ok(PathDecision {
                is_kept: true,
                is_entered: true,
                matched: PatternsMatchingFolder::default(),
            });
        };
        let decision = rules
            .decide(path, parent)
            .map_err(|error| malformed(file, &error))?;
        Ok(PathDecision {
            is_kept: !decision.is_excluded || ALWAYS_KEPT_FILES.contains(&path),
            is_entered: !decision.is_excluded || decision.may_include_below,
            matched: decision.matched,
        })
    }

    /// Returns the patterns that match a folder, after those above it; `None` if nothing in it is part of the context.
    ///
    /// # Errors
    /// Fails if a malformed pattern has to be tried.
    pub(super) fn patterns_matching_folder_unless_excluded(
        &self,
        folder: &str,
    ) -> Result<Option<PatternsMatchingFolder>, Failure> {
        let mut matched = PatternsMatchingFolder::default();
        let ends = folder.match_indices('/').map(|(at, _)| at);
        for end in ends.chain([folder.len()]).filter(|end| *end > 0) {
            let decision = self.decide(&folder[..end], &matched)?;
            if !decision.is_entered {
                return Ok(None);
            }
            matched = decision.matched;
        }
        Ok(Some(matched))
    }
}

fn malformed(file: &std::path::Path, error: &PatternOrCancellationError) -> Failure {
    Failure::usage(
        format!("{}: {error}", file.display()),
        "correct the pattern in that file",
    )
}
