//! What was announced under one shared key, as small as it can be said: a hash of path and stat, and one of the content.

use std::collections::HashMap;

use crate::context::{ContentHash, Entry, Kind};

/// A time that every file system can hold as it is: whole seconds, from 1970 on, in 31 bits. BuildKit compares what
/// its file system has kept of a time; two times that could become one there are one here.
const SECONDS: std::ops::RangeInclusive<i64> = 0..=i32::MAX as i64;

/// Bytes that one entry takes: two hashes, and the room that a hash table leaves free.
const ENTRY_BYTES: usize = 56;

type Hash = [u8; 16];

/// What of the daemon's copy of an entry may be taken for this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Match {
    /// There is no copy that could be, or it is the same.
    Safe,
    /// A copy may have the same stat and another content.
    Different,
}

/// Everything that was ever announced under a key.
///
/// It only grows: the daemon can have several folders under one key (one that was in use when the next transfer
/// began, one for each hint, one on each of several daemons behind one address), each with another part of this.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Nothing, where what was announced differed from one time to another.
    entries: HashMap<Hash, Option<Hash>>,
}

impl Memory {
    /// Bytes it takes, about.
    pub(super) fn bytes(&self) -> usize {
        self.entries.capacity() * ENTRY_BYTES
    }

    /// Whether the daemon could take something that it has for `entry`.
    pub(super) fn compare(&self, entry: &Entry) -> Match {
        let Some((name, content)) = hashes(entry) else {
            return Match::Safe;
        };
        match self.entries.get(&name) {
            None => Match::Safe,
            Some(known) if *known == Some(content) => Match::Safe,
            Some(_) => Match::Different,
        }
    }

    /// Makes room for so many entries at once, where there are none yet: growing takes twice as much for a while.
    pub(super) fn expect(&mut self, entries: usize) {
        if self.entries.is_empty() {
            self.entries.reserve(entries);
        }
    }

    /// Notes that `entry` is being announced.
    pub(super) fn note(&mut self, entry: &Entry) {
        let Some((name, content)) = hashes(entry) else {
            return;
        };
        let known = self.entries.entry(name).or_insert(Some(content));
        if *known != Some(content) {
            *known = None;
        }
    }
}

/// What BuildKit compares of an entry, and what it does not. Nothing for symbolic links: of those it compares all.
///
/// Of a file it compares size and time, and mode, owner and link name beyond that. What it does not see is the
/// content, and extended attributes. Of a folder it compares everything but attributes and time; but a folder that
/// was changed keeps its old checksum (fsutil `DiskWriter.HandleChange` tells nobody), so that for folders nothing may
/// have changed.
fn hashes(entry: &Entry) -> Option<(Hash, Hash)> {
    let mut seen = blake3::Hasher::new();
    let mut unseen = blake3::Hasher::new();
    seen.update(entry.path.as_bytes());
    match &entry.kind {
        Kind::Symlink { .. } => return None,
        Kind::Directory => {
            seen.update(b"\0folder");
            unseen.update(&entry.mode.to_le_bytes());
        }
        Kind::File { size, .. } => {
            let seconds = entry.mtime_ns.div_euclid(1_000_000_000);
            seen.update(b"\0file");
            seen.update(&size.to_le_bytes());
            seen.update(&seconds.clamp(*SECONDS.start(), *SECONDS.end()).to_le_bytes());
            if entry.xattrs.is_empty() {
                let ContentHash(content) = entry.content;
                return Some((short(&seen), content));
            }
            unseen.update(&entry.content.0);
        }
    }
    for (name, value) in &entry.xattrs {
        for part in [name.as_bytes(), value] {
            unseen.update(&(part.len() as u64).to_le_bytes());
            unseen.update(part);
        }
    }
    Some((short(&seen), short(&unseen)))
}

fn short(hasher: &blake3::Hasher) -> Hash {
    let mut hash = [0; 16];
    hasher.finalize_xof().fill(&mut hash);
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: u8) -> Entry {
        Entry {
            path: "a/b".into(),
            kind: Kind::File { offset: 0, size: 3 },
            mode: 0o644,
            mtime_ns: 5_000_000_000,
            xattrs: Vec::new(),
            content: ContentHash([content; 16]),
        }
    }

    fn folder(mode: u32) -> Entry {
        Entry {
            kind: Kind::Directory,
            mode,
            ..file(0)
        }
    }

    fn after(noted: &[Entry], next: &Entry) -> Match {
        let mut memory = Memory::default();
        noted.iter().for_each(|entry| memory.note(entry));
        memory.compare(next)
    }

    #[test]
    fn a_file_differs_only_from_one_that_buildkit_takes_for_the_same() {
        let with = |change: fn(&mut Entry)| {
            let mut entry = file(2);
            change(&mut entry);
            entry
        };
        for (next, expected) in [
            (file(1), Match::Safe),
            (file(2), Match::Different),
            (with(|entry| entry.path = "a/c".into()), Match::Safe),
            (
                with(|entry| entry.kind = Kind::File { offset: 0, size: 4 }),
                Match::Safe,
            ),
            (with(|entry| entry.mtime_ns = 6_000_000_000), Match::Safe),
            (with(|entry| entry.mode = 0o755), Match::Different),
            (
                with(|entry| entry.kind = Kind::Symlink { target: "abc".into() }),
                Match::Safe,
            ),
            (with(|entry| entry.kind = Kind::Directory), Match::Safe),
        ] {
            assert_eq!(after(&[file(1)], &next), expected, "{next:?}");
        }
    }

    #[test]
    fn times_that_a_file_system_could_make_one_are_one() {
        let at = |mtime_ns: i64, content| Entry {
            mtime_ns,
            ..file(content)
        };
        for (first, second) in [
            (5_000_000_000, 5_999_999_999),
            (-1, 0),
            (i64::MIN, -5_000_000_000),
            (i64::from(i32::MAX) * 1_000_000_000, i64::MAX),
        ] {
            assert_eq!(
                after(&[at(first, 1)], &at(second, 2)),
                Match::Different,
                "{first} {second}"
            );
        }
    }

    #[test]
    fn attributes_are_content_because_buildkit_does_not_compare_them() {
        let with = |xattrs: &[(&str, &[u8])]| Entry {
            xattrs: xattrs
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_vec()))
                .collect(),
            ..file(1)
        };
        let noted = [with(&[("user.a", b"1")])];
        assert_eq!(after(&noted, &with(&[("user.a", b"1")])), Match::Safe);
        for other in [with(&[]), with(&[("user.a", b"2")]), with(&[("user.a1", b"")])] {
            assert_eq!(after(&noted, &other), Match::Different);
        }
    }

    #[test]
    fn what_has_differed_once_is_never_safe_again() {
        assert_eq!(after(&[file(1), file(2)], &file(2)), Match::Different);
        assert_eq!(after(&[file(1), file(2)], &file(1)), Match::Different);
    }

    #[test]
    fn a_folder_may_have_another_time_and_nothing_else() {
        let later = Entry {
            mtime_ns: 9,
            ..folder(0o755)
        };
        assert_eq!(after(&[folder(0o755)], &later), Match::Safe);
        assert_eq!(after(&[folder(0o755)], &folder(0o700)), Match::Different);
    }
}
