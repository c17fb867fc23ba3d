//! Paths together with what the symbolic links on the way to them point to: fsutil's `FollowLinks`.

use std::collections::BTreeSet;

use super::glob::{self, Glob};
use crate::context::{Kind, SourceContext};

/// The paths to include so that each of `paths` can be reached, sorted. `None` when one of them is the root: then
/// everything is included.
pub(super) fn follow(context: &SourceContext, paths: &[String]) -> Option<Vec<String>> {
    let mut resolved = BTreeSet::new();
    // Depth first, in order: what is resolved already is not resolved again, so the order matters.
    let mut due: Vec<String> = paths.iter().rev().cloned().collect();
    while let Some(path) = due.pop() {
        let targets = resolve(context, &glob::join(".", &path), &mut resolved);
        due.extend(targets.into_iter().rev());
    }
    without_nested(resolved)
}

/// Walks along `path` to its end or to the first link, and returns where to go on from there.
fn resolve(context: &SourceContext, path: &str, resolved: &mut BTreeSet<String>) -> Vec<String> {
    let mut current = ".".to_owned();
    let mut components = path.split('/');
    while let Some(component) = components.next() {
        current = glob::join(&current, component);
        let targets = link_targets(context, &current);
        let rest: Vec<&str> = components.clone().collect();
        if !targets.is_empty() {
            let is_new = resolved.insert(current);
            let rest = rest.join("/");
            return if is_new {
                targets.iter().map(|to| glob::join(to, &rest)).collect()
            } else {
                Vec::new()
            };
        }
        if rest.is_empty() {
            resolved.insert(current);
            return Vec::new();
        }
    }
    Vec::new()
}

/// What the link at `path` points to, as a path from the root; for a pattern, what all links that it matches do.
fn link_targets(context: &SourceContext, path: &str) -> Vec<String> {
    let (folder, name) = glob::split(path);
    if !glob::has_wildcards(name) {
        return link_target(context, path).into_iter().collect();
    }
    let Some(pattern) = Glob::parse(name) else {
        return Vec::new();
    };
    context
        .children(folder)
        .filter(|entry| pattern.matches(glob::split(&entry.path).1))
        .filter_map(|entry| link_target(context, &entry.path))
        .collect()
}

fn link_target(context: &SourceContext, path: &str) -> Option<String> {
    let Kind::Symlink { target } = &context.get(path)?.kind else {
        return None;
    };
    let target = glob::clean(target);
    if target.starts_with('/') {
        return Some(target);
    }
    let (folder, _) = glob::split(path);
    Some(glob::join("/", &glob::join(folder, &target)))
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
