//! Verifies the signatures of requests: HMAC-SHA256 and, where it is accepted, the HMAC-SHA1 of faas-cli before 2022.
//!
//! `sha1=<hex HMAC-SHA1 of the body>` is what `faas-cli invoke --sign` sends in its releases under the MIT licence, and
//! OpenFaaS itself accepts it too. Known collisions of SHA-1 do not help to forge an HMAC.

use std::fmt;
use std::sync::Arc;

use function_host::Secret;
use function_host::policy::Tenant;
use function_host::signature::{HmacKeys, MalformedSignature, SignatureMismatch, SignatureVerifier};
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Digest, Sha256};

const SHA1_PREFIX: &str = "sha1=";

/// The length of an SHA-1 hash in bytes.
const SHA1_BYTES: usize = 20;

/// The keys that a request may be signed with: those of the builder or, with a policy, those of its tenants.
#[derive(Clone, Debug)]
pub struct SignatureKeys {
    secrets: Vec<KeysOfSecret>,
    accept_sha1: bool,
}

/// The keys in one secret, one per line. A signature made with any of them is valid.
#[derive(Clone)]
struct KeysOfSecret {
    /// The tenant that the keys belong to; `None` without a policy.
    tenant: Option<Arc<Tenant>>,
    sha256: HmacKeys,
    /// The keys for `sha1=` signatures; empty if these are not accepted.
    sha1: Vec<Hmac<Sha1>>,
}

impl SignatureKeys {
    /// Returns the keys in `secret`, which belong to no tenant; `None` if the secret has none.
    pub fn new(secret: &Secret, accept_sha1: bool) -> Option<Self> {
        Some(Self {
            secrets: vec![KeysOfSecret::new(None, secret, accept_sha1)?],
            accept_sha1,
        })
    }

    /// Returns the keys in the secrets of tenants. A secret without keys, as no secret at all, verifies nothing.
    pub fn of_tenants(secrets: impl IntoIterator<Item = (Arc<Tenant>, Secret)>, accept_sha1: bool) -> Self {
        let secrets = secrets.into_iter();
        let keys =
            secrets.filter_map(|(tenant, secret)| KeysOfSecret::new(Some(tenant), &secret, accept_sha1));
        Self {
            secrets: keys.collect(),
            accept_sha1,
        }
    }
}

impl SignatureKeys {
    /// Derives a key for another purpose from each of the keys. No derived key verifies a request, and no request is
    /// signed with one.
    pub(crate) fn derive(&self, purpose: &str) -> Self {
        let secrets = self.secrets.iter().map(|secret| KeysOfSecret {
            tenant: secret.tenant.clone(),
            sha256: secret.sha256.derive(purpose),
            sha1: Vec::new(),
        });
        Self {
            secrets: secrets.collect(),
            accept_sha1: false,
        }
    }

    /// Returns the signature in `header` if it is the HMAC-SHA256 of `text`, which is not the body of a request, with
    /// the keys of one tenant only; `None` otherwise, also for a malformed header.
    pub(crate) fn verify_text(&self, text: &[u8], header: &str) -> Option<VerifiedSignature> {
        let keys = Self {
            secrets: self.secrets.clone(),
            accept_sha1: false,
        };
        let mut verifier = BodyVerifier::new(&keys, header).ok()?;
        verifier.hash_piece(text);
        verifier.into_verified_signature().ok()
    }
}

impl KeysOfSecret {
    /// Returns the keys in `secret`; `None` if it has none.
    fn new(tenant: Option<Arc<Tenant>>, secret: &Secret, accept_sha1: bool) -> Option<Self> {
        let lines = secret.expose().split(|byte| *byte == b'\n');
        let sha1 = lines
            .map(<[u8]>::trim_ascii)
            .filter(|line| accept_sha1 && !line.is_empty())
            .filter_map(|line| Hmac::<Sha1>::new_from_slice(line).ok())
            .collect();
        Some(Self {
            tenant,
            sha256: HmacKeys::new(secret)?,
            sha1,
        })
    }
}

impl fmt::Debug for KeysOfSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.sha256, f)
    }
}

/// A signature that matched the body of its request, or the text that it signs: two requests with the same one have the
/// same body.
///
/// It is normalized: lower-case digits without surrounding blanks. What a caller may write differently is one signature.
#[derive(Clone, Debug)]
pub struct VerifiedSignature {
    text: String,
    tenant: Option<Arc<Tenant>>,
    /// The keys of the secret with the key that made the signature.
    keys: HmacKeys,
    /// The key that made the signature.
    own_key: HmacKeys,
}

