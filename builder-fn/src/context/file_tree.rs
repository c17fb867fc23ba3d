//! Digests of a context's files, in a record of bounded size.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{ContentHash, ContentHasher, ContextView, Entry, Index, Kind};

/// The limit on the nodes of a tree.
const NODES_MAX: usize = 3000;

/// The limit on the paths of a tree's nodes together, in bytes.
const NODE_PATHS_BYTES_MAX: usize = 160 << 10;

/// The digest of what is not known: a file that was not sent, and of which nobody knows what the daemon has.
const UNKNOWN_DIGEST: &str = "?";

/// The digests of the files of a context.
///
/// A context with more files than [`NODES_MAX`] has the digests of whole folders from a certain depth on, so that the
/// record of any context has a bounded size.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileDigestTree {
    /// The number of entries: files, folders and symbolic links.
    pub(crate) entries: usize,
    /// The size of the contents in bytes.
    pub(crate) bytes: u64,
    /// Whether some nodes stand for whole folders.
    pub(crate) is_cut: bool,
    /// The digests by path. The path of a folder that stands for all in it ends with a slash.
    nodes: BTreeMap<String, String>,
}

/// The difference between two trees: paths of files, and of folders with all in them, which end with a slash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ChangedAddedAndRemovedPaths {
    /// The paths that both trees have, with different digests.
    pub(crate) changed: Vec<String>,
    /// The paths that only the newer tree has.
    pub(crate) added: Vec<String>,
    /// The paths that only the older tree has.
    pub(crate) removed: Vec<String>,
    /// The number of paths that both trees have, and whose digest one of them does not know.
    pub(crate) unknown: usize,
}

/// The digest of a folder with all that is in it.
struct FolderDigestInProgress {
    path: String,
    hasher: ContentHasher,
    is_unknown: bool,
}

impl FileDigestTree {
    /// Returns the digests of the entries of `view`. `content_hashes` has the hash of each entry's content, and
    /// `hash_of_unknown_content` stands for those that are not known.
    pub(crate) fn of_view(
        index: &Index,
        view: &ContextView,
        content_hashes: &[ContentHash],
        hash_of_unknown_content: ContentHash,
    ) -> Self {
        let depth_max = max_node_depth_or_none_if_uncut(index, view);
        let mut tree = Self {
            entries: view.len(),
            is_cut: depth_max.is_some(),
            ..Self::default()
        };
        let mut folder: Option<FolderDigestInProgress> = None;
        let mut path = String::new();
        for (visible, content) in view.iter().zip(content_hashes) {
            index.write_path(visible.entry, &mut path);
            let entry = index.entry_by_number(visible.entry);
            tree.bytes += match entry.kind {
                Kind::File { size, .. } if visible.link.is_none() => size,
                _ => 0,
            };
            let digest = (*content != hash_of_unknown_content).then(|| digest_of(&entry, *content));
            // A folder at the last depth begins what it stands for.
            let is_below = |depth: &usize| depth_of(&path) + usize::from(entry.is_folder()) > *depth;
            let Some(depth) = depth_max.filter(is_below) else {
                tree.add_folder(folder.take());
                let digest = digest.map_or_else(|| UNKNOWN_DIGEST.to_owned(), ContentHash::to_hex);
                tree.nodes.insert(path.clone(), digest);
                continue;
            };
            // Everything below one folder comes in a row.
            let top = first_components(&path, depth);
            if folder.as_ref().is_some_and(|folder| folder.path != top) {
                tree.add_folder(folder.take());
            }
            let folder = folder.get_or_insert_with(|| FolderDigestInProgress {
                path: top.to_owned(),
                hasher: ContentHasher::default(),
                is_unknown: false,
            });
            folder.is_unknown |= digest.is_none();
            folder.hasher.hash_piece(&(path.len() as u64).to_le_bytes());
            folder.hasher.hash_piece(path.as_bytes());
            folder.hasher.hash_piece(&digest.unwrap_or_default().0);
        }
        tree.add_folder(folder);
        tree
    }

    fn add_folder(&mut self, folder: Option<FolderDigestInProgress>) {
        let Some(mut folder) = folder else { return };
        let digest = match folder.is_unknown {
            true => UNKNOWN_DIGEST.to_owned(),
            false => folder.hasher.finish_and_reset().to_hex(),
        };
        self.nodes.insert(format!("{}/", folder.path), digest);
    }

