//! Request signatures: `sha256=<hex HMAC-SHA256 of the body as sent>`, as OpenFaaS clients send them.
//!
//! During a rotation, a secret may hold several keys, one per line: all of them verify, the first one signs.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::env::SettingsParser;
use crate::secret::{Secret, Secrets};

/// The prefix of a request signature, before the hexadecimal digits.
const SIGNATURE_PREFIX: &str = "sha256=";

/// The length of a SHA-256 digest, in bytes.
const SHA256_DIGEST_BYTES: usize = 32;

/// The length of a block of SHA-256, in bytes.
const SHA256_BLOCK_BYTES: usize = 64;

/// The length of the shortest key that a function may start with, in bytes: half of the digest's, which NIST SP 800-107
/// asks of a key for 128 bits of security.
pub const MIN_KEY_BYTES: usize = 16;

/// The reason why a secret is not one with a key on each line. The text shows no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyLineFault {
    /// A line is too short for a key.
    #[error("line {line} should be a key of at least {MIN_KEY_BYTES} bytes, and has {length}")]
    Short {
        /// The number of the line, from 1.
        line: usize,
        /// The line's length in bytes.
        length: usize,
    },
    /// The secret is a certificate or another kind of key, of which every line would be a key.
    #[error("line {line} begins a PEM text; a secret for signatures should have random text on each line")]
    Pem {
        /// The number of the line, from 1.
        line: usize,
    },
}

/// Checks that every line of a secret is empty or fit for a key: it has at least [`MIN_KEY_BYTES`] and begins no PEM
/// text. A function does this at its start.
///
/// # Errors
/// Fails with the first line that is not.
pub fn check_key_lines(secret: &Secret) -> Result<(), KeyLineFault> {
    for (index, line) in secret.expose().split(|byte| *byte == b'\n').enumerate() {
        let (line, length) = (line.trim_ascii(), line.trim_ascii().len());
        if begins_pem_text(line) {
            return Err(KeyLineFault::Pem { line: index + 1 });
        }
        if (1..MIN_KEY_BYTES).contains(&length) {
            return Err(KeyLineFault::Short {
                line: index + 1,
                length,
            });
        }
    }
    Ok(())
}

/// Adds a problem to `parser` if the secret `name` can be read and has a line that is not fit for a key.
pub fn report_unfit_keys_of_readable_secret(parser: &mut SettingsParser<'_>, secrets: &Secrets, name: &str) {
    if let Ok(secret) = secrets.read_secret(name)
        && let Err(weak) = check_key_lines(&secret)
    {
        parser.add_problem(
            &format!("secret {name}"),
            format!("is not fit for signatures: {weak}"),
        );
    }
}

/// Returns whether a line begins a PEM text (RFC 7468).
fn begins_pem_text(line: &[u8]) -> bool {
    line.starts_with(b"-----BEGIN ")
}

/// The HMAC keys of one secret: all of them verify, the first one signs. `Debug` does not show them.
#[derive(Clone)]
pub struct HmacKeys {
    first: Hmac<Sha256>,
    others: Vec<Hmac<Sha256>>,
}

impl HmacKeys {
    /// Parses HMAC keys from a secret with one key per line; returns `None` if there is no key.
    ///
    /// Empty lines are skipped. A PEM text has no keys: some of its lines are known to everybody.
    pub fn new(secret: &Secret) -> Option<Self> {
        let lines = secret
            .expose()
            .split(|byte| *byte == b'\n')
            .map(<[u8]>::trim_ascii);
        if lines.clone().any(begins_pem_text) {
            return None;
        }
        let mut keys = lines
            .filter(|line| !line.is_empty())
            // HMAC accepts keys of any length, so this skips none.
            .filter_map(|line| Hmac::<Sha256>::new_from_slice(line).ok());
        Some(Self {
            first: keys.next()?,
            others: keys.collect(),
        })
    }

    /// Derives keys for another purpose: the HMAC-SHA256 of `purpose` with each key. A signature by a derived key is
    /// none by the key that it is derived from, whatever the text.
    pub fn derive(&self, purpose: &str) -> Self {
        let derive = |key: &Hmac<Sha256>| {
            let mut mac = key.clone();
            mac.update(purpose.as_bytes());
            // HMAC fills a key up with zeros to the block of its hash.
            let mut derived = Zeroizing::new([0; SHA256_BLOCK_BYTES]);
            derived
                .iter_mut()
                .zip(mac.finalize().into_bytes())
                .for_each(|(byte, hashed)| *byte = hashed);
            Hmac::<Sha256>::new(&(*derived).into())
        };
        Self {
            first: derive(&self.first),
            others: self.others.iter().map(derive).collect(),
        }
    }