impl PartialEq for VerifiedSignature {
    /// Compares signatures by their text and tenant; the keys of a tenant's secret may have been rotated in between.
    fn eq(&self, other: &Self) -> bool {
        (&self.text, &self.tenant) == (&other.text, &other.tenant)
    }
}

impl Eq for VerifiedSignature {}

impl VerifiedSignature {
    /// Returns the signature in its normalized form.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the keys of the secret with the key that made the signature. They sign what is sent to the caller.
    pub(crate) fn keys_of_signers_secret(&self) -> &HmacKeys {
        &self.keys
    }

    /// Returns the key that made the signature, alone. It signs what is to end with this key.
    pub(crate) fn own_key(&self) -> &HmacKeys {
        &self.own_key
    }

    /// Returns the tenant whose key made the signature; `None` without a policy.
    pub fn tenant(&self) -> Option<&Arc<Tenant>> {
        self.tenant.as_ref()
    }

    /// Returns the SHA-256 hash of the normalized signature in hexadecimal digits. It identifies the signature
    /// where the signature itself, which lets a request be sent again, must not be shown.
    pub fn sha256_fingerprint(&self) -> String {
        hex::encode(Sha256::digest(&self.text))
    }
}

/// Verifies the signature of a body that arrives in pieces, by hashing each piece with every key.
pub(super) struct BodyVerifier {
    header: String,
    /// One for each secret with keys.
    hmacs: Vec<(KeyOwner, BodyHmacsOfSecret)>,
}

/// The owner of a secret with keys.
struct KeyOwner {
    tenant: Option<Arc<Tenant>>,
    keys: HmacKeys,
}

/// The hashes of a body with each of the keys in one secret, of the kind that its signature has.
enum BodyHmacsOfSecret {
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
        let hmacs = keys.secrets.iter().map(|secret| {
            let hmac = BodyHmacsOfSecret::new(secret, header, keys.accept_sha1)?;
            let signer = KeyOwner {
                tenant: secret.tenant.clone(),
                keys: secret.sha256.clone(),
            };
            Ok((signer, hmac))
        });
        Ok(Self {
            header: header.to_owned(),
            hmacs: hmacs.collect::<Result<_, _>>()?,
        })
    }

    /// Returns the number of keys that the body is hashed with.
    pub(super) fn key_count(&self) -> usize {
        self.hmacs.iter().map(|(_, hmac)| hmac.key_count()).sum()
    }

    /// Hashes the next piece of the body, once for each key.
    pub(super) fn hash_piece(&mut self, piece: &[u8]) {
        for (_, hmac) in &mut self.hmacs {
            hmac.update(piece);
        }
    }

    /// Returns the signature if it matches the body with a key of no more than one tenant. Takes the same time wherever
    /// the signature differs, and whichever key matches.
    pub(super) fn into_verified_signature(self) -> Result<VerifiedSignature, SignatureMismatch> {
        let matches = self
            .hmacs
            .into_iter()
            .map(|(signer, hmac)| (signer, hmac.matching_key_position()));
        // Collected, so that no key is left out once one has matched.
        let matches: Vec<_> = matches.collect();
        let mut signers = matches
            .into_iter()
            .filter_map(|(signer, position)| Some((signer, position?)));
        let (KeyOwner { tenant, keys }, position) = signers.next().ok_or(SignatureMismatch)?;
        if let Some((other, _)) = signers.find(|(other, _)| other.tenant != tenant) {
            let name = |tenant: &Option<Arc<Tenant>>| tenant.as_ref().map(|tenant| tenant.name().to_string());
            tracing::error!(
                tenant = name(&tenant),
                other = name(&other.tenant),
                "two tenants have the same key; what is signed with it is rejected"
            );
            return Err(SignatureMismatch);
        }
        // The keys for both kinds of signatures are in the order of the secret's lines.
        let own_key = keys.key_at_position_alone(position).ok_or(SignatureMismatch)?;
        Ok(VerifiedSignature {
            // Both prefixes are lower-case already, and only digits follow.
            text: self.header.to_ascii_lowercase(),
            tenant,
            keys,
            own_key,
        })
    }
}

