//! Entries put together one after the other, as extracting them one after the other would.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

use super::{Attributes, ContentHash, Entry, Index, Kind};

/// What a tar may leave unsaid: the folders above what it has.
const IMPLIED: Entry<'static> = Entry {
    kind: Kind::Directory,
    mode: 0o755,
    mtime_ns: 0,
    xattrs: Attributes::NONE,
    content: ContentHash([0; 12]),
};

/// What an entry takes besides that in the index, in bytes: a place here while the tree grows, and less than that afterwards.
const BESIDES: usize = 12;

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

/// An entry's number, and half of the hash of its path. With it the table can grow without making all paths again.
struct Place {
    at: u32,
    half: u32,
}

/// A folder tree. What is in it always has its folders in it.
#[derive(Default)]
pub(super) struct Tree {
    index: Index,
    /// All entries, by path.
    places: HashTable<Place>,
    /// Nobody outside can know it, and make many paths that are in one place.
    hasher: RandomState,
    /// The folder that was last looked for, and its number: most entries of a tar are in the same one as those before.
    last: (String, Option<u32>),
}

impl Tree {
    /// Bytes that all of this takes, counting replaced entries too.
    pub(super) fn bytes(&self) -> usize {
        self.index.bytes() + self.len() * BESIDES
    }

    /// How many entries there are, with the implied ones.
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// Puts `entry` at `path`, in place of what was there, and says under which number.
    ///
    /// # Errors
    /// When something above is no folder, or a folder with entries would have to go.
    pub(super) fn insert(&mut self, path: &str, entry: &Entry<'_>) -> Result<u32, Conflict> {
        let (folder, name) = match path.rsplit_once('/') {
            Some((folder, name)) => (self.make_folder(folder)?, name),
            None => (None, path),
        };
        let is_it = |at| self.index.folder(at) == folder && self.index.name_bytes(at) == name.as_bytes();
        match self.place(path, is_it) {
            None => Ok(self.put(path, folder, entry)),
            Some(at) if !entry.is_directory() && self.index.has_children(at) => Err(Conflict::ReplacesFolder),
            Some(at) => {
                self.index.replace(at, entry);
                Ok(at)
            }
        }
    }

    /// Makes `path` another name of what is at `target`.
    ///
    /// # Errors
    /// When nothing or a folder is there, and as [`insert`](Self::insert).
    pub(super) fn link(&mut self, path: &str, target: &str) -> Result<(), Conflict> {
        let target = self.find(target).ok_or(Conflict::NoTarget)?;
        let Entry {
            kind,
            mode,
            mtime_ns,
            xattrs,
            content,
        } = self.index.entry(target);
        // What is in the index is copied before more is put there.
        let attributes = xattrs.as_packed().to_vec();
        let leads_to;
        let kind = match kind {
            Kind::Directory => return Err(Conflict::FolderTarget),
            Kind::File { offset, size } => Kind::File { offset, size },
            Kind::Symlink { target } => {
                leads_to = target.to_owned();
                Kind::Symlink { target: &leads_to }
            }
        };
        let entry = Entry {
            kind,
            mode,
            mtime_ns,
            xattrs: Attributes::packed(&attributes),
            content,
        };
        let at = self.insert(path, &entry)?;
        if matches!(entry.kind, Kind::File { .. }) {
            self.index.set_linked(target);
            self.index.set_linked(at);
        }
        Ok(())
    }

    /// Says what the file with this number contains, which is known only once it has been read.
    pub(super) fn set_content(&mut self, at: u32, content: ContentHash) {
        self.index.set_content(at, content);
    }

    /// All entries.
    pub(super) fn into_index(self) -> Index {
        let Self {
            mut index, places, ..
        } = self;
        drop(places);
        index.sort();
        index
    }

