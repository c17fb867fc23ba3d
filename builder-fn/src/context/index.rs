//! The entries of a source context, in a packed form that saves memory.
//!
//! An entry is a [`PackedEntry`] of 32 bytes, and a text in an arena with its name, link target and attributes. Paths
//! are not stored: they are put together from the names of the folders above. The entries of one folder are adjacent
//! and sorted by name, so that a path is looked up from the top down, and a [`IndexWalk`] returns the entries in
//! BuildKit's order.
//!
//! Why not a `BTreeMap` from path to entry: an index lives as long as its build, and several builds of 200,000 entries
//! have to fit into a builder of 256 MiB. In this form such an index takes at most about 16 MiB
//! ([`ArchiveLimits`](super::ArchiveLimits)). A map takes about 20 MiB more, which for four builds is a third of the
//! builder's memory. The end-to-end tests in `resource_limits.rs` measure the memory of builds with that many entries.

mod arena;
mod chunked_vec;
mod packed_entry;
mod sort;
mod walk;

use std::fmt;
use std::ops::Range;

use super::Entry;
use arena::Arena;
use chunked_vec::ChunkedVec;
use packed_entry::PackedEntry;
use walk::IndexWalk;

/// The entries of a source context, without its root. The folder of every entry is an entry too.
///
/// Entries are identified by numbers, whose order has no meaning. A number of another index is a bug in this crate, and
/// may panic.
#[derive(Default)]
pub struct Index {
    entries: ChunkedVec<PackedEntry>,
    texts: Arena,
    /// The number of entries directly in the context.
    top_level: u32,
}

impl Index {
    /// Returns the number of entries in the index.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether the index has no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns a walk through all entries, in the order in which BuildKit expects them.
    pub fn walk(&self) -> IndexWalk<'_> {
        IndexWalk::new(self)
    }

    /// Finds the number of the entry at `path`, which is relative to the context, without `./` and without a trailing
    /// slash.
    pub fn find(&self, path: &str) -> Option<u32> {
        let mut number = None;
        for name in path.split('/') {
            number = Some(self.find_in(number, name)?);
        }
        number
    }

    /// Returns the entry at `path`, which has the form that [`find`](Self::find) expects.
    pub fn get(&self, path: &str) -> Option<Entry<'_>> {
        Some(self.entry_by_number(self.find(path)?))
    }

    /// Returns the entry with this number.
    pub fn entry_by_number(&self, number: u32) -> Entry<'_> {
        let packed = self.packed(number);
        packed.unpack(self.texts.chunk_bytes_from(packed.text))
    }

    /// Returns the name of an entry, which is the last component of its path.
    pub fn name(&self, number: u32) -> &str {
        std::str::from_utf8(self.name_bytes(number)).unwrap_or_default()
    }

    /// Returns the path of an entry, relative to the context, without `./` and without a trailing slash.
    pub fn path(&self, number: u32) -> String {
        let mut path = String::new();
        self.write_path(number, &mut path);
        path
    }

    /// Writes the path of an entry to `path`, replacing its previous value.
    pub(crate) fn write_path(&self, number: u32, path: &mut String) {
        let mut bytes = std::mem::take(path).into_bytes();
        bytes.clear();
        let above = || std::iter::successors(Some(number), |number| self.parent_folder(*number));
        let length: usize = above().map(|number| self.name_bytes(number).len() + 1).sum();
        bytes.resize(length, b'/');
        let mut end = length - 1;
        for name in above().map(|number| self.name_bytes(number)) {
            let start = end.saturating_sub(name.len());
            bytes[start..end].copy_from_slice(name);
            end = start.saturating_sub(1);
        }
        bytes.pop();
        *path = String::from_utf8(bytes).unwrap_or_default();
    }

    /// Returns whether the entry with this number is at `path`. Compares from the end, up to the first difference.
    pub(super) fn has_path(&self, number: u32, path: &str) -> bool {
        let mut rest = path.as_bytes();
        let mut number = number;
        loop {
            let Some(before) = rest.strip_suffix(self.name_bytes(number)) else {
                return false;
            };
            match (self.parent_folder(number), before) {
                (None, []) => return true,
                (Some(folder), [above @ .., b'/']) => (number, rest) = (folder, above),
                _ => return false,
            }
        }
    }

    /// Returns the number of an entry's folder, or `None` if the entry is directly in the context.
    pub(super) fn parent_folder(&self, number: u32) -> Option<u32> {
        Some(self.packed(number).folder).filter(|folder| *folder != PackedEntry::TOP_LEVEL)
    }

    /// Returns the numbers of the entries directly in a folder, or in the context, sorted by name. There are none in a
    /// file or a link.
    pub(super) fn children(&self, folder: Option<u32>) -> Range<u32> {
        let (start, count) = match folder {
            None => (0, u64::from(self.top_level)),
            Some(number) if self.packed(number).is_folder() => (
                self.packed(number).content_offset_or_first_child(),
                self.packed(number).content_or_target_length_or_child_count(),
            ),
            Some(_) => (0, 0),
        };
        let number = |number| u32::try_from(number).unwrap_or_default();
        number(start)..number(start + count)
    }

    /// Returns the number of the entry called `name` in a folder, or in the context.
    pub(super) fn find_in(&self, folder: Option<u32>, name: &str) -> Option<u32> {
        let mut within = self.children(folder);
        while !within.is_empty() {
            let middle = within.start + (within.end - within.start) / 2;
            match self.name_bytes(middle).cmp(name.as_bytes()) {
                std::cmp::Ordering::Equal => return Some(middle),
                std::cmp::Ordering::Less => within.start = middle + 1,
                std::cmp::Ordering::Greater => within.end = middle,
            }
        }
        None
    }

    /// Returns whether a file may share its offset with another one.
    pub(super) fn may_be_hard_linked(&self, number: u32) -> bool {
        self.packed(number).may_be_hard_linked()
    }

    /// Returns whether an entry is a folder.
    pub(super) fn is_folder(&self, number: u32) -> bool {
        self.packed(number).is_folder()
    }

    fn packed(&self, number: u32) -> &PackedEntry {
        &self.entries[number as usize]
    }

    /// Returns the name of an entry as bytes.
    pub(super) fn name_bytes(&self, number: u32) -> &[u8] {
        PackedEntry::name(self.texts.chunk_bytes_from(self.packed(number).text))
    }
}