impl BodyHmacsOfSecret {
    fn new(keys: &KeysOfSecret, header: &str, accept_sha1: bool) -> Result<Self, MalformedSignature> {
        Ok(match header.strip_prefix(SHA1_PREFIX) {
            Some(digits) if accept_sha1 => {
                let mut expected = [0; SHA1_BYTES];
                hex::decode_to_slice(digits, &mut expected).map_err(|_| MalformedSignature)?;
                Self::Sha1 {
                    expected,
                    macs: keys.sha1.clone(),
                }
            }
            _ => Self::Sha256(SignatureVerifier::new(&keys.sha256, header)?),
        })
    }

    fn key_count(&self) -> usize {
        match self {
            Self::Sha256(verifier) => verifier.key_count(),
            Self::Sha1 { macs, .. } => macs.len(),
        }
    }

    fn update(&mut self, piece: &[u8]) {
        match self {
            Self::Sha256(verifier) => verifier.update(piece),
            Self::Sha1 { macs, .. } => macs.iter_mut().for_each(|mac| mac.update(piece)),
        }
    }

    /// Returns the position of the key with which the signature matches the body; `None` if it matches with none.
    fn matching_key_position(self) -> Option<usize> {
        match self {
            Self::Sha256(verifier) => verifier.position_of_matching_key(),
            Self::Sha1 { expected, macs } => {
                let macs = macs.into_iter().enumerate();
                macs.fold(None, |found, (position, mac)| {
                    let is_match = mac.verify_slice(&expected).is_ok();
                    found.or(is_match.then_some(position))
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use function_host::policy::Policy;

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
    fn a_sha1_signature_of_the_body_is_valid_and_one_of_another_body_or_with_other_digits_is_not() {
        for (key, body, digits) in HMAC_SHA1_TEST_VECTORS {
            let keys = signature_keys_with(key, true);
            let header = format!("sha1={digits}");
            let verified = verify_in_pieces(&keys, &format!(" {header} "), body).unwrap();
            assert_eq!(verified.as_str(), header);
            let own = |text: &[u8]| function_host::signature::sign_body(verified.own_key(), text);
            assert_eq!(
                own(b"x"),
                function_host::signature::sign_body(&HmacKeys::new(&Secret::new(key)).unwrap(), b"x")
            );
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
    fn a_signature_with_upper_case_digits_or_surrounding_blanks_is_verified_to_the_same_text() {
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

    const POLICY: &str = r#"{"tenants": {"acme": {"keys": ["a"]}, "globex": {"keys": ["g"]}}}"#;

    fn keys_of_tenants(keys: &[(&str, &str)]) -> SignatureKeys {
        let policy = Policy::parse(POLICY).unwrap();
        let secrets = keys
            .iter()
            .map(|(tenant, key)| (policy.tenant(tenant).unwrap().clone(), Secret::new(*key)));
        SignatureKeys::of_tenants(secrets, true)
    }

    fn sign(key: &str, body: &[u8]) -> String {
        function_host::signature::sign_body(&HmacKeys::new(&Secret::new(key)).unwrap(), body)
    }

    #[test]
    fn a_signature_belongs_to_the_tenant_whose_key_made_it() {
        let keys = keys_of_tenants(&[("acme", "old\nkey of acme"), ("globex", "key of globex")]);
        for (key, tenant) in [
            ("old", "acme"),
            ("key of acme", "acme"),
            ("key of globex", "globex"),
        ] {
            let verified = verify_in_pieces(&keys, &sign(key, b"body"), b"body").unwrap();
            assert_eq!(verified.tenant().unwrap().name().as_str(), tenant);
        }
        assert_eq!(
            verify_in_pieces(&keys, &sign("another", b"body"), b"body"),
            Err(SignatureMismatch)
        );
        let none = keys_of_tenants(&[]);
        assert_eq!(
            verify_in_pieces(&none, &sign("old", b"body"), b"body"),
            Err(SignatureMismatch)
        );
    }

    #[test]
    fn a_key_that_two_tenants_have_verifies_nothing() {
        let keys = keys_of_tenants(&[("acme", "shared\nown"), ("globex", "shared")]);
        assert_eq!(
            verify_in_pieces(&keys, &sign("shared", b"body"), b"body"),
            Err(SignatureMismatch)
        );
        assert!(verify_in_pieces(&keys, &sign("own", b"body"), b"body").is_ok());
        let twice = keys_of_tenants(&[("acme", "shared"), ("acme", "shared")]);
        assert!(verify_in_pieces(&twice, &sign("shared", b"body"), b"body").is_ok());
    }
}
