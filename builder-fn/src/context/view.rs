//! What of a source context a session client is to show, given the patterns that BuildKit sent along.
//!
//! It is the client that applies `.dockerignore`: BuildKit's frontend reads the file, and sends its lines back as
//! exclude patterns of a second request. This is fsutil's `FilterFS` and its `WithHardlinkReset`, on the index.

mod follow;
mod glob;
mod patterns;

use super::{Kind, SourceContext};
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

/// The entries to send, in the order in which to send them.
#[derive(Debug, Default)]
pub struct View {
    /// By their numbers in the [`Index`](super::Index).
    shown: Vec<u32>,
    /// Which of those shown are links, by their place among them, and the first one that each is a link of.
    links: Vec<(u32, u32)>,
}

/// An entry as it is to be sent. Entries are named by their number in the [`Index`](super::Index).
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

/// What `filter` leaves of the context.
///
/// # Errors
/// When one of the patterns is malformed.
pub fn view(context: &SourceContext, filter: &Filter) -> Result<View, PatternError> {
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
    let links = links(context, &shown);
    Ok(View { shown, links })
}

impl View {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.shown.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.shown.is_empty()
    }

    /// The one at this place among them.
    pub fn get(&self, place: usize) -> Option<Visible> {
        let entry = *self.shown.get(place)?;
        let link = self
            .links
            .binary_search_by_key(&place, |(place, _)| *place as usize);
        let link = link.ok().and_then(|at| self.links.get(at));
        Some(Visible {
            entry,
            link: link.map(|(_, first)| *first),
        })
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = Visible> {
        (0..self.len()).filter_map(|place| self.get(place))
    }

    /// All of them, without what they are links of.
    pub(crate) fn entries(&self) -> &[u32] {
        &self.shown
    }
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
struct Folder {
    at: u32,
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
    let index = context.index();
    let mut shown = Vec::new();
    let mut folders: Vec<Folder> = Vec::new();
    let mut walk = index.walk();
    while let Some((at, path)) = walk.step() {
        let above = index.folder(at);
        while folders.last().is_some_and(|folder| Some(folder.at) != above) {
            folders.pop();
        }
        let is_directory = index.is_directory(at);
        let mut folder = Folder {
            at,
            include: Matched::new(),
            exclude: Matched::new(),
            is_shown: false,
        };
        let mut is_hidden = false;
        if let Some(include) = include {
            let inherited = folders.last().map_or(&[][..], |folder| &folder.include);
            let (matches, each) = include.patterns.matches(path, inherited);
            folder.include = each;
            if !matches {
                if is_directory && include.rules_out(path) {
                    walk.pass_by();
                    continue;
                }
                is_hidden = true;
            }
        }
        if let Some(exclude) = exclude {
            let inherited = folders.last().map_or(&[][..], |folder| &folder.exclude);
            let (matches, each) = exclude.patterns.matches(path, inherited);
            folder.exclude = each;
            if matches {
                if is_directory && (!exclude.patterns.has_exceptions() || exclude.rules_out(path)) {
                    walk.pass_by();
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
        if is_directory {
            folders.push(folder);
        }
    }
    shown
}

/// The hard links among those shown, each with the first one that is the same file.
fn links(context: &SourceContext, shown: &[u32]) -> Vec<(u32, u32)> {
    let index = context.index();
    let linked = (0..).zip(shown).filter(|(_, at)| index.is_linked(**at));
    let offset = |at: u32| match index.entry(at).kind {
        Kind::File { offset, .. } => Some(offset),
        _ => None,
    };
    let mut linked: Vec<(u64, u32, u32)> = linked
        .filter_map(|(place, at)| Some((offset(*at)?, place, *at)))
        .collect();
    linked.sort_unstable();
    let same_file = linked.chunk_by(|one, next| one.0 == next.0);
    let mut links: Vec<(u32, u32)> = same_file
        .flat_map(|names| {
            let first = names.first().map(|(_, _, first)| *first);
            let others = names.iter().skip(1);
            others.filter_map(move |(_, place, _)| Some((*place, first?)))
        })
        .collect();
    links.sort_unstable();
    links
}

#[cfg(test)]
mod tests;
