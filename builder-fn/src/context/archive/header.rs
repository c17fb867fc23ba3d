//! One header block of a tar, in any of the formats v7, ustar, GNU and PAX.

use std::borrow::Cow;
use std::ops::Range;

use super::error::EntryProblem;

/// The length of a tar block, in bytes.
pub(super) const BLOCK_BYTES: usize = 512;

/// The magic of the ustar format, and of PAX's, whose entries have ustar headers. Whatever the version after it is
/// (`00`, NULs or blanks, depending on the program), tar programs read the prefix.
const USTAR_MAGIC: &[u8] = b"ustar\0";
/// The magic and version of GNU's format.
const GNU_MAGIC: &[u8] = b"ustar  \0";
/// The offset of the magic in a header block.
const MAGIC_OFFSET: usize = 257;
/// The field of a ustar header with the prefix of the name.
const USTAR_PREFIX_FIELD: Range<usize> = 345..500;
/// The fields of a GNU header with the times of the last access and change, where ustar has the prefix.
const GNU_TIME_FIELDS: [Range<usize>; 2] = [345..357, 357..369];

/// A tar header whose checksum is correct.
pub(super) struct TarHeader<'a>(&'a tar::Header);

impl<'a> TarHeader<'a> {
    /// Parses the header in `block`. Returns `None` if its checksum is wrong. The sum of signed bytes is accepted too,
    /// as by other tar readers.
    pub(super) fn parse(block: &'a [u8; BLOCK_BYTES]) -> Option<Self> {
        let header = tar::Header::from_byte_slice(block);
        let stored = parse_octal_or_binary(&header.as_old().cksum)?;
        let bytes = || {
            let blanked = |(at, byte): (usize, &u8)| if (148..156).contains(&at) { b' ' } else { *byte };
            block.iter().enumerate().map(blanked)
        };
        let unsigned: i64 = bytes().map(i64::from).sum();
        let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
        (stored == unsigned || stored == signed).then_some(Self(header))
    }

    /// Returns the type flag of the entry.
    pub(super) fn type_flag(&self) -> u8 {
        self.0.as_old().linkflag[0]
    }

    /// Returns the name of the entry, including a ustar prefix.
    pub(super) fn name(&self) -> Cow<'a, [u8]> {
        let prefix = match self.has_magic(USTAR_MAGIC) {
            true => text_until_nul(&self.0.as_bytes()[USTAR_PREFIX_FIELD]),
            false => &[],
        };
        match prefix {
            [] => Cow::Borrowed(self.name_field()),
            prefix => Cow::Owned([prefix, b"/", self.name_field()].concat()),
        }
    }

    /// Returns the name field of the header, without a ustar prefix.
    pub(super) fn name_field(&self) -> &'a [u8] {
        text_until_nul(&self.0.as_old().name)
    }

    /// Checks that all tar programs read the same name from the header. Some read a prefix in headers of every format.
    ///
    /// # Errors
    /// Fails if something is where ustar has the prefix, and it belongs to no format.
    pub(super) fn check_no_stray_prefix(&self) -> Result<(), EntryProblem> {
        let bytes = self.0.as_bytes();
        let is_valid = if self.has_magic(USTAR_MAGIC) {
            true
        } else if self.has_magic(GNU_MAGIC) {
            GNU_TIME_FIELDS
                .into_iter()
                .all(|time| parse_octal_or_binary(&bytes[time]).is_some())
        } else {
            bytes[USTAR_PREFIX_FIELD].iter().all(|byte| *byte == 0)
        };
        is_valid.then_some(()).ok_or(EntryProblem::StrayPrefix)
    }

    fn has_magic(&self, magic: &[u8]) -> bool {
        self.0.as_bytes()[MAGIC_OFFSET..].starts_with(magic)
    }

    /// Returns the link target in the header.
    pub(super) fn link_name(&self) -> &'a [u8] {
        text_until_nul(&self.0.as_old().linkname)
    }

    /// Returns the length of the entry's content in bytes; `None` if the field is malformed.
    pub(super) fn size(&self) -> Option<i64> {
        parse_octal_or_binary(&self.0.as_old().size)
    }

    /// Returns the mode bits of the entry; `None` if the field is malformed.
    pub(super) fn mode(&self) -> Option<i64> {
        parse_octal_or_binary(&self.0.as_old().mode)
    }

    /// Returns the modification time of the entry in seconds since 1970; `None` if the field is malformed.
    pub(super) fn mtime(&self) -> Option<i64> {
        parse_octal_or_binary(&self.0.as_old().mtime)
    }
}

