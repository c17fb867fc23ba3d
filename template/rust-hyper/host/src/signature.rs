//! Request signatures: `sha256=<hex HMAC-SHA256 of the body as sent>`, as OpenFaaS clients send them.
//!
//! During a rotation, a secret may hold several keys, one per line: all of them verify, the first one signs.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::secret::Secret;

/// The prefix of the hexadecimal digits.
const PREFIX: &str = "sha256=";

/// The length of a SHA-256 digest, in bytes.
const DIGEST_LENGTH: usize = 32;

/// The HMAC keys of one secret: all of them verify, the first one signs. `Debug` does not show them.
#[derive(Clone)]
pub struct HmacKeys {
    first: Hmac<Sha256>,
    others: Vec<Hmac<Sha256>>,
}

impl HmacKeys {
    /// Reads the keys from a secret with one key per line; returns `None` if there is no key.
    ///
    /// Empty lines are skipped.
    pub fn new(secret: &Secret) -> Option<Self> {
        let mut keys = secret
            .expose()
            .split(|byte| *byte == b'\n')
            .map(<[u8]>::trim_ascii)
            .filter(|line| !line.is_empty())
            // HMAC accepts keys of any length, so this skips none.
            .filter_map(|line| Hmac::<Sha256>::new_from_slice(line).ok());
        Some(Self {
            first: keys.next()?,
            others: keys.collect(),
        })
    }
}

impl fmt::Debug for HmacKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HmacKeys({} redacted)", 1 + self.others.len())
    }
}

/// Returns the signature of `body`, as the value of a header.
pub fn sign(keys: &HmacKeys, body: &[u8]) -> String {
    let mut mac = keys.first.clone();
    mac.update(body);
    format!("{PREFIX}{}", hex::encode(mac.finalize().into_bytes()))
}

/// The error for a header that is not a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signature should be sha256= and 64 hexadecimal digits")]
pub struct Malformed;

/// The error for a signature that none of the keys produces for the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not match the body")]
pub struct Mismatch;

/// Verifies the signature of a body that arrives in chunks.
pub struct Verifier {
    expected: [u8; DIGEST_LENGTH],
    macs: Vec<Hmac<Sha256>>,
}

impl Verifier {
    /// Creates a verifier of the signature in `header`.
    pub fn new(keys: &HmacKeys, header: &str) -> Result<Self, Malformed> {
        let digits = header.trim().strip_prefix(PREFIX).ok_or(Malformed)?;
        let mut expected = [0; DIGEST_LENGTH];
        hex::decode_to_slice(digits, &mut expected).map_err(|_| Malformed)?;
        let macs = std::iter::once(&keys.first)
            .chain(&keys.others)
            .cloned()
            .collect();
        Ok(Self { expected, macs })
    }

    /// Adds the next chunk of the body.
    pub fn update(&mut self, chunk: &[u8]) {
        for mac in &mut self.macs {
            mac.update(chunk);
        }
    }

    /// Verifies the signature. Takes the same time whichever key matches, and wherever a wrong signature differs.
    pub fn finish(self) -> Result<(), Mismatch> {
        let matches = self.macs.into_iter().fold(false, |found, mac| {
            found | mac.verify_slice(&self.expected).is_ok()
        });
        if matches { Ok(()) } else { Err(Mismatch) }
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> HmacKeys {
        HmacKeys::new(&Secret::new(text)).unwrap()
    }

    fn verify(keys: &HmacKeys, header: &str, body: &[u8]) -> Result<(), Mismatch> {
        let mut verifier = Verifier::new(keys, header).unwrap();
        for chunk in body.chunks(3) {
            verifier.update(chunk);
        }
        verifier.finish()
    }

    #[test]
    fn signatures_match_rfc_4231() {
        // Test case 2 of RFC 4231.
        assert_eq!(
            sign(&keys("Jefe"), b"what do ya want for nothing?"),
            "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn a_signature_is_valid_for_its_body_only() {
        let keys = keys("key");
        let header = sign(&keys, b"body of some length");
        assert_eq!(verify(&keys, &header, b"body of some length"), Ok(()));
        assert_eq!(verify(&keys, &header, b"body of some lengtH"), Err(Mismatch));
        assert_eq!(verify(&keys, &header, b""), Err(Mismatch));
    }

    #[test]
    fn every_key_verifies_and_the_first_signs() {
        let both = keys("new\r\n\n old \n");
        assert_eq!(verify(&both, &sign(&keys("old"), b"body"), b"body"), Ok(()));
        assert_eq!(sign(&both, b"body"), sign(&keys("new"), b"body"));
        assert_eq!(
            verify(&both, &sign(&keys("other"), b"body"), b"body"),
            Err(Mismatch)
        );
    }

    #[test]
    fn a_malformed_signature_is_rejected_before_the_body_is_read() {
        let digits = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        for header in [
            "",
            "sha256=",
            "sha1=00",
            digits,
            &format!("sha256={digits}00"),
            "sha256=zz",
        ] {
            assert!(Verifier::new(&keys("key"), header).is_err(), "{header}");
        }
    }

    #[test]
    fn a_secret_with_empty_lines_only_has_no_keys() {
        assert!(HmacKeys::new(&Secret::new("\n \n")).is_none());
    }

    #[test]
    fn debug_output_does_not_contain_the_keys() {
        assert!(!format!("{:?}", keys("hunter2")).contains("hunter2"));
    }
}