    /// Returns the key at a position in the secret, from 0, as the only one; `None` if there are fewer keys.
    pub fn key_at_position_alone(&self, position: usize) -> Option<Self> {
        let key = match position.checked_sub(1) {
            None => &self.first,
            Some(position) => self.others.get(position)?,
        };
        Some(Self {
            first: key.clone(),
            others: Vec::new(),
        })
    }
}

impl fmt::Debug for HmacKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HmacKeys({} redacted)", 1 + self.others.len())
    }
}

/// Returns the HMAC signature of a request's body, as the value of a header.
pub fn sign_body(keys: &HmacKeys, body: &[u8]) -> String {
    let mut signer = BodySigner::new(keys);
    signer.hash_piece(body);
    signer.finish()
}

/// A signer of a body that is read in pieces.
pub struct BodySigner(Hmac<Sha256>);

impl BodySigner {
    /// Creates a signer of one body, with the first of the keys.
    pub fn new(keys: &HmacKeys) -> Self {
        Self(keys.first.clone())
    }

    /// Adds the next piece of the body.
    pub fn hash_piece(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// Returns the signature of the whole body, as the value of a header.
    pub fn finish(self) -> String {
        format!(
            "{SIGNATURE_PREFIX}{}",
            hex::encode(self.0.finalize().into_bytes())
        )
    }
}

impl fmt::Debug for BodySigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BodySigner")
    }
}

/// The error for a signature header without `sha256=` and 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signature should be sha256= and 64 hexadecimal digits")]
pub struct MalformedSignature;

/// The error for a request signature that none of the HMAC keys produces for the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not match the body")]
pub struct SignatureMismatch;

/// A verifier of the signature of a request body that arrives in chunks.
pub struct SignatureVerifier {
    expected: [u8; SHA256_DIGEST_BYTES],
    macs: Vec<Hmac<Sha256>>,
}

impl SignatureVerifier {
    /// Creates a verifier of the request signature in `header`, to which the body is added chunk by chunk.
    pub fn new(keys: &HmacKeys, header: &str) -> Result<Self, MalformedSignature> {
        let digits = header
            .trim()
            .strip_prefix(SIGNATURE_PREFIX)
            .ok_or(MalformedSignature)?;
        let mut expected = [0; SHA256_DIGEST_BYTES];
        hex::decode_to_slice(digits, &mut expected).map_err(|_| MalformedSignature)?;
        let macs = std::iter::once(&keys.first)
            .chain(&keys.others)
            .cloned()
            .collect();
        Ok(Self { expected, macs })
    }

    /// Returns the number of keys that the request body is hashed with.
    pub fn key_count(&self) -> usize {
        self.macs.len()
    }

    /// Adds the next chunk of the request body to the verification.
    pub fn update(&mut self, chunk: &[u8]) {
        for mac in &mut self.macs {
            mac.update(chunk);
        }
    }

    /// Fails unless one of the keys gives the signature for the chunks that were added. Takes the same time whichever
    /// key matches, and wherever a wrong signature differs.
    pub fn verify(self) -> Result<(), SignatureMismatch> {
        self.position_of_matching_key()
            .map(|_| ())
            .ok_or(SignatureMismatch)
    }

    /// Returns the position in the secret, from 0, of the key that gives the signature for the chunks that were added;
    /// `None` if no key does. Computes the signature with every key, whichever matches.
    pub fn position_of_matching_key(self) -> Option<usize> {
        let macs = self.macs.into_iter().enumerate();
        macs.fold(None, |found, (position, mac)| {
            let is_match = mac.verify_slice(&self.expected).is_ok();
            found.or(is_match.then_some(position))
        })
    }
}

