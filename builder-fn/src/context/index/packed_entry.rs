//! The packed form of an entry in the index. There is one for each entry, so every byte counts.

use super::arena::Arena;
use crate::context::{Entry, ExtendedAttributes, Kind};

/// An entry of a source context, packed into 32 bytes.
///
/// Parts without a fixed length are in its text, which is in the arena: the length of the name in one byte, the name, a
/// link's target, and, if there are attributes, their length in four bytes and the attributes.
#[derive(Clone, Copy, Debug)]
pub(super) struct PackedEntry {
    /// The number of the entry's folder; [`TOP_LEVEL`](Self::TOP_LEVEL) if it is directly in the context.
    pub(super) folder: u32,
    /// The position of the entry's text in the arena.
    pub(super) text: u32,
    /// The high and the low half of the modification time. A single number of 64 bits would pad the entry to a multiple
    /// of 8 bytes.
    mtime_ns: [u32; 2],
    /// The offset of a file's content, or the number of the first entry in a folder.
    start: Uint48,
    /// The length of a file's content or of a link's target, or the number of entries in a folder.
    size: Uint48,
    /// The twelve bits of the mode, and flags in the upper bits.
    flags: u16,
}

/// An unsigned number of 48 bits, for offsets and sizes in a spool, which never has 256 TiB.
type Uint48 = [u8; 6];

const LOW_32_BITS: u64 = u32::MAX as u64;

const FILE_FLAG: u16 = 1 << 12;
const SYMLINK_FLAG: u16 = 1 << 13;
/// The flag of an entry whose text ends with extended attributes.
const XATTRS_FLAG: u16 = 1 << 14;
/// The flag of a file with several names (hard links). It stays set when the other names are replaced.
const HARD_LINKED_FLAG: u16 = 1 << 15;

impl PackedEntry {
    /// The size of a packed entry in bytes, without its text.
    pub(super) const BYTES: usize = size_of::<Self>();

    /// The folder number of entries that are directly in the context.
    pub(super) const TOP_LEVEL: u32 = u32::MAX;

    /// Packs `entry`, whose text is at the position `text`. A folder is empty at first.
    pub(super) fn new(folder: u32, text: u32, entry: &Entry<'_>) -> Self {
        let (kind, start, size) = match entry.kind {
            Kind::Folder => (0, 0, 0),
            Kind::File { offset, size } => (FILE_FLAG, offset, size),
            Kind::Symlink { target } => (SYMLINK_FLAG, 0, target.len() as u64),
        };
        let attributes = if entry.xattrs.is_empty() { 0 } else { XATTRS_FLAG };
        let mode = u16::try_from(entry.mode & 0o7777).unwrap_or_default();
        let mtime_ns = entry.mtime_ns.cast_unsigned();
        Self {
            folder,
            text,
            mtime_ns: [mtime_ns >> 32, mtime_ns & LOW_32_BITS]
                .map(|half| u32::try_from(half).unwrap_or_default()),
            start: pack_uint48(start),
            size: pack_uint48(size),
            flags: mode | kind | attributes,
        }
    }

    /// Returns whether the arena text of an entry is only its name, and can be shared with other entries of that name.
    pub(super) fn text_is_name(entry: &Entry<'_>) -> bool {
        !matches!(entry.kind, Kind::Symlink { .. }) && entry.xattrs.is_empty()
    }

    /// Adds the text of an entry to the arena, and returns its position.
    pub(super) fn add_text(texts: &mut Arena, name: &str, entry: &Entry<'_>) -> u32 {
        // A name has at most 255 bytes, and attributes come from a header of at most 1 MiB.
        let length = [u8::try_from(name.len()).unwrap_or(u8::MAX)];
        let target = match entry.kind {
            Kind::Symlink { target } => target,
            _ => "",
        };
        let attributes = entry.xattrs.as_packed();
        let attributes_length = u32::try_from(attributes.len()).unwrap_or(u32::MAX).to_le_bytes();
        let attributes_length = match attributes {
            [] => &[][..],
            _ => &attributes_length,
        };
        texts.add_concatenation(&[
            &length,
            name.as_bytes(),
            target.as_bytes(),
            attributes_length,
            attributes,
        ])
    }

    /// Returns the entry name at the beginning of an arena text.
    pub(super) fn name(text: &[u8]) -> &[u8] {
        split_name(text).0
    }

