//! Tests of the lookup and the order of an index's entries.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::context::tree::ContextTree;
use crate::context::{ExtendedAttributes, Kind};

impl Index {
    /// Builds an index of `entries`. Files with the same offset are hard links of each other.
    pub(crate) fn of_entries_linking_same_offset<'a, P: AsRef<str>>(
        entries: impl IntoIterator<Item = (P, Entry<'a>)>,
    ) -> Self {
        let mut tree = ContextTree::default();
        let mut files = BTreeMap::new();
        for (path, entry) in entries {
            let path = path.as_ref();
            if let Kind::File { offset, .. } = entry.kind
                && let Some(first) = files.insert(offset, path.to_owned())
            {
                tree.insert_hard_link_or_copy_of_symlink(path, &first).unwrap();
            } else {
                tree.insert(path, &entry).unwrap();
            }
        }
        tree.into_index()
    }
}

/// Returns a file of one byte at the offset 512 × `block`.
fn file_entry_at_block(block: u64) -> Entry<'static> {
    Entry {
        kind: Kind::File {
            offset: 512 * block,
            size: 1,
        },
        mode: 0o644,
        mtime_ns: 0,
        xattrs: ExtendedAttributes::NONE,
    }
}

fn walked_numbers_and_paths(index: &Index) -> Vec<(u32, String)> {
    let mut walk = index.walk();
    let mut seen = Vec::new();
    while let Some((at, path)) = walk.next_entry_or_none_then_restart() {
        seen.push((at, path.to_owned()));
    }
    seen
}

fn walked_paths(index: &Index) -> Vec<String> {
    walked_numbers_and_paths(index)
        .into_iter()
        .map(|(_, path)| path)
        .collect()
}

#[test]
fn a_folders_entries_come_before_siblings_whose_names_are_longer() {
    let sorted = [
        "a", "a/b", "a/b/c", "a/b-c", "a!", "a-b", "a.txt", "a0", "b", "ä", "ä/ü",
    ];
    let folders = ["a", "a/b", "ä"];
    let files = sorted.iter().rev().filter(|path| !folders.contains(path));
    let index = Index::of_entries_linking_same_offset(
        files
            .zip(0..)
            .map(|(path, number)| (path, file_entry_at_block(number))),
    );
    assert_eq!(walked_paths(&index), sorted);
}

#[test]
fn a_folder_whose_children_are_skipped_is_walked_without_them() {
    let files = ["a/b/c", "a/b/d", "a/e", "f/g", "h"];
    let index = Index::of_entries_linking_same_offset(
        files
            .iter()
            .zip(0..)
            .map(|(path, number)| (path, file_entry_at_block(number))),
    );
    let mut walk = index.walk();
    let mut seen = Vec::new();
    while let Some((_, path)) = walk.next_entry_or_none_then_restart() {
        seen.push(path.to_owned());
        if ["a/b", "f", "h"].contains(&path) {
            walk.skip_children();
        }
    }
    assert_eq!(seen, ["a", "a/b", "a/e", "f", "h"]);
}

#[test]
fn paths_that_do_not_exist_are_not_found() {
    let index = Index::of_entries_linking_same_offset([
        ("a/b", file_entry_at_block(1)),
        ("c", file_entry_at_block(2)),
    ]);
    for path in [
        "", ".", "/", "a/", "/a", "a//b", "a/b/", "a/b/c", "b", "c/b", "a/c", "aa", "a/./b",
    ] {
        assert_eq!(index.find(path), None, "{path:?}");
    }
    assert!(Index::default().is_empty() && Index::default().find("a").is_none());
    assert!(walked_numbers_and_paths(&Index::default()).is_empty());
}

#[test]
fn two_indexes_are_equal_only_if_all_their_entries_are() {
    let index = |path: &str, number| {
        Index::of_entries_linking_same_offset([
            ("a/b", file_entry_at_block(9)),
            (path, file_entry_at_block(number)),
        ])
    };
    assert_eq!(index("a/c", 1), index("a/c", 1));
    assert_ne!(index("a/c", 1), index("a/c", 2));
    assert_ne!(index("a/c", 1), index("a/d", 1));
    assert_ne!(
        index("a/c", 1),
        Index::of_entries_linking_same_offset([("a/b", file_entry_at_block(9))])
    );
    assert_eq!(format!("{:?}", index("x", 1)).matches("offset").count(), 2);
}

#[test]
fn folders_may_be_as_deep_as_the_longest_path() {
    let deep = "d/".repeat(2000);
    let files = (0..3000).map(|at| (format!("{deep}{at}"), file_entry_at_block(at)));
    let index = Index::of_entries_linking_same_offset(files);
    assert_eq!(index.len(), 5000);
    for (at, path) in walked_numbers_and_paths(&index) {
        if at % 97 == 0 {
            assert_eq!((index.find(&path), index.path(at)), (Some(at), path));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_entry_is_found_by_its_number_and_its_path(
        entries in prop::collection::btree_map("[a-c](/[a-c]){0,4}|[a-d.é]{1,3}", any::<u32>(), 0..40),
    ) {
        let mut tree = ContextTree::default();
        let mut expected = BTreeMap::new();
        for (path, number) in &entries {
            let entry = file_entry_at_block(u64::from(*number));
            if tree.insert(path, &entry).is_ok() {
                expected.insert(path.split('/').collect::<Vec<_>>(), Some(entry));
            }
        }
        for path in expected.keys().cloned().collect::<Vec<_>>() {
            for depth in 1..path.len() {
                expected.entry(path[..depth].to_vec()).or_insert(None);
            }
        }
        let index = tree.into_index();
        let seen = walked_numbers_and_paths(&index);
        let in_order: Vec<_> = expected.keys().map(|path| path.join("/")).collect();
        prop_assert_eq!(seen.iter().map(|(_, path)| path.clone()).collect::<Vec<_>>(), in_order);
        for ((at, path), entry) in seen.iter().zip(expected.values()) {
            prop_assert_eq!(index.find(path), Some(*at));
            prop_assert_eq!(&index.path(*at), path);
            prop_assert!(seen.iter().all(|(other, path)| index.has_path(*at, path) == (other == at)));
            let similar = [format!("/{path}"), format!("{path}/"), format!("a{path}"), String::new()];
            prop_assert!(!similar.iter().any(|path| index.has_path(*at, path)));
            prop_assert_eq!(path.rsplit('/').next(), Some(index.name(*at)));
            prop_assert_eq!(index.is_folder(*at), entry.is_none());
            if let Some(entry) = entry {
                prop_assert_eq!(index.entry_by_number(*at), *entry);
            }
        }
        for folder in [None].into_iter().chain(seen.iter().map(|(at, _)| Some(*at))) {
            let inside: Vec<_> = index.children(folder).collect();
            prop_assert!(inside.iter().all(|at| index.parent_folder(*at) == folder));
            let expected = seen.iter().filter(|(at, _)| index.parent_folder(*at) == folder).count();
            prop_assert_eq!(inside.len(), expected);
        }
    }
}
