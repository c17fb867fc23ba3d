use super::*;
use crate::context::ExtendedAttributes;

const EPOCH_NS: i64 = 0;

/// A path, the entry at it, and the hash of its content.
type EntryAtPath = (&'static str, Entry<'static>, ContentHash);

fn sent(content: ContentHash) -> KnownHashes {
    KnownHashes {
        sent: Some(content),
        by_blocks: None,
    }
}

fn file_with_content(content: u8) -> EntryAtPath {
    let entry = Entry {
        kind: Kind::File { offset: 0, size: 3 },
        mode: 0o644,
        mtime_ns: 5_000_000_000,
        xattrs: ExtendedAttributes::NONE,
    };
    ("a/b", entry, ContentHash([content; 12]))
}

fn folder_with(mode: u32, mtime_ns: i64) -> EntryAtPath {
    let (path, entry, content) = file_with_content(0);
    let kind = Kind::Folder;
    (
        path,
        Entry {
            kind,
            mode,
            mtime_ns,
            ..entry
        },
        content,
    )
}

/// Announces the entries in `announced` one after another, and compares another entry with them.
fn compare_after(announced: &[EntryAtPath], (path, entry, content): EntryAtPath) -> NewSameOrMayDiffer {
    let mut announcements = AnnouncedEntries::with_lists_for_expected_entries(0);
    for (path, entry, content) in announced {
        announcements.add_announcement(|visit| visit(path, entry, sent(*content)), |_| {});
    }
    announcements.compare_with_announced(path, &entry, None, || Some(content))
}

#[test]
fn only_a_file_that_buildkit_takes_for_an_announced_one_is_compared_by_content() {
    let changed_file = |change: fn(&mut Entry<'static>)| {
        let (path, mut entry, content) = file_with_content(2);
        change(&mut entry);
        (path, entry, content)
    };
    for (next, expected) in [
        (file_with_content(1), NewSameOrMayDiffer::Same),
        (file_with_content(2), NewSameOrMayDiffer::MayDiffer),
        (
            ("a/c", file_with_content(2).1, file_with_content(2).2),
            NewSameOrMayDiffer::New,
        ),
        (
            changed_file(|entry| entry.kind = Kind::File { offset: 0, size: 4 }),
            NewSameOrMayDiffer::New,
        ),
        (
            changed_file(|entry| entry.mtime_ns = 6_000_000_000),
            NewSameOrMayDiffer::New,
        ),
        (
            changed_file(|entry| entry.mode = 0o755),
            NewSameOrMayDiffer::MayDiffer,
        ),
        (
            changed_file(|entry| entry.kind = Kind::Symlink { target: "abc" }),
            NewSameOrMayDiffer::Same,
        ),
        (
            changed_file(|entry| entry.kind = Kind::Folder),
            NewSameOrMayDiffer::New,
        ),
    ] {
        assert_eq!(compare_after(&[file_with_content(1)], next), expected, "{next:?}");
    }
}

#[test]
fn modification_times_that_a_file_system_may_store_as_equal_count_as_equal() {
    let at = |mtime_ns: i64, content| {
        let (path, entry, content) = file_with_content(content);
        (path, Entry { mtime_ns, ..entry }, content)
    };
    for (first, second) in [
        (5_000_000_000, 5_999_999_999),
        (-1, 0),
        (i64::MIN, -5_000_000_000),
        (i64::from(i32::MAX) * 1_000_000_000, i64::MAX),
    ] {
        assert_eq!(
            compare_after(&[at(first, 1)], at(second, 2)),
            NewSameOrMayDiffer::MayDiffer,
            "{first} {second}"
        );
    }
}

