//! The part of a source context that the patterns of a file-sync request select.
//!
//! The client applies `.dockerignore`: BuildKit's frontend reads the file, and sends its lines back as exclude patterns
//! of a second request (`docs/pitfalls.md#file-sync`). This module does what fsutil's `FilterFS` and
//! `WithHardlinkReset` do, on the index.

mod effort;
mod follow;
mod glob;
mod go_match;
mod ignore_file;
mod ignore_rules;
mod patterns;

use super::{Kind, SourceContext};
use effort::MatchingEffort;
pub use ignore_file::excluding_pattern_if_found;
pub(crate) use ignore_file::pattern_problems;
pub use ignore_rules::{IgnoreDecision, IgnoreRules, PatternsMatchingFolder};
use patterns::{MatchedOfTriedPatterns, Pattern, Patterns};

/// The limit on the effort of matching patterns, in bytes of paths that are compared with a pattern, which takes
/// seconds. It is enough for a hundred patterns with wildcards on 200,000 files.
const MATCHING_EFFORT_MAX_BYTES: usize = 2 << 30;

/// The patterns in the metadata of a file-sync request.
#[derive(Clone, Debug, Default)]
pub(crate) struct ViewFilter {
    /// The `include-patterns`: if there are any, only entries that one of them matches are sent.
    pub(crate) include: Vec<String>,
    /// The `exclude-patterns`, including those of `.dockerignore`: entries that they match are not sent; `!` makes an
    /// exception.
    pub(crate) exclude: Vec<String>,
    /// The `followpaths`: paths to include, together with the targets of symbolic links on the way to them.
    pub(crate) follow: Vec<String>,
}

/// The selected entries of a context, in the order in which they are sent.
#[derive(Debug, Default)]
pub(crate) struct ContextView {
    /// The numbers of the selected entries in the [`Index`](super::Index).
    entries: Vec<u32>,
    /// The selected entries that are the same file as an earlier one, sorted by position.
    repeated: Vec<RepeatedFile>,
}

/// A selected entry that is the same file as one that is sent before it, and is sent as a hard link to that one.
#[derive(Debug)]
struct RepeatedFile {
    /// The position of the entry among the selected entries.
    position: u32,
    /// The number in the [`Index`](super::Index) of the first selected entry that is the same file.
    first_entry: u32,
}

/// An entry of a view, by its number in the [`Index`](super::Index).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ViewEntry {
    /// The number of the entry in the index.
    pub(crate) entry: u32,
    /// The number of the first selected entry that is the same file; `None` for that entry itself and for other
    /// entries.
    pub(crate) link: Option<u32>,
}

/// The error for patterns of a file-sync request or of an ignore file that are malformed, too many or too complex, or
/// no longer wanted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid pattern {pattern:?}: {reason}")]
pub struct PatternOrCancellationError {
    /// The pattern at which the selection failed; empty if none is to blame.
    pub pattern: String,
    /// The reason why the selection failed.
    pub reason: &'static str,
}

/// Selects the entries of a context that match `filter`; fails once `is_wanted` returns `false`.
///
/// # Errors
/// Fails if a pattern is malformed, when there are too many or too long patterns or matching them takes too much
/// effort, and when the result is no longer wanted.
pub(crate) fn view_while(
    is_wanted: &dyn Fn() -> bool,
    context: &SourceContext,
    filter: &ViewFilter,
) -> Result<ContextView, PatternOrCancellationError> {
    view_with_effort(MATCHING_EFFORT_MAX_BYTES, is_wanted, context, filter)
}

/// Selects the entries of a context that match `filter`.
#[cfg(test)]
pub(crate) fn view(
    context: &SourceContext,
    filter: &ViewFilter,
) -> Result<ContextView, PatternOrCancellationError> {
    view_while(&|| true, context, filter)
}

/// Selects the entries of a context that match `filter`, within the limit `effort_max_bytes`.
fn view_with_effort(
    effort_max_bytes: usize,
    is_wanted: &dyn Fn() -> bool,
    context: &SourceContext,
    filter: &ViewFilter,
) -> Result<ContextView, PatternOrCancellationError> {
    let limit = "the patterns up to this one are too many or too complex for so many files";
    let mut effort = MatchingEffort::new(effort_max_bytes, limit, is_wanted);
    let mut include = Some(filter.include.clone());
    if !filter.follow.is_empty()
        && let Some(targets) = follow::follow_links_or_none_for_root(is_wanted, context, &filter.follow)?
    {
        include = follow::without_paths_below_previous_or_none_for_root(
            filter.include.iter().cloned().chain(targets),
        );
    }
    let include = include.filter(|patterns| !patterns.is_empty());
    let include = include
        .as_deref()
        .map(PatternSelection::by_includes)
        .transpose()?;
    let exclude = Some(&filter.exclude[..]).filter(|patterns| !patterns.is_empty());
    let exclude = exclude.map(PatternSelection::by_excludes).transpose()?;
    let entries = select_entries(context, include.as_ref(), exclude.as_ref(), &mut effort)?;
    let repeated = find_repeated_files(context, &entries);
    Ok(ContextView { entries, repeated })
}

impl ContextView {
    /// Returns the number of entries in the view.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns the entry of the view at `position`.
    pub(crate) fn get(&self, position: usize) -> Option<ViewEntry> {
        let entry = *self.entries.get(position)?;
        let repeated = self
            .repeated
            .binary_search_by_key(&position, |file| file.position as usize);
        let repeated = repeated.ok().and_then(|at| self.repeated.get(at));
        Some(ViewEntry {
            entry,
            link: repeated.map(|file| file.first_entry),
        })
    }

    /// Returns an iterator over the entries of the view.
    pub(crate) fn iter(&self) -> impl Iterator<Item = ViewEntry> {
        (0..self.len()).filter_map(|position| self.get(position))
    }
}