    /// Compares this tree with a newer one. `max_paths_per_kind` is the most paths of each kind.
    ///
    /// Where one of them has a folder as a whole and the other one its files, the folder is the path that differs.
    pub(crate) fn compare_with(
        &self,
        newer: &Self,
        max_paths_per_kind: usize,
    ) -> ChangedAddedAndRemovedPaths {
        let mut difference = ChangedAddedAndRemovedPaths::default();
        let mut push = |list: fn(&mut ChangedAddedAndRemovedPaths) -> &mut Vec<String>, path: &str| {
            let list = list(&mut difference);
            if list.len() < max_paths_per_kind && list.last().is_none_or(|last| last != path) {
                list.push(path.to_owned());
            }
        };
        let mut unknown = 0;
        for (path, digest) in &newer.nodes {
            match self.nodes.get(path) {
                Some(old) if old == UNKNOWN_DIGEST || digest == UNKNOWN_DIGEST => unknown += 1,
                Some(old) if old == digest => {}
                Some(_) => push(|difference| &mut difference.changed, path),
                None => match self.whole_folder_node_above(path) {
                    Some(folder) => push(|difference| &mut difference.changed, folder),
                    None if self.has_folder_in_other_form(path) => {}
                    None => push(|difference| &mut difference.added, path),
                },
            }
        }
        for path in self.nodes.keys().filter(|path| !newer.nodes.contains_key(*path)) {
            match newer.whole_folder_node_above(path) {
                Some(folder) => push(|difference| &mut difference.changed, folder),
                None if newer.has_folder_in_other_form(path) => {}
                None => push(|difference| &mut difference.removed, path),
            }
        }
        difference.unknown = unknown;
        difference.changed.sort_unstable();
        difference.changed.dedup();
        difference
    }

    /// Returns the node of a folder that stands for `path` among others.
    fn whole_folder_node_above(&self, path: &str) -> Option<&str> {
        let folder = |prefix: &str| {
            self.nodes
                .get_key_value(prefix)
                .map(|(folder, _)| folder.as_str())
        };
        let mut ends = path.match_indices('/').map(|(at, _)| at + 1);
        ends.find_map(|end| folder(&path[..end]).filter(|folder| *folder != path))
            .or_else(|| folder("/").filter(|folder| *folder != path))
    }

    /// Returns whether the tree has the folder `path` in another form: as a whole, or by its entries. These are
    /// compared with the folder then.
    fn has_folder_in_other_form(&self, path: &str) -> bool {
        let Some(folder) = path.strip_suffix('/') else {
            return self.nodes.contains_key(&format!("{path}/"));
        };
        if folder.is_empty() {
            return !self.nodes.is_empty();
        }
        let mut after = self.nodes.range(path.to_owned()..);
        after.next().is_some_and(|(node, _)| node.starts_with(path))
    }
}

/// Returns the number of components of the deepest nodes, where folders stand for all in them; `None` if every entry
/// can be a node.
fn max_node_depth_or_none_if_uncut(index: &Index, view: &ContextView) -> Option<usize> {
    let mut path = String::new();
    let mut of_depths: Vec<(usize, usize)> = Vec::new();
    for visible in view.iter() {
        index.write_path(visible.entry, &mut path);
        let depth = depth_of(&path);
        if of_depths.len() < depth {
            of_depths.resize(depth, (0, 0));
        }
        if let Some((nodes, bytes)) = of_depths.get_mut(depth - 1) {
            *nodes += 1;
            *bytes += path.len();
        }
    }
    let (mut nodes, mut bytes) = (0, 0);
    for (depth, (more_nodes, more_bytes)) in of_depths.iter().enumerate() {
        nodes += more_nodes;
        bytes += more_bytes;
        if nodes > NODES_MAX || bytes > NODE_PATHS_BYTES_MAX {
            // What is this deep counts with the folder above it.
            return Some(depth);
        }
    }
    None
}

/// Returns the number of components of a path, at least 1.
fn depth_of(path: &str) -> usize {
    path.bytes().filter(|byte| *byte == b'/').count() + 1
}

/// Returns the first `depth` components of a path; nothing for 0.
fn first_components(path: &str, depth: usize) -> &str {
    let Some(last) = depth.checked_sub(1) else {
        return "";
    };
    let mut ends = path.match_indices('/').map(|(at, _)| at);
    ends.nth(last).map_or(path, |end| &path[..end])
}

