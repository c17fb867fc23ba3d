//! Paths together with what the symbolic links on the way to them point to: fsutil's `FollowLinks`.

use std::collections::BTreeSet;

use super::PatternError;
use super::glob::{self, Glob};
use crate::context::{Kind, SourceContext};

/// Longest path, in bytes: to a longer one the original hears from the file system that it is too long.
const PATH_MAX: usize = 4095;

/// What following may cost, in bytes that are looked at: seconds, where a row of links can be made to take days.
const EFFORT_MAX: usize = 256 << 20;

/// The paths to include so that each of `paths` can be reached, sorted. `None` when one of them is the root: then
/// everything is included.
///
/// # Errors
/// When links lead to a path that is too long, or go on for too long.
pub(super) fn follow(context: &SourceContext, paths: &[String]) -> Result<Option<Vec<String>>, PatternError> {
    follow_within(EFFORT_MAX, context, paths)
}

fn follow_within(
    effort: usize,
    context: &SourceContext,
    paths: &[String],
) -> Result<Option<Vec<String>>, PatternError> {
    let mut follower = Follower {
        context,
        resolved: BTreeSet::new(),
        effort,
    };
    // Depth first, in order: what is resolved already is not resolved again, so the order matters.
    let mut due: Vec<String> = paths.iter().rev().cloned().collect();
    while let Some(path) = due.pop() {
        let path = glob::join(".", &path);
        let targets = follower.resolve(&path).map_err(|reason| PatternError {
            pattern: path.chars().take(100).collect(),
            reason,
        })?;
        due.extend(targets.into_iter().rev());
    }
    Ok(without_nested(follower.resolved))
}

struct Follower<'a> {
    context: &'a SourceContext,
    resolved: BTreeSet<String>,
    /// What is left of it.
    effort: usize,
}

impl Follower<'_> {
    /// Walks along `path`, which is clean, to its end or to the first link, and returns where to go on from there.
    fn resolve(&mut self, path: &str) -> Result<Vec<String>, &'static str> {
        if path.len() > PATH_MAX {
            return Err("links lead to it, and it has more than 4095 bytes");
        }
        let ends = path.match_indices('/').map(|(at, _)| at);
        for end in ends.chain([path.len()]) {
            let current = &path[..end];
            let rest = path.get(end + 1..).unwrap_or_default();
            let targets = self.link_targets(current)?;
            if !targets.is_empty() {
                let is_new = self.resolved.insert(current.to_owned());
                let further = targets.iter().map(|to| glob::join(to, rest));
                return Ok(if is_new { further.collect() } else { Vec::new() });
            }
        }
        self.resolved.insert(path.to_owned());
        Ok(Vec::new())
    }

    /// What the link at `path` points to, as a path from the root; for a pattern, what all links that it matches do.
    fn link_targets(&mut self, path: &str) -> Result<Vec<String>, &'static str> {
        self.spend(path.len())?;
        let (folder, name) = glob::split(path);
        if !glob::has_wildcards(name) {
            return Ok(self.link_target(path).into_iter().collect());
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
            self.spend(4 * name.len())?;
            if pattern.matches(name) {
                targets.extend(self.target_of(at, folder));
            }
        }
        Ok(targets)
    }

    fn link_target(&self, path: &str) -> Option<String> {
        let (folder, _) = glob::split(path);
        self.target_of(self.context.index().find(path)?, folder)
    }

    /// What the link with this number, in `folder`, points to.
    fn target_of(&self, at: u32, folder: &str) -> Option<String> {
        let Kind::Symlink { target } = self.context.index().entry(at).kind else {
            return None;
        };
        let target = glob::clean(target);
        if target.starts_with('/') {
            return Some(target);
        }
        Some(glob::join("/", &glob::join(folder, &target)))
    }

    fn spend(&mut self, effort: usize) -> Result<(), &'static str> {
        let left = self.effort.checked_sub(effort);
        self.effort = left.ok_or("links lead on and on from it")?;
        Ok(())
    }
}

/// Leaves out what lies in a folder that came right before. `None` when the root is among the paths.
pub(super) fn without_nested(paths: impl IntoIterator<Item = String>) -> Option<Vec<String>> {
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
    use super::super::tests::context;
    use super::*;

    fn refusal(entries: &[String], path: &str) -> &'static str {
        let entries: Vec<&str> = entries.iter().map(String::as_str).collect();
        let error = follow_within(1 << 20, &context(&entries), &[path.to_owned()]).unwrap_err();
        assert!(error.pattern.len() <= 100, "{}", error.pattern.len());
        error.reason
    }

    #[test]
    fn a_path_cannot_be_made_longer_link_by_link() {
        let longer = format!("{}x", "x/".repeat(2000));
        let row: Vec<String> = (0..1000)
            .map(|at| format!("{at} -> {}/{longer}", at + 1))
            .collect();
        assert!(refusal(&row, "0").contains("more than 4095 bytes"));
    }

    #[test]
    fn links_far_down_cannot_be_made_to_lead_on_for_hours() {
        let deep = "d/".repeat(1000);
        let row: Vec<String> = (0..50).map(|at| format!("{deep}{at} -> {}", at + 1)).collect();
        assert!(refusal(&row, &format!("{deep}0")).contains("on and on"));
    }

    #[test]
    fn links_to_patterns_cannot_be_made_to_lead_on_for_hours() {
        let mut row: Vec<String> = (0..100).map(|at| format!("{at}- -> {}-*", at + 1)).collect();
        row.extend((0..1000).map(|at| format!("file{at}")));
        assert!(refusal(&row, "0-").contains("on and on"));
    }
}