/// A list of include or of exclude patterns, and how entries are selected by it.
struct PatternSelection {
    patterns: Patterns,
    /// Whether all selecting patterns have wildcards at most at the end. Then folders in which none of them can match
    /// are skipped.
    only_prefixes: bool,
    /// The predicate for patterns that select entries: of the exclude patterns, only exceptions do.
    selects: fn(&Pattern) -> bool,
}

/// The state of the selection for a folder above the current entry.
struct FolderState {
    at: u32,
    include: MatchedOfTriedPatterns,
    exclude: MatchedOfTriedPatterns,
    is_selected: bool,
}

impl PatternSelection {
    /// Creates the selection by include patterns, of which those without `!` select entries.
    fn by_includes(patterns: &[String]) -> Result<Self, PatternOrCancellationError> {
        Self::new(patterns, |pattern| !pattern.is_exception())
    }

    /// Creates the selection by exclude patterns, of which those with `!` select entries.
    fn by_excludes(patterns: &[String]) -> Result<Self, PatternOrCancellationError> {
        Self::new(patterns, Pattern::is_exception)
    }

    fn new(patterns: &[String], selects: fn(&Pattern) -> bool) -> Result<Self, PatternOrCancellationError> {
        let patterns = Patterns::parse_deferring_some_errors_until_tried(patterns)?;
        let is_prefix = |pattern: &Pattern| {
            !pattern
                .without_trailing_glob()
                .contains(['*', '[', ']', '?', '^', '\\'])
        };
        let only_prefixes = patterns.iter().filter(|pattern| selects(pattern)).all(is_prefix);
        Ok(Self {
            patterns,
            only_prefixes,
            selects,
        })
    }

    /// Returns whether no entry below `folder` can match the patterns; `folder` itself must not match them.
    fn rules_out(&self, folder: &str) -> bool {
        let leads_here = |pattern: &Pattern| {
            let prefix = pattern.without_trailing_glob();
            prefix
                .strip_prefix(folder)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.only_prefixes
            && !self
                .patterns
                .iter()
                .any(|pattern| (self.selects)(pattern) && leads_here(pattern))
    }
}

/// Returns the numbers of the entries that the patterns select, and of the folders above them.
///
/// # Errors
/// Fails if a malformed pattern is tried, and as [`MatchingEffort`].
fn select_entries(
    context: &SourceContext,
    include: Option<&PatternSelection>,
    exclude: Option<&PatternSelection>,
    effort: &mut MatchingEffort<'_>,
) -> Result<Vec<u32>, PatternOrCancellationError> {
    let index = context.index();
    let mut selected = Vec::new();
    let mut folders: Vec<FolderState> = Vec::new();
    let mut walk = index.walk();
    while let Some((at, path)) = walk.next_entry_or_none_then_restart() {
        effort
            .check_wanted()
            .map_err(|reason| PatternOrCancellationError {
                pattern: String::new(),
                reason,
            })?;
        let above = index.parent_folder(at);
        while folders.last().is_some_and(|folder| Some(folder.at) != above) {
            folders.pop();
        }
        let is_folder = index.is_folder(at);
        let mut folder = FolderState {
            at,
            include: MatchedOfTriedPatterns::new(),
            exclude: MatchedOfTriedPatterns::new(),
            is_selected: false,
        };
        let mut is_excluded = false;
        if let Some(include) = include {
            let inherited = folders.last().map_or(&[][..], |folder| &folder.include);
            let (matches, each) = include.patterns.matches(path, inherited, effort)?;
            folder.include = each;
            if !matches {
                if is_folder && include.rules_out(path) {
                    walk.skip_children();
                    continue;
                }
                is_excluded = true;
            }
        }
        if let Some(exclude) = exclude {
            let inherited = folders.last().map_or(&[][..], |folder| &folder.exclude);
            let (matches, each) = exclude.patterns.matches(path, inherited, effort)?;
            folder.exclude = each;
            if matches {
                if is_folder && (!exclude.patterns.has_exceptions() || exclude.rules_out(path)) {
                    walk.skip_children();
                    continue;
                }
                is_excluded = true;
            }
        }
        if !is_excluded {
            for above in folders.iter_mut().filter(|above| !above.is_selected) {
                above.is_selected = true;
                selected.push(above.at);
            }
            folder.is_selected = true;
            selected.push(at);
        }
        if is_folder {
            folders.push(folder);
        }
    }
    Ok(selected)
}

/// Finds the selected `entries`, by their numbers in the context's index, that are the same file as an earlier one.
/// Sorts them by position.
fn find_repeated_files(context: &SourceContext, entries: &[u32]) -> Vec<RepeatedFile> {
    let index = context.index();
    let linked = (0..)
        .zip(entries)
        .filter(|(_, at)| index.may_be_hard_linked(**at));
    let offset = |at: u32| match index.entry_by_number(at).kind {
        Kind::File { offset, .. } => Some(offset),
        _ => None,
    };
    let mut linked: Vec<(u64, u32, u32)> = linked
        .filter_map(|(position, at)| Some((offset(*at)?, position, *at)))
        .collect();
    linked.sort_unstable();
    let same_file = linked.chunk_by(|one, next| one.0 == next.0);
    let mut repeated: Vec<RepeatedFile> = same_file
        .flat_map(|names| {
            let first = names.first().map(|(_, _, first)| *first);
            let others = names.iter().skip(1);
            others.filter_map(move |(_, position, _)| {
                Some(RepeatedFile {
                    position: *position,
                    first_entry: first?,
                })
            })
        })
        .collect();
    repeated.sort_unstable_by_key(|file| file.position);
    repeated
}

#[cfg(test)]
mod tests;