    /// The folder at `path`, which is made where it is not there.
    fn make_folder(&mut self, path: &str) -> Result<Option<u32>, Conflict> {
        let (known, at) = &self.last;
        if known == path && at.is_some_and(|at| self.index.is_directory(at)) {
            return Ok(*at);
        }
        // From the bottom up to what is there, and down again. So a path is looked at once for each folder that is made, and
        // once more: how deep it is makes no difference otherwise.
        let mut ends = Vec::new();
        let mut there = Some(path);
        let mut folder = None;
        while let Some(above) = there {
            folder = self.find(above);
            if folder.is_some() {
                break;
            }
            ends.push(above.len());
            there = above.rsplit_once('/').map(|(above, _)| above);
        }
        if let Some(at) = folder {
            match self.index.entry(at).kind {
                Kind::Directory => {}
                Kind::File { .. } => return Err(Conflict::InFile(self.index.path(at))),
                Kind::Symlink { .. } => return Err(Conflict::ThroughLink(self.index.path(at))),
            }
        }
        for end in ends.into_iter().rev() {
            folder = Some(self.put(&path[..end], folder, &IMPLIED));
        }
        path.clone_into(&mut self.last.0);
        self.last.1 = folder;
        Ok(folder)
    }

    /// The number of what is at `path`.
    fn find(&self, path: &str) -> Option<u32> {
        self.place(path, |at| self.index.is_at(at, path))
    }

    /// The number of what is at `path`, as `is_it` knows it among others.
    fn place(&self, path: &str, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let half = self.half(path);
        let is_it = |place: &Place| place.half == half && is_it(place.at);
        self.places.find(whole(half), is_it).map(|place| place.at)
    }

    /// Puts an entry where nothing is.
    fn put(&mut self, path: &str, folder: Option<u32>, entry: &Entry<'_>) -> u32 {
        let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
        let at = self.index.push(folder, name, entry);
        let half = self.half(path);
        let place = Place { at, half };
        self.places
            .insert_unique(whole(half), place, |place| whole(place.half));
        at
    }

    fn half(&self, path: &str) -> u32 {
        let hash = self.hasher.hash_one(path.as_bytes());
        u32::try_from(hash >> u32::BITS).unwrap_or_default()
    }
}