/// Construction of an index, which is for [`ContextTree`](super::tree::ContextTree) alone. Until [`sort`](Self::sort),
/// entries are numbered in the order in which they were added, and cannot be looked up.
impl Index {
    /// The limit on the memory of the index in bytes, before the last entry is added.
    pub(super) const MAX_BYTES: usize = Arena::MAX_BYTES;

    /// Returns the memory that the index takes, in bytes, including the texts of replaced entries.
    pub(super) fn memory_bytes(&self) -> usize {
        self.len() * PackedEntry::BYTES + self.texts.total_string_bytes()
    }

    /// Adds an entry to a folder or to the context, and returns its number. The entry must not exist yet.
    pub(super) fn push(&mut self, folder: Option<u32>, name: &str, entry: &Entry<'_>) -> u32 {
        let text = PackedEntry::add_text(&mut self.texts, name, entry);
        let number = u32::try_from(self.len()).unwrap_or(PackedEntry::TOP_LEVEL);
        self.entries.push(PackedEntry::new(
            folder.unwrap_or(PackedEntry::TOP_LEVEL),
            text,
            entry,
        ));
        match folder {
            Some(folder) => {
                let folder = &mut self.entries[folder as usize];
                folder.set_child_count(folder.content_or_target_length_or_child_count() + 1);
            }
            None => self.top_level += 1,
        }
        number
    }

    /// Replaces an entry by another. A folder that replaces a folder keeps its entries.
    pub(super) fn replace(&mut self, number: u32, entry: &Entry<'_>) {
        let before = *self.packed(number);
        let text = match PackedEntry::text_is_name(entry) {
            true => before.text,
            false => {
                let name = self.name(number).to_owned();
                PackedEntry::add_text(&mut self.texts, &name, entry)
            }
        };
        let mut packed = PackedEntry::new(before.folder, text, entry);
        if before.is_folder() && packed.is_folder() {
            packed.set_child_count(before.content_or_target_length_or_child_count());
        }
        self.entries[number as usize] = packed;
    }

    /// Returns whether an entry is a folder that is not empty.
    pub(super) fn has_children(&self, number: u32) -> bool {
        self.packed(number).is_folder() && self.packed(number).content_or_target_length_or_child_count() > 0
    }

    /// Marks a file as one that may share its offset with another one.
    pub(super) fn set_may_be_hard_linked(&mut self, number: u32) {
        self.entries[number as usize].set_may_be_hard_linked();
    }
}

impl PartialEq for Index {
    fn eq(&self, other: &Self) -> bool {
        let (mut ours, mut theirs) = (self.walk(), other.walk());
        loop {
            match (
                ours.next_entry_or_none_then_restart(),
                theirs.next_entry_or_none_then_restart(),
            ) {
                (None, None) => return true,
                (Some((our, path)), Some((their, their_path)))
                    if path == their_path && self.entry_by_number(our) == other.entry_by_number(their) => {}
                _ => return false,
            }
        }
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_map();
        let mut walk = self.walk();
        while let Some((number, path)) = walk.next_entry_or_none_then_restart() {
            shown.entry(&path, &self.entry_by_number(number));
        }
        shown.finish()
    }
}

#[cfg(test)]
mod tests;
