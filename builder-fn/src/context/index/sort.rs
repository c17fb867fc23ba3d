//! Putting entries where they are found again.

use super::Index;
use super::record::Record;

impl Index {
    /// Puts what is in one folder side by side, by name, and says of each folder where that is.
    ///
    /// Takes eight bytes an entry while it lasts. Only what is in one folder is compared, and never more of it than a name:
    /// how deep folders are makes no difference.
    pub(in crate::context) fn sort(&mut self) {
        let mut sorted = self.by_folder();
        for at in 0..self.len() {
            let folder = self.records[at];
            if folder.is_directory() {
                let start = index(folder.start());
                self.sort_by_name(&mut sorted[start..start + index(folder.size())]);
            }
        }
        self.sort_by_name(&mut sorted[..self.top as usize]);
        self.rearrange(&sorted);
    }

    /// All numbers, those of what is in one folder together.
    fn by_folder(&mut self) -> Vec<u32> {
        let mut next = u64::from(self.top);
        for folder in self.records.iter_mut().filter(|record| record.is_directory()) {
            folder.set_start(next);
            next += folder.size();
        }
        let mut sorted = vec![0; self.len()];
        let mut top = 0;
        for (number, at) in (0..).zip(0..self.len()) {
            let place = match self.records[at].folder {
                Record::TOP => {
                    top += 1;
                    top - 1
                }
                folder => {
                    // A folder's start goes on to its end meanwhile.
                    let folder = &mut self.records[folder as usize];
                    folder.set_start(folder.start() + 1);
                    folder.start() - 1
                }
            };
            sorted[index(place)] = number;
        }
        for folder in self.records.iter_mut().filter(|record| record.is_directory()) {
            folder.set_start(folder.start() - folder.size());
        }
        sorted
    }

    fn sort_by_name(&self, numbers: &mut [u32]) {
        numbers.sort_unstable_by(|one, other| self.name_bytes(*one).cmp(self.name_bytes(*other)));
    }

    /// Brings each entry to where it is in `sorted`.
    fn rearrange(&mut self, sorted: &[u32]) {
        let mut places = vec![0u32; sorted.len()];
        for (place, at) in (0..).zip(sorted) {
            places[*at as usize] = place;
        }
        for record in self.records.iter_mut() {
            if let Some(place) = places.get(record.folder as usize) {
                record.folder = *place;
            }
        }
        // Each swap brings one entry to where it belongs.
        for at in 0..places.len() {
            while places[at] as usize != at {
                let place = places[at] as usize;
                self.records.swap(at, place);
                places.swap(at, place);
            }
        }
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
