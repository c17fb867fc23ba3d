//! Entries put together one after the other, as extracting them one after the other would.

use std::collections::BTreeMap;

use super::order;
use super::{ContentHash, Entry, Kind};

/// What a tar may leave unsaid: the folders above what it has.
const IMPLIED: Entry = Entry {
    path: String::new(),
    kind: Kind::Directory,
    mode: 0o755,
    mtime_ns: 0,
    xattrs: Vec::new(),
    content: ContentHash([0; 16]),
};

/// Why an entry cannot be where it wants to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Conflict {
    /// This, above it, is a file.
    InFile(String),
    /// This, above it, is a symbolic link.
    ThroughLink(String),
    /// There is a folder with something in it.
    ReplacesFolder,
    /// A hard link's target is not there.
    NoTarget,
    /// A hard link's target is a folder.
    FolderTarget,
}

/// A folder tree by path. What is in it always has its folders in it.
#[derive(Debug, Default)]
pub(super) struct Tree {
    /// Places in `entries`, by [`order::key`].
    places: BTreeMap<String, usize>,
    /// In the order of the tar, and without their paths: those are the keys until the tree is complete. So nothing is there
    /// twice at any time: for many small files this is what a build takes of memory.
    entries: Vec<Entry>,
    /// What all of it takes in memory, about, counting replaced ones too.
    bytes: usize,
}

impl Tree {
    /// Bytes that all of this takes, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many entries there are, with the implied ones.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Puts `entry` at `path`, whatever its own is, in place of what was there.
    ///
    /// # Errors
    /// When something above is no folder, or a folder with entries would have to go.
    pub(super) fn insert(&mut self, path: &str, entry: Entry) -> Result<(), Conflict> {
        let key = order::key(path);
        self.make_parents(&key)?;
        if !entry.is_directory() && self.has_children(&key) {
            return Err(Conflict::ReplacesFolder);
        }
        self.put(key, entry);
        Ok(())
    }

    /// Makes `path` another name of what is at `target`.
    ///
    /// # Errors
    /// When nothing or a folder is there, and as [`insert`](Self::insert).
    pub(super) fn link(&mut self, path: &str, target: &str) -> Result<(), Conflict> {
        let target = self.get(&order::key(target)).ok_or(Conflict::NoTarget)?;
        if target.is_directory() {
            return Err(Conflict::FolderTarget);
        }
        let entry = target.clone();
        self.insert(path, entry)
    }

    /// Says what the file that was inserted at `path` contains, which is known only once it has been read.
    pub(super) fn set_content(&mut self, path: &str, content: ContentHash) {
        if let Some(place) = self.places.get(&order::key(path)) {
            self.entries[*place].content = content;
        }
    }

    /// All entries in order.
    pub(super) fn into_entries(self) -> Vec<Entry> {
        let Self {
            places, mut entries, ..
        } = self;
        let mut sorted = vec![0; entries.len()];
        for (at, (key, place)) in places.into_iter().enumerate() {
            entries[place].path = order::path(key);
            sorted[place] = at;
        }
        // Each swap brings one entry to where it belongs.
        for place in 0..entries.len() {
            while sorted[place] != place {
                let at = sorted[place];
                entries.swap(place, at);
                sorted.swap(place, at);
            }
        }
        entries
    }

    fn get(&self, key: &str) -> Option<&Entry> {
        let place = *self.places.get(key)?;
        self.entries.get(place)
    }

    fn make_parents(&mut self, key: &str) -> Result<(), Conflict> {
        let Some((parent, _)) = key.rsplit_once(order::SEPARATOR) else {
            return Ok(());
        };
        match self.get(parent).map(|entry| &entry.kind) {
            Some(Kind::Directory) => Ok(()),
            Some(Kind::File { .. }) => Err(Conflict::InFile(order::path(parent.to_owned()))),
            Some(Kind::Symlink { .. }) => Err(Conflict::ThroughLink(order::path(parent.to_owned()))),
            None => {
                // From the top down, so that a conflict leaves nothing half made below it.
                let above: Vec<&str> = key
                    .match_indices(order::SEPARATOR)
                    .map(|(at, _)| &key[..at])
                    .collect();
                for folder in above {
                    match self.get(folder).map(|entry| &entry.kind) {
                        Some(Kind::Directory) => {}
                        Some(Kind::File { .. }) => {
                            return Err(Conflict::InFile(order::path(folder.to_owned())));
                        }
                        Some(Kind::Symlink { .. }) => {
                            return Err(Conflict::ThroughLink(order::path(folder.to_owned())));
                        }
                        None => self.put(folder.to_owned(), IMPLIED),
                    }
                }
                Ok(())
            }
        }
    }

    fn has_children(&self, key: &str) -> bool {
        let first = format!("{key}{}", order::SEPARATOR);
        self.places
            .range(first.clone()..)
            .next()
            .is_some_and(|(next, _)| next.starts_with(&first))
    }