    /// Unpacks the entry. `text` is its text in the arena: its name, which the result does not have, its link's target
    /// and its extended attributes.
    pub(super) fn unpack<'a>(&self, text: &'a [u8]) -> Entry<'a> {
        let mut rest = split_name(text).1;
        let kind = match self.flags & (FILE_FLAG | SYMLINK_FLAG) {
            0 => Kind::Folder,
            FILE_FLAG => Kind::File {
                offset: self.content_offset_or_first_child(),
                size: self.content_or_target_length_or_child_count(),
            },
            _ => {
                let length =
                    usize::try_from(self.content_or_target_length_or_child_count()).unwrap_or(usize::MAX);
                let (target, after) = rest.split_at_checked(length).unwrap_or_default();
                rest = after;
                Kind::Symlink {
                    target: std::str::from_utf8(target).unwrap_or_default(),
                }
            }
        };
        let xattrs = match self.flags & XATTRS_FLAG {
            0 => ExtendedAttributes::NONE,
            _ => {
                let (length, after) = rest.split_first_chunk().unwrap_or((&[0; 4], &[]));
                let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
                ExtendedAttributes::from_packed(after.get(..length).unwrap_or_default())
            }
        };
        let [high, low] = self.mtime_ns.map(u64::from);
        Entry {
            kind,
            mode: u32::from(self.flags & 0o7777),
            mtime_ns: (high << 32 | low).cast_signed(),
            xattrs,
        }
    }

    pub(super) fn is_folder(&self) -> bool {
        self.flags & (FILE_FLAG | SYMLINK_FLAG) == 0
    }

    /// Returns whether a file may share its offset with another one.
    pub(super) fn may_be_hard_linked(&self) -> bool {
        self.flags & HARD_LINKED_FLAG != 0
    }

    /// Marks a file as one that may share its offset with another one.
    pub(super) fn set_may_be_hard_linked(&mut self) {
        self.flags |= HARD_LINKED_FLAG;
    }

    /// Returns the offset of a file's content, or the number of the first entry in a folder.
    pub(super) fn content_offset_or_first_child(&self) -> u64 {
        unpack_uint48(self.start)
    }

    pub(super) fn set_first_child(&mut self, number: u64) {
        self.start = pack_uint48(number);
    }

    /// Returns the length of a file's content or of a link's target, or the number of entries in a folder.
    pub(super) fn content_or_target_length_or_child_count(&self) -> u64 {
        unpack_uint48(self.size)
    }

    pub(super) fn set_child_count(&mut self, count: u64) {
        self.size = pack_uint48(count);
    }
}

/// Splits an arena text into the entry's name and the rest.
fn split_name(text: &[u8]) -> (&[u8], &[u8]) {
    let (length, rest) = text.split_first().unwrap_or((&0, &[]));
    rest.split_at_checked(usize::from(*length)).unwrap_or_default()
}

/// Packs `number` into 48 bits; a larger number becomes the largest of 48 bits.
fn pack_uint48(number: u64) -> Uint48 {
    let [bytes @ .., _, _] = number.min((1 << 48) - 1).to_le_bytes();
    bytes
}

fn unpack_uint48([a, b, c, d, e, f]: Uint48) -> u64 {
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_entry_is_unpacked_unchanged() {
        let packed = ExtendedAttributes::pack([("user.a", &[0, 255][..])]);
        let with = ExtendedAttributes::from_packed(&packed);
        let target = "t".repeat(4095);
        let file = |offset, size| Kind::File { offset, size };
        for (kind, mode, mtime_ns, xattrs) in [
            (Kind::Folder, 0o1755, 0, ExtendedAttributes::NONE),
            (Kind::Folder, 0, i64::MIN, with),
            (file(0, 0), 0o644, -1, ExtendedAttributes::NONE),
            (file((1 << 48) - 1, (1 << 48) - 1), 0o7777, i64::MAX, with),
            (file(1 << 40, 70_000), 0o644, 1_700_000_000_123_456_789, with),
            (
                Kind::Symlink { target: "é" },
                0o777,
                1 << 32,
                ExtendedAttributes::NONE,
            ),
            (Kind::Symlink { target: &target }, 0o777, u32::MAX.into(), with),
        ] {
            let entry = Entry {
                kind,
                mode,
                mtime_ns,
                xattrs,
            };
            for name in ["n".to_owned(), "é".repeat(127)] {
                let mut texts = Arena::default();
                let text = PackedEntry::add_text(&mut texts, &name, &entry);
                PackedEntry::add_text(&mut texts, "another text", &entry);
                let mut packed = PackedEntry::new(7, text, &entry);
                let text = texts.chunk_bytes_from(text);
                assert_eq!(PackedEntry::name(text), name.as_bytes());
                assert_eq!(packed.unpack(text), entry);
                packed.set_may_be_hard_linked();
                assert_eq!(
                    (packed.unpack(text), packed.folder, packed.may_be_hard_linked()),
                    (entry, 7, true)
                );
            }
        }
    }

    #[test]
    fn a_packed_entry_takes_32_bytes() {
        assert_eq!(PackedEntry::BYTES, 32);
    }

    #[test]
    fn offsets_and_sizes_above_48_bits_do_not_wrap_around() {
        let entry = Entry {
            kind: Kind::File {
                offset: 1 << 48,
                size: u64::MAX,
            },
            mode: 0,
            mtime_ns: 0,
            xattrs: ExtendedAttributes::NONE,
        };
        let most = (1 << 48) - 1;
        assert_eq!(
            PackedEntry::new(0, 0, &entry).unpack(b"").kind,
            Kind::File {
                offset: most,
                size: most
            }
        );
    }
}