/// A hash for the table, which goes by the first and the last bits: those of `half`, spread over 64.
fn whole(half: u32) -> u64 {
    u64::from(half).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(offset: u64) -> Entry<'static> {
        let kind = Kind::File { offset, size: 1 };
        Entry {
            kind,
            mode: 0o644,
            mtime_ns: 7,
            ..IMPLIED
        }
    }

    fn folder(mode: u32) -> Entry<'static> {
        Entry { mode, ..IMPLIED }
    }

    fn symlink(target: &str) -> Entry<'_> {
        Entry {
            kind: Kind::Symlink { target },
            mode: 0o777,
            ..IMPLIED
        }
    }

    fn insert(tree: &mut Tree, path: &str, entry: Entry<'_>) -> Result<(), Conflict> {
        tree.insert(path, &entry).map(|_| ())
    }

    fn paths(tree: Tree) -> Vec<String> {
        let index = tree.into_index();
        let mut walk = index.walk();
        let mut paths = Vec::new();
        while let Some((_, path)) = walk.step() {
            paths.push(path.to_owned());
        }
        paths
    }

    #[test]
    fn folders_that_are_not_mentioned_are_there_all_the_same() {
        let mut tree = Tree::default();
        insert(&mut tree, "a/b/c", file(1)).unwrap();
        insert(&mut tree, "a.txt", file(2)).unwrap();
        let index = tree.into_index();
        assert_eq!(
            index,
            Index::of([
                ("a", folder(0o755)),
                ("a/b", folder(0o755)),
                ("a/b/c", file(1)),
                ("a.txt", file(2))
            ])
        );
        assert_eq!(index.len(), 4);
    }

    #[test]
    fn a_folder_mentioned_after_its_content_brings_its_own_mode() {
        let mut tree = Tree::default();
        insert(&mut tree, "a/b", file(1)).unwrap();
        insert(&mut tree, "a", folder(0o700)).unwrap();
        let index = tree.into_index();
        assert_eq!(index.get("a"), Some(folder(0o700)));
        assert_eq!(index.get("a/b"), Some(file(1)));
        assert_eq!(index.len(), 2);
    }

    #[test]
    fn the_last_of_two_entries_with_one_path_counts() {
        let mut tree = Tree::default();
        insert(&mut tree, "a", file(1)).unwrap();
        insert(&mut tree, "a", symlink("b")).unwrap();
        insert(&mut tree, "a", folder(0o755)).unwrap();
        insert(&mut tree, "a", file(2)).unwrap();
        let index = tree.into_index();
        assert_eq!(index.len(), 1);
        assert_eq!(index.get("a"), Some(file(2)));
    }

    #[test]
    fn what_is_put_in_place_of_something_takes_nothing_over_from_it() {
        let attributes = Attributes::pack([("user.a", &b"1"[..])]);
        let with = Entry {
            xattrs: Attributes::packed(&attributes),
            ..file(1)
        };
        let one_after_the_other = [
            file(1),
            with,
            symlink("b"),
            symlink("cd"),
            with,
            folder(0o700),
            file(2),
        ];
        for after in one_after_the_other {
            for before in one_after_the_other {
                let mut tree = Tree::default();
                insert(&mut tree, "d/a", before).unwrap();
                let taken = tree.bytes();
                insert(&mut tree, "d/a", after).unwrap();
                assert!(tree.bytes() >= taken, "what is replaced still counts");
                let index = tree.into_index();
                assert_eq!(index.get("d/a"), Some(after));
                assert_eq!(index.len(), 2);
            }
        }
    }

    #[test]
    fn a_folder_that_has_become_a_file_is_none_for_the_next_entry_either() {
        let mut tree = Tree::default();
        insert(&mut tree, "a/b/c", file(1)).unwrap();
        insert(&mut tree, "x", file(1)).unwrap();
        insert(&mut tree, "y/z", folder(0o755)).unwrap();
        insert(&mut tree, "y/z", file(2)).unwrap();
        insert(&mut tree, "y/c", file(1)).unwrap();
        assert_eq!(
            insert(&mut tree, "y/z/a", file(2)),
            Err(Conflict::InFile("y/z".to_owned()))
        );
        insert(&mut tree, "p/q", folder(0o755)).unwrap();
        assert_eq!(insert(&mut tree, "p/q/r/s", folder(0o755)), Ok(()));
        assert_eq!(insert(&mut tree, "p/q/r/s", symlink("t")), Ok(()));
        assert_eq!(
            insert(&mut tree, "p/q/r/s/t", file(2)),
            Err(Conflict::ThroughLink("p/q/r/s".to_owned()))
        );
    }

    #[test]
    fn nothing_is_put_into_a_file_or_through_a_link() {
        let mut tree = Tree::default();
        insert(&mut tree, "file", file(1)).unwrap();
        insert(&mut tree, "link", symlink("/etc")).unwrap();
        for (path, conflict) in [
            ("file/x", Conflict::InFile("file".to_owned())),
            ("file/x/y", Conflict::InFile("file".to_owned())),
            ("link/x", Conflict::ThroughLink("link".to_owned())),
            ("link/x/y", Conflict::ThroughLink("link".to_owned())),
        ] {
            assert_eq!(insert(&mut tree, path, file(2)), Err(conflict));
        }
        assert_eq!(paths(tree), ["file", "link"]);
    }

    #[test]
    fn a_folder_goes_only_when_it_is_empty() {
        let mut tree = Tree::default();
        insert(&mut tree, "a/b", folder(0o755)).unwrap();
        // A neighbour that sorts right behind the folder is not in it.
        insert(&mut tree, "a.txt", file(1)).unwrap();
        assert_eq!(
            insert(&mut tree, "a", symlink("x")),
            Err(Conflict::ReplacesFolder)
        );
        assert_eq!(insert(&mut tree, "a/b", symlink("x")), Ok(()));
        assert_eq!(paths(tree), ["a", "a/b", "a.txt"]);
    }

    #[test]
    fn a_hard_link_is_the_same_file_even_when_its_first_name_is_given_away() {
        let mut tree = Tree::default();
        insert(&mut tree, "z", file(1)).unwrap();
        tree.link("a", "z").unwrap();
        insert(&mut tree, "z", file(2)).unwrap();
        tree.link("z", "z").unwrap();
        let index = tree.into_index();
        assert_eq!(index.get("a"), Some(file(1)));
        assert_eq!(index.get("z"), Some(file(2)));
        assert_eq!(index.len(), 2);
    }

    #[test]
    fn a_hard_link_needs_a_file_or_link_to_point_to() {
        let mut tree = Tree::default();
        insert(&mut tree, "folder", folder(0o755)).unwrap();
        insert(&mut tree, "link", symlink("x")).unwrap();
        assert_eq!(tree.link("a", "nothing"), Err(Conflict::NoTarget));
        assert_eq!(tree.link("a", "folder"), Err(Conflict::FolderTarget));
        assert_eq!(tree.link("a", "link"), Ok(()));
        assert_eq!(tree.into_index().get("a"), Some(symlink("x")));
    }
}
