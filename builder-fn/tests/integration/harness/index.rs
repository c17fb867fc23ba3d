//! Checks of the invariants of a tar's index, for any bytes.

use std::collections::{BTreeMap, HashMap};

use builder_fn::context::{
    ArchiveContents, ArchiveLimits, ArchiveReader, Entry, Index, Kind, SourceContext, Spool,
};

use super::paths_and_entries;

const TAR_BLOCK_BYTES: usize = 512;

const HARNESS_LIMITS: ArchiveLimits = ArchiveLimits {
    body: 1 << 20,
    entries: 200,
    index: 64 << 10,
    small_file: 4 << 10,
};

/// The comparable content of a tar, or the text of the error that rejects it.
type IndexConfigSecretsAndWarningsOrError =
    Result<(Index, Option<Vec<u8>>, Option<Vec<u8>>, Vec<String>), String>;

/// Reads a tar, whose bytes may be any, and checks the invariants of its index and the content of every file.
///
/// The first byte says whether checksums are corrected before, so that changed headers are parsed; the second is the
/// length of the pieces.
pub(crate) fn check_index(mode_piece_and_tar: &[u8]) {
    let [mode, piece, tar @ ..] = mode_piece_and_tar else {
        return;
    };
    let mut tar = tar.to_vec();
    if mode & 1 == 1 {
        fix_checksums(&mut tar);
    }
    let whole = read_in_pieces(&tar, tar.len());
    let in_pieces = read_in_pieces(&tar, usize::from(*piece) + 1);
    assert_eq!(whole, in_pieces, "the result depends on the pieces");
    assert_eq!(
        whole,
        read_in_pieces_skipping_contents(&tar, usize::from(*piece) + 1),
        "contents matter"
    );
    assert_eq!(whole, read_stored(&tar), "a stored tar differs");
    let (index, config, secrets, warnings) = match whole {
        Ok(contents) => contents,
        Err(text) => return assert!(!text.contains(char::is_control), "{text:?}"),
    };
    assert!(
        warnings.iter().all(|text| !text.contains(char::is_control)),
        "{warnings:?}"
    );
    for small in [config, secrets].into_iter().flatten() {
        assert!(small.len() <= HARNESS_LIMITS.small_file);
    }
    let entries = paths_and_entries(&index);
    assert_eq!(entries.len(), index.len());
    check_limits_and_file_ranges(&entries, tar.len());
    check_paths_and_their_order(&entries);
    check_against_tar_crate_if_comparable(&entries, &tar);
    drop(entries);
    check_contents_of_files(index, tar);
}

fn read_in_pieces(tar: &[u8], piece_bytes: usize) -> IndexConfigSecretsAndWarningsOrError {
    let mut reader = ArchiveReader::new(HARNESS_LIMITS);
    for piece in tar.chunks(piece_bytes.max(1)) {
        reader.parse_piece(piece).map_err(|error| error.to_string())?;
    }
    comparable_contents(reader.finish().map_err(|error| error.to_string())?)
}

/// Reads a tar in pieces, without the contents that the reader does not need.
fn read_in_pieces_skipping_contents(tar: &[u8], piece_bytes: usize) -> IndexConfigSecretsAndWarningsOrError {
    let mut reader = ArchiveReader::new(HARNESS_LIMITS);
    let mut rest = tar;
    while !rest.is_empty() {
        let (next, after) = rest.split_at(piece_bytes.min(rest.len()));
        reader.parse_piece(next).map_err(|error| error.to_string())?;
        let skipped = reader.skip_content(after.len() as u64);
        let skipped = skipped.map_err(|error| error.to_string())?;
        rest = &after[usize::try_from(skipped).expect("no longer than the tar")..];
    }
    comparable_contents(reader.finish().map_err(|error| error.to_string())?)
}

fn read_stored(tar: &[u8]) -> IndexConfigSecretsAndWarningsOrError {
    let contents = ArchiveReader::new(HARNESS_LIMITS).read(&Spool::in_memory(tar.to_vec()));
    comparable_contents(contents.map_err(|error| error.to_string())?)
}

fn comparable_contents(contents: ArchiveContents) -> IndexConfigSecretsAndWarningsOrError {
    Ok((
        contents.entries,
        contents.config,
        contents.secrets,
        contents.warnings,
    ))
}

