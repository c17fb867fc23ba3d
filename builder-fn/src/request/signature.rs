//! Verifies the signatures of requests: the host's HMAC-SHA256, and the HMAC-SHA1 of faas-cli before 2022.
//!
//! `sha1=<hex HMAC-SHA1 of the body>` is what `faas-cli invoke --sign` sends in its releases under the MIT licence, and
//! OpenFaaS itself accepts it too. Known collisions of SHA-1 do not help to forge an HMAC.

use std::fmt;

use function_host::Secret;
use function_host::signature::{HmacKeys, MalformedSignature, SignatureMismatch, SignatureVerifier};
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Digest, Sha256};

const SHA1_PREFIX: &str = "sha1=";

/// The length of an SHA-1 hash in bytes.
const SHA1_BYTES: usize = 20;

/// HMAC keys, one per line of the secret. A signature made with any of them is valid.
#[derive(Clone)]
pub struct SignatureKeys {
    sha256: HmacKeys,
    /// The keys for `sha1=` signatures; empty if these are not accepted.
    sha1: Vec<Hmac<Sha1>>,
}

impl SignatureKeys {
    /// Returns the keys in `secret`, or `None` if the secret has none.
    pub fn new(secret: &Secret, accept_sha1: bool) -> Option<Self> {
        let lines = secret.expose().split(|byte| *byte == b'\n');
        let sha1 = lines
            .map(<[u8]>::trim_ascii)
            .filter(|line| accept_sha1 && !line.is_empty())
            .filter_map(|line| Hmac::<Sha1>::new_from_slice(line).ok())
            .collect();
        Some(Self {
            sha256: HmacKeys::new(secret)?,
            sha1,
        })
    }
}

impl fmt::Debug for SignatureKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.sha256, f)
    }
}

/// A signature that matched the body of its request: two requests with the same one have the same body.
///
/// It is normalized: lower-case digits without surrounding blanks. What a caller may write differently is one signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedSignature(String);

impl VerifiedSignature {
    /// Returns the signature in its normalized form.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the SHA-256 hash of the normalized signature in hexadecimal digits. It identifies the signature
    /// where the signature itself, which lets a request be sent again, must not be shown.
    pub fn sha256_fingerprint(&self) -> String {
        hex::encode(Sha256::digest(&self.0))
    }
}

/// Verifies a signature of a body that arrives in pieces.
pub(super) struct BodyVerifier {
    header: String,
    hmac: BodyHmac,
}

enum BodyHmac {
    Sha256(SignatureVerifier),
    Sha1 {
        expected: [u8; SHA1_BYTES],
        macs: Vec<Hmac<Sha1>>,
    },
}

impl BodyVerifier {
    /// Returns a verifier for the signature in `header`.
    pub(super) fn new(keys: &SignatureKeys, header: &str) -> Result<Self, MalformedSignature> {
        let header = header.trim();
        let hmac = match header.strip_prefix(SHA1_PREFIX) {
            Some(digits) if !keys.sha1.is_empty() => {
                let mut expected = [0; SHA1_BYTES];
                hex::decode_to_slice(digits, &mut expected).map_err(|_| MalformedSignature)?;
                BodyHmac::Sha1 {
                    expected,
                    macs: keys.sha1.clone(),
                }
            }
            _ => BodyHmac::Sha256(SignatureVerifier::new(&keys.sha256, header)?),
        };
        Ok(Self {
            header: header.to_owned(),
            hmac,
        })
    }

    /// Hashes the next piece of the body.
    pub(super) fn hash_piece(&mut self, piece: &[u8]) {
        match &mut self.hmac {
            BodyHmac::Sha256(verifier) => verifier.update(piece),
            BodyHmac::Sha1 { macs, .. } => macs.iter_mut().for_each(|mac| mac.update(piece)),
        }
    }