#[test]
fn extended_attributes_count_as_content_because_buildkit_does_not_compare_them() {
    let attributes: [&[(&str, &[u8])]; 4] =
        [&[("user.a", b"1")], &[], &[("user.a", b"2")], &[("user.a1", b"")]];
    let packed = attributes.map(|pairs| ExtendedAttributes::pack(pairs.iter().copied()));
    fn file_with_attributes(packed: &[u8]) -> Entry<'_> {
        Entry {
            xattrs: ExtendedAttributes::from_packed(packed),
            ..file_with_content(1).1
        }
    }
    let mut announcements = AnnouncedEntries::with_lists_for_expected_entries(0);
    let content = file_with_content(1).2;
    announcements.add_announcement(
        |visit| visit("a/b", &file_with_attributes(&packed[0]), sent(content)),
        |_| {},
    );
    assert_eq!(
        announcements
            .compare_with_announced("a/b", &file_with_attributes(&packed[0]), None, || Some(content)),
        NewSameOrMayDiffer::Same
    );
    for other in &packed[1..] {
        assert_eq!(
            announcements.compare_with_announced("a/b", &file_with_attributes(other), None, || Some(content)),
            NewSameOrMayDiffer::MayDiffer
        );
    }
}

#[test]
fn announced_entries_are_compared_by_content_and_take_no_more_memory_than_bytes_for_entries() {
    let path = |at: u32| format!("folder/{at}");
    let content = |at: u32| ContentHash::of(&at.to_le_bytes());
    let entry = file_with_content(0).1;
    for expected in [0, 5000] {
        let mut announcements = AnnouncedEntries::with_lists_for_expected_entries(expected);
        for range in [0..5000, 4000..6000, 0..6000] {
            announcements.add_announcement(
                |visit| {
                    range
                        .clone()
                        .for_each(|at| visit(&path(at), &entry, sent(content(at))))
                },
                |_| {},
            );
        }
        let compare_with_announced = |at, hashed| {
            announcements.compare_with_announced(&path(at), &entry, None, || Some(content(hashed)))
        };
        assert!((0..6000).all(|at| compare_with_announced(at, at) == NewSameOrMayDiffer::Same));
        assert!((0..6000).all(|at| compare_with_announced(at, at + 1) == NewSameOrMayDiffer::MayDiffer));
        assert_eq!(compare_with_announced(6000, 6000), NewSameOrMayDiffer::New);
        assert!(
            announcements.memory_bytes() <= AnnouncedEntries::bytes_for_entries(6000) + 200,
            "{}",
            announcements.memory_bytes()
        );
    }
}

#[test]
fn an_entry_that_was_announced_with_two_contents_may_differ_from_either() {
    assert_eq!(
        compare_after(
            &[file_with_content(1), file_with_content(2)],
            file_with_content(2)
        ),
        NewSameOrMayDiffer::MayDiffer
    );
    assert_eq!(
        compare_after(
            &[file_with_content(1), file_with_content(2)],
            file_with_content(1)
        ),
        NewSameOrMayDiffer::MayDiffer
    );
}

#[test]
fn an_announced_folder_may_change_its_time_and_not_its_mode() {
    assert_eq!(
        compare_after(&[folder_with(0o755, EPOCH_NS)], folder_with(0o755, 9)),
        NewSameOrMayDiffer::Same
    );
    assert_eq!(
        compare_after(&[folder_with(0o755, EPOCH_NS)], folder_with(0o700, EPOCH_NS)),
        NewSameOrMayDiffer::MayDiffer
    );
}

#[test]
fn an_entry_that_one_announcement_has_with_two_contents_may_differ_from_any() {
    let mut announcements = AnnouncedEntries::with_lists_for_expected_entries(0);
    announcements.add_announcement(
        |visit| {
            [1, 2]
                .map(file_with_content)
                .iter()
                .for_each(|(path, entry, content)| visit(path, entry, sent(*content)))
        },
        |_| {},
    );
    for content in [1, 2, 3] {
        let (path, entry, content) = file_with_content(content);
        let compared = announcements.compare_with_announced(path, &entry, None, || Some(content));
        assert_eq!(compared, NewSameOrMayDiffer::MayDiffer);
    }
}

