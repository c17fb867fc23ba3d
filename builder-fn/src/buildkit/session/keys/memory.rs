//! What was announced under one shared key, as small as it can be said: a hash of path and stat, and one of the content.

use std::hash::{BuildHasher, Hasher, RandomState};

use crate::context::{ContentHash, ContentHasher, Entry, Kind};

/// A time that every file system can hold as it is: whole seconds, from 1970 on, in 31 bits. BuildKit compares what
/// its file system has kept of a time; two times that could become one there are one here.
const SECONDS: std::ops::RangeInclusive<i64> = 0..=i32::MAX as i64;

/// Entries that are kept in one list, about, when there are no more than were expected.
const LIST: usize = 1024;

/// What stands for a content where what was announced differed from one time to another. A content that has this hash, as
/// one in 2⁹⁶ may, is taken for one that differs.
const DIFFERS: ContentHash = ContentHash([0xff; 12]);

/// What of the daemon's copy of an entry may be taken for this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Match {
    /// No copy that could be was ever announced.
    Unknown,
    /// No copy that could be is another one.
    Safe,
    /// A copy may have the same stat and another content.
    Different,
}

/// Everything that was ever announced under a key.
///
/// It only grows: the daemon can have several folders under one key (one that was in use when the next transfer
/// began, one for each hint, one on each of several daemons behind one address), each with another part of this.
///
/// Names are hashes of 64 bits. That two names share one is unlikely, and does no harm: where their contents differ they are
/// two contents of one name, and where those are the same, everything that was ever announced under either name is the same
/// too. So what is not known to be safe is sent again, as any that differs.
#[derive(Debug)]
pub(super) struct Memory {
    /// As many as a power of two, by the first bits of the name, each in the order of names. None of them is large, so that
    /// growing takes no more than what is added.
    lists: Vec<Vec<Known>>,
    names: RandomState,
}

/// One entry, in 20 bytes.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// In two, so that this is no multiple of 8 bytes.
    name: [u32; 2],
    content: ContentHash,
}

impl Memory {
    /// For so many entries, about. Nothing is kept free for them.
    pub(super) fn expecting(entries: usize) -> Self {
        let lists = (entries / LIST).next_power_of_two();
        Self {
            lists: vec![Vec::new(); lists],
            names: RandomState::new(),
        }
    }

    /// Bytes that `more` entries take.
    pub(super) fn bytes_of(more: usize) -> usize {
        more.saturating_mul(size_of::<Known>())
    }

    /// Bytes it takes.
    pub(super) fn bytes(&self) -> usize {
        let lists = self.lists.iter().map(|list| Self::bytes_of(list.capacity()));
        self.lists.len() * size_of::<Vec<Known>>() + lists.sum::<usize>()
    }

    /// Whether the daemon could take something that it has for `entry`, which is at `path`.
    pub(super) fn compare(&self, path: &str, entry: &Entry<'_>) -> Match {
        let Some(hashed) = self.hash(path, entry) else {
            return Match::Safe;
        };
        let list = &self.lists[self.list(&hashed)];
        match find(list, &hashed) {
            Err(_) => Match::Unknown,
            Ok(at) if list[at].content == hashed.content && hashed.content != DIFFERS => Match::Safe,
            Ok(_) => Match::Different,
        }
    }