impl fmt::Debug for SignatureVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hmac_keys(text: &str) -> HmacKeys {
        HmacKeys::new(&Secret::new(text)).unwrap()
    }

    fn verify_whole_body(keys: &HmacKeys, header: &str, body: &[u8]) -> Result<(), SignatureMismatch> {
        let mut verifier = SignatureVerifier::new(keys, header).unwrap();
        for chunk in body.chunks(3) {
            verifier.update(chunk);
        }
        verifier.verify()
    }

    #[test]
    fn a_signature_equals_that_of_test_case_2_in_rfc_4231() {
        // Test case 2 of RFC 4231.
        assert_eq!(
            sign_body(&hmac_keys("Jefe"), b"what do ya want for nothing?"),
            "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn a_signature_is_valid_for_its_body_only() {
        let keys = hmac_keys("key");
        let header = sign_body(&keys, b"body of some length");
        assert_eq!(verify_whole_body(&keys, &header, b"body of some length"), Ok(()));
        assert_eq!(
            verify_whole_body(&keys, &header, b"body of some lengtH"),
            Err(SignatureMismatch)
        );
        assert_eq!(verify_whole_body(&keys, &header, b""), Err(SignatureMismatch));
    }

    #[test]
    fn every_hmac_key_verifies_and_the_first_one_signs() {
        let both = hmac_keys("new\r\n\n old \n");
        assert_eq!(
            verify_whole_body(&both, &sign_body(&hmac_keys("old"), b"body"), b"body"),
            Ok(())
        );
        assert_eq!(sign_body(&both, b"body"), sign_body(&hmac_keys("new"), b"body"));
        assert_eq!(
            verify_whole_body(&both, &sign_body(&hmac_keys("other"), b"body"), b"body"),
            Err(SignatureMismatch)
        );
    }

    #[test]
    fn the_key_that_made_a_signature_is_known_and_signs_alone() {
        let rotated = hmac_keys("new\nold\nolder");
        for (position, key) in ["new", "old", "older"].into_iter().enumerate() {
            let signed = sign_body(&hmac_keys(key), b"body");
            let mut verifier = SignatureVerifier::new(&rotated, &signed).unwrap();
            verifier.update(b"body");
            assert_eq!(verifier.position_of_matching_key(), Some(position));
            let only = rotated.key_at_position_alone(position).unwrap();
            assert_eq!(sign_body(&only, b"body"), signed);
            let by_others = sign_body(&hmac_keys("another"), b"body");
            for other in [
                by_others,
                sign_body(
                    &rotated.key_at_position_alone((position + 1) % 3).unwrap(),
                    b"body",
                ),
            ] {
                assert_eq!(verify_whole_body(&only, &other, b"body"), Err(SignatureMismatch));
            }
        }
        assert!(rotated.key_at_position_alone(3).is_none());
    }

    #[test]
    fn a_derived_key_signs_for_its_purpose_only_and_follows_a_rotation() {
        let (old, rotated) = (hmac_keys("old"), hmac_keys("new\nold"));
        let signed = sign_body(&old.derive("links"), b"text");
        assert_eq!(
            verify_whole_body(&rotated.derive("links"), &signed, b"text"),
            Ok(())
        );
        for other in [
            old.clone(),
            old.derive("records"),
            hmac_keys("new").derive("links"),
        ] {
            assert_eq!(
                verify_whole_body(&other, &signed, b"text"),
                Err(SignatureMismatch)
            );
        }
        // The derivation is HMAC-SHA256, as others compute it.
        let purpose = sign_body(&old, b"links");
        let derived = hex::decode(purpose.trim_start_matches(SIGNATURE_PREFIX)).unwrap();
        let mut expected = Hmac::<Sha256>::new_from_slice(&derived).unwrap();
        expected.update(b"text");
        assert_eq!(
            signed,
            format!(
                "{SIGNATURE_PREFIX}{}",
                hex::encode(expected.finalize().into_bytes())
            )
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
            assert!(
                SignatureVerifier::new(&hmac_keys("key"), header).is_err(),
                "{header}"
            );
        }
    }

    #[test]
    fn short_lines_and_pem_texts_are_rejected_as_keys_and_not_shown_in_the_fault() {
        let pem = "-----BEGIN PUBLIC KEY-----\nhunter2hunter2hunter2\n-----END PUBLIC KEY-----\n";
        for (text, fault) in [
            ("0123456789abcdef", None),
            ("0123456789abcdef\r\n\n fedcba9876543210 \n", None),
            (
                "0123456789abcde",
                Some("line 1 should be a key of at least 16 bytes, and has 15"),
            ),
            (
                "0123456789abcdef\n\nhunter2\n",
                Some("line 3 should be a key of at least 16 bytes, and has 7"),
            ),
            (pem, Some("line 1 begins a PEM text")),
            (
                &format!("0123456789abcdef\n {pem}"),
                Some("line 2 begins a PEM text"),
            ),
        ] {
            let found = check_key_lines(&Secret::new(text)).map_err(|weak| weak.to_string());
            match fault {
                None => assert_eq!(found, Ok(())),
                Some(fault) => {
                    let found = found.unwrap_err();
                    assert!(found.starts_with(fault) && !found.contains("hunter2"), "{found}");
                }
            }
        }
        assert!(HmacKeys::new(&Secret::new(pem)).is_none());
    }

    #[test]
    fn a_secret_with_empty_lines_only_has_no_keys() {
        assert!(HmacKeys::new(&Secret::new("\n \n")).is_none());
    }

    #[test]
    fn debug_output_does_not_contain_the_hmac_keys() {
        assert!(!format!("{:?}", hmac_keys("hunter2")).contains("hunter2"));
    }
}