#[test]
fn a_content_that_was_never_sent_or_cannot_be_read_may_differ() {
    let (path, entry, content) = file_with_content(1);
    let mut announcements = AnnouncedEntries::with_lists_for_expected_entries(0);
    announcements.add_announcement(|visit| visit(path, &entry, KnownHashes::default()), |_| {});
    assert_eq!(
        announcements.compare_with_announced(path, &entry, None, || Some(content)),
        NewSameOrMayDiffer::MayDiffer
    );
    assert_eq!(
        compare_after(&[file_with_content(1)], file_with_content(1)),
        NewSameOrMayDiffer::Same
    );
    let mut announcements = AnnouncedEntries::with_lists_for_expected_entries(0);
    announcements.add_announcement(|visit| visit(path, &entry, sent(content)), |_| {});
    assert_eq!(
        announcements.compare_with_announced(path, &entry, None, || None),
        NewSameOrMayDiffer::MayDiffer
    );
    // Not sent again, because the daemon has it.
    announcements.add_announcement(|visit| visit(path, &entry, KnownHashes::default()), |_| {});
    assert_eq!(
        announcements.compare_with_announced(path, &entry, None, || Some(content)),
        NewSameOrMayDiffer::Same
    );
}

#[test]
fn a_file_with_the_blocks_of_the_announced_one_is_the_same_without_being_read() {
    let (path, entry, content) = file_with_content(1);
    let [by_blocks, other_blocks] = [7, 8].map(|byte| Some(ContentHash([byte; 12])));
    let mut announcements = AnnouncedEntries::with_lists_for_expected_entries(0);
    let known = KnownHashes {
        sent: Some(content),
        by_blocks,
    };
    announcements.add_announcement(|visit| visit(path, &entry, known), |_| {});
    let unreadable = || panic!("the file was read");
    assert_eq!(
        announcements.compare_with_announced(path, &entry, by_blocks, unreadable),
        NewSameOrMayDiffer::Same
    );
    for (by_blocks, read, expected) in [
        (None, content, NewSameOrMayDiffer::Same),
        (other_blocks, content, NewSameOrMayDiffer::Same),
        (other_blocks, ContentHash([2; 12]), NewSameOrMayDiffer::MayDiffer),
    ] {
        let compared = announcements.compare_with_announced(path, &entry, by_blocks, || Some(read));
        assert_eq!(compared, expected, "{by_blocks:?} {read:?}");
    }
    // The same content at another place in the spool, which was compared and not sent.
    let moved = KnownHashes {
        sent: None,
        by_blocks: other_blocks,
    };
    announcements.add_announcement(|visit| visit(path, &entry, moved), |_| {});
    assert_eq!(
        announcements.compare_with_announced(path, &entry, other_blocks, unreadable),
        NewSameOrMayDiffer::Same
    );
}

#[test]
fn blocks_say_nothing_of_a_file_of_which_the_daemon_may_have_another_content() {
    let (path, entry, content) = file_with_content(1);
    let by_blocks = Some(ContentHash([7; 12]));
    let known = |sent| KnownHashes { sent, by_blocks };
    for announced in [
        &[known(None)][..],
        &[known(Some(content)), known(Some(ContentHash([2; 12])))],
        &[known(Some(content)), sent(ContentHash([2; 12])), known(None)],
    ] {
        let mut announcements = AnnouncedEntries::with_lists_for_expected_entries(0);
        for known in announced {
            announcements.add_announcement(|visit| visit(path, &entry, *known), |_| {});
        }
        assert_eq!(
            announcements.compare_with_announced(path, &entry, by_blocks, || Some(content)),
            NewSameOrMayDiffer::MayDiffer,
            "{announced:?}"
        );
    }
}

#[test]
fn a_changed_extended_attribute_is_noticed_by_blocks_too() {
    let packed = ExtendedAttributes::pack([("user.a", &b"1"[..])]);
    let (path, entry, content) = file_with_content(1);
    let with_attribute = Entry {
        xattrs: ExtendedAttributes::from_packed(&packed),
        ..entry
    };
    let by_blocks = Some(ContentHash([7; 12]));
    let known = KnownHashes {
        sent: Some(content),
        by_blocks,
    };
    let mut announcements = AnnouncedEntries::with_lists_for_expected_entries(0);
    announcements.add_announcement(|visit| visit(path, &entry, known), |_| {});
    assert_eq!(
        announcements.compare_with_announced(path, &with_attribute, by_blocks, || Some(content)),
        NewSameOrMayDiffer::MayDiffer
    );
}
