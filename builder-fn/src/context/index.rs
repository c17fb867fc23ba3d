//! The entries of a source context, as small as they can be kept.
//!
//! Everything that a build takes of memory for a file is for as long as the build, and contexts have many files. So an
//! entry is a [`Record`] of fixed length and a text behind others; a path is nowhere, but made of the names of the folders
//! above. What is in one folder lies side by side, by name, so that a path is found from the top down, and BuildKit's order
//! is that in which a [`Walk`] meets the entries.

mod record;
mod rows;
mod sort;
mod texts;
mod walk;

use std::fmt;
use std::ops::Range;

use super::{ContentHash, Entry};
use record::Record;
use rows::Rows;
use texts::Texts;
pub use walk::Walk;

/// The entries of a source context, but for the root. Every entry's folder is an entry too.
///
/// Each has a number, which says nothing of its place among the others. A number that is not of this index is a mistake in
/// here, and a panic.
#[derive(Default)]
pub struct Index {
    records: Rows<Record>,
    texts: Texts,
    /// How many entries are in the context directly.
    top: u32,
}

impl Index {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, in the order in which BuildKit wants them.
    pub fn walk(&self) -> Walk<'_> {
        Walk::new(self)
    }

    /// The number of what is at `path`, which is relative to the context, without `./` and without a trailing slash.
    pub fn find(&self, path: &str) -> Option<u32> {
        let mut at = None;
        for name in path.split('/') {
            at = Some(self.find_in(at, name)?);
        }
        at
    }

    /// The entry at `path`, which is written as for [`find`](Self::find).
    pub fn get(&self, path: &str) -> Option<Entry<'_>> {
        Some(self.entry(self.find(path)?))
    }

    /// The entry with a number.
    pub fn entry(&self, at: u32) -> Entry<'_> {
        let record = self.record(at);
        record.entry(self.texts.from(record.text))
    }

    /// The last component of an entry's path.
    pub fn name(&self, at: u32) -> &str {
        std::str::from_utf8(self.name_bytes(at)).unwrap_or_default()
    }

    /// The path of an entry: relative to the context, `/` between components, neither `./` in front nor `/` at the end.
    pub fn path(&self, at: u32) -> String {
        let mut path = String::new();
        self.read_path(at, &mut path);
        path
    }

    /// Puts the path of an entry in place of what `path` was.
    pub(crate) fn read_path(&self, at: u32, path: &mut String) {
        let mut bytes = std::mem::take(path).into_bytes();
        bytes.clear();
        let above = || std::iter::successors(Some(at), |at| self.folder(*at));
        let length: usize = above().map(|at| self.name_bytes(at).len() + 1).sum();
        bytes.resize(length, b'/');
        let mut end = length - 1;
        for name in above().map(|at| self.name_bytes(at)) {
            let start = end.saturating_sub(name.len());
            bytes[start..end].copy_from_slice(name);
            end = start.saturating_sub(1);
        }
        bytes.pop();
        *path = String::from_utf8(bytes).unwrap_or_default();
    }

    /// Whether this is the path of an entry. Looks at it from its end, and no further than need be.
    pub(super) fn is_at(&self, at: u32, path: &str) -> bool {
        let mut rest = path.as_bytes();
        let mut at = at;
        loop {
            let Some(before) = rest.strip_suffix(self.name_bytes(at)) else {
                return false;
            };
            match (self.folder(at), before) {
                (None, []) => return true,
                (Some(folder), [above @ .., b'/']) => (at, rest) = (folder, above),
                _ => return false,
            }
        }
    }

    /// The folder that an entry is in, if not in the context itself.
    pub(super) fn folder(&self, at: u32) -> Option<u32> {
        Some(self.record(at).folder).filter(|folder| *folder != Record::TOP)
    }

    /// What is directly in a folder, or in the context itself, by name.
    pub(super) fn children(&self, folder: Option<u32>) -> Range<u32> {
        let (start, count) = match folder {
            None => (0, u64::from(self.top)),
            Some(at) if self.record(at).is_directory() => (self.record(at).start(), self.record(at).size()),
            Some(_) => (0, 0),
        };
        let number = |number| u32::try_from(number).unwrap_or_default();
        number(start)..number(start + count)
    }

    /// The number of what is in a folder under this name.
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

    /// Whether a file may have the same offset as another one.
    pub(super) fn is_linked(&self, at: u32) -> bool {
        self.record(at).is_linked()
    }

    pub(super) fn is_directory(&self, at: u32) -> bool {
        self.record(at).is_directory()
    }

    fn record(&self, at: u32) -> &Record {
        &self.records[at as usize]
    }

    pub(super) fn name_bytes(&self, at: u32) -> &[u8] {
        Record::name(self.texts.from(self.record(at).text))
    }
}

/// Putting it together, which is for [`Tree`](super::tree::Tree). Until it is sorted, numbers are those of the order in which
/// entries came, and nothing can be found.
impl Index {
    /// What it may take at most, in bytes, before the last entry is added.
    pub(super) const MAX: usize = Texts::MAX;

    /// Bytes that it takes: with the texts of entries that others have taken the place of.
    pub(super) fn bytes(&self) -> usize {
        self.len() * Record::BYTES + self.texts.bytes()
    }

    /// Adds an entry, which is not there yet, to a folder or to the context itself.
    pub(super) fn push(&mut self, folder: Option<u32>, name: &str, entry: &Entry<'_>) -> u32 {
        let text = Record::add_text(&mut self.texts, name, entry);
        let at = u32::try_from(self.len()).unwrap_or(Record::TOP);
        self.records
            .push(Record::new(folder.unwrap_or(Record::TOP), text, entry));
        match folder {
            Some(folder) => {
                let folder = &mut self.records[folder as usize];
                folder.set_size(folder.size() + 1);
            }
            None => self.top += 1,
        }
        at
    }

    /// Puts `entry` in place of another one. A folder in place of a folder has all that is in it.
    pub(super) fn replace(&mut self, at: u32, entry: &Entry<'_>) {
        let before = *self.record(at);
        let text = match Record::text_is_name(entry) {
            true => before.text,
            false => {
                let name = self.name(at).to_owned();
                Record::add_text(&mut self.texts, &name, entry)
            }
        };
        let mut record = Record::new(before.folder, text, entry);
        if before.is_directory() && record.is_directory() {
            record.set_size(before.size());
        }
        self.records[at as usize] = record;
    }

    /// Whether there is something in a folder.
    pub(super) fn has_children(&self, at: u32) -> bool {
        self.record(at).is_directory() && self.record(at).size() > 0
    }

    /// Says what a file contains.
    pub(super) fn set_content(&mut self, at: u32, content: ContentHash) {
        self.records[at as usize].set_content(content);
    }

    /// Says that a file has another name too.
    pub(super) fn set_linked(&mut self, at: u32) {
        self.records[at as usize].set_linked();
    }
}

impl PartialEq for Index {
    fn eq(&self, other: &Self) -> bool {
        let (mut ours, mut theirs) = (self.walk(), other.walk());
        loop {
            match (ours.step(), theirs.step()) {
                (None, None) => return true,
                (Some((our, path)), Some((their, their_path)))
                    if path == their_path && self.entry(our) == other.entry(their) => {}
                _ => return false,
            }
        }
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_map();
        let mut walk = self.walk();
        while let Some((at, path)) = walk.step() {
            shown.entry(&path, &self.entry(at));
        }
        shown.finish()
    }
}

#[cfg(test)]
mod tests;
