//! A tree that builds an index entry by entry, as if the entries were extracted one after another; entries that cannot
//! be extracted one after another are errors.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

use super::{Entry, ExtendedAttributes, Index, Kind};

/// The metadata of a folder that a tar implies by an entry in it and does not contain itself.
const IMPLIED_FOLDER: Entry<'static> = Entry {
    kind: Kind::Folder,
    mode: 0o755,
    mtime_ns: 0,
    xattrs: ExtendedAttributes::NONE,
};

/// The memory that an entry takes outside of the index, in bytes: its slot in the table while the tree grows, and less
/// afterwards.
const TABLE_BYTES_PER_ENTRY: usize = 12;

/// The reason why an entry cannot be added to the tree at its path.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TreeConflict {
    /// The path of the entry leads through this file.
    InFile(String),
    /// The path of the entry leads through this symbolic link.
    ThroughLink(String),
    /// The entry would replace a folder that is not empty.
    ReplacesFolder,
    /// The target of a hard link does not exist.
    NoTarget,
    /// The target of a hard link is a folder.
    FolderTarget,
}

/// A slot of the path table: an entry's number, and half of its path's hash. With the hash, the table can grow without
/// computing every path again.
struct EntryNumberAndPathHash {
    at: u32,
    half_hash: u32,
}

/// A tree of a context's entries, in which the folders of every entry exist.
#[derive(Default)]
pub(super) struct ContextTree {
    index: Index,
    /// The numbers of all entries, by path.
    by_path: HashTable<EntryNumberAndPathHash>,
    /// The hasher of paths, with a random key so that nobody can construct many paths with the same hash.
    hasher: RandomState,
    /// The path and the number of the folder that was looked up last: most entries of a tar are in the folder of the
    /// entry before.
    last_folder: (String, Option<u32>),
}

impl ContextTree {
    /// Returns the memory of the tree in bytes, including replaced entries.
    pub(super) fn memory_bytes(&self) -> usize {
        self.index.memory_bytes() + self.len() * TABLE_BYTES_PER_ENTRY
    }

    /// Returns the number of entries in the tree, including implied folders.
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// Adds `entry` at `path` with missing folders, or replaces the entry there.
    ///
    /// # Errors
    /// Fails if the path leads through something else than folders, or the entry would replace a folder that is not
    /// empty.
    pub(super) fn insert(&mut self, path: &str, entry: &Entry<'_>) -> Result<(), TreeConflict> {
        let (folder, name) = match path.rsplit_once('/') {
            Some((folder, name)) => (Some(self.find_or_make_folder(folder)?), name),
            None => (None, path),
        };
        let matches =
            |at| self.index.parent_folder(at) == folder && self.index.name_bytes(at) == name.as_bytes();
        match self.lookup(path, matches) {
            None => {
                self.add_entry(path, folder, entry);
            }
            Some(at) if !entry.is_folder() && self.index.has_children(at) => {
                return Err(TreeConflict::ReplacesFolder);
            }
            Some(at) => self.index.replace(at, entry),
        }
        Ok(())
    }

    /// Adds `path` as a hard link of the file at `target`, or as a copy of the symbolic link there.
    ///
    /// # Errors
    /// Fails if the target does not exist or is a folder, and as [`insert`](Self::insert).
    pub(super) fn insert_hard_link_or_copy_of_symlink(
        &mut self,
        path: &str,
        target: &str,
    ) -> Result<(), TreeConflict> {
        let target = self.find(target).ok_or(TreeConflict::NoTarget)?;
        let Entry {
            kind,
            mode,
            mtime_ns,
            xattrs,
        } = self.index.entry_by_number(target);
        // The entry borrows from the index, so it is copied before the index changes.
        let attributes = xattrs.as_packed().to_vec();
        let copied_target;
        let kind = match kind {
            Kind::Folder => return Err(TreeConflict::FolderTarget),
            Kind::File { offset, size } => Kind::File { offset, size },
            Kind::Symlink { target } => {
                copied_target = target.to_owned();
                Kind::Symlink {
                    target: &copied_target,
                }
            }
        };
        let entry = Entry {
            kind,
            mode,
            mtime_ns,
            xattrs: ExtendedAttributes::from_packed(&attributes),
        };
        self.insert(path, &entry)?;
        if matches!(entry.kind, Kind::File { .. })
            && let Some(at) = self.find(path)
        {
            self.index.set_may_be_hard_linked(target);
            self.index.set_may_be_hard_linked(at);
        }
        Ok(())
    }

