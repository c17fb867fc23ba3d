//! From entry to entry, in the order in which BuildKit wants them.
//!
//! That is the order of paths per component, a folder directly before what is in it. It differs from the order of strings:
//! `a/b` comes before `a.txt` here.

use super::Index;

/// Goes from entry to entry, with their paths, and takes no memory for each.
#[derive(Debug)]
pub struct Walk<'a> {
    index: &'a Index,
    at: Option<u32>,
    path: String,
    /// What is in the folder it is at is left out.
    passes_by: bool,
}

impl<'a> Walk<'a> {
    pub(super) fn new(index: &'a Index) -> Self {
        Self {
            index,
            at: None,
            path: String::new(),
            passes_by: false,
        }
    }

    /// The next entry's number and its path. There is none after the last, and then it starts again.
    pub fn step(&mut self) -> Option<(u32, &str)> {
        let passes_by = std::mem::take(&mut self.passes_by);
        let inside = match passes_by {
            true => None,
            false => self.index.children(self.at).next(),
        };
        let next = match inside {
            Some(first) => Some(first),
            None => self.after(),
        };
        self.at = next;
        let at = next?;
        if !self.path.is_empty() {
            self.path.push('/');
        }
        self.path.push_str(self.index.name(at));
        Some((at, &self.path))
    }

    /// Does not enter the folder that it is at.
    pub(crate) fn pass_by(&mut self) {
        self.passes_by = true;
    }

    /// The first entry that is not in the one it is at. The path becomes that of its folder.
    fn after(&mut self) -> Option<u32> {
        let mut left = self.at;
        while let Some(at) = left {
            let end = self.path.rfind('/').unwrap_or_default();
            self.path.truncate(end);
            let folder = self.index.folder(at);
            if self.index.children(folder).contains(&(at + 1)) {
                return Some(at + 1);
            }
            left = folder;
        }
        None
    }
}
