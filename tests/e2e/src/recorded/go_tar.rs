//! Tar entries as Go's `archive/tar` writes them.

use anyhow::{Context as _, Result, bail, ensure};

const TAR_BLOCK_BYTES: usize = 512;

/// The owner of an entry, as user and group.
pub(super) struct EntryOwner<'a> {
    pub(super) id: u64,
    pub(super) name: &'a str,
}

/// The fields of a header other than name and size.
pub(super) struct HeaderFields<'a> {
    pub(super) kind: u8,
    pub(super) mode: u64,
    pub(super) mtime: u64,
    pub(super) owner: &'a EntryOwner<'a>,
}

/// Appends an entry as Go's `archive/tar` writes it. `ustar_prefix_or_pax_if_long` is the encoding of a name that is
/// over 100 bytes long or not ASCII.
pub(super) fn append_entry(
    tar: &mut Vec<u8>,
    path: &str,
    ustar_prefix_or_pax_if_long: Option<&str>,
    header: &HeaderFields<'_>,
    content: &[u8],
) -> Result<()> {
    match ustar_prefix_or_pax_if_long {
        None => append_header_block(tar, "", path, header, content.len(), true)?,
        Some("prefix") => {
            let end = path.len().min(156);
            let at = path.get(..end).and_then(|start| start.rfind('/'));
            let at = at.with_context(|| format!("{path} cannot be split"))?;
            append_header_block(tar, &path[..at], &path[at + 1..], header, content.len(), true)?;
        }
        Some("pax") => {
            let (folder, name) = path.rsplit_once('/').context("the name has no folder")?;
            let record = pax_record("path", path);
            let extended = HeaderFields {
                kind: b'x',
                mode: 0,
                mtime: 0,
                owner: &EntryOwner { id: 0, name: "" },
            };
            let name = first_100_ascii_characters(&format!("{folder}/PaxHeaders.0/{name}"));
            append_header_block(tar, "", &name, &extended, record.len(), false)?;
            append_padded(tar, record.as_bytes());
            append_header_block(
                tar,
                "",
                &first_100_ascii_characters(path),
                header,
                content.len(),
                true,
            )?;
        }
        Some(other) => bail!("{path}: unknown encoding {other:?} of a long name"),
    }
    append_padded(tar, content);
    Ok(())
}

/// Appends a header block as Go's `archive/tar` writes it, with zero device numbers if `with_zero_device_numbers`.
fn append_header_block(
    tar: &mut Vec<u8>,
    prefix: &str,
    name: &str,
    header: &HeaderFields<'_>,
    size: usize,
    with_zero_device_numbers: bool,
) -> Result<()> {
    let mut block = [0; TAR_BLOCK_BYTES];
    let mut put = |at: usize, width: usize, bytes: &[u8]| -> Result<()> {
        ensure!(
            bytes.len() <= width,
            "{:?} is too long",
            String::from_utf8_lossy(bytes)
        );
        block[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    };
    put(0, 100, name.as_bytes())?;
    put(100, 7, format!("{:07o}", header.mode).as_bytes())?;
    put(108, 7, format!("{:07o}", header.owner.id).as_bytes())?;
    put(116, 7, format!("{:07o}", header.owner.id).as_bytes())?;
    put(124, 11, format!("{size:011o}").as_bytes())?;
    put(136, 11, format!("{:011o}", header.mtime).as_bytes())?;
    put(148, 8, b"        ")?;
    put(156, 1, &[header.kind])?;
    put(257, 8, b"ustar\x0000")?;
    put(265, 31, header.owner.name.as_bytes())?;
    put(297, 31, header.owner.name.as_bytes())?;
    if with_zero_device_numbers {
        put(329, 7, b"0000000")?;
        put(337, 7, b"0000000")?;
    }
    put(345, 155, prefix.as_bytes())?;
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar.extend_from_slice(&block);
    Ok(())
}

/// Appends content, and zeros up to the end of the block.
fn append_padded(tar: &mut Vec<u8>, content: &[u8]) {
    tar.extend_from_slice(content);
    tar.resize(tar.len().next_multiple_of(TAR_BLOCK_BYTES), 0);
}

/// Returns a PAX record, which starts with its own length.
fn pax_record(key: &str, value: &str) -> String {
    let rest = format!(" {key}={value}\n");
    let mut length = rest.len() + 1;
    while length != rest.len() + length.to_string().len() {
        length += 1;
    }
    format!("{length}{rest}")
}

/// Returns the part of a name that Go writes to an ASCII field.
fn first_100_ascii_characters(name: &str) -> String {
    name.chars().filter(char::is_ascii).take(100).collect()
}

/// Appends the end-of-archive marker: two zero blocks.
pub(super) fn append_end_marker(tar: &mut Vec<u8>) {
    tar.resize(tar.len() + 2 * TAR_BLOCK_BYTES, 0);
}