    /// Sorts the entries, and returns their index.
    pub(super) fn into_index(self) -> Index {
        let Self {
            mut index, by_path, ..
        } = self;
        // Freed before sorting needs memory.
        drop(by_path);
        index.sort();
        index
    }

    /// Adds the folders that are missing on the way to `path`, which is not the context itself, and returns the number
    /// of the folder there.
    fn find_or_make_folder(&mut self, path: &str) -> Result<u32, TreeConflict> {
        if let (known, Some(at)) = &self.last_folder
            && known == path
            && self.index.is_folder(*at)
        {
            return Ok(*at);
        }
        // From the bottom up to a folder that exists, and down again. So there is one lookup per folder that is added,
        // and one more, however deep the path is.
        let mut missing = Vec::new();
        let mut above = path;
        let mut folder = self.find(path);
        while folder.is_none()
            && let Some((next, _)) = above.rsplit_once('/')
        {
            missing.push(above.len());
            above = next;
            folder = self.find(above);
        }
        let mut folder = match folder {
            None => self.add_entry(above, None, &IMPLIED_FOLDER),
            Some(at) => match self.index.entry_by_number(at).kind {
                Kind::Folder => at,
                Kind::File { .. } => return Err(TreeConflict::InFile(self.index.path(at))),
                Kind::Symlink { .. } => return Err(TreeConflict::ThroughLink(self.index.path(at))),
            },
        };
        for end in missing.into_iter().rev() {
            folder = self.add_entry(&path[..end], Some(folder), &IMPLIED_FOLDER);
        }
        path.clone_into(&mut self.last_folder.0);
        self.last_folder.1 = Some(folder);
        Ok(folder)
    }

    /// Returns the number of the entry at `path`.
    fn find(&self, path: &str) -> Option<u32> {
        self.lookup(path, |at| self.index.has_path(at, path))
    }

    /// Looks up the number of the entry at `path`. `matches` decides among entries with the same hash.
    fn lookup(&self, path: &str, matches: impl Fn(u32) -> bool) -> Option<u32> {
        let half_hash = self.half_hash(path);
        let matches = |slot: &EntryNumberAndPathHash| slot.half_hash == half_hash && matches(slot.at);
        let slot = self.by_path.find(table_hash(half_hash), matches);
        slot.map(|slot| slot.at)
    }

    /// Adds an entry at a path where none exists, and returns its number.
    fn add_entry(&mut self, path: &str, folder: Option<u32>, entry: &Entry<'_>) -> u32 {
        let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
        let at = self.index.push(folder, name, entry);
        let half_hash = self.half_hash(path);
        let slot = EntryNumberAndPathHash { at, half_hash };
        self.by_path
            .insert_unique(table_hash(half_hash), slot, |slot| table_hash(slot.half_hash));
        at
    }

    /// Returns half of the hash of `path`, with the tree's random key.
    fn half_hash(&self, path: &str) -> u32 {
        let hash = self.hasher.hash_one(path.as_bytes());
        u32::try_from(hash >> u32::BITS).unwrap_or_default()
    }
}