/// Returns the digest of what BuildKit's cache depends on in an entry: its kind, mode, content and target.
fn digest_of(entry: &Entry<'_>, content: ContentHash) -> ContentHash {
    let mut hasher = ContentHasher::default();
    hasher.hash_piece(&entry.mode.to_le_bytes());
    match entry.kind {
        Kind::Folder => hasher.hash_piece(b"folder"),
        Kind::File { size, .. } => {
            hasher.hash_piece(b"file");
            hasher.hash_piece(&size.to_le_bytes());
        }
        Kind::Symlink { target } => hasher.hash_piece(target.as_bytes()),
    }
    hasher.hash_piece(&content.0);
    hasher.finish_and_reset()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::{SourceContext, ViewFilter, view};

    const UNKNOWN: ContentHash = ContentHash([0xff; 12]);

    /// Returns the tree of a context with these files, whose contents are all known but those that are `?`.
    fn tree_of_files_with_question_mark_unknown(files: &[(String, String)]) -> FileDigestTree {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, format!("context/{path}"), content.as_bytes())
                .expect("append");
        }
        let context = SourceContext::from_tar(&tar.into_inner().expect("tar")).expect("a context");
        let view = view(&context, &ViewFilter::default()).expect("a view");
        let by_path: BTreeMap<_, _> = files
            .iter()
            .map(|(path, content)| (path.as_str(), content.as_str()))
            .collect();
        let contents: Vec<_> = view
            .iter()
            .map(|visible| {
                let path = context.index().path(visible.entry);
                match by_path.get(path.as_str()).copied() {
                    Some("?") => UNKNOWN,
                    content => ContentHash::of(content.unwrap_or_default().as_bytes()),
                }
            })
            .collect();
        FileDigestTree::of_view(context.index(), &view, &contents, UNKNOWN)
    }

    fn files(files: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = |(path, content): &(&str, &str)| ((*path).to_owned(), (*content).to_owned());
        files.iter().map(owned).collect()
    }

    /// Returns many files, in folders of two levels.
    fn many_files_500_per_folder(count: usize) -> Vec<(String, String)> {
        (0..count)
            .map(|at| {
                (
                    format!("src/{:03}/{at:06}.txt", at / 500),
                    format!("content {at}"),
                )
            })
            .collect()
    }

    #[test]
    fn every_changed_added_and_removed_file_is_named() {
        let older = tree_of_files_with_question_mark_unknown(&files(&[
            ("a", "1"),
            ("b/c", "2"),
            ("b/d", "3"),
            ("e", "?"),
        ]));
        let newer = tree_of_files_with_question_mark_unknown(&files(&[
            ("a", "1"),
            ("b/c", "4"),
            ("b/f", "3"),
            ("e", "?"),
        ]));
        assert!(!older.is_cut);
        assert_eq!((older.entries, older.bytes), (5, 4));
        let difference = older.compare_with(&newer, 10);
        assert_eq!(difference.changed, ["b/c"]);
        assert_eq!(difference.added, ["b/f"]);
        assert_eq!(difference.removed, ["b/d"]);
        assert_eq!(difference.unknown, 1);
        assert_eq!(older.compare_with(&older, 10).changed, [""; 0]);
    }

    #[test]
    fn a_context_of_190000_files_has_a_small_tree_that_names_the_folder_of_a_change() {
        let mut many = many_files_500_per_folder(190_000);
        let older = tree_of_files_with_question_mark_unknown(&many);
        assert!(older.is_cut && older.entries > 190_000);
        let bytes = serde_json::to_vec(&older).expect("JSON").len();
        assert!(bytes < 400 << 10, "{bytes}");
        many[100_123].1 = "another".to_owned();
        let newer = tree_of_files_with_question_mark_unknown(&many);
        let difference = older.compare_with(&newer, 10);
        assert_eq!(difference.changed, ["src/200/"]);
        assert_eq!((difference.added.len(), difference.removed.len()), (0, 0));
    }

    #[test]
    fn files_of_a_folder_compared_with_its_one_node_in_a_cut_tree_are_one_difference() {
        let small = many_files_500_per_folder(1_000);
        let (small, large) = (
            tree_of_files_with_question_mark_unknown(&small),
            tree_of_files_with_question_mark_unknown(&many_files_500_per_folder(20_000)),
        );
        assert!(!small.is_cut && large.is_cut);
        let difference = small.compare_with(&large, 100);
        assert!(
            difference.changed.contains(&"src/000/".to_owned()),
            "{difference:?}"
        );
        assert!(
            difference.added.contains(&"src/039/".to_owned()),
            "{difference:?}"
        );
        assert!(
            !difference.added.contains(&"src/000/".to_owned()),
            "{difference:?}"
        );
        assert_eq!(difference.removed, [""; 0]);
    }

    #[test]
    fn a_root_with_too_many_files_is_one_node() {
        let flat: Vec<_> = (0..5_000)
            .map(|at| (format!("{at:05}"), at.to_string()))
            .collect();
        let older = tree_of_files_with_question_mark_unknown(&flat);
        let mut changed = flat.clone();
        changed[7].1 = "another".to_owned();
        assert_eq!(
            older
                .compare_with(&tree_of_files_with_question_mark_unknown(&changed), 10)
                .changed,
            ["/"]
        );
        assert_eq!(
            older.compare_with(&tree_of_files_with_question_mark_unknown(&flat), 10),
            ChangedAddedAndRemovedPaths::default()
        );
    }

    #[test]
    fn a_tree_is_cut_also_if_its_paths_together_are_too_long() {
        let long: Vec<_> = (0..1_000)
            .map(|at| (format!("{}/{at}", "x".repeat(200)), at.to_string()))
            .collect();
        assert!(tree_of_files_with_question_mark_unknown(&long).is_cut);
    }
}
