//! An entry, when its header and all that goes before it have been read.

use super::error::EntryProblem;
use super::header::Header;
use super::pax::Records;

/// Said by extended headers of the entry that follows them.
#[derive(Default)]
pub(super) struct Extensions {
    pub(super) records: Option<Records>,
    /// GNU's long name.
    pub(super) name: Option<Vec<u8>>,
    /// GNU's long link target.
    pub(super) link: Option<Vec<u8>>,
}

impl Extensions {
    pub(super) fn with_records(records: Records) -> Self {
        Self {
            records: Some(records),
            ..Self::default()
        }
    }

    pub(super) fn with_name(name: Vec<u8>) -> Self {
        Self {
            name: Some(name),
            ..Self::default()
        }
    }

    pub(super) fn with_link(link: Vec<u8>) -> Self {
        Self {
            link: Some(link),
            ..Self::default()
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records.is_none() && self.name.is_none() && self.link.is_none()
    }

    /// Notes what one more extended header says.
    ///
    /// # Errors
    /// When it says what another one has said of the same entry. Some readers take the first, some the last, some go
    /// by the kind of header; so a tar could have other names, or other sizes, here than for whoever checked it.
    pub(super) fn add(&mut self, more: Self) -> Result<(), EntryProblem> {
        replace(&mut self.records, more.records, "records")?;
        replace(&mut self.name, more.name, "its name")?;
        replace(&mut self.link, more.link, "its target")?;
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
                return Err(EntryProblem::SaidTwice { field });
            }
        }
        Ok(())
    }

    /// The name of the entry with this header.
    pub(super) fn name(&self, header: &Header<'_>) -> Vec<u8> {
        let in_records = self.records.as_ref().and_then(|records| records.path.as_ref());
        in_records
            .or(self.name.as_ref())
            .cloned()
            .unwrap_or_else(|| header.name().into_owned())
    }
}

fn replace<T>(known: &mut Option<T>, said: Option<T>, field: &'static str) -> Result<(), EntryProblem> {
    match said {
        Some(_) if known.is_some() => Err(EntryProblem::SaidTwice { field }),
        Some(said) => {
            *known = Some(said);
            Ok(())
        }
        None => Ok(()),
    }
}

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    File,
    Folder,
    Symlink,
    HardLink,
}

/// What is known of an entry.
pub(super) struct Described {
    pub(super) what: Type,
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    /// Bytes of content.
    pub(super) size: u64,
    pub(super) mode: u32,
    pub(super) mtime_ns: i64,
    pub(super) xattrs: Vec<(String, Vec<u8>)>,
}

impl Described {
    /// Puts together what header and extended headers say. `default_mtime_ns` is that of a global header, `limit`
    /// the largest size there can be.
    ///
    /// # Errors
    /// When it is nothing that a context can have.
    pub(super) fn read(
        name: Vec<u8>,
        header: &Header<'_>,
        extensions: Extensions,
        default_mtime_ns: Option<i64>,
        limit: u64,
    ) -> Result<Self, EntryProblem> {
        let records = extensions.records.unwrap_or_default();
        if records.sparse {
            return Err(EntryProblem::Sparse);
        }
        let what = Type::of(header.flag(), &name)?;
        let link = records.link_path.or(extensions.link);
        let number = |value: Option<i64>, field| value.ok_or(EntryProblem::Number { field });
        let in_header = number(header.size(), "size")?;
        let said = records.size.unwrap_or(in_header);
        let size = u64::try_from(said).ok().filter(|size| *size <= limit);
        let size = size.ok_or(EntryProblem::Size { size: said, limit })?;
        if what != Type::File && size > 0 {
            return Err(EntryProblem::ContentOfLink);
        }
        let mode = number(header.mode(), "mode")? & 0o7777;
        let seconds = number(header.mtime(), "time")?;
        let said_mtime = records.mtime_ns.or(default_mtime_ns);
        Ok(Self {
            what,
            name,
            link: link.unwrap_or_else(|| header.link_name().into_owned()),
            size,
            mode: u32::try_from(mode).unwrap_or_default(),
            mtime_ns: said_mtime.unwrap_or(seconds.saturating_mul(1_000_000_000)),
            xattrs: records.xattrs.into_iter().collect(),
        })
    }
}

impl Type {
    fn of(flag: u8, name: &[u8]) -> Result<Self, EntryProblem> {
        match flag {
            // Old tars mark folders by a slash alone.
            0 | b'0' | b'7' if name.ends_with(b"/") => Ok(Self::Folder),
            0 | b'0' | b'7' => Ok(Self::File),
            b'1' => Ok(Self::HardLink),
            b'2' => Ok(Self::Symlink),
            b'5' => Ok(Self::Folder),
            b'S' => Err(EntryProblem::Sparse),
            b'3' | b'4' => Err(EntryProblem::Special { what: "device" }),
            b'6' => Err(EntryProblem::Special { what: "fifo" }),
            _ => Err(EntryProblem::UnknownType {
                flag: char::from(flag),
            }),
        }
    }
}
