//! Conversion of a context's entries to fsutil's `Stat`.

use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bollard_buildkit_proto::fsutil::types::{Packet, Stat};

use crate::context::{Entry, Kind, SourceContext, ViewEntry};

/// The mode bits of Go's `os.FileMode`, which differ from those of Unix.
mod mode {
    pub(super) const GO_MODE_DIRECTORY: u32 = 1 << 31;
    /// Go's mode bit for a temporary file, which only Plan 9 has.
    pub(super) const GO_MODE_TEMPORARY: u32 = 1 << 28;
    pub(super) const GO_MODE_SYMLINK: u32 = 1 << 27;
    pub(super) const GO_MODE_SET_USER_ID: u32 = 1 << 23;
    pub(super) const GO_MODE_SET_GROUP_ID: u32 = 1 << 22;
    pub(super) const GO_MODE_STICKY: u32 = 1 << 20;
}

/// Returns the STAT packet that announces `view_entry`. Files belong to 0:0, as with BuildKit's own clients.
///
/// With `is_forced`, the daemon requests the file whatever it has: the mode gets a bit that no file on Linux can have,
/// and the daemon compares modes before it writes anything. The bit has no effect when the daemon writes the file (Go's
/// `os.Chmod`) and when it computes the checksum (Go's `tar.FileInfoHeader`).
pub(super) fn stat_packet(context: &SourceContext, view_entry: ViewEntry, is_forced: bool) -> Packet {
    let entry = context.entry_by_number(view_entry.entry);
    let forced = if is_forced { mode::GO_MODE_TEMPORARY } else { 0 };
    let linkname = match (entry.kind, view_entry.link) {
        (Kind::Symlink { target }, _) => target.to_owned(),
        (_, Some(first)) => context.index().path(first),
        _ => String::new(),
    };
    let xattrs = entry.xattrs.iter();
    let stat = Stat {
        path: context.index().path(view_entry.entry),
        mode: to_go_file_mode(&entry) | forced,
        size: i64::try_from(entry.size()).unwrap_or(i64::MAX),
        mod_time: entry.mtime_ns,
        linkname,
        xattrs: xattrs
            .map(|(name, value)| (name.to_owned(), value.to_vec()))
            .collect(),
        ..Stat::default()
    };
    Packet {
        r#type: PacketType::PacketStat.into(),
        stat: Some(stat),
        ..Packet::default()
    }
}

/// Returns the packet that ends the announcement of entries.
pub(super) fn end_of_stats_packet() -> Packet {
    Packet {
        r#type: PacketType::PacketStat.into(),
        ..Packet::default()
    }
}

/// Returns whether BuildKit may request the content of an entry. Must agree with the receiver: fsutil
/// `fileCanRequestData`.
pub(super) fn has_requestable_content(entry: &Entry<'_>) -> bool {
    matches!(entry.kind, Kind::File { .. })
}

/// Returns the type and the mode of an entry as Go's `os.FileMode`.
fn to_go_file_mode(entry: &Entry<'_>) -> u32 {
    let kind = match entry.kind {
        Kind::Folder => mode::GO_MODE_DIRECTORY,
        Kind::File { .. } => 0,
        Kind::Symlink { .. } => mode::GO_MODE_SYMLINK,
    };
    let special = [
        (0o4000, mode::GO_MODE_SET_USER_ID),
        (0o2000, mode::GO_MODE_SET_GROUP_ID),
        (0o1000, mode::GO_MODE_STICKY),
    ];
    let special = special
        .iter()
        .filter(|(unix, _)| entry.mode & unix != 0)
        .map(|(_, go)| go);
    special.fold(kind | (entry.mode & 0o777), |mode, bit| mode | bit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::{ExtendedAttributes, Index, Spool};

    const FILE_KIND: Kind<'static> = Kind::File { offset: 0, size: 3 };
    const SYMLINK_KIND: Kind<'static> = Kind::Symlink { target: "../c" };

    fn entry_of_kind(kind: Kind<'_>, mode: u32) -> Entry<'_> {
        Entry {
            kind,
            mode,
            mtime_ns: 1_700_000_000_123_456_789,
            xattrs: ExtendedAttributes::NONE,
        }
    }

    /// Returns the STAT of `entry` at `a/b`; with `link`, as a hard link of the same file at that path.
    fn stat_of_announced(entry: Entry<'_>, link: Option<&str>, is_forced: bool) -> Stat {
        let entries = [("a/b", entry)].into_iter().chain(link.map(|path| (path, entry)));
        let index = Index::of_entries_linking_same_offset(entries);
        let number = |path| index.find(path).expect("it is in the context");
        let view_entry = ViewEntry {
            entry: number("a/b"),
            link: link.map(number),
        };
        let context = SourceContext::new(index, Spool::in_memory(Vec::new()));
        stat_packet(&context, view_entry, is_forced).stat.expect("stat")
    }

    fn stat_of_unforced(entry: Entry<'_>, link: Option<&str>) -> Stat {
        stat_of_announced(entry, link, false)
    }

    #[test]
    fn a_forced_file_differs_only_in_a_mode_bit_that_linux_does_not_have() {
        let file = entry_of_kind(FILE_KIND, 0o4755);

        let (plain, forced) = (
            stat_of_announced(file, None, false),
            stat_of_announced(file, None, true),
        );

        assert_eq!(forced.mode, plain.mode | 0x1000_0000);
        assert_eq!(
            Stat {
                mode: plain.mode,
                ..forced
            },
            plain
        );
    }

    #[test]
    fn modes_of_entries_are_converted_to_go_file_modes() {
        for (kind, unix, go) in [
            (Kind::Folder, 0o755, 0x8000_01ed),
            (Kind::Folder, 0o1777, 0x8010_01ff),
            (FILE_KIND, 0o644, 0o644),
            (FILE_KIND, 0o4755, 0x0080_01ed),
            (FILE_KIND, 0o2755, 0x0040_01ed),
            (SYMLINK_KIND, 0o777, 0x0800_01ff),
        ] {
            assert_eq!(
                stat_of_unforced(entry_of_kind(kind, unix), None).mode,
                go,
                "{kind:?} {unix:o}"
            );
        }
    }

    #[test]
    fn symbolic_and_hard_links_are_announced_with_their_targets() {
        let symlink = entry_of_kind(SYMLINK_KIND, 0o777);
        let file = entry_of_kind(FILE_KIND, 0o644);

        assert_eq!(
            (
                stat_of_unforced(symlink, None).linkname.as_str(),
                stat_of_unforced(symlink, None).size
            ),
            ("../c", 4)
        );
        assert_eq!(
            (
                stat_of_unforced(file, None).linkname.as_str(),
                stat_of_unforced(file, None).size
            ),
            ("", 3)
        );
        assert_eq!(stat_of_unforced(file, Some("a/first")).linkname, "a/first");
        assert_eq!(stat_of_unforced(file, Some("a/first")).path, "a/b");
    }

    #[test]
    fn announced_entries_keep_nanoseconds_and_belong_to_root() {
        let stat = stat_of_unforced(entry_of_kind(Kind::Folder, 0o755), None);

        assert_eq!(stat.mod_time, 1_700_000_000_123_456_789);
        assert_eq!((stat.uid, stat.gid, stat.size), (0, 0, 0));
    }
}