    fn put(&mut self, key: String, entry: Entry) {
        let target = if let Kind::Symlink { target } = &entry.kind {
            target.len()
        } else {
            0
        };
        let xattrs: usize = entry
            .xattrs
            .iter()
            .map(|(name, value)| 48 + name.len() + value.len())
            .sum();
        self.bytes += size_of::<Entry>() + key.len() + target + xattrs;
        match self.places.get(&key) {
            Some(place) => self.entries[*place] = entry,
            None => {
                self.places.insert(key, self.entries.len());
                self.entries.push(entry);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(offset: u64) -> Entry {
        Entry {
            path: String::new(),
            kind: Kind::File { offset, size: 1 },
            mode: 0o644,
            mtime_ns: 7,
            xattrs: Vec::new(),
            content: ContentHash::default(),
        }
    }

    fn folder(mode: u32) -> Entry {
        Entry { mode, ..IMPLIED }
    }

    fn symlink(target: &str) -> Entry {
        Entry {
            path: String::new(),
            kind: Kind::Symlink {
                target: target.to_owned(),
            },
            mode: 0o777,
            mtime_ns: 0,
            xattrs: Vec::new(),
            content: ContentHash::default(),
        }
    }

    fn paths(tree: Tree) -> Vec<String> {
        tree.into_entries().into_iter().map(|entry| entry.path).collect()
    }

    #[test]
    fn folders_that_are_not_mentioned_are_there_all_the_same() {
        let mut tree = Tree::default();
        tree.insert("a/b/c", file(1)).unwrap();
        tree.insert("a.txt", file(2)).unwrap();
        let entries = tree.into_entries();
        let shown: Vec<_> = entries
            .iter()
            .map(|entry| (entry.path.as_str(), entry.mode))
            .collect();
        assert_eq!(
            shown,
            [("a", 0o755), ("a/b", 0o755), ("a/b/c", 0o644), ("a.txt", 0o644)]
        );
    }

    #[test]
    fn a_folder_mentioned_after_its_content_brings_its_own_mode() {
        let mut tree = Tree::default();
        tree.insert("a/b", file(1)).unwrap();
        tree.insert("a", folder(0o700)).unwrap();
        let entries = tree.into_entries();
        assert_eq!((entries[0].mode, entries.len()), (0o700, 2));
    }

    #[test]
    fn the_last_of_two_entries_with_one_path_counts() {
        let mut tree = Tree::default();
        tree.insert("a", file(1)).unwrap();
        tree.insert("a", symlink("b")).unwrap();
        tree.insert("a", folder(0o755)).unwrap();
        tree.insert("a", file(2)).unwrap();
        let entries = tree.into_entries();
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].kind, Kind::File { offset: 2, size: 1 });
    }

    #[test]
    fn nothing_is_put_into_a_file_or_through_a_link() {
        let mut tree = Tree::default();
        tree.insert("file", file(1)).unwrap();
        tree.insert("link", symlink("/etc")).unwrap();
        assert_eq!(
            tree.insert("file/x", file(2)),
            Err(Conflict::InFile("file".to_owned()))
        );
        assert_eq!(
            tree.insert("file/x/y", file(2)),
            Err(Conflict::InFile("file".to_owned()))
        );
        assert_eq!(
            tree.insert("link/x", file(2)),
            Err(Conflict::ThroughLink("link".to_owned()))
        );
        assert_eq!(
            tree.insert("link/x/y", file(2)),
            Err(Conflict::ThroughLink("link".to_owned()))
        );
        assert_eq!(paths(tree), ["file", "link"]);
    }

    #[test]
    fn a_folder_goes_only_when_it_is_empty() {
        let mut tree = Tree::default();
        tree.insert("a/b", folder(0o755)).unwrap();
        // A neighbour that sorts right behind the folder is not in it.
        tree.insert("a.txt", file(1)).unwrap();
        assert_eq!(tree.insert("a", symlink("x")), Err(Conflict::ReplacesFolder));
        assert_eq!(tree.insert("a/b", symlink("x")), Ok(()));
        assert_eq!(paths(tree), ["a", "a/b", "a.txt"]);
    }

    #[test]
    fn a_hard_link_is_the_same_file_even_when_its_first_name_is_given_away() {
        let mut tree = Tree::default();
        tree.insert("z", file(1)).unwrap();
        tree.link("a", "z").unwrap();
        tree.insert("z", file(2)).unwrap();
        tree.link("z", "z").unwrap();
        let kinds: Vec<_> = tree.into_entries().into_iter().map(|entry| entry.kind).collect();
        assert_eq!(
            kinds,
            [
                Kind::File { offset: 1, size: 1 },
                Kind::File { offset: 2, size: 1 }
            ]
        );
    }

    #[test]
    fn a_hard_link_needs_a_file_or_link_to_point_to() {
        let mut tree = Tree::default();
        tree.insert("folder", folder(0o755)).unwrap();
        tree.insert("link", symlink("x")).unwrap();
        assert_eq!(tree.link("a", "nothing"), Err(Conflict::NoTarget));
        assert_eq!(tree.link("a", "folder"), Err(Conflict::FolderTarget));
        assert_eq!(tree.link("a", "link"), Ok(()));
    }
}