    /// Returns the signature if it matches the body. Takes the same time wherever the signature differs, and
    /// whichever key matches.
    pub(super) fn into_verified_signature(self) -> Result<VerifiedSignature, SignatureMismatch> {
        match self.hmac {
            BodyHmac::Sha256(verifier) => verifier.finish()?,
            BodyHmac::Sha1 { expected, macs } => {
                let matches = macs
                    .into_iter()
                    .fold(false, |found, mac| found | mac.verify_slice(&expected).is_ok());
                if !matches {
                    return Err(SignatureMismatch);
                }
            }
        }
        // Both prefixes are lower-case already, and only digits follow.
        Ok(VerifiedSignature(self.header.to_ascii_lowercase()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Test vectors for HMAC-SHA1: cases 2 and 3 of RFC 2202.
    const HMAC_SHA1_TEST_VECTORS: [(&[u8], &[u8], &str); 2] = [
        (
            b"Jefe",
            b"what do ya want for nothing?",
            "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79",
        ),
        (
            &[0xaa; 20],
            &[0xdd; 50],
            "125d7342b9ac11cd91a39af48aa17b4f63f175d3",
        ),
    ];

    fn signature_keys_with(key: &[u8], accept_sha1: bool) -> SignatureKeys {
        let lines = [b"another\n", key, b"\n"].concat();
        SignatureKeys::new(&Secret::new(lines), accept_sha1).unwrap()
    }

    fn verify_in_pieces(
        keys: &SignatureKeys,
        header: &str,
        body: &[u8],
    ) -> Result<VerifiedSignature, SignatureMismatch> {
        let mut verifier = BodyVerifier::new(keys, header).unwrap();
        body.chunks(7).for_each(|piece| verifier.hash_piece(piece));
        verifier.into_verified_signature()
    }

    #[test]
    fn a_sha1_signature_is_valid_only_with_the_right_key_and_body() {
        for (key, body, digits) in HMAC_SHA1_TEST_VECTORS {
            let keys = signature_keys_with(key, true);
            let header = format!("sha1={digits}");
            let verified = verify_in_pieces(&keys, &format!(" {header} "), body).unwrap();
            assert_eq!(verified.as_str(), header);
            assert_eq!(
                verify_in_pieces(&keys, &header, &body[1..]),
                Err(SignatureMismatch)
            );
            assert_eq!(
                verify_in_pieces(&keys, &format!("sha1={}", "0".repeat(40)), body),
                Err(SignatureMismatch)
            );
            assert!(BodyVerifier::new(&keys, "sha1=00").is_err());
            assert!(BodyVerifier::new(&keys, digits).is_err());
        }
    }

    #[test]
    fn a_signature_in_another_case_or_with_spaces_is_verified_to_the_same_text() {
        let (key, body, digits) = HMAC_SHA1_TEST_VECTORS[0];
        let keys = signature_keys_with(key, true);
        let signed = function_host::signature::sign_body(&HmacKeys::new(&Secret::new(key)).unwrap(), body);
        let sha256 = signed.strip_prefix("sha256=").unwrap();
        for (header, normalized) in [
            (
                format!("sha1={}", digits.to_uppercase()),
                format!("sha1={digits}"),
            ),
            (format!("\tsha1={digits}  "), format!("sha1={digits}")),
            (
                format!(" sha256={} ", sha256.to_uppercase()),
                format!("sha256={sha256}"),
            ),
        ] {
            let verified = verify_in_pieces(&keys, &header, body).unwrap();
            assert_eq!(verified.as_str(), normalized);
            assert_eq!(
                verified.sha256_fingerprint(),
                hex::encode(Sha256::digest(&normalized))
            );
        }
        assert!(BodyVerifier::new(&keys, &format!("SHA256={sha256}")).is_err());
    }

    #[test]
    fn a_sha1_signature_is_malformed_where_sha1_is_disabled() {
        let (key, _, digits) = HMAC_SHA1_TEST_VECTORS[0];
        assert!(BodyVerifier::new(&signature_keys_with(key, false), &format!("sha1={digits}")).is_err());
    }
}
