//! The extended attributes of an entry. Most entries have none.

use std::fmt;

/// Extended attributes in packed form: for each, the length of its name, the name, the length of its value, the value.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct ExtendedAttributes<'a>(&'a [u8]);

impl<'a> ExtendedAttributes<'a> {
    /// An empty set of extended attributes.
    pub(crate) const NONE: Self = Self(&[]);

    /// Packs extended attributes, given as names and values.
    pub(crate) fn pack<'b>(attributes: impl IntoIterator<Item = (&'b str, &'b [u8])>) -> Vec<u8> {
        let mut packed = Vec::new();
        for (name, value) in attributes {
            for part in [name.as_bytes(), value] {
                // Attributes come from a header of at most 1 MiB.
                let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
                packed.extend_from_slice(&length.to_le_bytes());
                packed.extend_from_slice(part);
            }
        }
        packed
    }

    /// Returns the extended attributes in a packed form, which [`pack`](Self::pack) has made.
    pub(crate) fn from_packed(packed: &'a [u8]) -> Self {
        Self(packed)
    }

    /// Returns the packed form of the extended attributes.
    pub(crate) fn as_packed(self) -> &'a [u8] {
        self.0
    }

    /// Returns whether there are no extended attributes.
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// Returns an iterator over the names and values of the extended attributes.
    pub fn iter(self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let name = split_part(&mut rest)?;
            Some((std::str::from_utf8(name).ok()?, split_part(&mut rest)?))
        })
    }
}

/// Splits a length and that many bytes off the front of `rest`, and returns the bytes.
fn split_part<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let (part, after) = after.split_at_checked(length)?;
    *rest = after;
    Some(part)
}

impl fmt::Debug for ExtendedAttributes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_attributes_are_unpacked_unchanged() {
        let large = vec![0xff; 70_000];
        let given = [("user.a", &b"1"[..]), ("user.b", b""), ("user.c", &large)];
        let packed = ExtendedAttributes::pack(given);
        assert!(ExtendedAttributes::from_packed(&packed).iter().eq(given));
        assert!(ExtendedAttributes::pack([]).is_empty());
        assert_eq!(ExtendedAttributes::NONE.iter().count(), 0);
    }
}