/// Corrects the checksum of each block in `tar` that could be a header.
pub(crate) fn fix_checksums(tar: &mut [u8]) {
    for block in tar.chunks_exact_mut(TAR_BLOCK_BYTES) {
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

/// Checks that an index keeps the limits, and that its files are in the tar and do not overlap.
fn check_limits_and_file_ranges(entries: &[(String, Entry<'_>)], length: usize) {
    assert!(entries.len() <= HARNESS_LIMITS.entries);
    let texts = |(path, entry): &(String, Entry<'_>)| {
        let xattrs = entry.xattrs.iter().map(|(name, value)| name.len() + value.len());
        let target = match entry.kind {
            Kind::Symlink { target } => target.len(),
            _ => 0,
        };
        // Only the last component of a path is stored.
        let name = path.rsplit('/').next().unwrap_or_default();
        name.len() + target + xattrs.sum::<usize>()
    };
    assert!(entries.iter().map(texts).sum::<usize>() <= HARNESS_LIMITS.index);
    let mut ranges = BTreeMap::new();
    for (_, entry) in entries {
        assert!(entry.mode <= 0o7777, "{entry:?}");
        if let Kind::File { offset, size } = entry.kind {
            let first = ranges.entry(offset).or_insert(size);
            assert_eq!(*first, size, "hard links are one file");
        }
    }
    let mut end = TAR_BLOCK_BYTES as u64;
    for (offset, size) in &ranges {
        assert!(
            *offset >= end && offset % TAR_BLOCK_BYTES as u64 == 0,
            "{ranges:?}"
        );
        // The offset of an empty file is that of the next header.
        end = offset + size + TAR_BLOCK_BYTES as u64;
        assert!(offset + size <= length as u64, "{ranges:?} in {length}");
    }
}

/// Checks that no path in an index leads out of the context, and that each is there once, in order and after its
/// folder.
fn check_paths_and_their_order(entries: &[(String, Entry<'_>)]) {
    let mut folders = std::collections::HashSet::new();
    for (at, (path, entry)) in entries.iter().enumerate() {
        let is_part = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
        assert!(path.split('/').all(is_part), "{path:?}");
        if let Some(before) = at.checked_sub(1) {
            let (before, _) = &entries[before];
            assert!(before.split('/').lt(path.split('/')), "{before:?}, then {path:?}");
        }
        if let Some((folder, _)) = path.rsplit_once('/') {
            assert!(folders.contains(folder), "{path:?} has no folder");
        }
        if entry.is_folder() {
            folders.insert(path.clone());
        }
    }
}

/// Checks that the `tar` crate reads the same files as the index, unless it rejects the tar or is known to read it
/// otherwise.
fn check_against_tar_crate_if_comparable(entries: &[(String, Entry<'_>)], tar: &[u8]) {
    let mut archive = tar::Archive::new(tar);
    let Ok(others) = archive.entries() else { return };
    let mut files = HashMap::new();
    let mut has_other_names = false;
    for other in others {
        let Ok(mut other) = other else { return };
        let kind = other.header().entry_type();
        // In headers of formats that do not have these types, the crate takes them for files.
        if kind.is_gnu_longname() || kind.is_gnu_longlink() || kind.is_pax_local_extensions() {
            return;
        }
        // Of a repeated record the crate takes the first, and this reader the last.
        let Ok(records) = other.pax_extensions() else {
            return;
        };
        let (mut paths, mut unread) = (0, false);
        for record in records.into_iter().flatten() {
            paths += usize::from(record.as_ref().is_ok_and(|record| record.key_bytes() == b"path"));
            unread |= record.is_err();
        }
        // The crate takes a line break in a value for the end of its record, and not the record's length.
        has_other_names |= paths > 1 || unread;
        has_other_names |= kind.is_hard_link();
        // The crate reads a prefix only in headers whose version is 00, and expects content of whatever has a size.
        let header = other.header().as_bytes();
        has_other_names |= header[263..265] != *b"00" && header[345] != 0;
        let may_have_content = kind.is_file() || kind.is_contiguous() || header[156] == b'V';
        if other.size() > 0 && !may_have_content {
            return;
        }
        let name = String::from_utf8_lossy(&other.path_bytes()).into_owned();
        let parts = name.split('/').filter(|part| !matches!(*part, "" | "."));
        let name = parts.collect::<Vec<_>>().join("/");
        files.insert(other.raw_file_position(), (other.size(), name));
    }
    for (path, entry) in entries {
        if let Kind::File { offset, size } = entry.kind {
            let seen = files.get(&offset);
            let seen = seen.unwrap_or_else(|| panic!("the tar crate does not see {entry:?} in {files:?}"));
            assert_eq!(seen.0, size, "{entry:?}, for the tar crate {seen:?}");
            let name = format!("context/{path}");
            assert!(
                has_other_names || seen.1 == name,
                "{name}, for the tar crate {seen:?}"
            );
        }
    }
}

/// Checks that the content of every file in the context is where the index says, and ends there.
fn check_contents_of_files(index: Index, tar: Vec<u8>) {
    let context = SourceContext::new(index, Spool::in_memory(tar.clone()));
    for (path, entry) in paths_and_entries(context.index()) {
        assert_eq!(context.get(&path), Some(entry));
        let Kind::File { offset, size } = entry.kind else {
            assert!(context.read_file(entry, 0, &mut [0]).is_err());
            continue;
        };
        let [offset_at, length] = [offset, size].map(|number| usize::try_from(number).expect("in the tar"));
        let mut content = vec![0; length];
        context
            .read_file_exact(entry, 0, &mut content)
            .expect("the whole content");
        assert_eq!(content, tar[offset_at..offset_at + length]);
        assert_eq!(
            context
                .read_file(entry, size, &mut [0])
                .expect("the end of the content"),
            0
        );
    }
}
