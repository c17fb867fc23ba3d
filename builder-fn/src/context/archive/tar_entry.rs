//! An entry of a tar, put together from its header and the extended headers before it.

use super::error::EntryProblem;
use super::header::TarHeader;
use super::pax::PaxRecords;

/// The content of the extended headers before a tar entry.
#[derive(Default)]
pub(super) struct ExtendedHeaders {
    pub(super) records: Option<PaxRecords>,
    /// The entry's name from a GNU long-name header.
    pub(super) name: Option<Vec<u8>>,
    /// The link target from a GNU long-link header.
    pub(super) link: Option<Vec<u8>>,
}

impl ExtendedHeaders {
    /// Creates the content of a PAX extended header.
    pub(super) fn with_records(records: PaxRecords) -> Self {
        Self {
            records: Some(records),
            ..Self::default()
        }
    }

    /// Creates the content of a GNU long-name header.
    pub(super) fn with_name(name: Vec<u8>) -> Self {
        Self {
            name: Some(name),
            ..Self::default()
        }
    }

    /// Creates the content of a GNU long-link header.
    pub(super) fn with_link(link: Vec<u8>) -> Self {
        Self {
            link: Some(link),
            ..Self::default()
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records.is_none() && self.name.is_none() && self.link.is_none()
    }

    /// Adds another extended header of the same entry; fails if both set one field.
    ///
    /// # Errors
    /// Fails if it sets a field that another one has set for the same entry. Some readers take the first, some the
    /// last, some prefer a kind of header; so a tar could have other names or sizes here than in the program that
    /// checked it.
    pub(super) fn add_extended_header(&mut self, more: Self) -> Result<(), EntryProblem> {
        set_once(&mut self.records, more.records, "records")?;
        set_once(&mut self.name, more.name, "its name")?;
        set_once(&mut self.link, more.link, "its target")?;
        let records = self.records.as_ref();
        for (field, is_in_both) in [
            (
                "its name",
                self.name.is_some() && records.is_some_and(|records| records.path.is_some()),
            ),
            (
                "its target",
                self.link.is_some() && records.is_some_and(|records| records.link_path.is_some()),
            ),
        ] {
            if is_in_both {
                return Err(EntryProblem::DuplicateField { field });
            }
        }
        Ok(())
    }

    /// Returns the name of the entry: from the extended headers, or else from `header`.
    pub(super) fn name(&self, header: &TarHeader<'_>) -> Vec<u8> {
        let in_records = self.records.as_ref().and_then(|records| records.path.as_ref());
        in_records
            .or(self.name.as_ref())
            .cloned()
            .unwrap_or_else(|| header.name().into_owned())
    }
}

/// Sets `current` to `value` if that is given; fails if both are.
///
/// # Errors
/// Fails if `current` is set already.
fn set_once<T>(current: &mut Option<T>, value: Option<T>, field: &'static str) -> Result<(), EntryProblem> {
    match value {
        Some(_) if current.is_some() => Err(EntryProblem::DuplicateField { field }),
        Some(value) => {
            *current = Some(value);
            Ok(())
        }
        None => Ok(()),
    }
}

/// The type of a tar entry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryType {
    File,
    Folder,
    Symlink,
    HardLink,
    /// A GNU volume label. Its header is checked as any other's, and it is skipped with its content.
    Label,
}

/// A tar entry as its headers describe it, without its content.
pub(super) struct TarEntry {
    pub(super) entry_type: EntryType,
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    /// The length of the entry's content in bytes.
    pub(super) size: u64,
    pub(super) mode: u32,
    pub(super) mtime_ns: i64,
    pub(super) xattrs: Vec<(String, Vec<u8>)>,
}

impl TarEntry {
    /// Combines a header with its extended headers to an entry. `global_mtime_ns` is the time in a global header, which
    /// counts before that in `header` and after that in the PAX records of the entry. `size_limit` is the largest size.
    ///
    /// # Errors
    /// Fails if a context cannot have such an entry.
    pub(super) fn from_headers(
        name: Vec<u8>,
        header: &TarHeader<'_>,
        extensions: ExtendedHeaders,
        global_mtime_ns: Option<i64>,
        size_limit: u64,
    ) -> Result<Self, EntryProblem> {
        let records = extensions.records.unwrap_or_default();
        if records.sparse {
            return Err(EntryProblem::Sparse);
        }
        let entry_type = EntryType::from_headers(header, &name)?;
        // A long name replaces the prefix too.
        if records.path.is_none() && extensions.name.is_none() {
            header.check_no_stray_prefix()?;
        }
        let link = records.link_path.or(extensions.link);
        let number = |value: Option<i64>, field| value.ok_or(EntryProblem::Number { field });
        let in_header = number(header.size(), "size")?;
        let declared = match entry_type {
            EntryType::File | EntryType::Label => records.size.unwrap_or(in_header),
            // Some programs write the size of the folder, or of the link's target. Nothing follows, all the same.
            EntryType::Folder | EntryType::Symlink | EntryType::HardLink => 0,
        };
        let size = u64::try_from(declared).ok().filter(|size| *size <= size_limit);
        let size = size.ok_or(EntryProblem::Size {
            size: declared,
            limit: size_limit,
        })?;
        let mode = number(header.mode(), "mode")? & 0o7777;
        let seconds = number(header.mtime(), "time")?;
        let overriding = records.mtime_ns.or(global_mtime_ns);
        Ok(Self {
            entry_type,
            name,
            link: link.unwrap_or_else(|| header.link_name().to_vec()),
            size,
            mode: u32::try_from(mode).unwrap_or_default(),
            mtime_ns: overriding.unwrap_or(seconds.saturating_mul(1_000_000_000)),
            xattrs: records.xattrs.into_iter().collect(),
        })
    }
}

impl EntryType {
    /// Returns the type of the entry with this header and this full name.
    fn from_headers(header: &TarHeader<'_>, name: &[u8]) -> Result<Self, EntryProblem> {
        let is_folder_name = name.ends_with(b"/");
        match header.type_flag() {
            // Old tars mark a folder only by a slash after its name. Tar programs differ in whether that is the name in
            // the header, and in whether it makes folders of files of the newer type too.
            0 if is_folder_name != header.name_field().ends_with(b"/") => Err(EntryProblem::FolderOrFile),
            b'0' | b'7' if is_folder_name && header.size() != Some(0) => Err(EntryProblem::FolderOrFile),
            0 | b'0' | b'7' if is_folder_name => Ok(Self::Folder),
            0 | b'0' | b'7' => Ok(Self::File),
            b'1' => Ok(Self::HardLink),
            b'2' => Ok(Self::Symlink),
            b'5' => Ok(Self::Folder),
            b'S' => Err(EntryProblem::Sparse),
            b'V' => Ok(Self::Label),
            b'3' | b'4' => Err(EntryProblem::Special { kind: "device" }),
            b'6' => Err(EntryProblem::Special { kind: "fifo" }),
            flag => Err(EntryProblem::UnknownType {
                flag: char::from(flag),
            }),
        }
    }
}
