//! The SHA-256 digest of a manifest, layer or other blob in a registry, or of a file on a web server.

use std::fmt;

/// A SHA-256 digest, displayed as `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sha256Digest([u8; 32]);

impl Sha256Digest {
    /// Returns the digest with these bytes.
    pub(crate) fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Parses `sha256:` and 64 lower-case hexadecimal digits, as registries have it.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::parse_hex(text.strip_prefix("sha256:")?)
    }

    /// Parses 64 lower-case hexadecimal digits.
    pub(crate) fn parse_hex(digits: &str) -> Option<Self> {
        let is_lower_case = !digits.bytes().any(|byte| byte.is_ascii_uppercase());
        let bytes = hex::decode(digits).ok().filter(|_| is_lower_case)?;
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex::encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_displayed_as_it_was_parsed_and_has_one_spelling() {
        let digits = "0123456789abcdef".repeat(4);
        let digest = Sha256Digest::parse(&format!("sha256:{digits}")).unwrap();
        assert_eq!(digest.to_string(), format!("sha256:{digits}"));
        assert_eq!(Sha256Digest::parse_hex(&digits), Some(digest));
        for text in [
            digits.clone(),
            format!("sha512:{digits}"),
            format!("sha256:{}", digits.to_uppercase()),
            format!("sha256:{}", &digits[1..]),
            format!("sha256:{digits}0"),
            "sha256:".into(),
        ] {
            assert_eq!(Sha256Digest::parse(&text), None, "{text}");
        }
    }
}