/// Spreads the half of a path's hash over 64 bits: the table uses the first and the last bits of a hash.
fn table_hash(half_hash: u32) -> u64 {
    u64::from(half_hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_entry(offset: u64) -> Entry<'static> {
        let kind = Kind::File { offset, size: 1 };
        Entry {
            kind,
            mode: 0o644,
            mtime_ns: 7,
            ..IMPLIED_FOLDER
        }
    }

    fn folder_entry(mode: u32) -> Entry<'static> {
        Entry {
            mode,
            ..IMPLIED_FOLDER
        }
    }

    fn symlink_entry(target: &str) -> Entry<'_> {
        Entry {
            kind: Kind::Symlink { target },
            mode: 0o777,
            ..IMPLIED_FOLDER
        }
    }

    fn insert_entry(tree: &mut ContextTree, path: &str, entry: Entry<'_>) -> Result<(), TreeConflict> {
        tree.insert(path, &entry)
    }

    fn indexed_paths(tree: ContextTree) -> Vec<String> {
        let index = tree.into_index();
        let mut walk = index.walk();
        let mut paths = Vec::new();
        while let Some((_, path)) = walk.next_entry_or_none_then_restart() {
            paths.push(path.to_owned());
        }
        paths
    }

    #[test]
    fn folders_that_a_tar_only_implies_are_added_to_the_tree() {
        let mut tree = ContextTree::default();
        insert_entry(&mut tree, "a/b/c", file_entry(1)).unwrap();
        insert_entry(&mut tree, "a.txt", file_entry(2)).unwrap();
        let index = tree.into_index();
        assert_eq!(
            index,
            Index::of_entries_linking_same_offset([
                ("a", folder_entry(0o755)),
                ("a/b", folder_entry(0o755)),
                ("a/b/c", file_entry(1)),
                ("a.txt", file_entry(2))
            ])
        );
        assert_eq!(index.len(), 4);
    }

    #[test]
    fn a_folder_after_its_entries_sets_its_own_mode() {
        let mut tree = ContextTree::default();
        insert_entry(&mut tree, "a/b", file_entry(1)).unwrap();
        insert_entry(&mut tree, "a", folder_entry(0o700)).unwrap();
        let index = tree.into_index();
        assert_eq!(index.get("a"), Some(folder_entry(0o700)));
        assert_eq!(index.get("a/b"), Some(file_entry(1)));
        assert_eq!(index.len(), 2);
    }

    #[test]
    fn the_last_of_several_entries_with_one_path_wins() {
        let mut tree = ContextTree::default();
        insert_entry(&mut tree, "a", file_entry(1)).unwrap();
        insert_entry(&mut tree, "a", symlink_entry("b")).unwrap();
        insert_entry(&mut tree, "a", folder_entry(0o755)).unwrap();
        insert_entry(&mut tree, "a", file_entry(2)).unwrap();
        let index = tree.into_index();
        assert_eq!(index.len(), 1);
        assert_eq!(index.get("a"), Some(file_entry(2)));
    }

    #[test]
    fn an_entry_that_replaces_another_keeps_nothing_of_it() {
        let attributes = ExtendedAttributes::pack([("user.a", &b"1"[..])]);
        let with = Entry {
            xattrs: ExtendedAttributes::from_packed(&attributes),
            ..file_entry(1)
        };
        let entries = [
            file_entry(1),
            with,
            symlink_entry("b"),
            symlink_entry("cd"),
            with,
            folder_entry(0o700),
            file_entry(2),
        ];
        for after in entries {
            for before in entries {
                let mut tree = ContextTree::default();
                insert_entry(&mut tree, "d/a", before).unwrap();
                let taken = tree.memory_bytes();
                insert_entry(&mut tree, "d/a", after).unwrap();
                assert!(tree.memory_bytes() >= taken, "a replaced entry still counts");
                let index = tree.into_index();
                assert_eq!(index.get("d/a"), Some(after));
                assert_eq!(index.len(), 2);
            }
        }
    }

    #[test]
    fn a_folder_replaced_by_a_file_is_no_folder_for_the_next_entry() {
        let mut tree = ContextTree::default();
        insert_entry(&mut tree, "a/b/c", file_entry(1)).unwrap();
        insert_entry(&mut tree, "x", file_entry(1)).unwrap();
        insert_entry(&mut tree, "y/z", folder_entry(0o755)).unwrap();
        insert_entry(&mut tree, "y/z", file_entry(2)).unwrap();
        insert_entry(&mut tree, "y/c", file_entry(1)).unwrap();
        assert_eq!(
            insert_entry(&mut tree, "y/z/a", file_entry(2)),
            Err(TreeConflict::InFile("y/z".to_owned()))
        );
        insert_entry(&mut tree, "p/q", folder_entry(0o755)).unwrap();
        assert_eq!(insert_entry(&mut tree, "p/q/r/s", folder_entry(0o755)), Ok(()));
        assert_eq!(insert_entry(&mut tree, "p/q/r/s", symlink_entry("t")), Ok(()));
        assert_eq!(
            insert_entry(&mut tree, "p/q/r/s/t", file_entry(2)),
            Err(TreeConflict::ThroughLink("p/q/r/s".to_owned()))
        );
    }

    #[test]
    fn no_entry_is_added_below_a_file_or_a_symlink() {
        let mut tree = ContextTree::default();
        insert_entry(&mut tree, "file", file_entry(1)).unwrap();
        insert_entry(&mut tree, "link", symlink_entry("/etc")).unwrap();
        for (path, conflict) in [
            ("file/x", TreeConflict::InFile("file".to_owned())),
            ("file/x/y", TreeConflict::InFile("file".to_owned())),
            ("link/x", TreeConflict::ThroughLink("link".to_owned())),
            ("link/x/y", TreeConflict::ThroughLink("link".to_owned())),
        ] {
            assert_eq!(insert_entry(&mut tree, path, file_entry(2)), Err(conflict));
        }
        assert_eq!(indexed_paths(tree), ["file", "link"]);
    }

    #[test]
    fn a_folder_is_replaced_by_a_symlink_only_if_it_is_empty() {
        let mut tree = ContextTree::default();
        insert_entry(&mut tree, "a/b", folder_entry(0o755)).unwrap();
        // A sibling that sorts directly after the folder is not in it.
        insert_entry(&mut tree, "a.txt", file_entry(1)).unwrap();
        assert_eq!(
            insert_entry(&mut tree, "a", symlink_entry("x")),
            Err(TreeConflict::ReplacesFolder)
        );
        assert_eq!(insert_entry(&mut tree, "a/b", symlink_entry("x")), Ok(()));
        assert_eq!(indexed_paths(tree), ["a", "a/b", "a.txt"]);
    }

    #[test]
    fn a_hard_link_keeps_its_file_when_the_first_name_is_replaced() {
        let mut tree = ContextTree::default();
        insert_entry(&mut tree, "z", file_entry(1)).unwrap();
        tree.insert_hard_link_or_copy_of_symlink("a", "z").unwrap();
        insert_entry(&mut tree, "z", file_entry(2)).unwrap();
        tree.insert_hard_link_or_copy_of_symlink("z", "z").unwrap();
        let index = tree.into_index();
        assert_eq!(index.get("a"), Some(file_entry(1)));
        assert_eq!(index.get("z"), Some(file_entry(2)));
        assert_eq!(index.len(), 2);
    }

    #[test]
    fn a_hard_link_needs_an_existing_file_or_symlink_as_its_target() {
        let mut tree = ContextTree::default();
        insert_entry(&mut tree, "folder", folder_entry(0o755)).unwrap();
        insert_entry(&mut tree, "link", symlink_entry("x")).unwrap();
        assert_eq!(
            tree.insert_hard_link_or_copy_of_symlink("a", "nothing"),
            Err(TreeConflict::NoTarget)
        );
        assert_eq!(
            tree.insert_hard_link_or_copy_of_symlink("a", "folder"),
            Err(TreeConflict::FolderTarget)
        );
        assert_eq!(tree.insert_hard_link_or_copy_of_symlink("a", "link"), Ok(()));
        assert_eq!(tree.into_index().get("a"), Some(symlink_entry("x")));
    }
}