/// Returns the text in a header field, up to the first NUL or the end of the field.
fn text_until_nul(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0);
    &field[..end.unwrap_or(field.len())]
}

/// Parses the number in a header field: octal digits, after blanks, and before blanks or NULs (empty is 0), or, if the
/// top bit is set, big-endian two's complement.
///
/// Digits after a NUL are rejected, because some tar programs read them and others do not.
fn parse_octal_or_binary(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        // The top bit marks the form, the next one is the sign.
        let sign_extended = if first & 0x40 != 0 { first } else { first & 0x7f };
        let mut value = i128::from(sign_extended.cast_signed());
        for byte in &field[1..] {
            value = value.checked_mul(256)?.checked_add(i128::from(*byte))?;
        }
        return i64::try_from(value).ok();
    }
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| *byte != b' ').unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(blank).unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(end);
    if !rest.iter().all(blank) {
        return None;
    }
    digits.iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_numbers_in_a_tar_header_may_follow_blanks_and_precede_blanks_and_nuls() {
        for field in [&b"0000644\0"[..], b"    644 ", b"644\0\0\0\0\0", b"  644\0 \0"] {
            assert_eq!(parse_octal_or_binary(field), Some(0o644), "{field:?}");
        }
        assert_eq!(parse_octal_or_binary(b"77777777777\0"), Some(0o77_777_777_777));
        assert_eq!(parse_octal_or_binary(b"777777777777"), Some(0o777_777_777_777));
        assert_eq!(parse_octal_or_binary(b"\0\0\0\0"), Some(0));
        assert_eq!(parse_octal_or_binary(b"        "), Some(0));
    }

    #[test]
    fn a_number_field_of_a_tar_header_with_other_text_than_octal_digits_is_rejected() {
        for field in [
            &b"00008\0"[..],
            b"-1\0",
            b"0x10\0",
            b"12\x0034\0",
            b"1.5\0",
            b"\x0012\0",
            b" \x0012\0",
        ] {
            assert_eq!(parse_octal_or_binary(field), None, "{field:?}");
        }
    }

    #[test]
    fn binary_numbers_in_a_tar_header_have_a_sign_and_do_not_wrap_around() {
        assert_eq!(
            parse_octal_or_binary(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]),
            Some(256)
        );
        assert_eq!(
            parse_octal_or_binary(&[0x80, 0, 0, 0, 0x7f, 255, 255, 255, 255, 255, 255, 255]),
            Some(i64::MAX)
        );
        assert_eq!(parse_octal_or_binary(&[0xff; 12]), Some(-1));
        assert_eq!(parse_octal_or_binary(&[0xff, 0xff, 0xff, 0xfe]), Some(-2));
        // More than 64 bits must not wrap around to a small number.
        assert_eq!(
            parse_octal_or_binary(&[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1]),
            None
        );
        assert_eq!(
            parse_octal_or_binary(&[0xbf, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255]),
            None
        );
    }

    #[test]
    fn the_unsigned_and_the_signed_checksum_are_accepted_and_no_other() {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..3].copy_from_slice(&[0xc3, 0xa4, b'x']);
        header.set_cksum();
        assert!(TarHeader::parse(header.as_bytes()).is_some());
        let unsigned = header.cksum().unwrap();
        // The sum of signed bytes, of which two are negative.
        header.as_old_mut().cksum = *format!("{:06o}\0 ", unsigned - 512)
            .as_bytes()
            .first_chunk()
            .unwrap();
        assert!(TarHeader::parse(header.as_bytes()).is_some());
        header.as_old_mut().cksum = *format!("{:06o}\0 ", unsigned - 1)
            .as_bytes()
            .first_chunk()
            .unwrap();
        assert!(TarHeader::parse(header.as_bytes()).is_none());
    }
}
