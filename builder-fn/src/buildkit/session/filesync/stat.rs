//! One entry of the context as fsutil's `Stat`.

use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bollard_buildkit_proto::fsutil::types::{Packet, Stat};

use crate::context::{Entry, Kind, SourceContext, Visible};

/// Go's `os.FileMode`: its type bits are not those of Unix.
mod mode {
    pub(super) const DIRECTORY: u32 = 1 << 31;
    /// "Temporary file; Plan 9 only".
    pub(super) const TEMPORARY: u32 = 1 << 28;
    pub(super) const SYMLINK: u32 = 1 << 27;
    pub(super) const SET_USER_ID: u32 = 1 << 23;
    pub(super) const SET_GROUP_ID: u32 = 1 << 22;
    pub(super) const STICKY: u32 = 1 << 20;
}

/// Announces `visible`. Files belong to 0:0, as with BuildKit's own clients.
///
/// `is_marked`: the daemon is to ask for the file whatever it has. It compares modes before anything is written, and no
/// file that it has can have this bit: there is none for it on Linux. When it writes the file (Go's `os.Chmod`), and when it
/// computes its checksum (Go's `tar.FileInfoHeader`), the bit is without effect.
pub(super) fn packet(context: &SourceContext, visible: Visible, is_marked: bool) -> Packet {
    let entry = &context.entries()[visible.entry as usize];
    let link = visible.link.map(|first| &context.entries()[first as usize].path);
    let mark = if is_marked { mode::TEMPORARY } else { 0 };
    let linkname = match (&entry.kind, link) {
        (Kind::Symlink { target }, _) => target.clone(),
        (_, Some(first)) => first.clone(),
        _ => String::new(),
    };
    let stat = Stat {
        path: entry.path.clone(),
        mode: file_mode(entry) | mark,
        size: i64::try_from(entry.size()).unwrap_or(i64::MAX),
        mod_time: entry.mtime_ns,
        linkname,
        xattrs: entry.xattrs.iter().cloned().collect(),
        ..Stat::default()
    };
    Packet {
        r#type: PacketType::PacketStat.into(),
        stat: Some(stat),
        ..Packet::default()
    }
}

/// Says that all entries have been announced.
pub(super) fn end() -> Packet {
    Packet {
        r#type: PacketType::PacketStat.into(),
        ..Packet::default()
    }
}

/// Whether BuildKit may ask for what is in it. Must agree with the receiver: fsutil `fileCanRequestData`.
pub(super) fn has_content(entry: &Entry) -> bool {
    matches!(entry.kind, Kind::File { .. })
}

fn file_mode(entry: &Entry) -> u32 {
    let kind = match entry.kind {
        Kind::Directory => mode::DIRECTORY,
        Kind::File { .. } => 0,
        Kind::Symlink { .. } => mode::SYMLINK,
    };
    let special = [
        (0o4000, mode::SET_USER_ID),
        (0o2000, mode::SET_GROUP_ID),
        (0o1000, mode::STICKY),
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
    use crate::context::Spool;

    fn entry(kind: Kind, mode: u32) -> Entry {
        Entry {
            path: "a/b".into(),
            kind,
            mode,
            mtime_ns: 1_700_000_000_123_456_789,
            xattrs: Vec::new(),
            content: Default::default(),
        }
    }

    fn announce(entry: &Entry, link: Option<&str>, is_marked: bool) -> Stat {
        let first = link.map(|path| Entry {
            path: path.to_owned(),
            ..entry.clone()
        });
        let entries = [entry.clone()].into_iter().chain(first).collect();
        let context = SourceContext::new(entries, Spool::in_memory(Vec::new()));
        let visible = Visible {
            entry: 0,
            link: link.map(|_| 1),
        };
        packet(&context, visible, is_marked).stat.expect("stat")
    }

    fn stat(entry: &Entry, link: Option<&str>) -> Stat {
        announce(entry, link, false)
    }

    #[test]
    fn a_mark_is_a_bit_of_the_mode_that_linux_does_not_know() {
        let file = entry(Kind::File { offset: 0, size: 3 }, 0o4755);

        let (plain, marked) = (announce(&file, None, false), announce(&file, None, true));

        assert_eq!(marked.mode, plain.mode | 0x1000_0000);
        assert_eq!(
            Stat {
                mode: plain.mode,
                ..marked
            },
            plain
        );
    }

    #[test]
    fn modes_are_those_of_go() {
        let file = Kind::File { offset: 0, size: 3 };
        let link = Kind::Symlink {
            target: "../c".into(),
        };
        for (kind, unix, go) in [
            (Kind::Directory, 0o755, 0x8000_01ed),
            (Kind::Directory, 0o1777, 0x8010_01ff),
            (file.clone(), 0o644, 0o644),
            (file.clone(), 0o4755, 0x0080_01ed),
            (file, 0o2755, 0x0040_01ed),
            (link, 0o777, 0x0800_01ff),
        ] {
            assert_eq!(
                stat(&entry(kind.clone(), unix), None).mode,
                go,
                "{kind:?} {unix:o}"
            );
        }
    }

    #[test]
    fn symbolic_and_hard_links_say_where_they_lead() {
        let symlink = entry(
            Kind::Symlink {
                target: "../c".into(),
            },
            0o777,
        );
        let file = entry(Kind::File { offset: 512, size: 3 }, 0o644);

        assert_eq!(
            (stat(&symlink, None).linkname.as_str(), stat(&symlink, None).size),
            ("../c", 4)
        );
        assert_eq!(
            (stat(&file, None).linkname.as_str(), stat(&file, None).size),
            ("", 3)
        );
        assert_eq!(stat(&file, Some("a/first")).linkname, "a/first");
    }

    #[test]
    fn times_keep_their_nanoseconds_and_owners_are_nobodys_business() {
        let stat = stat(&entry(Kind::Directory, 0o755), None);

        assert_eq!(stat.mod_time, 1_700_000_000_123_456_789);
        assert_eq!((stat.uid, stat.gid, stat.size), (0, 0, 0));
    }
}
