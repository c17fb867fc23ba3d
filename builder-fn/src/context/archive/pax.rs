//! The records of a PAX extended header (POSIX.1-2001, "pax Interchange Format") that a context uses.

use std::collections::BTreeMap;

/// The fields of a PAX extended header, which override those of the entry's own header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PaxRecords {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link_path: Option<Vec<u8>>,
    pub(super) size: Option<i64>,
    pub(super) mtime_ns: Option<i64>,
    pub(super) xattrs: BTreeMap<String, Vec<u8>>,
    /// Whether the entry is a sparse file in one of GNU's formats.
    pub(super) sparse: bool,
}

/// The prefix of the key of an extended attribute, before the attribute's name.
const XATTR_KEY_PREFIX: &str = "SCHILY.xattr.";

impl PaxRecords {
    /// Parses the content of a PAX extended header.
    ///
    /// # Errors
    /// With the reason why it is malformed.
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
            records.set_record(key, value)?;
        }
        Ok(records)
    }

    /// Sets the field of one record. An empty link path or time clears its field; an empty path or size is an error.
    /// Unknown keys are ignored.
    fn set_record(&mut self, key: &str, value: &[u8]) -> Result<(), &'static str> {
        // POSIX lets an empty value remove another one, and tar programs differ in which.
        if value.is_empty() && matches!(key, "path" | "size") {
            return Err("a record sets an empty path or size");
        }
        // An empty value removes an earlier one.
        let given = (!value.is_empty()).then_some(value);
        match key {
            "path" => self.path = given.map(<[u8]>::to_vec),
            "linkpath" => self.link_path = given.map(<[u8]>::to_vec),
            "size" => self.size = given.map(parse_decimal).transpose()?,
            "mtime" => self.mtime_ns = given.map(seconds_to_nanos).transpose()?,
            _ if key.starts_with("GNU.sparse.") => self.sparse = true,
            _ => {
                if let Some(name) = key
                    .strip_prefix(XATTR_KEY_PREFIX)
                    .filter(|name| is_kept_xattr(name))
                {
                    self.xattrs.insert(name.to_owned(), value.to_vec());
                }
            }
        }
        Ok(())
    }

    /// Returns the first of the fields that are set here and that a global header must not set, because they make sense
    /// only for one entry; `None` if there is none.
    pub(super) fn field_forbidden_in_global_header(&self) -> Option<&'static str> {
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

/// Returns whether an extended attribute is kept: one that tar restores for an ordinary user, or file capabilities.
///
/// Others, such as `trusted.overlay.…`, would control the file system under BuildKit.
fn is_kept_xattr(xattr: &str) -> bool {
    xattr.starts_with("user.") || xattr == "security.capability"
}

/// Splits the first PAX record off: `<length> <key>=<value>\n`, where the length counts the whole record.
fn split_record(data: &[u8]) -> Result<(&[u8], &[u8]), &'static str> {
    let digits = data
        .iter()
        .take(12)
        .position(|byte| *byte == b' ')
        .ok_or("a record has no length")?;
    let length =
        usize::try_from(parse_decimal(&data[..digits])?).map_err(|_| "a record's length is negative")?;
    if length <= digits + 1 || length > data.len() {
        return Err("a record's length is not that of the record");
    }
    let (record, rest) = data.split_at(length);
    let content = record[digits + 1..]
        .strip_suffix(b"\n")
        .ok_or("a record does not end where its length says")?;
    Ok((content, rest))
}

/// Parses a decimal number with an optional minus sign.
fn parse_decimal(text: &[u8]) -> Result<i64, &'static str> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err("a number is not decimal");
    }
    let text = std::str::from_utf8(text).map_err(|_| "a number is not decimal")?;
    text.parse().map_err(|_| "a number is too large")
}

/// Converts decimal seconds with an optional fraction to nanoseconds. A time out of range becomes the nearest in range;
/// more than 64 bits of seconds are an error.
fn seconds_to_nanos(text: &[u8]) -> Result<i64, &'static str> {
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
    let seconds = parse_decimal(whole)?.saturating_mul(1_000_000_000);
    Ok(if whole.starts_with(b"-") {
        seconds.saturating_sub(nanos)
    } else {
        seconds.saturating_add(nanos)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
        let rest = key.len() + value.len() + 3;
        let length = (1..5)
            .map(|width| rest + width)
            .find(|length| length.to_string().len() + rest == *length);
        [format!("{} {key}=", length.unwrap()).as_bytes(), value, b"\n"].concat()
    }

    #[test]
    fn known_pax_records_are_kept_and_others_ignored() {
        let data = [
            pax_record("path", "a/ü".as_bytes()),
            pax_record("linkpath", b"b"),
            pax_record("size", b"8589934592"),
            pax_record("mtime", b"12.5"),
            pax_record("comment", b"whatever"),
            pax_record("SCHILY.xattr.user.x", b"line\nline=\0"),
        ]
        .concat();
        let expected = PaxRecords {
            path: Some("a/ü".into()),
            link_path: Some(b"b".to_vec()),
            size: Some(8_589_934_592),
            mtime_ns: Some(12_500_000_000),
            xattrs: BTreeMap::from([("user.x".to_owned(), b"line\nline=\0".to_vec())]),
            sparse: false,
        };
        assert_eq!(PaxRecords::parse(&data).unwrap(), expected);
    }

    #[test]
    fn extended_attributes_that_control_the_file_system_are_dropped() {
        let data = [
            pax_record("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            pax_record("SCHILY.xattr.security.selinux", b"x"),
            pax_record("SCHILY.xattr.security.capability", b"cap"),
        ]
        .concat();
        let kept = PaxRecords::parse(&data).unwrap().xattrs;
        assert_eq!(
            kept,
            BTreeMap::from([("security.capability".to_owned(), b"cap".to_vec())])
        );
    }

    #[test]
    fn the_last_pax_record_of_a_key_wins_and_an_empty_time_removes_an_earlier_one() {
        let data = [
            pax_record("path", b"a"),
            pax_record("path", b"b"),
            pax_record("mtime", b"1"),
            pax_record("mtime", b""),
        ]
        .concat();
        let records = PaxRecords::parse(&data).unwrap();
        assert_eq!((records.path, records.mtime_ns), (Some(b"b".to_vec()), None));
    }

    #[test]
    fn pax_times_are_parsed_with_fractions_and_signs() {
        for (text, expected) in [
            ("0", 0),
            ("1.000000001", 1_000_000_001),
            ("1.9999999999", 1_999_999_999),
            ("-1.5", -1_500_000_000),
            ("-0.5", -500_000_000),
            ("9223372036854775807", i64::MAX),
        ] {
            assert_eq!(seconds_to_nanos(text.as_bytes()), Ok(expected), "{text}");
        }
        for text in ["", ".", "1.x", "1e3", "99999999999999999999"] {
            assert!(seconds_to_nanos(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn malformed_pax_records_are_rejected() {
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
            b"8 size=\n",
            b"8 path=\n",
        ] {
            assert!(PaxRecords::parse(data).is_err(), "{data:?}");
        }
    }
}
