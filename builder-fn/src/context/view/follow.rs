//! Resolves the symbolic links on the way to paths, as fsutil's `FollowLinks` does.

use std::collections::BTreeSet;

use super::PatternOrCancellationError;
use super::effort::MatchingEffort;
use super::glob::{self, Glob};
use crate::context::{Kind, SourceContext};

/// The limit on the length of a path in bytes. For a longer path, the original gets an error from the file system.
const PATH_MAX_BYTES: usize = 4095;

/// The limit on the effort of following links, in compared bytes. It takes seconds; a chain of links can be made to
/// take days.
const LINK_EFFORT_MAX_BYTES: usize = 256 << 20;

/// Returns the sorted paths to include so that each of `paths` can be reached through links. `None` means the root:
/// everything is included.
///
/// # Errors
/// Fails if links lead to a path that is too long, or following them takes too much effort.
pub(super) fn follow_links_or_none_for_root(
    is_wanted: &dyn Fn() -> bool,
    context: &SourceContext,
    paths: &[String],
) -> Result<Option<Vec<String>>, PatternOrCancellationError> {
    let limit = "too many links have to be followed from it";
    follow_links_with_effort(
        MatchingEffort::new(LINK_EFFORT_MAX_BYTES, limit, is_wanted),
        context,
        paths,
    )
}

/// Does what [`follow_links_or_none_for_root`] does, within the limit `effort`.
fn follow_links_with_effort(
    effort: MatchingEffort<'_>,
    context: &SourceContext,
    paths: &[String],
) -> Result<Option<Vec<String>>, PatternOrCancellationError> {
    let mut follower = LinkFollower {
        context,
        resolved: BTreeSet::new(),
        effort,
    };
    // Depth first and in order. The order matters, because a resolved path is not resolved again.
    let mut pending: Vec<String> = paths.iter().rev().cloned().collect();
    while let Some(path) = pending.pop() {
        let path = glob::join_paths(".", &path);
        let targets =
            follower
                .resolve_up_to_first_link(&path)
                .map_err(|reason| PatternOrCancellationError {
                    pattern: path.chars().take(100).collect(),
                    reason,
                })?;
        pending.extend(targets.into_iter().rev());
    }
    Ok(without_paths_below_previous_or_none_for_root(follower.resolved))
}

/// The state of following the links in one context.
struct LinkFollower<'a> {
    context: &'a SourceContext,
    resolved: BTreeSet<String>,
    effort: MatchingEffort<'a>,
}

