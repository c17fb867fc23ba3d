//! Tars constructed byte by byte, for the tests of the reader.

use tar::{EntryType, Header};

use super::*;

mod cases;
mod corpus;
mod properties;
mod readers;

/// A builder of tars, also of ones that no tar program would write.
#[derive(Clone, Debug, Default)]
pub(super) struct TarBuilder(pub(super) Vec<u8>);

impl TarBuilder {
    /// Adds a file of mode `0o644`.
    pub(super) fn with_file(self, name: &str, content: &[u8]) -> Self {
        self.with_entry(name, content, |_| ())
    }

    fn with_folder(self, name: &str) -> Self {
        self.with_entry(name, b"", |header| {
            header.set_entry_type(EntryType::Directory);
            header.set_mode(0o755);
        })
    }

    fn with_symlink(self, name: &str, target: &str) -> Self {
        self.with_entry(name, b"", |header| {
            header.set_entry_type(EntryType::Symlink);
            header.set_link_name_literal(target).unwrap();
        })
    }

    fn with_hard_link(self, name: &str, target: &str) -> Self {
        self.with_entry(name, b"", |header| {
            header.set_entry_type(EntryType::Link);
            header.set_link_name_literal(target).unwrap();
        })
    }

    fn with_entry_of_type(self, flag: u8, name: &str, content: &[u8]) -> Self {
        self.with_entry(name, content, |header| header.as_old_mut().linkflag = [flag])
    }

    /// Adds an extended header with PAX records: flag `x` for the next entry, `g` for all later ones.
    pub(super) fn with_pax_header(self, flag: u8, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let digits = (1..9)
                .find(|digits| (rest + digits).to_string().len() == *digits)
                .unwrap();
            data.extend(format!("{} {key}=", rest + digits).bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.with_entry_of_type(flag, "extended", &data)
    }

    /// Adds a ustar entry of mode `0o644`, which `change` may change before its checksum is set.
    fn with_entry(self, name: &str, content: &[u8], change: impl FnOnce(&mut Header)) -> Self {
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        header.set_entry_type(EntryType::Regular);
        change(&mut header);
        header.set_cksum();
        self.with_bytes(header.as_bytes()).with_padded_bytes(content)
    }

    /// Adds bytes without a header, and zeros up to the end of a block.
    fn with_padded_bytes(self, content: &[u8]) -> Self {
        let padding = content.len().next_multiple_of(BLOCK_BYTES) - content.len();
        self.with_bytes(content).with_bytes(&vec![0; padding])
    }

    /// Adds bytes without a header.
    fn with_bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Adds the two blocks of zeros that end a tar.
    pub(super) fn with_end_marker(self) -> Self {
        self.with_bytes(&[0; 2 * BLOCK_BYTES])
    }

    /// Adds the end marker, and reads the tar.
    fn read_with_end_marker(self) -> Result<ArchiveContents, ArchiveError> {
        read_in_pieces(&self.with_end_marker().0, &[])
    }

    /// Adds the end marker, and returns the problem of the entry for which the tar is rejected.
    fn problem_of_read_with_end_marker(self) -> EntryProblem {
        match self.read_with_end_marker().err() {
            Some(ArchiveError::Entry { problem, .. }) => problem,
            other => panic!("{other:?}"),
        }
    }
}

/// Reads a tar in pieces that end at the offsets `cuts`, and at its end.
fn read_in_pieces(tar: &[u8], cuts: &[usize]) -> Result<ArchiveContents, ArchiveError> {
    let mut reader = ArchiveReader::new(ArchiveLimits::default());
    let mut from = 0;
    for cut in cuts.iter().copied().chain([tar.len()]) {
        reader.parse_piece(&tar[from..cut.max(from)])?;
        from = cut.max(from);
    }
    reader.finish()
}

/// Returns a tar with a configuration and a Dockerfile, without the end marker.
fn small_tar_without_end_marker() -> TarBuilder {
    TarBuilder::default()
        .with_file("com.openfaas.docker.config", b"{}")
        .with_file("context/Dockerfile", b"FROM scratch\n")
}

/// Returns the paths and entries of an index, in order.
fn paths_and_entries(index: &Index) -> Vec<(String, Entry<'_>)> {
    let mut listed = Vec::new();
    let mut walk = index.walk();
    while let Some((at, path)) = walk.next_entry_or_none_then_restart() {
        listed.push((path.to_owned(), index.entry_by_number(at)));
    }
    listed
}

fn paths_in_contents(contents: &ArchiveContents) -> Vec<String> {
    let listed = paths_and_entries(&contents.entries).into_iter();
    listed.map(|(path, _)| path).collect()
}

fn entry_at_path<'a>(contents: &'a ArchiveContents, path: &str) -> Entry<'a> {
    let entry = contents.entries.get(path);
    entry.unwrap_or_else(|| panic!("{path} is not in {:?}", contents.entries))
}
