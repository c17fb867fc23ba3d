//! Request signatures: `sha256=<hex HMAC-SHA256 of the body as sent>`, as OpenFaaS clients send them.
//!
//! A secret may hold several keys, one a line, while they are rotated: all are accepted, the first one signs.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::secret::Secret;

/// What stands before the digits.
const PREFIX: &str = "sha256=";

/// The length of the digest in bytes.
const DIGEST: usize = 32;

/// Keys that are ready for use. `Debug` does not show them.
#[derive(Clone)]
pub struct HmacKeys {
    first: Hmac<Sha256>,
    others: Vec<Hmac<Sha256>>,
}

impl HmacKeys {
    /// The keys of a secret: one a line, empty lines left out. `None` where there is no key at all.
    pub fn new(secret: &Secret) -> Option<Self> {
        let mut keys = secret
            .expose()
            .split(|byte| *byte == b'\n')
            .map(<[u8]>::trim_ascii)
            .filter(|line| !line.is_empty())
            // HMAC takes keys of every length, so none is left out here.
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

/// The signature of `body`, ready for a header.
pub fn sign(key: &HmacKeys, body: &[u8]) -> String {
    let mut mac = key.first.clone();
    mac.update(body);
    format!("{PREFIX}{}", hex::encode(mac.finalize().into_bytes()))
}

/// A header that cannot be a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signature should be sha256= and 64 hexadecimal digits")]
pub struct Malformed;

/// A signature that no key gives for this body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not match the body")]
pub struct Mismatch;

/// Checks a signature over a body that arrives in pieces.
pub struct Verifier {
    expected: [u8; DIGEST],
    macs: Vec<Hmac<Sha256>>,
}

impl Verifier {
    /// Expects the signature in `header`.
    pub fn new(key: &HmacKeys, header: &str) -> Result<Self, Malformed> {
        let digits = header.trim().strip_prefix(PREFIX).ok_or(Malformed)?;
        let mut expected = [0; DIGEST];
        hex::decode_to_slice(digits, &mut expected).map_err(|_| Malformed)?;
        let macs = std::iter::once(&key.first).chain(&key.others).cloned().collect();
        Ok(Self { expected, macs })
    }

    /// Takes the next piece of the body.
    pub fn update(&mut self, chunk: &[u8]) {
        for mac in &mut self.macs {
            mac.update(chunk);
        }
    }

    /// Whether the signature holds. Takes the same time wherever it differs, and whichever key it is.
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

    fn key(text: &str) -> HmacKeys {
        HmacKeys::new(&Secret::new(text)).unwrap()
    }

    fn verify(key: &HmacKeys, header: &str, body: &[u8]) -> Result<(), Mismatch> {
        let mut verifier = Verifier::new(key, header).unwrap();
        for chunk in body.chunks(3) {
            verifier.update(chunk);
        }
        verifier.finish()
    }

    #[test]
    fn signs_as_rfc_4231_says() {
        // Test case 2 of RFC 4231.
        assert_eq!(
            sign(&key("Jefe"), b"what do ya want for nothing?"),
            "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn a_signature_holds_for_its_body_alone() {
        let key = key("key");
        let header = sign(&key, b"body of some length");
        assert_eq!(verify(&key, &header, b"body of some length"), Ok(()));
        assert_eq!(verify(&key, &header, b"body of some lengtH"), Err(Mismatch));
        assert_eq!(verify(&key, &header, b""), Err(Mismatch));
    }

    #[test]
    fn every_key_of_a_rotation_is_accepted_and_the_first_signs() {
        let both = key("new\r\n\n old \n");
        assert_eq!(verify(&both, &sign(&key("old"), b"body"), b"body"), Ok(()));
        assert_eq!(sign(&both, b"body"), sign(&key("new"), b"body"));
        assert_eq!(
            verify(&both, &sign(&key("other"), b"body"), b"body"),
            Err(Mismatch)
        );
    }

    #[test]
    fn what_is_no_signature_is_refused_before_the_body_is_read() {
        let digits = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        for header in [
            "",
            "sha256=",
            "sha1=00",
            digits,
            &format!("sha256={digits}00"),
            "sha256=zz",
        ] {
            assert!(Verifier::new(&key("key"), header).is_err(), "{header}");
        }
    }

    #[test]
    fn a_secret_without_a_line_is_no_key() {
        assert!(HmacKeys::new(&Secret::new("\n \n")).is_none());
    }

    #[test]
    fn debug_shows_no_key() {
        assert!(!format!("{:?}", key("hunter2")).contains("hunter2"));
    }
}