    /// Notes what is being announced: everything that `announced` hands to the function that it is given, each time.
    pub(super) fn note(&mut self, announced: impl Fn(&mut dyn FnMut(&str, &Entry<'_>))) {
        // How many are new is counted first, so that nothing is kept free.
        let mut new = vec![0; self.lists.len()];
        announced(&mut |path, entry| {
            if let Some(hashed) = self.hash(path, entry) {
                let list = self.list(&hashed);
                match find(&self.lists[list], &hashed) {
                    Ok(at) => self.lists[list][at].merge(&hashed),
                    Err(_) => new[list] += 1,
                }
            }
        });
        if new.iter().all(|new| *new == 0) {
            return;
        }
        let known: Vec<usize> = self.lists.iter().map(Vec::len).collect();
        for (list, new) in self.lists.iter_mut().zip(new) {
            list.reserve_exact(new);
        }
        announced(&mut |path, entry| {
            if let Some(hashed) = self.hash(path, entry) {
                let list = self.list(&hashed);
                if find(&self.lists[list][..known[list]], &hashed).is_err() {
                    self.lists[list].push(hashed);
                }
            }
        });
        for list in &mut self.lists {
            list.sort_unstable_by_key(|known| known.name);
            list.dedup_by(|again, first| {
                let is_same = again.name == first.name;
                if is_same {
                    first.merge(again);
                }
                is_same
            });
        }
    }

    /// Which list an entry belongs to.
    fn list(&self, known: &Known) -> usize {
        let bits = self.lists.len().ilog2();
        usize::try_from(u64::from(known.name[0]) << bits >> u32::BITS).unwrap_or_default()
    }

    /// What BuildKit compares of an entry, and what it does not. Nothing for symbolic links: of those it compares all.
    ///
    /// Of a file it compares size and time, and mode, owner and link name beyond that. What it does not see is the
    /// content, and extended attributes. Of a folder it compares everything but attributes and time; but a folder that
    /// was changed keeps its old checksum (fsutil `DiskWriter.HandleChange` tells nobody), so that for folders nothing may
    /// have changed.
    fn hash(&self, path: &str, entry: &Entry<'_>) -> Option<Known> {
        let mut name = self.names.build_hasher();
        name.write(path.as_bytes());
        let content = match entry.kind {
            Kind::Symlink { .. } => return None,
            Kind::Directory => {
                name.write(b"\0folder");
                unseen(&entry.mode.to_le_bytes(), entry)
            }
            Kind::File { size, .. } => {
                let seconds = entry.mtime_ns.div_euclid(1_000_000_000);
                name.write(b"\0file");
                name.write_u64(size);
                name.write_i64(seconds.clamp(*SECONDS.start(), *SECONDS.end()));
                match entry.xattrs.is_empty() {
                    true => entry.content,
                    false => unseen(&entry.content.0, entry),
                }
            }
        };
        let name = name.finish();
        let half = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or_default();
        let name = [half(name >> u32::BITS), half(name)];
        Some(Known { name, content })
    }
}

impl Known {
    /// Takes in what is known under the same name.
    fn merge(&mut self, other: &Self) {
        if self.content != other.content {
            self.content = DIFFERS;
        }
    }
}

fn find(list: &[Known], known: &Known) -> Result<usize, usize> {
    list.binary_search_by_key(&known.name, |known| known.name)
}

/// A hash of what BuildKit does not see of an entry.
fn unseen(first: &[u8], entry: &Entry<'_>) -> ContentHash {
    let mut hasher = ContentHasher::default();
    hasher.update(first);
    for (name, value) in entry.xattrs.iter() {
        for part in [name.as_bytes(), value] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Attributes;

    const NEVER: i64 = 0;

    type Placed = (&'static str, Entry<'static>);

    fn file(content: u8) -> Placed {
        let entry = Entry {
            kind: Kind::File { offset: 0, size: 3 },
            mode: 0o644,
            mtime_ns: 5_000_000_000,
            xattrs: Attributes::NONE,
            content: ContentHash([content; 12]),
        };
        ("a/b", entry)
    }

    fn folder(mode: u32, mtime_ns: i64) -> Placed {
        let (path, entry) = file(0);
        let kind = Kind::Directory;
        (
            path,
            Entry {
                kind,
                mode,
                mtime_ns,
                ..entry
            },
        )
    }

    fn memory(noted: &[Placed]) -> Memory {
        let mut memory = Memory::expecting(0);
        for (path, entry) in noted {
            memory.note(|to| to(path, entry));
        }
        memory
    }

    fn after(noted: &[Placed], (path, entry): Placed) -> Match {
        memory(noted).compare(path, &entry)
    }

    #[test]
    fn a_file_differs_only_from_one_that_buildkit_takes_for_the_same() {
        let with = |change: fn(&mut Entry<'static>)| {
            let (path, mut entry) = file(2);
            change(&mut entry);
            (path, entry)
        };
        for (next, expected) in [
            (file(1), Match::Safe),
            (file(2), Match::Different),
            (("a/c", file(2).1), Match::Unknown),
            (
                with(|entry| entry.kind = Kind::File { offset: 0, size: 4 }),
                Match::Unknown,
            ),
            (with(|entry| entry.mtime_ns = 6_000_000_000), Match::Unknown),
            (with(|entry| entry.mode = 0o755), Match::Different),
            (
                with(|entry| entry.kind = Kind::Symlink { target: "abc" }),
                Match::Safe,
            ),
            (with(|entry| entry.kind = Kind::Directory), Match::Unknown),
        ] {
            assert_eq!(after(&[file(1)], next), expected, "{next:?}");
        }
    }

    #[test]
    fn times_that_a_file_system_could_make_one_are_one() {
        let at = |mtime_ns: i64, content| {
            let (path, entry) = file(content);
            (path, Entry { mtime_ns, ..entry })
        };
        for (first, second) in [
            (5_000_000_000, 5_999_999_999),
            (-1, 0),
            (i64::MIN, -5_000_000_000),
            (i64::from(i32::MAX) * 1_000_000_000, i64::MAX),
        ] {
            assert_eq!(
                after(&[at(first, 1)], at(second, 2)),
                Match::Different,
                "{first} {second}"
            );
        }
    }

    #[test]
    fn attributes_are_content_because_buildkit_does_not_compare_them() {
        let attributes: [&[(&str, &[u8])]; 4] =
            [&[("user.a", b"1")], &[], &[("user.a", b"2")], &[("user.a1", b"")]];
        let packed = attributes.map(|pairs| Attributes::pack(pairs.iter().copied()));
        fn with(packed: &[u8]) -> Entry<'_> {
            Entry {
                xattrs: Attributes::packed(packed),
                ..file(1).1
            }
        }
        let mut memory = Memory::expecting(0);
        memory.note(|to| to("a/b", &with(&packed[0])));
        assert_eq!(memory.compare("a/b", &with(&packed[0])), Match::Safe);
        for other in &packed[1..] {
            assert_eq!(memory.compare("a/b", &with(other)), Match::Different);
        }
    }

    #[test]
    fn all_are_known_again_however_they_came_and_take_no_more_than_they_have_to() {
        let path = |at: u32| format!("folder/{at}");
        let content = |at: u32| Entry {
            content: ContentHash::of(&at.to_le_bytes()),
            ..file(0).1
        };
        for expected in [0, 5000] {
            let mut memory = Memory::expecting(expected);
            for range in [0..5000, 4000..6000, 0..6000] {
                memory.note(|to| range.clone().for_each(|at| to(&path(at), &content(at))));
            }
            assert!((0..6000).all(|at| memory.compare(&path(at), &content(at)) == Match::Safe));
            assert!((0..6000).all(|at| memory.compare(&path(at), &content(at + 1)) == Match::Different));
            assert_eq!(memory.compare(&path(6000), &content(6000)), Match::Unknown);
            assert!(
                memory.bytes() <= Memory::bytes_of(6000) + 200,
                "{}",
                memory.bytes()
            );
        }
    }

    #[test]
    fn what_has_differed_once_is_never_safe_again() {
        assert_eq!(after(&[file(1), file(2)], file(2)), Match::Different);
        assert_eq!(after(&[file(1), file(2)], file(1)), Match::Different);
    }

    #[test]
    fn a_folder_may_have_another_time_and_nothing_else() {
        assert_eq!(after(&[folder(0o755, NEVER)], folder(0o755, 9)), Match::Safe);
        assert_eq!(
            after(&[folder(0o755, NEVER)], folder(0o700, NEVER)),
            Match::Different
        );
    }

    #[test]
    fn what_is_announced_twice_at_once_and_differs_is_never_safe() {
        let mut memory = Memory::expecting(0);
        memory.note(|to| [1, 2].map(file).iter().for_each(|(path, entry)| to(path, entry)));
        for content in [1, 2, 3] {
            let (path, entry) = file(content);
            assert_eq!(memory.compare(path, &entry), Match::Different);
        }
    }
}
