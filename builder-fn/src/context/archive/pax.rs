//! The records of a PAX extended header (POSIX.1-2001, "pax Interchange Format"), as far as they matter here.

use std::collections::BTreeMap;

/// What extended headers say of an entry. Absent fields leave the word to the entry's own header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link_path: Option<Vec<u8>>,
    pub(super) size: Option<i64>,
    pub(super) mtime_ns: Option<i64>,
    pub(super) xattrs: BTreeMap<String, Vec<u8>>,
    /// The entry is stored without its holes, in one of GNU's ways.
    pub(super) sparse: bool,
}

const XATTR: &str = "SCHILY.xattr.";

impl Records {
    /// Parses the content of an extended header.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(mut data: &[u8]) -> Result<Self, &'static str> {
        let mut records = Self::default();
        while !data.is_empty() {
            let (record, rest) = split_record(data)?;
            data = rest;
            let equals = record
                .iter()
                .position(|byte| *byte == b'=')
                .ok_or("a record has no '='")?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            let key = std::str::from_utf8(key).map_err(|_| "a key is not UTF-8")?;
            records.set(key, value)?;
        }
        Ok(records)
    }

    fn set(&mut self, key: &str, value: &[u8]) -> Result<(), &'static str> {
        // An empty value takes back what was said before.
        let given = (!value.is_empty()).then_some(value);
        match key {
            "path" => self.path = given.map(<[u8]>::to_vec),
            "linkpath" => self.link_path = given.map(<[u8]>::to_vec),
            "size" => self.size = given.map(decimal).transpose()?,
            "mtime" => self.mtime_ns = given.map(nanoseconds).transpose()?,
            _ if key.starts_with("GNU.sparse.") => self.sparse = true,
            _ => {
                if let Some(name) = key.strip_prefix(XATTR).filter(|name| is_wanted(name)) {
                    self.xattrs.insert(name.to_owned(), value.to_vec());
                }
            }
        }
        Ok(())
    }

    /// A field that only makes sense for one entry, where there is one.
    pub(super) fn of_one_entry(&self) -> Option<&'static str> {
        [
            ("a path", self.path.is_some()),
            ("a link path", self.link_path.is_some()),
            ("a size", self.size.is_some()),
            ("attributes", !self.xattrs.is_empty()),
            ("holes", self.sparse),
        ]
        .into_iter()
        .find_map(|(field, set)| set.then_some(field))
    }
}

/// Attributes that a tar would restore for its user, and file capabilities. Others (`trusted.overlay.…`) would
/// let a context speak to the file system under BuildKit.
fn is_wanted(xattr: &str) -> bool {
    xattr.starts_with("user.") || xattr == "security.capability"
}

/// `<length> <key>=<value>\n`, where the length counts the whole record.
fn split_record(data: &[u8]) -> Result<(&[u8], &[u8]), &'static str> {
    let digits = data
        .iter()
        .take(12)
        .position(|byte| *byte == b' ')
        .ok_or("a record has no length")?;
    let length = usize::try_from(decimal(&data[..digits])?).map_err(|_| "a record's length is negative")?;
    if length <= digits + 1 || length > data.len() {
        return Err("a record's length is not that of the record");
    }
    let (record, rest) = data.split_at(length);
    let content = record[digits + 1..]
        .strip_suffix(b"\n")
        .ok_or("a record does not end where its length says")?;
    Ok((content, rest))
}

fn decimal(text: &[u8]) -> Result<i64, &'static str> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err("a number is not decimal");
    }
    let text = std::str::from_utf8(text).map_err(|_| "a number is not decimal")?;
    text.parse().map_err(|_| "a number is too large")
}

/// Seconds with an optional fraction to nanoseconds; what does not fit becomes the nearest that does.
fn nanoseconds(text: &[u8]) -> Result<i64, &'static str> {
    let point = text.iter().position(|byte| *byte == b'.');
    let (whole, fraction) = match point {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, &[][..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err("a time is not decimal");
    }
    let nanos = (0..9).fold(0i64, |sum, place| {
        sum * 10 + i64::from(fraction.get(place).map_or(0, |digit| digit - b'0'))
    });
    let seconds = decimal(whole)?.saturating_mul(1_000_000_000);
    Ok(if whole.starts_with(b"-") {
        seconds.saturating_sub(nanos)
    } else {
        seconds.saturating_add(nanos)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let rest = key.len() + value.len() + 3;
        let length = (1..5)
            .map(|width| rest + width)
            .find(|length| length.to_string().len() + rest == *length);
        [format!("{} {key}=", length.unwrap()).as_bytes(), value, b"\n"].concat()
    }

    #[test]
    fn records_that_matter_are_kept() {
        let data = [
            record("path", "a/ü".as_bytes()),
            record("linkpath", b"b"),
            record("size", b"8589934592"),
            record("mtime", b"12.5"),
            record("comment", b"whatever"),
            record("SCHILY.xattr.user.x", b"line\nline=\0"),
        ]
        .concat();
        let expected = Records {
            path: Some("a/ü".into()),
            link_path: Some(b"b".to_vec()),
            size: Some(8_589_934_592),
            mtime_ns: Some(12_500_000_000),
            xattrs: BTreeMap::from([("user.x".to_owned(), b"line\nline=\0".to_vec())]),
            sparse: false,
        };
        assert_eq!(Records::parse(&data).unwrap(), expected);
    }

    #[test]
    fn attributes_of_the_file_system_underneath_are_dropped() {
        let data = [
            record("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            record("SCHILY.xattr.security.selinux", b"x"),
            record("SCHILY.xattr.security.capability", b"cap"),
        ]
        .concat();
        let kept = Records::parse(&data).unwrap().xattrs;
        assert_eq!(
            kept,
            BTreeMap::from([("security.capability".to_owned(), b"cap".to_vec())])
        );
    }

    #[test]
    fn the_last_record_of_a_key_counts_and_an_empty_one_takes_it_back() {
        let data = [
            record("path", b"a"),
            record("path", b"b"),
            record("size", b"1"),
            record("size", b""),
        ]
        .concat();
        let records = Records::parse(&data).unwrap();
        assert_eq!((records.path, records.size), (Some(b"b".to_vec()), None));
    }

    #[test]
    fn times_have_nanoseconds_and_signs() {
        for (text, expected) in [
            ("0", 0),
            ("1.000000001", 1_000_000_001),
            ("1.9999999999", 1_999_999_999),
            ("-1.5", -1_500_000_000),
            ("-0.5", -500_000_000),
            ("9223372036854775807", i64::MAX),
        ] {
            assert_eq!(nanoseconds(text.as_bytes()), Ok(expected), "{text}");
        }
        for text in ["", ".", "1.x", "1e3", "99999999999999999999"] {
            assert!(nanoseconds(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn malformed_records_are_refused() {
        for data in [
            &b"x"[..],
            b"6 a=b",
            b"5 a=b\n",
            b"7 a=b\n",
            b"6 a:b\n",
            b" a=b\n",
            b"-6 a=b\n",
            b"99999999999999999999 a=b\n",
            b"2 \n",
            b"6 a=b\n\0",
            b"10 size=x\n",
        ] {
            assert!(Records::parse(data).is_err(), "{data:?}");
        }
    }
}
