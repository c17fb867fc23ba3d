//! Sorts the entries of an index, so that they can be looked up.

use super::Index;
use super::packed_entry::PackedEntry;

impl Index {
    /// Makes the entries of each folder adjacent and sorted by name, and stores their range in the folder.
    ///
    /// Needs eight bytes per entry meanwhile. Compares only names within one folder, so the depth of folders does not
    /// matter.
    pub(in crate::context) fn sort(&mut self) {
        let mut sorted = self.group_by_folder();
        for at in 0..self.len() {
            let folder = self.entries[at];
            if folder.is_folder() {
                let start = to_usize_saturating(folder.content_offset_or_first_child());
                self.sort_by_name(
                    &mut sorted[start
                        ..start + to_usize_saturating(folder.content_or_target_length_or_child_count())],
                );
            }
        }
        self.sort_by_name(&mut sorted[..self.top_level as usize]);
        self.move_entries_to_sorted_positions(&sorted);
    }

    /// Sets the first child of each folder, and returns the numbers of all entries, grouped by folder.
    fn group_by_folder(&mut self) -> Vec<u32> {
        let mut next = u64::from(self.top_level);
        for folder in self.entries.iter_mut().filter(|entry| entry.is_folder()) {
            folder.set_first_child(next);
            next += folder.content_or_target_length_or_child_count();
        }
        let mut sorted = vec![0; self.len()];
        let mut top = 0;
        for (number, at) in (0..).zip(0..self.len()) {
            let position = match self.entries[at].folder {
                PackedEntry::TOP_LEVEL => {
                    top += 1;
                    top - 1
                }
                folder => {
                    // Until all are grouped, a folder's start is where its next entry goes.
                    let folder = &mut self.entries[folder as usize];
                    folder.set_first_child(folder.content_offset_or_first_child() + 1);
                    folder.content_offset_or_first_child() - 1
                }
            };
            sorted[to_usize_saturating(position)] = number;
        }
        for folder in self.entries.iter_mut().filter(|entry| entry.is_folder()) {
            folder.set_first_child(
                folder.content_offset_or_first_child() - folder.content_or_target_length_or_child_count(),
            );
        }
        sorted
    }

    fn sort_by_name(&self, numbers: &mut [u32]) {
        numbers.sort_unstable_by(|one, other| self.name_bytes(*one).cmp(self.name_bytes(*other)));
    }

    /// Moves each entry to the position of its number in `sorted`.
    fn move_entries_to_sorted_positions(&mut self, sorted: &[u32]) {
        let mut positions = vec![0u32; sorted.len()];
        for (position, at) in (0..).zip(sorted) {
            positions[*at as usize] = position;
        }
        for entry in self.entries.iter_mut() {
            if let Some(position) = positions.get(entry.folder as usize) {
                entry.folder = *position;
            }
        }
        // Each swap moves one entry to its position.
        for at in 0..positions.len() {
            while positions[at] as usize != at {
                let position = positions[at] as usize;
                self.entries.swap(at, position);
                positions.swap(at, position);
            }
        }
    }
}

fn to_usize_saturating(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
