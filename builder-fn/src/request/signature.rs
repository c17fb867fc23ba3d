//! Signatures of requests: the host's, and what faas-cli wrote before 2022.
//!
//! `sha1=<hex HMAC-SHA1 of the body>` is what `faas-cli invoke --sign` sends in its releases under the MIT licence, and OpenFaaS
//! itself takes it as well. That collisions of SHA-1 can be made does not help whoever would forge an HMAC with it.

use std::fmt;

use function_host::Secret;
use function_host::signature::{HmacKeys, Malformed, Mismatch, Verifier};
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;

const SHA1_PREFIX: &str = "sha1=";

/// The length of an SHA-1 in bytes.
const SHA1_LENGTH: usize = 20;

/// The keys of the secret, one a line: each is good.
#[derive(Clone)]
pub struct Keys {
    sha256: HmacKeys,
    /// Empty where the older form is not taken.
    sha1: Vec<Hmac<Sha1>>,
}

impl Keys {
    /// The keys of a secret; nothing where it has none.
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

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.sha256, f)
    }
}

/// Checks a signature over a body that arrives in pieces.
pub(super) enum BodyVerifier {
    Sha256(Verifier),
    Sha1 {
        expected: [u8; SHA1_LENGTH],
        macs: Vec<Hmac<Sha1>>,
    },
}

impl BodyVerifier {
    /// Expects the signature in `header`.
    pub(super) fn new(keys: &Keys, header: &str) -> Result<Self, Malformed> {
        match header.trim().strip_prefix(SHA1_PREFIX) {
            Some(digits) if !keys.sha1.is_empty() => {
                let mut expected = [0; SHA1_LENGTH];
                hex::decode_to_slice(digits, &mut expected).map_err(|_| Malformed)?;
                Ok(Self::Sha1 {
                    expected,
                    macs: keys.sha1.clone(),
                })
            }
            _ => Verifier::new(&keys.sha256, header).map(Self::Sha256),
        }
    }

    /// Takes the next piece of the body.
    pub(super) fn update(&mut self, piece: &[u8]) {
        match self {
            Self::Sha256(verifier) => verifier.update(piece),
            Self::Sha1 { macs, .. } => macs.iter_mut().for_each(|mac| mac.update(piece)),
        }
    }

    /// Whether the signature holds. Takes the same time wherever it differs, and whichever key it is.
    pub(super) fn finish(self) -> Result<(), Mismatch> {
        match self {
            Self::Sha256(verifier) => verifier.finish(),
            Self::Sha1 { expected, macs } => {
                let holds = macs
                    .into_iter()
                    .fold(false, |found, mac| found | mac.verify_slice(&expected).is_ok());
                if holds { Ok(()) } else { Err(Mismatch) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cases 2 and 3 of RFC 2202.
    const SIGNED: [(&[u8], &[u8], &str); 2] = [
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

    fn keys(key: &[u8], accept_sha1: bool) -> Keys {
        let lines = [b"another\n", key, b"\n"].concat();
        Keys::new(&Secret::new(lines), accept_sha1).unwrap()
    }

    fn verify(keys: &Keys, header: &str, body: &[u8]) -> Result<(), Mismatch> {
        let mut verifier = BodyVerifier::new(keys, header).unwrap();
        body.chunks(7).for_each(|piece| verifier.update(piece));
        verifier.finish()
    }

    #[test]
    fn the_older_form_is_taken_from_whoever_has_a_key() {
        for (key, body, digits) in SIGNED {
            let keys = keys(key, true);
            let header = format!("sha1={digits}");
            assert_eq!(verify(&keys, &header, body), Ok(()));
            assert_eq!(verify(&keys, &header, &body[1..]), Err(Mismatch));
            assert_eq!(
                verify(&keys, &format!("sha1={}", "0".repeat(40)), body),
                Err(Mismatch)
            );
            assert!(BodyVerifier::new(&keys, "sha1=00").is_err());
            assert!(BodyVerifier::new(&keys, digits).is_err());
        }
    }

    #[test]
    fn the_older_form_is_refused_where_it_is_switched_off() {
        let (key, _, digits) = SIGNED[0];
        assert!(BodyVerifier::new(&keys(key, false), &format!("sha1={digits}")).is_err());
    }
}