impl LinkFollower<'_> {
    /// Follows the clean path `path` to its end or to the first symbolic link, and returns the paths to resolve next.
    fn resolve_up_to_first_link(&mut self, path: &str) -> Result<Vec<String>, &'static str> {
        if path.len() > PATH_MAX_BYTES {
            return Err("links lead to it, and it is longer than 4095 bytes");
        }
        let ends = path.match_indices('/').map(|(at, _)| at);
        for end in ends.chain([path.len()]) {
            let current = &path[..end];
            let rest = path.get(end + 1..).unwrap_or_default();
            let targets = self.targets_of_link_or_matching_links(current)?;
            if !targets.is_empty() {
                let is_new = self.resolved.insert(current.to_owned());
                let further = targets.iter().map(|to| glob::join_paths(to, rest));
                return Ok(if is_new { further.collect() } else { Vec::new() });
            }
        }
        self.resolved.insert(path.to_owned());
        Ok(Vec::new())
    }

    /// Looks up the symbolic link at `path` and returns its target, as a path from the root; for a pattern, the
    /// targets of all matching links.
    fn targets_of_link_or_matching_links(&mut self, path: &str) -> Result<Vec<String>, &'static str> {
        self.effort.check_wanted()?;
        self.effort.spend_within_limit(path.len())?;
        let (folder, name) = glob::split_folder_or_dot_and_name(path);
        if !glob::has_wildcards(name) {
            return Ok(self.rooted_link_target(path).into_iter().collect());
        }
        let Some(pattern) = Glob::parse(name) else {
            return Ok(Vec::new());
        };
        let index = self.context.index();
        let within = match folder {
            "." => None,
            _ => match index.find(folder) {
                Some(at) => Some(at),
                None => return Ok(Vec::new()),
            },
        };
        let mut targets = Vec::new();
        for at in index.children(within) {
            let name = index.name(at);
            self.effort.spend_within_limit(4 * name.len())?;
            if pattern.matches(name) {
                targets.extend(self.rooted_target_of_entry(at, folder));
            }
        }
        Ok(targets)
    }

    /// Returns the target of the symbolic link at `path`, without resolving patterns.
    fn rooted_link_target(&self, path: &str) -> Option<String> {
        let (folder, _) = glob::split_folder_or_dot_and_name(path);
        self.rooted_target_of_entry(self.context.index().find(path)?, folder)
    }

    /// Returns the target of the symbolic link `entry_number`, which is in `folder`, as an absolute path whose
    /// root is the context; `None` for another entry.
    fn rooted_target_of_entry(&self, entry_number: u32, folder: &str) -> Option<String> {
        let Kind::Symlink { target } = self.context.index().entry_by_number(entry_number).kind else {
            return None;
        };
        let target = glob::clean_path(target);
        if target.starts_with('/') {
            return Some(target);
        }
        Some(glob::join_paths("/", &glob::join_paths(folder, &target)))
    }
}

/// Removes each path that is below the last path kept before it, so that sorted paths keep no nested ones. Returns
/// `None` if the root is among the paths.
pub(super) fn without_paths_below_previous_or_none_for_root(
    paths: impl IntoIterator<Item = String>,
) -> Option<Vec<String>> {
    let mut kept: Vec<String> = Vec::new();
    for path in paths {
        if path == "." {
            return None;
        }
        let last = kept.last().map_or("", String::as_str);
        if !path.strip_prefix(last).is_some_and(|rest| rest.starts_with('/')) {
            kept.push(path);
        }
    }
    Some(kept)
}

#[cfg(test)]
mod tests {
    use super::super::tests::context_with_entries;
    use super::*;

    /// Returns the reason why `path` cannot be followed through a context of `entries`, with an effort of 1 MiB.
    fn follow_error(entries: &[String], path: &str) -> &'static str {
        let entries: Vec<&str> = entries.iter().map(String::as_str).collect();
        let effort = MatchingEffort::new(1 << 20, "too many links", &|| true);
        let error = follow_links_with_effort(effort, &context_with_entries(&entries), &[path.to_owned()])
            .unwrap_err();
        assert!(error.pattern.len() <= 100, "{}", error.pattern.len());
        error.reason
    }

    #[test]
    fn links_that_make_a_path_longer_than_4095_bytes_are_an_error() {
        let longer = format!("{}x", "x/".repeat(2000));
        let chain: Vec<String> = (0..1000)
            .map(|at| format!("{at} -> {}/{longer}", at + 1))
            .collect();
        assert!(follow_error(&chain, "0").contains("longer than 4095 bytes"));
    }

    #[test]
    fn a_chain_of_links_in_deep_folders_exceeds_the_effort_limit() {
        let deep = "d/".repeat(1000);
        let chain: Vec<String> = (0..50).map(|at| format!("{deep}{at} -> {}", at + 1)).collect();
        assert!(follow_error(&chain, &format!("{deep}0")).contains("too many links"));
    }

    #[test]
    fn a_chain_of_links_to_patterns_exceeds_the_effort_limit() {
        let mut chain: Vec<String> = (0..100).map(|at| format!("{at}- -> {}-*", at + 1)).collect();
        chain.extend((0..1000).map(|at| format!("file{at}")));
        assert!(follow_error(&chain, "0-").contains("too many links"));
    }
}
