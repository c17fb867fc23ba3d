//! What of a source context a session client is to show, given the patterns that BuildKit sent along.
//!
//! It is the client that applies `.dockerignore`: BuildKit's frontend reads the file, and sends its lines back as
//! exclude patterns of a second request. This is fsutil's `FilterFS` and its `WithHardlinkReset`, on the index.

mod follow;
mod glob;
mod patterns;

use std::collections::HashMap;

use super::{Entry, Kind, SourceContext, order};
use patterns::{Matched, Pattern, Patterns};

/// The patterns of one file-sync request, as they came in its metadata.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// `include-patterns`: when there are any, only what one of them matches is shown.
    pub include: Vec<String>,
    /// `exclude-patterns`: what they match is not shown; `!` makes exceptions. This is how `.dockerignore` arrives.
    pub exclude: Vec<String>,
    /// `followpaths`: paths to include together with whatever links on the way to them point to.
    pub follow: Vec<String>,
}

/// An entry as it is to be sent. Entries are named by their place in [`SourceContext::entries`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visible {
    /// What is there.
    pub entry: u32,
    /// For all but the first of several hard links: the first one that is sent.
    pub link: Option<u32>,
}

/// A pattern that cannot be understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("bad pattern {pattern:?}: {reason}")]
pub struct PatternError {
    /// The pattern.
    pub pattern: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// The entries to send, in the order in which to send them.
///
/// # Errors
/// When one of the patterns is malformed.
pub fn view(context: &SourceContext, filter: &Filter) -> Result<Vec<Visible>, PatternError> {
    let mut include = Some(filter.include.clone());
    if !filter.follow.is_empty()
        && let Some(targets) = follow::follow(context, &filter.follow)?
    {
        include = follow::without_nested(filter.include.iter().cloned().chain(targets));
    }
    let include = include.filter(|patterns| !patterns.is_empty());
    let include = include.as_deref().map(Side::include).transpose()?;
    let exclude = Some(&filter.exclude[..]).filter(|patterns| !patterns.is_empty());
    let exclude = exclude.map(Side::exclude).transpose()?;
    let shown = walk(context, include.as_ref(), exclude.as_ref());
    Ok(with_links(context, shown))
}

/// One of the two lists of patterns.
struct Side {
    patterns: Patterns,
    /// Whether those patterns that speak for showing something name folders without wildcards before the end. Then
    /// folders in which none of them can match need not be entered.
    only_prefixes: bool,
    shows: fn(&Pattern) -> bool,
}

/// A folder on the way to the current entry.
struct Folder<'a> {
    at: u32,
    entry: &'a Entry,
    include: Matched,
    exclude: Matched,
    is_shown: bool,
}

impl Side {
    fn include(patterns: &[String]) -> Result<Self, PatternError> {
        Self::new(patterns, |pattern| !pattern.is_exception())
    }

    fn exclude(patterns: &[String]) -> Result<Self, PatternError> {
        Self::new(patterns, Pattern::is_exception)
    }

    fn new(patterns: &[String], shows: fn(&Pattern) -> bool) -> Result<Self, PatternError> {
        let patterns = Patterns::parse(patterns)?;
        let is_prefix = |pattern: &Pattern| {
            !pattern
                .without_trailing_glob()
                .contains(['*', '[', ']', '?', '^', '\\'])
        };
        let only_prefixes = patterns.iter().filter(|pattern| shows(pattern)).all(is_prefix);
        Ok(Self {
            patterns,
            only_prefixes,
            shows,
        })
    }

    /// Whether nothing below the folder, which is not to be shown itself, can be to be shown.
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
                .any(|pattern| (self.shows)(pattern) && leads_here(pattern))
    }
}

/// All entries that the patterns let through, and the folders that lead to them.
fn walk(context: &SourceContext, include: Option<&Side>, exclude: Option<&Side>) -> Vec<u32> {
    let mut shown = Vec::new();
    let mut folders: Vec<Folder<'_>> = Vec::new();
    let mut skipped: Option<&str> = None;
    for (at, entry) in (0..).zip(context.entries()) {
        if skipped.is_some_and(|folder| order::is_within(&entry.path, folder)) {
            continue;
        }
        while folders
            .last()
            .is_some_and(|folder| !order::is_within(&entry.path, &folder.entry.path))
        {
            folders.pop();
        }
        let mut folder = Folder {
            at,
            entry,
            include: Matched::new(),
            exclude: Matched::new(),
            is_shown: false,
        };
        let mut is_hidden = false;
        if let Some(include) = include {
            let inherited = folders.last().map_or(&[][..], |folder| &folder.include);
            let (matches, each) = include.patterns.matches(&entry.path, inherited);
            folder.include = each;
            if !matches {
                if entry.is_directory() && include.rules_out(&entry.path) {
                    skipped = Some(&entry.path);
                    continue;
                }
                is_hidden = true;
            }
        }
        if let Some(exclude) = exclude {
            let inherited = folders.last().map_or(&[][..], |folder| &folder.exclude);
            let (matches, each) = exclude.patterns.matches(&entry.path, inherited);
            folder.exclude = each;
            if matches {
                if entry.is_directory()
                    && (!exclude.patterns.has_exceptions() || exclude.rules_out(&entry.path))
                {
                    skipped = Some(&entry.path);
                    continue;
                }
                is_hidden = true;
            }
        }
        if !is_hidden {
            for above in folders.iter_mut().filter(|above| !above.is_shown) {
                above.is_shown = true;
                shown.push(above.at);
            }
            folder.is_shown = true;
            shown.push(at);
        }
        if entry.is_directory() {
            folders.push(folder);
        }
    }
    shown
}

/// Says of every hard link which entry before it is the same file.
fn with_links(context: &SourceContext, shown: Vec<u32>) -> Vec<Visible> {
    let offset = |at: u32| match context.entries()[at as usize].kind {
        Kind::File { offset, .. } => Some(offset),
        _ => None,
    };
    // Few files have links, and a table of all of them would be larger than what is made here.
    let mut offsets: Vec<u64> = shown.iter().filter_map(|at| offset(*at)).collect();
    offsets.sort_unstable();
    let shared = offsets.windows(2).filter(|pair| pair[0] == pair[1]);
    let mut firsts: HashMap<u64, Option<u32>> = shared.map(|pair| (pair[0], None)).collect();
    drop(offsets);
    let with_link = |at: u32| {
        let first = offset(at).and_then(|offset| firsts.get_mut(&offset));
        let first = first.map(|first| *first.get_or_insert(at));
        Visible {
            entry: at,
            link: first.filter(|first| *first != at),
        }
    };
    shown.into_iter().map(with_link).collect()
}

#[cfg(test)]
mod tests;
