//! A walk through the entries of an index, in the order in which BuildKit expects them.
//!
//! Paths are ordered by component, and a folder comes directly before its entries. This differs from the order of
//! strings: here `a/b` comes before `a.txt`.

use super::Index;

/// A walk through the entries of an index and their paths, in constant memory.
#[derive(Debug)]
pub struct IndexWalk<'a> {
    index: &'a Index,
    at: Option<u32>,
    path: String,
    /// Whether the walk skips the entries in the current folder.
    skips_children: bool,
}

impl<'a> IndexWalk<'a> {
    pub(super) fn new(index: &'a Index) -> Self {
        Self {
            index,
            at: None,
            path: String::new(),
            skips_children: false,
        }
    }

    /// Moves to the next entry, and returns its number and path; `None` after the last, and then starts anew.
    pub fn next_entry_or_none_then_restart(&mut self) -> Option<(u32, &str)> {
        let skips_children = std::mem::take(&mut self.skips_children);
        let inside = match skips_children {
            true => None,
            false => self.index.children(self.at).next(),
        };
        let next = match inside {
            Some(first) => Some(first),
            None => self.advance_past_current(),
        };
        self.at = next;
        let at = next?;
        if !self.path.is_empty() {
            self.path.push('/');
        }
        self.path.push_str(self.index.name(at));
        Some((at, &self.path))
    }

    /// Makes the walk skip the entries in the folder that it has just returned.
    pub(crate) fn skip_children(&mut self) {
        self.skips_children = true;
    }

    /// Leaves the current entry, and then each folder that has no further entry. Returns the next entry, with the
    /// walk's path set to its folder; `None` at the end.
    fn advance_past_current(&mut self) -> Option<u32> {
        let mut left = self.at;
        while let Some(at) = left {
            let end = self.path.rfind('/').unwrap_or_default();
            self.path.truncate(end);
            let folder = self.index.parent_folder(at);
            if self.index.children(folder).contains(&(at + 1)) {
                return Some(at + 1);
            }
            left = folder;
        }
        None
    }
}
